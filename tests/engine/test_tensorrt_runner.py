"""The runner: with a stand-in for the library on the CPU, and for real where there is a GPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from ckv_testing.fake_engine import (
    FULL,
    IO,
    PLAN,
    RTX,
    FakeContext,
    FakeEngine,
    FakeRunner,
    Severity,
    expected,
    feeds,
)

from ckv_export.contract import GraphSpec, TensorSpec
from ckv_export.engine import build_engine, load
from ckv_export.errors import EngineError, MissingDependency
from ckv_export.runtimes.tensorrt import TensorRtRunner

X, MASK = IO.inputs
(Y,) = IO.outputs


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    path = tmp_path / "prefill.engine"
    path.write_bytes(PLAN)
    return path


@pytest.mark.parametrize(("users", "events"), [(1, 1), (2, 5), (3, 0), (4, 40)])
def test_values_and_shapes(engine: Path, users: int, events: int) -> None:
    given = feeds(users, events)
    with FakeRunner(engine) as runner:
        for _ in range(2):
            result = runner.infer(given)
            assert list(result) == ["y"]
            np.testing.assert_array_equal(result["y"], expected(given))
            assert result["y"].shape == (users, events)
            assert result["y"].dtype == np.float32


def test_inputs_need_not_be_contiguous_or_writable(engine: Path) -> None:
    given = {name: np.asfortranarray(value) for name, value in feeds(3, 4).items()}
    for value in given.values():
        value.flags.writeable = False
    with FakeRunner(engine) as runner:
        np.testing.assert_array_equal(runner.infer(given)["y"], expected(given))


def test_shape_outside_the_profile_names_input_and_range(engine: Path) -> None:
    with (
        FakeRunner(engine) as runner,
        pytest.raises(
            EngineError, match=r"takes input 'x' from \[1, 0\] to \[4, 40\], got \[5, 2\]"
        ),
    ):
        runner.infer(feeds(5, 2))


def test_the_first_profile_that_fits_is_taken(engine: Path) -> None:
    with FakeRunner(engine) as runner:
        for users, events in ((2, 40), (1, 41), (1, 100), (4, 0), (1, 50)):
            given = feeds(users, events)
            np.testing.assert_array_equal(runner.infer(given)["y"], expected(given))
        profiles = [context.active_optimization_profile for context in runner._engine.contexts]
        assert profiles == [0, 0, 1, 1, 0, 1], "the first is made when the engine is loaded"
        with pytest.raises(EngineError, match=r"from \[1, 41\] to \[1, 100\], got \[2, 50\]"):
            runner.infer(feeds(2, 50))
        # Loaded anew, it begins with the first profile again.
    runner.activate()
    assert runner._profile == 0


def test_failed_run_gives_the_reason(engine: Path) -> None:
    with FakeRunner(engine) as runner:
        runner._engine.fails = "always"
        with pytest.raises(EngineError, match=r"can't run .*: the GPU fell off"):
            runner.infer(feeds(1, 1))


def test_an_engine_that_gives_no_context(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = FakeRunner(engine)
    says = r"can't prepare \(.*prefill\.engine\): no more contexts"

    def refuse(engine: FakeEngine, *_: object) -> None:
        engine.logger.log(Severity.ERROR, "no more contexts")

    with runner:
        monkeypatch.setattr(FakeEngine, "create_execution_context", refuse)
        with pytest.raises(EngineError, match=says):
            runner.infer(feeds(1, 1))
    with pytest.raises(EngineError, match=says):
        runner.activate()
    assert runner._engine is None


def test_an_output_whose_size_depends_on_values(
    engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeContext, "get_tensor_shape", lambda *_: (1, -1))
    says = r"the shape of output 'y' does not follow from the inputs, got \[1, -1\]"
    with FakeRunner(engine) as runner, pytest.raises(EngineError, match=says):
        runner.infer(feeds(1, 1))


def test_damaged_engine_gives_the_reason(engine: Path) -> None:
    engine.write_bytes(b"half an eng")
    runner = FakeRunner(engine)
    with pytest.raises(EngineError, match=r"can't load .*: magic tag is wrong"):
        runner.activate()
    assert runner._runtime is None


@pytest.fixture
def rtx_loggers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in's logger must not be taken for the real library's."""
    monkeypatch.setattr("ckv_export.engine.messages._loggers", {})


@pytest.mark.usefixtures("rtx_loggers")
def test_rtx_says_why_an_engine_is_invalid(engine: Path) -> None:
    engine.write_bytes(b"for another GPU and version")
    with pytest.raises(EngineError, match=r"another version: .*; it was not built for this GPU"):
        FakeRunner(engine, IO, RTX).activate()
    engine.write_bytes(b"no reason")
    with pytest.raises(EngineError, match="gives no reason"):
        FakeRunner(engine, IO, RTX).activate()


@pytest.mark.usefixtures("rtx_loggers")
def test_runtime_cache_is_read_and_written(engine: Path, tmp_path: Path) -> None:
    file = tmp_path / "kernels.cache"
    runner = FakeRunner(engine, IO, RTX, runtime_cache=file)
    for stored in (b"kernels: none, one more", b"kernels: none, one more, one more"):
        with runner:
            for events in (1, 2):
                runner.infer(feeds(1, events))
            caches = [context.runtime_config.cache for context in runner._engine.contexts]
            assert caches == [runner._kernels._cache] * 3, "one for all contexts"
        assert file.read_bytes() == stored
    file.write_bytes(b"of another GPU")
    with FakeRunner(engine, IO, RTX, runtime_cache=file):
        pass
    assert file.read_bytes() == b"kernels: none, one more"
    assert sorted(tmp_path.iterdir()) == sorted([engine, file])


@pytest.mark.usefixtures("rtx_loggers")
def test_a_runtime_cache_that_cannot_be_written_still_frees_the_engine(
    engine: Path, tmp_path: Path
) -> None:
    runner = FakeRunner(engine, IO, RTX, runtime_cache=tmp_path / "no" / "kernels.cache")
    runner.activate()
    with pytest.raises(EngineError, match=r"can't write the runtime cache .*: there is no such"):
        runner.deactivate()
    assert runner._engine is None


def test_only_rtx_has_a_runtime_cache(engine: Path, tmp_path: Path) -> None:
    runner = FakeRunner(engine, IO, FULL, runtime_cache=tmp_path / "c")
    with pytest.raises(EngineError, match="has no runtime cache"):
        runner.activate()


def test_missing_engine(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"can't read the engine .*: there is no such file"):
        FakeRunner(tmp_path / "no.engine", IO, FULL).activate()


def test_engine_of_another_graph(engine: Path) -> None:
    io = GraphSpec("decode", (X,), (Y, TensorSpec("score", "float32", ("B",))))
    with pytest.raises(EngineError, match=r"missing \['score'\], unknown \['mask'\]"):
        FakeRunner(engine, io, FULL).activate()


def test_engine_of_another_dtype(engine: Path) -> None:
    io = GraphSpec("prefill", (X, TensorSpec("mask", "int32", ("B", "S"))), (Y,))
    with pytest.raises(EngineError, match="tensor 'mask' must be int32, got bool"):
        FakeRunner(engine, io, FULL).activate()


def test_metadata(engine: Path) -> None:
    metadata = FakeRunner(engine).metadata()
    assert (metadata.runtime, metadata.version, metadata.graph) == ("fake", "1.0", "prefill")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_activation_says_so(engine: Path) -> None:
    with pytest.raises(EngineError, match="needs an NVIDIA GPU"):
        TensorRtRunner(engine, IO, FULL).activate()


def test_a_gpu_that_gives_no_stream_is_told(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def held_by_another() -> None:
        raise torch.AcceleratorError(
            "CUDA error: devices are busy\nCompile with TORCH_USE_CUDA_DSA"
        )

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "Stream", held_by_another)
    with pytest.raises(EngineError, match=r"a stream of the GPU: CUDA error: devices are busy$"):
        TensorRtRunner(engine, IO, FULL).activate()


def test_without_the_module_activation_says_so(
    engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ckv_export.engine.backends.available", dict)
    with pytest.raises(MissingDependency, match="tensorrt_rtx"):
        TensorRtRunner(engine, IO).activate()


@pytest.mark.gpu
@pytest.mark.tensorrt
@pytest.mark.skipif(not torch.cuda.is_available(), reason="running an engine needs a GPU")
@pytest.mark.parametrize("graphs", [False, True], ids=["plain", "CUDA graphs"])
def test_engine_computes_what_numpy_does(projection, tmp_path: Path, graphs: bool) -> None:
    backend = load(None)
    out = tmp_path / "prefill.engine"
    build_engine(projection.request(targets=("current",)), backend, out)
    rng = np.random.default_rng(0)
    weights = np.arange(32, dtype=np.float32).reshape(8, 4)
    with TensorRtRunner(out, projection.spec, backend, cuda_graphs=graphs) as runner:
        results = []
        for events in (5, 3, 5, 0, 3, 5, 0, 5, 3):
            x = rng.standard_normal((2, events, 8)).astype(np.float32)
            results.append((x, runner.infer({"x": x, "event_mask": np.ones((2, events), bool)})))
        held = runner.place({"x": x})["x"]
        results.append((x, runner.infer({"x": held, "event_mask": np.ones((2, 3), bool)})))
        runner.upload({"x": held, "event_mask": np.ones((2, 3), bool)})
    for x, result in results:
        np.testing.assert_allclose(result["y"], x @ weights, rtol=1e-5, atol=1e-4)
        assert result["y"].shape == (*x.shape[:2], 4)
