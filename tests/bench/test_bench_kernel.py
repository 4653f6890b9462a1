"""bench/bench_kernel.py and its modules where there is no GPU: cases, refusal, arithmetic."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from ckv_testing.kernels import stand_in
from ckv_testing.scripts import load_script
from torch.utils import cpp_extension

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "bench" / "bench_kernel.py"

SMALL = {"name": "small", "B": 2, "C": 3, "S": 5, "d": 8, "d_u": 2, "heads": 2, "M": 7}


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(SCRIPT.parent)
    return load_script(SCRIPT, monkeypatch)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_so_and_exits_2() -> None:
    result = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert "GPU" in result.stderr


def test_the_kernels_are_compiled_for_this_gpu_alone(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: dict[str, Any] = {}
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(cpp_extension, "load", lambda **words: loaded.update(words))
    bench.load_kernels().load()
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "7.5 8.0 12.0+PTX")
    assert all(Path(path).exists() for path in loaded["sources"] + loaded["extra_include_paths"])
    flags = loaded["extra_cuda_cflags"]
    assert [flag for flag in flags if "arch" in flag] == ["-gencode=arch=compute_90,code=sm_90"]
    assert cpp_extension._get_cuda_arch_flags(flags) == []


def test_cases_are_sound(bench: ModuleType) -> None:
    cases = bench.load_cases(ROOT / "bench" / "cases.json")
    assert all(hasattr(torch, dtype) for dtype in cases["dtypes"])
    for kind in bench.MAKERS:
        for case in cases[kind]:
            assert case["d_u"] < case["d"]
            assert case["d"] % case.get("heads", 1) == 0


def test_the_targets_of_the_project_are_among_the_cases(bench: ModuleType) -> None:
    cases = bench.load_cases(ROOT / "bench" / "cases.json")
    (target,) = [c for c in cases["attention"] if "least_speedup" in c]
    sizes = {name: target[name] for name in ("B", "C", "S", "d", "heads")}
    assert sizes == {"B": 64, "C": 128, "S": 1000, "d": 256, "heads": 8}
    assert all("least_share_of_copy" in c for c in cases["gather"] if c["S"] >= 10000)


@pytest.mark.parametrize("change", [{"schema_version": 2}, {"gather": [SMALL, SMALL]}])
def test_unsound_cases_are_refused(bench: ModuleType, tmp_path: Path, change: Any) -> None:
    cases = json.loads((ROOT / "bench" / "cases.json").read_text()) | change
    path = tmp_path / "cases.json"
    path.write_text(json.dumps(cases))
    with pytest.raises(SystemExit, match=r"schema_version must be 1, got 2|have one name"):
        bench.load_cases(path)


@pytest.mark.parametrize("kind", ["gather", "attention", "pointwise"])
@pytest.mark.parametrize("padding", [0.0, 0.5, 1.0])
def test_every_way_computes_the_same(kernel_cases: ModuleType, kind: str, padding: float) -> None:
    case = SMALL | {"padding": padding}
    work = kernel_cases.MAKERS[kind](stand_in(), case, torch.float32, seed=3)
    # Compiling takes longer than it tells, and SDPA gives NaN where all is masked.
    skipped = ["torch.compile"] + [n for n in work.ways if "sdpa" in n and padding == 1]
    for name in set(work.ways) - set(skipped):
        assert not kernel_cases.wrong(work.ways[name](), work.expected, torch.float32), name
    assert work.expected.abs().max() > 0
    # What finds keys and values made already is no rival.
    others = {name for name in work.ways if not name.startswith("ours")}
    assert set(work.rivals) == others - {"sdpa, materialised"}
    assert kernel_cases.wrong(work.expected + 1, work.expected, torch.float32)
    assert kernel_cases.wrong(work.expected * float("nan"), work.expected, torch.float32)


def test_each_way_of_ours_is_a_kernel_of_its_own(kernel_cases: ModuleType) -> None:
    # No other operator: what is materialised is so before it is timed.
    ops = SimpleNamespace(pooled_attention=lambda *arguments: arguments[10])
    ways = kernel_cases.attention_work(ops, SMALL, torch.float32, seed=3).ways
    tactics = {name: way() for name, way in ways.items() if name.startswith("ours")}
    assert tactics == {
        "ours": 0, "ours, whole": 1, "ours, split": 2, "ours, no tensor cores": 3
    }  # fmt: skip
    assert ways["sdpa, materialised"]().shape == (2, 3, 8)


def test_an_error_is_judged_beside_what_is_usual(kernel_cases: ModuleType) -> None:
    expected = torch.zeros(100, dtype=torch.float64)
    expected[0] = 100  # the root mean square is a tenth of it
    off = 10 * kernel_cases.TOLERANCES[torch.float32] * torch.ones(100)
    off[0] = 0
    assert not kernel_cases.wrong(expected + 0.9 * off, expected, torch.float32)
    assert kernel_cases.wrong(expected + 1.1 * off, expected, torch.float32)


@pytest.mark.parametrize("kind", ["gather", "attention", "pointwise"])
def test_what_is_compiled_is_compiled_for_each_case(
    kernel_cases: ModuleType, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """However many came before, and for its sizes: not for any, and not eager in the end."""
    sizes: list[list[bool]] = []

    def backend(graph: Any, inputs: Any) -> Any:
        sizes.append([type(x) is torch.Tensor for x in inputs])
        return graph.forward

    compiled = functools.partial(torch.compile, backend=backend)
    monkeypatch.setattr(torch, "compile", compiled)
    for events in range(5, 15):
        case = SMALL | {"S": events, "B": 2 + events % 3}
        work = kernel_cases.MAKERS[kind](stand_in(), case, torch.float32, seed=3)
        assert not kernel_cases.wrong(work.ways["torch.compile"](), work.expected, torch.float32)
    assert len(sizes) == 10
    assert all(map(all, sizes))


@pytest.fixture
def run(bench: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The whole program on the CPU, on one small case of each kind; its clock says 2 or 3 us."""
    loaded = sys.modules["kernel_cases"]

    def timed(timer: object, work: Any, cold: bool) -> float:
        work()
        return 3.0 if cold else 2.0

    monkeypatch.setattr(loaded, "DEVICE", "cpu")
    monkeypatch.setattr(loaded, "compiled", lambda way: way)
    monkeypatch.setattr(bench, "Timer", type("Timer", (), {"median": timed}))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    cases = {"schema_version": 1, "seed": 3, "dtypes": ["float32"]}
    cases |= {kind: [SMALL] for kind in bench.MAKERS}
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    out = tmp_path / "out.json"

    def run(ops: Any, exponentials: float | None = 0.125) -> tuple[int, dict[str, Any]]:
        why_not = "the probe is wrong" if exponentials is None else None
        rates = bench.Rates(4.0, {torch.float32: 1e6}, exponentials, why_not)
        monkeypatch.setattr(bench.Rates, "measure", lambda *a: rates)
        kernels = SimpleNamespace(why_not=lambda: None, load=lambda: ops)
        monkeypatch.setattr(bench, "load_kernels", lambda: kernels)
        words = ["bench_kernel", "--cases", str(tmp_path / "cases.json"), "--out", str(out)]
        monkeypatch.setattr(sys, "argv", words)
        return bench.main(), json.loads(out.read_text())

    return run


def test_all_medians_are_written(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    code, told = run(stand_in())
    assert code == 0
    assert (told["copy_bytes_per_us"], told["operations_per_us"]) == (4.0, {"torch.float32": 1e6})
    assert told["exponentials_per_us"] == 0.125
    assert [result["kind"] for result in told["results"]] == ["gather", "attention", "pointwise"]
    printed = capsys.readouterr().out
    for result in told["results"]:
        assert result["failed"] == {}
        assert set(map(tuple, result["warm_cold_us"].values())) == {(2.0, 3.0)}
        over = f"{3 / result['floor_us']:.2f} times the floor"
        terms = result["floor_terms_us"]
        if result["kind"] == "gather":
            assert result["floor_us"] == terms["bytes"]
        else:
            # 60 of them, at one in 8 microseconds, take longest.
            assert result["floor_us"] == terms["exponentials"] == 480
            over += f"; {3 / terms['bytes']:.2f} times that without exponentials"
        assert f"cold: {over}; 1.00 times the best rival" in printed


def test_cases_with_a_target_come_first(run: Any, tmp_path: Path) -> None:
    """Should time run out; of the others none is lost."""
    path = tmp_path / "cases.json"
    cases = json.loads(path.read_text())
    cases["pointwise"].append(SMALL | {"name": "aimed at", "least_speedup": 3.0})
    path.write_text(json.dumps(cases))
    _, told = run(stand_in())
    first, *others = [result["case"]["name"] for result in told["results"]]
    assert first == "aimed at"
    assert others == 3 * ["small"]


def test_a_floor_without_the_rate_of_exponentials_says_so(
    run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    code, told = run(stand_in(), exponentials=None)
    assert code == 1
    assert told["exponentials_per_us"] is None
    printed = capsys.readouterr().out
    assert "exponentials not measured (the probe is wrong)\n" in printed
    gather, *others = told["results"]
    assert gather["floor_terms_us"]["exponentials"] == 0
    for result in others:
        terms = result["floor_terms_us"]
        assert terms["exponentials"] is None
        assert result["floor_us"] == max(terms["bytes"], terms["products"])
    assert printed.count("exponentials not measured)\n") == len(others)


def test_a_way_that_fails_hides_no_other(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_compiler(way: object) -> Any:
        def run(*tensors: object) -> None:
            raise RuntimeError("no compiler")

        return run

    monkeypatch.setattr(sys.modules["kernel_cases"], "compiled", no_compiler)
    ops = stand_in()
    gather_concat, attention = ops.pool_gather_concat, ops.pooled_attention
    ops.pool_gather_concat = lambda *side: gather_concat(*side) + 1
    ops.pooled_attention = lambda *a: attention(*a) + (a[10] == 2)
    code, told = run(ops)
    assert code == 1
    gather, softmax, _ = told["results"]
    assert gather["failed"] == {
        "ours": "ValueError: the result is wrong", "torch.compile": "RuntimeError: no compiler"
    }  # fmt: skip
    assert list(gather["warm_cold_us"]) == ["eager"]
    assert set(softmax["failed"]) == {
        "ours, split", "torch.compile"
    }  # fmt: skip
    assert "ours" in softmax["warm_cold_us"]


def test_each_byte_is_counted_once(kernel_cases: ModuleType) -> None:
    few = SMALL | {"S": 200}
    work = kernel_cases.gather_work(stand_in(), few, torch.float32, seed=3)
    # 7 pool rows of 6 floats, 400 indices, 400 user parts of 2 floats, 400 vectors of 8 floats.
    assert work.moved == 4 * (7 * 6 + 400 + 400 * 2 + 400 * 8)


def test_rows_that_no_event_names_are_not_moved(kernel_cases: ModuleType) -> None:
    many = SMALL | {"S": 50, "M": 90}
    work = kernel_cases.gather_work(stand_in(), many, torch.float32, seed=3)
    inputs = kernel_cases.Inputs(many, torch.float32, 3)
    rows = len(set(inputs.key[1].flatten().tolist()))
    assert rows < 90
    assert work.moved == 4 * (rows * 6 + 100 + 100 * 2 + 100 * 8)


def test_padding_is_neither_read_nor_multiplied(kernel_cases: ModuleType) -> None:
    half = SMALL | {"S": 400, "padding": 0.5}
    work = kernel_cases.attention_work(stand_in(), half, torch.float32, seed=3)
    side = 4 * (7 * 6 + 400 + 400 * 2)
    assert work.moved == 2 * side + 2 * 4 * 2 * 3 * 8 + 4 * 2 * 400
    assert work.operations == 2 * (2 * 2 * 3 * 200 * 8)
    assert work.exponentials == 2 * 3 * 200 * 2


def test_the_pointwise_form_reads_bias_and_visibility_of_every_pair(
    kernel_cases: ModuleType,
) -> None:
    work = kernel_cases.pointwise_work(stand_in(), SMALL | {"S": 200}, torch.float32, seed=3)
    side = 4 * (7 * 6 + 400 + 400 * 2)
    assert work.moved == 2 * side + 2 * 4 * 2 * 3 * 8 + 2 * 4 * 2 * 3 * 200
    assert work.operations == 2 * (2 * 2 * 3 * 200 * 8)
    assert work.exponentials == 2 * 3 * 200 * 2


def test_verdicts(bench: ModuleType, kernel_cases: ModuleType) -> None:
    work = kernel_cases.gather_work(stand_in(), SMALL, torch.float32, seed=3)
    floor = sys.modules["kernel_rates"].Floor(bytes=1.0, products=0.0, exponentials=0.0)
    assert bench.verdicts({"least_share_of_copy": 0.85}, work, floor,
                          {"ours": 2.0, "eager": 6.0, "torch.compile": 5.0}) == [
        "2.00 times the floor", "2.50 times the best rival", "share of copy 0.50 (target 0.85)"
    ]  # fmt: skip
