"""The two runtimes that need no GPU, on one drawn model."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from ckv_testing.exports import Export

from ckv_export.errors import ExportError, MissingDependency
from ckv_export.runtimes.base import Placed
from ckv_export.runtimes.onnxruntime import OnnxRuntimeRunner, load_module
from ckv_export.runtimes.torch import TorchRunner

SIZES = {"B": 3, "S": 6, "K": 4, "T": 2, "C": 5}


@pytest.fixture
def made(exported: Callable[[str], Export]) -> Export:
    return exported("eta")


def drawn(runner: Any, rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {t.name: rng.integers(0, 2, t.shape(SIZES)).astype(t.dtype) for t in runner.io.inputs}


@pytest.mark.parametrize("which", [0, 1], ids=["prefill", "decode"])
def test_both_give_the_contracts_outputs_and_agree(
    which: int, made: Export, rng: np.random.Generator
):
    runners = (made.torch_runners()[which], made.runners()[which])
    feeds = drawn(runners[0], rng)
    outputs = []
    for runner in runners:
        with runner:
            outputs.append(runner.infer(feeds))
        assert list(outputs[-1]) == [t.name for t in runner.io.outputs]
        for tensor in runner.io.outputs:
            array = outputs[-1][tensor.name]
            assert (array.shape, str(array.dtype)) == (tensor.shape(SIZES), tensor.dtype)
    for name, array in outputs[0].items():
        # Two runtimes' fp32; the gate compares them closer, on inputs made for it.
        bound = 0.0 if name.endswith("_index") else 4e-6
        np.testing.assert_allclose(outputs[1][name], array, rtol=bound, atol=bound)


def test_what_describes_the_runtimes(made: Export):
    torch_runner, onnx_runner = made.torch_runners()[1], made.runners()[0]
    of_torch, of_onnx = torch_runner.metadata(), onnx_runner.metadata()
    assert (of_torch.runtime, of_torch.device, of_torch.graph) == ("pytorch", "cpu", "decode")
    assert of_torch.version == torch.__version__
    assert (of_onnx.runtime, of_onnx.device, of_onnx.graph) == ("onnxruntime", "cpu", "prefill")
    assert of_onnx.version == onnxruntime.__version__
    other = OnnxRuntimeRunner(Path("x.onnx"), onnx_runner.io, "CUDAExecutionProvider")
    assert other.metadata().device == "cuda"


def test_a_runner_may_be_used_again(made: Export, rng: np.random.Generator):
    for runner in (*made.torch_runners(), *made.runners()):
        feeds = drawn(runner, rng)
        results = []
        for _ in range(2):
            with runner:
                results.append(runner.infer(feeds))
        for name, array in results[0].items():
            np.testing.assert_array_equal(results[1][name], array)


def test_inputs_are_told_apart_by_their_names(made: Export, rng: np.random.Generator):
    for runner in (*made.torch_runners(), *made.runners()):
        feeds = drawn(runner, rng)
        with runner:
            wanted = runner.infer(feeds)
            got = runner.infer(dict(reversed(feeds.items())))
        for name, array in wanted.items():
            np.testing.assert_array_equal(got[name], array)


def test_inference_leaves_the_feeds_alone(made: Export, rng: np.random.Generator):
    for runner in (*made.torch_runners(), *made.runners()):
        feeds = drawn(runner, rng)
        before = {name: a.copy() for name, a in feeds.items()}
        with runner:
            runner.infer(feeds)
        assert all(np.array_equal(feeds[name], a) for name, a in before.items())


def test_torch_runner_puts_its_module_into_inference_mode(
    made: Export, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
):
    module = torch.nn.Sequential(torch.nn.Dropout())
    runner = TorchRunner(module, made.graphs()[0].io)
    with runner:
        assert not module.training
    seen: list[bool] = []

    def forward(*tensors: Any) -> list[Any]:
        seen.append(torch.is_inference_mode_enabled())
        return [torch.ones(1)]

    monkeypatch.setattr(module, "forward", forward)
    first = made.graphs()[0].io
    runner = TorchRunner(module, dataclasses.replace(first, outputs=first.outputs[:1]))
    with runner:
        runner.infer(drawn(runner, rng))
    assert seen == [True]


def test_on_the_cpu_inputs_lie_where_they_are_wanted(made: Export, rng: np.random.Generator):
    for runner in (*made.torch_runners(), *made.runners()):
        feeds = drawn(runner, rng)
        with runner:
            placed = runner.place(feeds)
            assert all(placed[name] is array for name, array in feeds.items())
            runner.upload(feeds)
            with pytest.raises(ValueError, match="inputs missing"):
                runner.upload({})
        with pytest.raises(RuntimeError, match="not active"):
            runner.place(feeds)


def test_a_placed_input_without_elements_lies_nowhere(made: Export, rng: np.random.Generator):
    sizes = SIZES | {"T": 0}
    for runner in (made.torch_runners()[1], made.runners()[1]):
        feeds = {
            t.name: rng.integers(0, 2, t.shape(sizes)).astype(t.dtype) for t in runner.io.inputs
        }
        empty = {n: a for n, a in feeds.items() if not a.size}
        assert empty
        placed = {n: Placed(a.shape, a.dtype, torch.from_numpy(a)) for n, a in empty.items()}
        with runner:
            wanted, got = runner.infer(feeds), runner.infer({**feeds, **placed})
        np.testing.assert_array_equal(got["score"], wanted["score"])


def test_a_tensor_of_the_runtime_in_place_of_an_array(made: Export, rng: np.random.Generator):
    """As `place` makes them on a GPU; here torch's and ONNX Runtime's own lie on the CPU."""
    for runner in (*made.torch_runners(), *made.runners()):
        feeds = drawn(runner, rng)
        in_torch = isinstance(runner, TorchRunner)
        own = torch.from_numpy if in_torch else onnxruntime.OrtValue.ortvalue_from_numpy
        placed = {
            name: Placed(a.shape, a.dtype, own(a)) for name, a in list(feeds.items())[::2] if a.size
        }
        assert placed
        with runner:
            wanted, got = runner.infer(feeds), runner.infer({**feeds, **placed})
            for name, array in wanted.items():
                np.testing.assert_array_equal(got[name], array)
            wrong = {
                name: dataclasses.replace(p, shape=(*p.shape, 1)) for name, p in placed.items()
            }
            with pytest.raises(ValueError, match="must be"):
                runner.infer({**feeds, **wrong})


SAID = "CUDA out of memory. Tried to allocate 2.00 GiB."


@pytest.mark.parametrize("kind", [torch.OutOfMemoryError, torch.AcceleratorError])
def test_torch_says_what_a_device_has_no_memory_for(
    made: Export, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, kind: type
):
    class Full:
        """A device that has no memory left."""

        def to(self, *_: Any, **__: Any) -> Any:
            raise kind(f"{SAID}\nAnd so on")

    module = made.torch_runners()[1].module
    runner = TorchRunner(module, made.graphs()[1].io, "cuda")
    feeds = drawn(runner, rng)
    monkeypatch.setattr(torch, "from_numpy", lambda array: Full())
    with runner:
        for call, what in (
            (runner.infer, "run decode on cuda"),
            (runner.place, "place inputs of decode on cuda"),
            (runner.upload, "send inputs of decode to cuda"),
        ):
            with pytest.raises(ExportError) as error:
                call(feeds)
            assert str(error.value) == f"PyTorch can't {what}: {SAID}"


def test_onnxruntime_says_what_can_not_be_sent_to_a_device(
    made: Export, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
):
    io = made.graphs()[1].io
    runner = OnnxRuntimeRunner(made.folder / "decode.onnx", io, "CUDAExecutionProvider")
    feeds = drawn(runner, rng)

    def full(array: np.ndarray, device: str, index: int) -> Any:
        assert (device, index) == ("cuda", 0)
        raise RuntimeError("no memory left")

    monkeypatch.setattr(onnxruntime.OrtValue, "ortvalue_from_numpy", full)
    monkeypatch.setattr(runner, "_activate", lambda: None)
    says = r"can't send an input of decode\.onnx to cuda: no memory left"
    with runner:
        for call in (runner.place, runner.upload):
            with pytest.raises(ExportError, match=says):
                call(feeds)
        # What is there already, or has no elements, is not sent.
        there = {n: Placed(a.shape, a.dtype, None) for n, a in feeds.items()}
        runner.upload(there)
        empty = np.zeros((3, 0), np.int32)
        assert runner.place({"append_item_id": empty})["append_item_id"] is empty


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_torch_on_cuda_computes_what_it_does_on_the_cpu(made: Export, rng: np.random.Generator):
    for runner in made.torch_runners():
        feeds = drawn(runner, rng)
        module = copy.deepcopy(runner.module).to("cuda")
        with runner, TorchRunner(module, runner.io, "cuda") as on_cuda:
            wanted = runner.infer(feeds)
            for given in (feeds, on_cuda.place(feeds)):
                got = on_cuda.infer(given)
                for name, array in wanted.items():
                    np.testing.assert_allclose(got[name], array, rtol=1e-4, atol=1e-5)


class Options(SimpleNamespace):
    """What a session is given besides its file."""

    def add_session_config_entry(self, name: str, value: str) -> None:
        setattr(self, name.rpartition(".")[2], value)


CUDA, TENSORRT = ("CUDAExecutionProvider", {"use_tf32": "0"}), "TensorrtExecutionProvider"


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize(
    ("provider", "given"),
    [
        ("CPUExecutionProvider", ["CPUExecutionProvider"]),
        ("CUDAExecutionProvider", [CUDA]),
        (TENSORRT, [TENSORRT, CUDA]),
    ],
)
def test_a_session_is_asked_for_what_a_runner_needs_and_never_falls_back(
    made: Export, monkeypatch: pytest.MonkeyPatch, provider: str, given: list[Any], there: bool
):
    """No TF32, which flips router rows, no threads that spin, no warnings on the console."""
    seen: dict[str, Any] = {}

    def session(path: str, options: Options, providers: list[Any]) -> Any:
        seen.update(vars(options), providers=providers)
        return SimpleNamespace(get_providers=lambda: [provider] if there else ["Another"])

    fake = SimpleNamespace(SessionOptions=Options, InferenceSession=session)
    monkeypatch.setattr("ckv_export.runtimes.onnxruntime.load_module", lambda: fake)
    runner = OnnxRuntimeRunner(Path("x.onnx"), made.graphs()[0].io, provider, threads=3)
    if there:
        runner.activate()
        runner.deactivate()
        assert runner.session is None
    else:
        with pytest.raises(ExportError, match=f"no working {provider} here and fell back to Ano"):
            runner.activate()
    told = {"allow_spinning": "0", "set_denormal_as_zero": "1"}
    told |= {"intra_op_num_threads": 3, "log_severity_level": 3}
    assert seen == told | {"providers": given}


def test_file_that_does_not_exist(made: Export, tmp_path: Path):
    runner = OnnxRuntimeRunner(tmp_path / "decode.onnx", made.graphs()[1].io)
    with pytest.raises(ExportError, match=r"^ONNX Runtime can't load decode\.onnx: "):
        runner.activate()
    with pytest.raises(RuntimeError, match="not active"):
        runner.infer({})


@pytest.mark.parametrize("content", [b"", b"junk", b"\0" * 100])
def test_file_that_is_no_model(content: bytes, made: Export, tmp_path: Path):
    path = tmp_path / "decode.onnx"
    path.write_bytes(content)
    with pytest.raises(ExportError, match=r"can't load decode\.onnx"):
        OnnxRuntimeRunner(path, made.graphs()[1].io).activate()


def test_truncated_file(made: Export, tmp_path: Path):
    raw = (made.folder / "decode.onnx").read_bytes()
    (tmp_path / "decode.onnx").write_bytes(raw[: len(raw) // 2])
    with pytest.raises(ExportError, match=r"can't load decode\.onnx"):
        OnnxRuntimeRunner(tmp_path / "decode.onnx", made.graphs()[1].io).activate()


def test_file_of_another_model_is_told_when_it_runs(
    made: Export, exported: Callable[[str], Export], rng: np.random.Generator
):
    """The graph's own names differ: ONNX Runtime's message is passed on, with the file's name."""
    io = made.graphs()[1].io
    runner = OnnxRuntimeRunner(exported("sim").folder / "decode.onnx", io)
    with runner, pytest.raises(ExportError, match=r"^ONNX Runtime can't run decode\.onnx: "):
        runner.infer(drawn(runner, rng))


def test_unknown_operator_is_refused_at_activation(made: Export, tmp_path: Path):
    model = onnx.load(made.folder / "decode.onnx")
    del model.functions[:]
    onnx.save(model, tmp_path / "decode.onnx")
    with pytest.raises(ExportError, match=r"can't load decode\.onnx") as error:
        OnnxRuntimeRunner(tmp_path / "decode.onnx", made.graphs()[1].io).activate()
    assert "ckv" in str(error.value)


def test_id_beyond_its_table_is_an_error_not_a_score(made: Export, rng: np.random.Generator):
    runner = made.runners()[0]
    feeds = drawn(runner, rng)
    feeds["event_item_id"][1, 2] = 30
    with runner, pytest.raises(ExportError, match=r"can't run prefill\.onnx"):
        runner.infer(feeds)


def test_missing_package_is_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch):
    def without(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr("importlib.import_module", without)
    with pytest.raises(MissingDependency, match="running ONNX graphs needs the package") as error:
        load_module()
    assert "pip install 'ckv-export[cpu]'" in str(error.value)
