"""``ckv-export bench`` and ``plan`` on the session's bundle."""

from __future__ import annotations

import dataclasses
import json
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from ckv_testing.results import QUICK, SCHEMA, result

from ckv_export.bench import roster
from ckv_export.bench.environment import environment
from ckv_export.bench.plan import Demand, measured_ways, not_counted, plans
from ckv_export.cli.main import main
from ckv_export.errors import InputError
from ckv_export.manifest import open_bundle


@pytest.fixture(scope="module")
def outputs(
    bundle: Path, run_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """One run with everything but torch.compile, which takes half a minute."""
    folder = tmp_path_factory.mktemp("bench")
    files = {kind: folder / f"result.{kind}" for kind in ("json", "html", "markdown")}
    code = main(
        [
            *("bench", str(bundle), *QUICK, "--checkpoint", str(run_folder), "--only", "full"),
            *("--traffic", "3", "--sweep", "history=0,3", "--source", "file", "--batch", "2"),
            *(f"--{kind}={file}" for kind, file in files.items()),
        ]
    )
    assert code == 0
    return files


@pytest.fixture
def measured(outputs: dict[str, Path]) -> dict[str, Any]:
    return json.loads(outputs["json"].read_text())


@pytest.fixture
def jsonschema() -> ModuleType:
    """Not imported above: a machine lent for its GPU may lack it, and runs those tests alone."""
    return pytest.importorskip("jsonschema")


def test_the_result_is_what_its_schema_says(measured: dict[str, Any], jsonschema: ModuleType):
    jsonschema.validate(measured, SCHEMA)
    made_up = result()
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(made_up, SCHEMA)  # no ways


def test_ways_phases_and_bytes(measured: dict[str, Any]):
    phases = {w["name"]: set(w["phases"]) for w in measured["ways"]}
    assert phases == {
        "ONNX Runtime, compact cache": {"prefill", "append", "decode", "request"},
        "ONNX Runtime, full KV held": {"append", "decode", "request"},
        "ONNX Runtime, full KV fetched": {"request"},
    }
    attention = measured["bundle"]["model"]["attention"]
    kept = min(12, measured["bundle"]["model"]["window"] - 1)
    fetched = {w["name"]: w["fetched_bytes"] for w in measured["ways"]}
    users = 2
    assert fetched["ONNX Runtime, full KV fetched"] == users * kept * 2 * attention["d"] * 4
    compact = 4 + 4 * (attention["user_k"] + attention["user_v"])
    assert fetched["ONNX Runtime, compact cache"] == users * kept * compact
    assert fetched["ONNX Runtime, full KV held"] == 0
    for timing in (timing for way in measured["ways"] for timing in way["phases"].values()):
        assert timing["per_second"] == pytest.approx(users * 1000 / timing["mean_ms"], rel=0.01)
    assert all(w["worst_score_error"] < 2e-6 for w in measured["ways"])
    assert all(w["first_call_seconds"] > 0 for w in measured["ways"])


def test_sweep_and_traffic(measured: dict[str, Any]):
    assert [(p["axis"], p["value"]) for p in measured["sweep"]] == [("history", 0), ("history", 3)]
    for point in measured["sweep"]:
        each = {way["name"]: way["fetched_bytes"] > 0 for way in point["ways"]}
        assert each["ONNX Runtime, compact cache"] == (point["value"] > 0)
        assert not each["ONNX Runtime, full KV held"]
    traffic = measured["traffic"]
    for timing in (way["request"] for way in traffic["ways"]):  # one user each
        assert timing["per_second"] == pytest.approx(1000 / timing["mean_ms"], rel=0.01)
    assert len(traffic["lengths"]) == 3
    assert sum(traffic["waste"]["requests_by_bucket"].values()) == 3


def test_traffic_opens_no_file_for_each_request(cli: Any, bundle: Path):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(list(Path("/dev/fd").iterdir())) + 40, hard))
    try:
        ran = cli("bench", bundle, *QUICK, "--traffic", "60", "--source", "file")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert ran.code == 0, ran.err


def test_pages_are_written(outputs: dict[str, Path]):
    assert outputs["html"].read_text().startswith("<!doctype html>")
    assert "| way |" in outputs["markdown"].read_text()


def test_bundles_of_other_precision_are_measured_in_the_same_run(
    cli: Any,
    bundle: Path,
    halved: Path,
    run_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    jsonschema: ModuleType,
):
    """And nothing is exported for ways that are not."""
    monkeypatch.setattr(roster, "export_graph", None)
    file = tmp_path / "result.json"
    words = ("--beside", halved, "--only", "ONNX Runtime, compact", "--json", file)
    ran = cli("bench", bundle, *QUICK, "--checkpoint", run_folder, *words)
    assert ran.code == 0, ran.err
    measured = json.loads(file.read_text())
    jsonschema.validate(measured, SCHEMA)
    assert measured["beside"] == [{"label": "half", "name": "half", "precision": "fp16"}]
    plain, half = measured["ways"]
    assert (plain["name"], half["name"]) == (
        "ONNX Runtime, compact cache",
        "half: ONNX Runtime, compact cache",
    )
    assert [(w["bundle"], w["precision"]) for w in (plain, half)] == [
        ("micro", "fp32"),
        ("half", "fp16"),
    ]
    assert set(half["phases"]) == set(plain["phases"])
    assert plain["worst_score_error"] < 2e-6 < half["worst_score_error"] < 0.02
    assert half["fetched_bytes"] == plain["fetched_bytes"], "both read the same users' caches"
    assert "half: ONNX Runtime CUDA" in " ".join(w["name"] for w in measured["left_out"])


def test_a_wrong_bundle_beside_is_refused(
    refused: Callable[..., str], bundle: Path, bundle_copy: Path
):
    refused("bench", bundle, "--beside", bundle, watched=bundle, says=("is given twice",))
    manifest = dataclasses.replace(open_bundle(bundle), fingerprint="0" * 64)
    manifest.write(bundle_copy)
    says = ("is of another model", "exported from the same checkpoint")
    refused("bench", bundle, "--beside", bundle_copy, watched=bundle, says=says)


def test_a_bundle_that_cannot_run_here_is_refused(cli: Any, bundle: Path, tmp_path: Path):
    """As a bf16 bundle can't: ONNX Runtime has no such products on a CPU."""
    folder = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    (folder / "decode.onnx").write_bytes(b"no graph")
    open_bundle(bundle).with_files(folder).write(folder)
    ran = cli("bench", folder, *QUICK)
    assert ran.code == 2
    sentence = "compact cache is what all else is measured by, and can't run here: ONNX Runtime"
    assert sentence in " ".join(ran.err.split())


def test_without_a_checkpoint_it_says_what_is_left_out(cli: Any, bundle: Path, outputs: Any):
    ran = cli(
        "bench",
        bundle,
        *QUICK,
        "--phases",
        "decode",
        "--latency-bound",
        "1000",
        "--rate-seconds",
        "0.1",
    )
    assert ran.code == 0
    for text in (
        "torch.compile, compact cache: its weights are in no bundle",
        "PyTorch and full KV on cuda: its weights are in no bundle",
        "has no CUDA provider",
        "the bundle has no tensorrt_rtx engines",
        "Highest rate",
    ):
        assert text in " ".join(ran.out.split())


def test_compare_exits_with_1_on_a_regression(
    cli: Any,
    bundle: Path,
    measured: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    """And asks the machine for its GPUs once a run."""
    asked: list[str] = []
    monkeypatch.setattr("ckv_export.bench.environment.gpus", lambda: asked.append("") or [])
    arguments = ("bench", bundle, *QUICK, "--phases", "decode", "--source", "file", "--batch", "2")
    arguments = (*arguments, "--only", "compact", "--seconds", "0.5")
    old = tmp_path / "old.json"
    assert cli(*arguments, "--json", old).code == 0
    earlier = json.loads(old.read_text())
    earlier["environment"]["machine"]["cpu"] = "another"
    for factor, margin, code in ((1e-3, "5", 1), (1e-3, "1e7", 0), (1e3, "5", 0)):
        changed = json.loads(json.dumps(earlier))
        timing = changed["ways"][0]["phases"]["decode"]
        timing["windows_ms"] = [[factor * s for s in w] for w in timing["windows_ms"]]
        old.write_text(json.dumps(changed))
        ran = cli(*arguments, "--compare", old, "--any-machine", "--margin", margin)
        assert ran.code == code, ran.err
        assert "differs: cpu: another and " in ran.out
        assert ("slower" in ran.out) == (code == 1)
    assert len(asked) == 4


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"bundle": {"fingerprint": "0" * 64}}, "they differ in fingerprint"),
        ({"bundle": {"precision": "fp16"}}, "precision: fp16 and fp32"),
        ({"settings": {"threads": 99}}, "threads: 99 and 1"),
        ({"settings": {"source": "file"}}, "source: file and memory"),
        ({"environment": {"machine": {"cpu": "x", "cores": 3}}}, "cpu: x and"),
        ({"environment": {"machine": {}}}, "cpu: None and"),
    ],
)
def test_what_can_not_be_compared_is_told_before_anything_is_timed(
    refused: Any, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change, says: str
):
    """With --any-machine the last two are measured."""

    def measure(*_: Any) -> None:
        raise InputError("measured")

    monkeypatch.setattr("ckv_export.cli.bench.run_bench", measure)
    arguments = ("bench", bundle, *QUICK, "--compare", tmp_path / "old.json")
    sizes = {"batch": 1, "history": 12, "appended": 1, "candidates": 5}
    manifest = open_bundle(bundle)
    old = result() | {"environment": environment()}
    old["bundle"] |= {"fingerprint": manifest.fingerprint, "precision": manifest.precision}
    old["settings"]["sizes"] = sizes
    for part, fields in change.items():
        old[part] = old[part] | fields
    (tmp_path / "old.json").write_text(json.dumps(old))
    refused(*arguments, watched=tmp_path, says=(says,))
    sentence = refused(*arguments, "--any-machine", watched=tmp_path)
    assert (sentence == "measured") == ("environment" in change)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--sweep", "depth=1"), "a sweep is written AXIS=N,N"),
        (("--sweep", "history=a"), "a sweep is written AXIS=N,N"),
        (("--phases", "decode,none"), "--phases must be of prefill"),
        (("--json", "absent/result.json"), "the folder 'absent' of result.json is not there"),
        (("--html", "."), ". is a folder: give the name of a file to write"),
        (("--sweep", "candidates=5,0"), "candidates must lie in 1 to"),
        (("--compare", "absent.json"), "can't read the result absent.json"),
        (("--source", "disk"), "invalid choice: 'disk'"),
        (("--latency-bound", "0"), "must be a number above 0"),
        (("--seconds", "inf"), "must be a number above 0"),
        (("--seconds", "soon"), "must be a number above 0"),
        (("--markdown", "."), ". is a folder: give the name of a file to write"),
        (("--only", "onnx"), "the name of a way ('ONNX Runtime, compact cache', 'ONNX Runtime, no"),
        (("--only", "torch.compile"), "is left out here: its weights are in no bundle"),
        (("--threads", "99999"), "the processors of this machine, got 99999"),
        (("--threads", "0"), "must be a whole number of at least 1"),
    ],
)
def test_bad_options(refused: Callable[..., str], bundle: Path, words: tuple, says: str):
    refused("bench", bundle, *words, watched=bundle, says=(says,))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_memory_is_pinned_for_a_gpu(refused: Callable[..., str], bundle: Path):
    says = ("--source pinned needs a GPU", "give --source memory or file")
    refused("bench", bundle, "--source", "pinned", watched=bundle, says=says)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("source", ["memory", "pinned"])
def test_the_rivals_run_on_a_gpu(
    cli: Any, bundle: Path, run_folder: Path, tmp_path: Path, source: str
):
    """Everything but what compiles; scores are compared before anything is timed."""
    file = tmp_path / "result.json"
    words = ("--source", source, "--only", "PyTorch eager on cuda", "--batch", "2")
    ran = cli("bench", bundle, *QUICK, "--checkpoint", run_folder, *words, "--json", file)
    assert ran.code == 0, ran.err
    measured = json.loads(file.read_text())
    ways = {w["name"].rpartition(", ")[2]: w for w in measured["ways"] if "cuda" in w["name"]}
    assert set(ways) == {"compact cache", "full KV held", "full KV fetched"}
    assert all("transfer" in way["phases"] for way in ways.values())
    sent = {name: way["host_to_device_bytes"] for name, way in ways.items()}
    assert sent["full KV held"] < sent["compact cache"] < sent["full KV fetched"]
    pytest.importorskip("jsonschema").validate(measured, SCHEMA)


def test_another_checkpoint_is_refused(refused: Any, bundle: Path, samples: Path):
    folder = samples / "eta_micro"
    if not folder.is_dir():
        folder = next(p for p in samples.iterdir() if p.name != "sim_micro")
    refused("bench", bundle, "--checkpoint", folder, watched=bundle, says=("the fingerprint",))


def test_plan(cli: Any, bundle: Path, outputs: dict[str, Path], tmp_path: Path):
    words = ("plan", bundle, "--users", "1e9", "--history", "12", "--requests-per-second", "5e4")
    ran = cli(*words, "--bench", outputs["json"], "--memory", "1e12")
    assert ran.code == 0
    assert "1,000,000,000 users x" in ran.out
    manifest = open_bundle(bundle)
    assert not_counted(manifest, Demand(10**9, 12, 50_000)) in " ".join(ran.out.split())
    assert "need measured times" in cli(*words).out
    assert "need measured times" not in ran.out
    assert "cores: ONNX Runtime, compact cache" in " ".join(ran.out.split())
    result = json.loads(outputs["json"].read_text())
    given = ("--user-dtype=int8", "--memory=3e11", "--link=7e9", "--utilisation=50")
    for options, demand in (
        ((), Demand(10**9, 12, 50_000)),
        (given, Demand(10**9, 12, 50_000, "int8", 3 * 10**11, 7 * 10**9, 50)),
    ):
        made = json.loads(cli(*words, *options, "--bench", outputs["json"], "--json").out)
        wanted = plans(manifest.model, demand, measured_ways(result, 12))
        said = {"not_counted": not_counted(manifest, demand)}
        assert made == [plan.to_dict() | said for plan in wanted]
    assert "users must lie" in cli(*words[:3], "2e9", *words[4:]).sentence()
    result["bundle"]["fingerprint"] = "0" * 64
    (tmp_path / "other.json").write_text(json.dumps(result))
    other = cli(*words, "--bench", tmp_path / "other.json").sentence()
    assert "was measured with another model than" in other
    wrong = ("plan", bundle, "--users", "1", "--history", "13", "--requests-per-second", "1")
    assert "measure with --history 13" in cli(*wrong, "--bench", outputs["json"]).sentence()
