"""`ckv-export build BUNDLE` and `--build`: engines that the manifest vouches for."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shlex
from pathlib import Path

import pytest

from ckv_export.engine import available, default_targets, known_targets, load
from ckv_export.engine.targets import NOT_PORTABLE
from ckv_export.manifest import open_bundle

pytestmark = [
    pytest.mark.tensorrt,
    pytest.mark.skipif(
        "tensorrt_rtx" not in available(),
        reason="tensorrt_rtx is not installed: pip install 'ckv-export[rtx]'",
    ),
]

RTX = ("--backend", "tensorrt_rtx", "--optimization-level", "0")
GRAPHS = ("prefill", "decode")
POOL_STEPS = {"prefill": "none", "decode": "native"}


def manifest_of(bundle: Path) -> dict:
    return json.loads((bundle / "manifest.json").read_text())


def engines_of(bundle: Path) -> dict[str, dict]:
    return {engine["file"]: engine for engine in manifest_of(bundle)["engines"]}


def check(bundle: Path, file: str, graph: str, targets: list[str]) -> None:
    """An engine in the bundle is the one that the manifest describes."""
    manifest, path = manifest_of(bundle), bundle / file
    entry = engines_of(bundle)[file]
    assert (entry["graph"], entry["backend"]) == (graph, "tensorrt_rtx")
    assert entry["targets"] == targets
    assert entry["layers"] > 0
    data = path.read_bytes()
    assert len(data) > 1000
    hashed = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    assert manifest["files"][file] == hashed
    inputs = manifest["graphs"][graph]["inputs"]
    axes = {axis for tensor in inputs for axis in tensor["axes"] if isinstance(axis, str)}
    profile = manifest["profile"]
    assert entry["profile"] == {axis: profile[axis] for axis in profile if axis in axes}


def test_two_targets_in_one_engine_each(cli, bundle: Path, bundle_copy: Path):
    """Everything that was in the bundle stays, and the gate still passes."""
    result = cli("build", bundle_copy, *RTX, "--target", "sm86", "--target", "sm120")
    assert result.code == 0, result.err
    assert "Building engine" in result.err, "the library's own progress"
    assert result.out.startswith("verify hashes  ")
    files = {g: f"engines/{g}.tensorrt_rtx.sm86-sm120.engine" for g in GRAPHS}
    assert set(engines_of(bundle_copy)) == set(files.values())
    for graph, file in files.items():
        check(bundle_copy, file, graph, ["sm86", "sm120"])
        line = next(x for x in result.out.splitlines() if x.startswith(f"build {graph} engine"))
        assert re.search(r"done +\d+\.\d s .*sm86, sm120", line)
        entry, size = engines_of(bundle_copy)[file], (bundle_copy / file).stat().st_size
        about = (f"{size / 1e6:.2f} MB", entry["backend_version"], entry["layers"])
        row = next(x for x in result.out.splitlines() if file in x)
        assert [cell.strip() for cell in row.split("\u2502")[2:-1]] == [str(c) for c in about]
    for path in (p for p in bundle.rglob("*") if p.is_file()):
        if path.name != "manifest.json":
            assert (bundle_copy / path.relative_to(bundle)).read_bytes() == path.read_bytes()
    assert {p.name for p in bundle_copy.parent.iterdir()} == {bundle_copy.name}
    assert {p.name for p in bundle_copy.iterdir()} == {
        *(p.name for p in bundle.iterdir()),
        "engines",
    }
    assert cli("parity", bundle_copy).code == 0


def test_portable_by_default_and_beside_others(cli, bundle_copy: Path):
    """A second build adds its engines; the same build again replaces its own."""
    assert cli("build", bundle_copy, *RTX, "--target", "ada").code == 0
    first = engines_of(bundle_copy)
    assert cli("build", bundle_copy, *RTX, "--batch", "1:2:4").code == 0
    backend = load("tensorrt_rtx")
    assert default_targets(backend) == ("portable",)
    portable = [t for t in known_targets(backend) if t not in NOT_PORTABLE]
    both = engines_of(bundle_copy)
    assert set(both) == set(first) | {f"engines/{g}.tensorrt_rtx.portable.engine" for g in GRAPHS}
    for file in first:
        assert both[file] == first[file]
    for graph in GRAPHS:
        entry = both[f"engines/{graph}.tensorrt_rtx.portable.engine"]
        assert entry["targets"] == portable
        assert entry["profile"]["B"] == "1:2:4"
    assert manifest_of(bundle_copy)["profile"]["B"] != "1:2:4"
    open_bundle(bundle_copy)
    assert cli("build", bundle_copy, *RTX, "--target", "ada", "--batch", "1:2:4").code == 0
    again = engines_of(bundle_copy)
    assert set(again) == set(both)
    for file in first:
        assert again[file]["profile"]["B"] == "1:2:4"
    open_bundle(bundle_copy)


def test_export_with_engines(cli, same_graphs, run_folder: Path, tmp_path: Path):
    """One command does it all; the commands it prints build the same again."""
    words = (run_folder, "--out", tmp_path / "out", "--name", "all", "--build", *RTX)
    result = cli(*words, "--target", "sm86", "--candidates", "1:10:50")
    assert result.code == 0, result.err
    made = tmp_path / "out" / "all"
    for graph in GRAPHS:
        check(made, f"engines/{graph}.tensorrt_rtx.sm86.engine", graph, ["sm86"])
    assert manifest_of(made)["profile"]["C"] == "1:10:50"
    assert {"build prefill engine", "build decode engine"} <= set(manifest_of(made)["timings"])
    assert "Building engine" in result.err
    assert "What was built" in result.out
    assert "No engines were built" not in result.out
    sizes = [f"{Path(e).name} {(made / e).stat().st_size / 1e6:.1f} MB" for e in engines_of(made)]
    assert all(f"engines/{size}" in " ".join(result.out.split()) for size in sizes)
    printed = [shlex.split(x) for x in result.out.splitlines() if x.startswith("  ckv-export ")]
    build = next(command for command in printed if command[1] == "build")
    before = engines_of(made)
    assert cli(*build[1:]).code == 0
    after = engines_of(made)
    for engine in (*before.values(), *after.values()):
        del engine["seconds"]
    assert after == before


def test_two_profiles_from_a_file_and_the_engine_cache(
    cli, bundle_copy: Path, tmp_path: Path, monkeypatch
):
    """The second build is a copy of the first, found by what it is built from."""
    ranges = tmp_path / "profiles.yaml"
    ranges.write_text("short: {history: 0:5, batch: 1:8:32}\nlong: {history: 5:20, batch: 1}\n")
    cache = tmp_path / "cache"
    words = ("build", bundle_copy, *RTX, "--target=sm86", f"--profiles={ranges}")
    result = cli(*words, f"--engine-cache={cache}")
    assert result.code == 0, result.err
    entries = engines_of(bundle_copy)
    for entry in entries.values():
        assert [profile["B"] for profile in entry["profiles"]] == ["1:8:32", "1:1:1"]
        assert (entry["pool_step"], entry["plugin"]) == (POOL_STEPS[entry["graph"]], None)
        report = json.loads((bundle_copy / entry["report"]).read_text())
        assert report["source"] == "network before fusion"
        assert report["layer_count"] == entry["layers"]
        assert set(report["pool_steps"].values()) <= {"native"}
        precisions = {name for counts in report["precisions"].values() for name in counts}
        assert precisions == {"fp32"}
    assert "What was built" in result.out
    assert "--profile=1" in result.out
    data = {file: (bundle_copy / file).read_bytes() for file in entries}
    monkeypatch.chdir(bundle_copy)
    again = cli("build", ".", *words[2:], f"--engine-cache={cache}")
    assert again.code == 0, again.err
    assert Path.cwd() == bundle_copy, "and not in the bundle that was replaced"
    assert again.out.count("from the engine cache") == len(GRAPHS)
    assert {file: (bundle_copy / file).read_bytes() for file in entries} == data
    open_bundle(bundle_copy)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ckv_export.cli.build._print_summary", interrupt)
    late = cli(*words, f"--engine-cache={cache}").sentence()
    assert late == f"interrupted, but the engines of {bundle_copy} are built"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--plugin=embedded",), ("TensorRT for RTX", "has no plugins", "--plugin none")),
        (("--plugin-library=lib",), ("has no plugins",)),
        (("--plugin=library",), ("--plugin-library PATH", "ckv-export plugin build")),
        (("--plugin=none", "--plugin-library=lib"), ("is for --plugin library",)),
        (("--version-compatible",), ("has no --version-compatible",)),
        (("--hardware-compatible",), ("name the GPU generations as targets",)),
        (("--timing-cache=t",), ("has no --timing-cache",)),
        (("--profile=histroy=1:2",), ("'histroy'", "did you mean 'history'")),
        (("--profile=history",), ("AXIS=MIN:OPT:MAX",)),
        (("--profile=C=1", "--profiles=f"), ("not by both",)),
        (("--profiles=no.yaml",), ("no.yaml", "can't be read")),
        (("--candidates=0:0",), ("would never hold candidates",)),
    ],
)
def test_what_rtx_can_not_build(refused, bundle_copy: Path, options: tuple[str, ...], says):
    refused("build", bundle_copy, *RTX, *options, watched=bundle_copy, says=says)


@pytest.mark.parametrize("verb", ["build", "export"])
def test_engines_to_be_refitted_need_a_gpu(
    refused, run_folder: Path, bundle_copy: Path, monkeypatch, verb: str
):
    """TensorRT for RTX fails within such a build, with nothing but a CUDA error to show for it."""
    monkeypatch.setattr("ckv_export.engine.targets.present_gpu", lambda: None)
    dataclasses.replace(open_bundle(bundle_copy), pool="refit").write(bundle_copy)
    words = {
        "build": (bundle_copy,),
        "export": (run_folder, "--out", bundle_copy.parent / "out", "--pool=refit", "--build"),
    }
    says = ("only on a machine with a GPU", "--pool input")
    refused(verb, *words[verb], *RTX, "--target=sm86", watched=bundle_copy.parent, says=says)


def test_engine_options_without_engines(refused, run_folder: Path, tmp_path: Path):
    for option in ("--plugin=none", "--engine-cache=c", "--version-compatible", "--profile=C=1"):
        words = (run_folder, "--out", tmp_path / "out", option)
        refused(*words, watched=tmp_path / "out", says=("is for engines only",))


def test_engines_are_no_reason_for_other_numbers(cli, bundle, bundle_copy: Path):
    """A bundle with engines inspects like one without."""
    assert cli("build", bundle_copy, *RTX, "--target", "sm86").code == 0
    reports = [json.loads(cli("inspect", b, "--json").out) for b in (bundle, bundle_copy)]
    assert reports[0] == reports[1]


def test_a_damaged_engine_is_found(cli, refused, bundle_copy: Path):
    assert cli("build", bundle_copy, *RTX, "--target", "sm86").code == 0
    path = bundle_copy / "engines" / "decode.tensorrt_rtx.sm86.engine"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    for verb in ("parity", "inspect", "build"):
        refused(verb, bundle_copy, watched=bundle_copy, says=(path.name, "hash differs"))


def test_a_build_that_fails_leaves_the_bundle(cli, tree, bundle_copy: Path, monkeypatch):
    """The second engine can't be built: not even an empty folder is left of the first."""
    from ckv_export.deploy import engines
    from ckv_export.errors import EngineError

    real = engines.build_engine

    def build(request, *rest):
        if request.tensors.name == "decode":
            raise EngineError("the decode graph is beyond this library")
        return real(request, *rest)

    monkeypatch.setattr(engines, "build_engine", build)
    before = tree(bundle_copy.parent)
    result = cli("build", bundle_copy, *RTX, "--target", "sm86")
    assert result.code == 2
    assert result.err.splitlines()[-1].endswith("error: the decode graph is beyond this library")
    assert "Traceback" not in result.err
    assert tree(bundle_copy.parent) == before


def test_h100_is_no_misspelling(refused, bundle_copy: Path):
    """SM90 is not among the targets of TensorRT for RTX: the sentence says what to use."""
    words = ("build", bundle_copy, *RTX, "--target", "sm90")
    refused(*words, watched=bundle_copy, says=("'sm90'", "backend 'tensorrt'", "sm120"))
