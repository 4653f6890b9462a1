"""`ckv-export MODEL --out DIR`: what it leaves, and that this stands on its own."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shlex
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import onnx
import pytest
from ckv_testing.hstu import SPEC as HSTU

from ckv_export.cache.record import HEADER_BYTES
from ckv_export.checkpoint.load import load_checkpoint
from ckv_export.checkpoint.native import save_native
from ckv_export.cli.export import _again, _print_summary, _summary, request_of
from ckv_export.cli.main import parser, with_default_verb
from ckv_export.contract import EventForm, Range, decode_io, prefill_io
from ckv_export.deploy.bundle import Exported, ExportRequest
from ckv_export.deploy.prepare import FormRequest
from ckv_export.manifest import FileEntry, open_bundle
from ckv_export.parity.report import ParityReport

FILES = {
    "prefill.onnx",
    "decode.onnx",
    "manifest.json",
    "parity.json",
    "parity.html",
    "parity_cases.npz",
    "polygraphy/compare.py",
    "polygraphy/data_loader.py",
}


def files_of(bundle: Path) -> set[str]:
    return {p.relative_to(bundle).as_posix() for p in bundle.rglob("*") if p.is_file()}


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def manifest_of(bundle: Path) -> dict:
    return json.loads((bundle / "manifest.json").read_text())


@pytest.fixture(params=["model.pt", "folder"])
def native(request, checkpoint, tmp_path: Path) -> Path:
    """The session's model as a native checkpoint, in both forms."""
    path = tmp_path / "native" / request.param
    path.parent.mkdir()
    save_native(path, checkpoint.spec, checkpoint.state)
    return path


def test_a_bundle_is_complete_and_nothing_lies_beside_it(bundle: Path):
    assert files_of(bundle) == FILES
    assert [p.name for p in bundle.parent.iterdir()] == [bundle.name]
    assert bundle.stat().st_mode & 0o777 == 0o755
    assert not [p for p in bundle.rglob("*") if p.stat().st_mode & 0o444 != 0o444]


def test_manifest_hashes_every_file(bundle: Path):
    files = manifest_of(bundle)["files"]
    assert set(files) == FILES - {"manifest.json"}
    for name, entry in files.items():
        path = bundle / name
        assert entry == {"sha256": sha256(path), "bytes": path.stat().st_size}


def test_manifest_names_its_source_and_versions(bundle: Path, run_folder: Path):
    manifest = manifest_of(bundle)
    assert manifest["schema_version"] == 3
    assert manifest["name"] == bundle.name
    sources = {f["name"]: f for f in manifest["source"]["files"]}
    assert manifest["source"]["kind"] == "fuxictr"
    assert {"feature_map.json", "model_config.yaml"} < set(sources)
    for name, entry in sources.items():
        path = run_folder / name
        assert (entry["sha256"], entry["bytes"]) == (sha256(path), path.stat().st_size)
    assert {"ckv-export", "torch", "onnx", "onnxruntime", "numpy"} <= set(manifest["versions"])
    assert all(seconds >= 0 for seconds in manifest["timings"].values())


@pytest.mark.parametrize(("name", "io"), [("prefill", prefill_io), ("decode", decode_io)])
def test_graphs_are_the_manifests(bundle: Path, name: str, io):
    """The ONNX file, the manifest and the contract say the same of every input and output."""
    graph = onnx.load(bundle / f"{name}.onnx").graph
    onnx.checker.check_model(str(bundle / f"{name}.onnx"), full_check=True)
    described = manifest_of(bundle)["graphs"][name]
    assert described["file"] == f"{name}.onnx"
    spec = io(open_bundle(bundle).model)
    for values, entries, tensors in (
        (graph.input, described["inputs"], spec.inputs),
        (graph.output, described["outputs"], spec.outputs),
    ):
        axes = [
            [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
            for value in values
        ]
        assert [v.name for v in values] == [e["name"] for e in entries]
        assert axes == [e["axes"] for e in entries]
        assert entries == json.loads(json.dumps([dataclasses.asdict(t) for t in tensors]))


def test_nothing_tells_of_the_machine_that_built_it(bundle: Path, run_folder: Path):
    """No absolute path of the checkpoint, the package or the output folder in any file."""
    package = Path(request_of.__code__.co_filename).parents[2]
    for path in (bundle / name for name in FILES):
        data = path.read_bytes()
        for place in (run_folder, bundle, package):
            assert str(place).encode() not in data, path.name


class Tags(HTMLParser):
    """Counts what an HTML page opens and closes."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_parity_report_as_data_and_as_a_page(bundle: Path):
    report = json.loads((bundle / "parity.json").read_text())
    manifest = manifest_of(bundle)
    assert report["passed"] is True
    assert [r["runtime"] for r in report["runtimes"]] == ["pytorch", "onnxruntime"]
    graphs = manifest["graphs"].values()
    outputs = {t["name"] for graph in graphs for t in graph["outputs"]}
    for runtime in report["runtimes"]:
        results = runtime["results"]
        assert {r["tensor"] for r in results} == outputs
        assert all(r["passed"] and r["error"] <= r["allowed"] for r in results)
        scores = [r["error"] for r in results if r["tensor"] == "score"]
        assert len(scores) == report["cases"] == manifest["parity"]["cases"]
        assert manifest["parity"]["worst_score_error"][runtime["runtime"]] == max(scores)
    page = (bundle / "parity.html").read_text()
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    assert all(name in page for name in outputs)
    assert "FAILED" not in page.split("</style>")[1]


def test_edge_sizes_are_among_the_cases(bundle: Path):
    window = manifest_of(bundle)["model"]["window"] - 1
    with np.load(bundle / "parity_cases.npz") as file:
        cases = [
            [file[f"{n}/in/{name}"].shape[1] for name in ("history_mask", "append_mask")]
            for n in range(len(file["names"]))
        ]
        candidates = {file[f"{n}/out/score"].shape[1] for n in range(len(cases))}
        empty = [n for n, sizes in enumerate(cases) if sum(sizes) == 0]
        masked = [not file[f"{n}/in/history_mask"].any() for n in range(len(cases))]
    totals = {sum(sizes) for sizes in cases}
    assert empty
    assert {1, window - 1, window, window + 1} <= totals
    assert max(totals) > window + 1
    assert {sizes[1] for sizes in cases} > {0, 1}
    assert min(candidates) == 1 < max(candidates)
    assert any(masked[n] for n, sizes in enumerate(cases) if sizes[0])


def test_parity_of_a_moved_bundle_without_its_checkpoint(
    cli, bundle_copy: Path, run_folder: Path, tmp_path: Path
):
    away = run_folder.rename(run_folder.with_name("away"))
    try:
        written = tmp_path / "again.json"
        result = cli("parity", bundle_copy, "--json", written)
    finally:
        away.rename(run_folder)
    assert result.code == 0
    assert result.err == ""
    again, first = json.loads(written.read_text()), manifest_of(bundle_copy)
    assert again["passed"] is True
    assert again["fingerprint"] == first["fingerprint"]
    assert (again["cases"], again["seed"]) == (first["parity"]["cases"], first["parity"]["seed"])


@pytest.mark.usefixtures("same_graphs")
def test_native_checkpoints_make_the_same_bundle(cli, native: Path, bundle: Path, tmp_path: Path):
    """The parity gate judges the run folder's graphs by the native file's reference model."""
    result = cli(native, "--out", tmp_path / "out")
    assert result.code == 0, result.err
    made = tmp_path / "out" / native.stem
    assert files_of(made) == FILES
    ours, theirs = manifest_of(made), manifest_of(bundle)
    for same in ("fingerprint", "model", "graphs", "profile", "operators", "parity"):
        assert ours[same] == theirs[same]
    assert ours["source"]["kind"] == "native"
    assert {f["name"] for f in ours["source"]["files"]} == (
        {"model.pt"} if native.is_file() else {"config.json", "model.safetensors"}
    )


def test_options_become_the_request():
    words = (
        "model --out o --name n --force --seed 3 --batch 1:2:3 --weights w --params p "
        "--embeddings external --item-features f.npz --item-key k --item-table --precision bf16 "
        "--pool refit --item-rows --item-ids i"
    )
    asked = [request_of(parser().parse_args(["export", *given.split()])) for given in
             ("model --out o", words, "model --out o --no-parity")]  # fmt: skip
    plain = ExportRequest(Path("model"), Path("o"))
    assert asked == [
        plain,
        ExportRequest(
            *(Path("model"), Path("o"), "n", "w", "p"),
            force=True,
            seed=3,
            axes=(("B", Range(1, 2, 3)),),
            form=FormRequest("external", Path("f.npz"), "k", True, "bf16", "refit", True, "i"),
        ),
        dataclasses.replace(plain, parity=False),
    ]


def test_printed_commands_repeat_what_was_done(cli, bundle: Path, run_folder: Path, tmp_path: Path):
    """The export command line printed at the end describes the very same request."""
    given = [
        *("--out", f"{tmp_path}/a place", "--name", "it's"),
        *("--batch", "1:2:3", "--candidates", "7", "--weights", "x.model", "--params", "p.yaml"),
    ]
    by_id = [
        *("--item-features", "f.npz", "--item-key", "k", "--item-table", "--precision", "fp16"),
        *("--item-ids", "our ids"),
    ]
    others = ("--embeddings", "external", "--pool", "input", "--item-rows", "--no-parity")
    for no_parity, more in ((False, ("--seed", "3", *by_id)), (True, others)):
        args = parser().parse_args(with_default_verb([str(run_folder), *given, *more]))
        request = request_of(args)
        printed = _printed_commands(bundle, request)
        assert printed[0][:2] == ["ckv-export", "export"]
        again = parser().parse_args(printed[0][1:])
        assert request_of(again) == dataclasses.replace(request, force=True)
        assert [words[1] for words in printed[1:]] == (
            ["build", "inspect"] if no_parity else ["build", "inspect", "parity"]
        )
        assert all(words[2] == str(bundle) for words in printed[1:])


def _printed_commands(bundle: Path, request) -> list[list[str]]:
    report = ParityReport("m", "f", 0, 0, (), {}) if request.parity else None
    exported = Exported(bundle, open_bundle(bundle), report)
    return [shlex.split(line) for line in _again(exported, request)]


def test_summary_prints_commands_that_can_be_copied(export, run_folder: Path):
    lines = export.printed.splitlines()
    commands = [shlex.split(line) for line in lines if line.startswith("  ckv-export ")]
    assert [words[1] for words in commands] == ["export", "build", "inspect", "parity"]
    assert commands[0][2] == str(run_folder)
    for words in commands[1:]:
        assert words[2] == str(export.bundle)


def summary_of(printed: str) -> dict[str, str]:
    """The table of the bundle, its values by what they are of."""
    table = printed.split("\nBundle ")[1].split("\n\u2514")[0]
    rows = [line.strip("\u2502 ").split("\u2502") for line in table.splitlines()]
    return {cells[0].strip(): cells[1].strip() for cells in rows if len(cells) == 2}


def test_summary_says_what_was_made(export, cli):
    """Sizes as `inspect` tells them, errors as the report does."""
    manifest, found = open_bundle(export.bundle), summary_of(export.printed)
    sizes = json.loads(cli("inspect", export.bundle, "--json").out)["sizes"]
    alone, *_, whole = sizes["comparisons"]
    files = {name: manifest.files[name].bytes / 1e6 for name in ("decode.onnx", "prefill.onnx")}
    cached, full = (alone["bytes_per_user"][name] for name in ("compact", "full_fp32"))
    each, whole_each = (size / sizes["cached_events"] for size in (cached, full))
    record = HEADER_BYTES + whole["bytes_per_user"]["compact"]
    worst = ", ".join(f"{n} {e:.1e}" for n, e in manifest.parity["worst_score_error"].items())
    assert found == {
        "model": f"sim, d {manifest.model.attention.d}, fingerprint {manifest.fingerprint[:16]}",
        "parity": f"passed in {manifest.parity['cases']} cases; worst score error {worst}",
        "precision": "fp32",
        "pools": "constant",
        "graphs": ", ".join(f"{name} {size:.1f} MB" for name, size in files.items()),
        "engines": "none",
        "cache per event": f"{each:g} B, {cached / full:.2%} of {whole_each:g} B of fp32 K and V",
        "cache per user": f"{cached:,} B, {record:,} B with the history",
        "seconds": f"{sum(manifest.timings.values()):.1f}",
    }
    assert export.printed.count("Parity of ") == 2
    assert "Routing" not in export.printed, "that is in the report"
    assert "No engines were built" in export.printed
    assert "What was built" not in export.printed
    assert "Parity was not checked" not in export.printed


def test_summary_of_a_model_of_layers_and_pools_as_inputs(bundle: Path):
    """Row numbers of two bytes, user parts in fp16."""
    sizes = {"weights.bin": 3_000_000, "pools.safetensors": 1_200_000, "parity.html": 9}
    changes = {"files": {name: FileEntry("", size) for name, size in sizes.items()}}
    changes |= {"model": HSTU, "precision": "bf16", "pool": "input"}
    changes |= {"source": {"item_rows": True}}
    manifest = dataclasses.replace(open_bundle(bundle), **changes)
    found = dict(_summary(Exported(bundle, manifest, None)))
    a, layers = HSTU.attention, HSTU.num_layers
    each, full = layers * 2 * (1 + a.user_k + 1 + a.user_v), layers * 2 * 4 * a.d
    told = f"{each:g} B, {each / full:.2%} of {full:g} B of fp32 K and V"
    assert layers > 1
    assert found["cache per event"] == told
    assert found["graphs"] == "weights.bin 3.0 MB, pools.safetensors 1.2 MB"
    assert (found["parity"], found["precision"], found["pools"]) == ("not checked", "bf16", "input")
    assert found["item rows"] == "looked up in the first layer"


def test_a_record_of_ids_alone_is_smaller(bundle: Path):
    plain = open_bundle(bundle)
    by_id = dataclasses.replace(plain, form=EventForm(item_key="item_id"))
    told = dict(_summary(Exported(bundle, by_id, None)))["cache per user"]
    cached, record = (int(n.replace(",", "")) for n in re.findall(r"([\d,]+) B", told))
    assert record == HEADER_BYTES + cached + 4 * plain.model.max_len


def test_notes_are_told(bundle: Path, capsys: pytest.CaptureFixture[str]):
    manifest = dataclasses.replace(open_bundle(bundle), notes=("its rotations [0, 1] are frozen",))
    _print_summary(Exported(bundle, manifest, None), ExportRequest(Path("m"), Path("o")))
    assert "\nnote: its rotations [0, 1] are frozen\n" in capsys.readouterr().out


def test_one_line_a_stage_with_its_seconds(export):
    titles = list(manifest_of(export.bundle)["timings"])
    assert titles[:4] == ["load", "split", "export prefill", "export decode"]
    for title in [*titles, "publish"]:
        lines = [line for line in export.printed.splitlines() if line.startswith(f"{title}  ")]
        assert len(lines) == 1, title
        assert re.search(r"done +\d+\.\d s", lines[0])


@pytest.mark.usefixtures("same_graphs")
def test_force_replaces_a_bundle_and_leaves_its_neighbours(
    cli, tree, run_folder: Path, bundle_copy: Path, monkeypatch: pytest.MonkeyPatch
):
    """From within it too."""
    out = bundle_copy.parent
    monkeypatch.chdir(bundle_copy / "polygraphy")
    (out / "notes.txt").write_text("mine")
    (bundle_copy / "stale.bin").write_text("of an older export")
    neighbour = shutil.copytree(bundle_copy, out / "neighbour")
    before = tree(neighbour)
    result = cli(run_folder, "--out=../..", "--name", "bundle", "--force", "--seed", "5")
    assert result.code == 0, result.err
    assert {p.name for p in out.iterdir()} == {"bundle", "neighbour", "notes.txt"}
    assert files_of(bundle_copy) == FILES
    assert manifest_of(bundle_copy)["parity"]["seed"] == 5
    assert tree(neighbour) == before


@pytest.mark.usefixtures("same_graphs")
def test_without_parity(cli, refused, run_folder: Path, tmp_path: Path):
    """No gate, no recorded cases; the summary says so, and `parity` refuses the bundle."""
    out = tmp_path / "out"
    result = cli(run_folder, "--out", out, "--name", "quick", "--no-parity")
    assert result.code == 0
    assert "Parity was not checked" in result.out
    assert {p.name for p in (out / "quick").iterdir()} == {
        "prefill.onnx",
        "decode.onnx",
        "manifest.json",
    }
    assert manifest_of(out / "quick")["parity"] is None
    refused("parity", out / "quick", watched=out, says=("without parity", "export it again"))


@pytest.mark.usefixtures("same_graphs")
def test_shape_options_become_the_profile(cli, run_folder: Path, tmp_path: Path, bundle: Path):
    out, default = tmp_path / "out", manifest_of(bundle)["profile"]
    options = ("--batch", "1:2:8", "--history", "0:20:40", "--appended", "3", "--candidates", "5:9")
    assert cli(run_folder, "--out", out, "--name", "m", "--no-parity", *options).code == 0
    window = manifest_of(bundle)["model"]["window"] - 1
    assert default["B"] != "1:2:8"
    assert manifest_of(out / "m")["profile"] == {
        "B": "1:2:8",
        "S": "0:20:40",
        "K": f"{min(0, window)}:{min(20, window)}:{min(40, window)}",
        "T": "3:3:3",
        "C": "5:9:9",
    }


@pytest.mark.usefixtures("same_graphs")
def test_name_is_the_checkpoints_by_default(cli, run_folder: Path, tmp_path: Path):
    assert cli("export", run_folder, "--out", tmp_path / "out", "--no-parity").code == 0
    (made,) = (tmp_path / "out").iterdir()
    assert made.name == load_checkpoint(run_folder).name
    assert made.name == next(run_folder.glob("*.model")).stem
