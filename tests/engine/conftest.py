"""Small ONNX graphs and exported ones, a backend that builds them here, and a stand-in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from ckv_testing import fake_builder
from ckv_testing.exports import Export
from ckv_testing.fake_builder import FakeTensorRt
from ckv_testing.hstu import exported_hstu
from ckv_testing.refittable import GRAPHS, Files
from onnx import TensorProto, helper, numpy_helper

from ckv_export.checkpoint.load import load_checkpoint
from ckv_export.contract import GraphSpec, Profile, Range, TensorSpec
from ckv_export.engine import Backend, BuildRequest, available, load
from ckv_export.graphs.decode import DecodeGraph
from ckv_export.graphs.prefill import PrefillGraph
from ckv_export.model.registry import build_model

ELEMENT_TYPES = {
    "bool": TensorProto.BOOL,
    "int32": TensorProto.INT32,
    "int64": TensorProto.INT64,
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
}


@dataclass(frozen=True)
class Graph:
    """An ONNX file and the contract it fulfils."""

    path: Path
    spec: GraphSpec

    def request(self, profile: Profile | None = None, **options: object) -> BuildRequest:
        return BuildRequest(self.path, self.spec, profile or PROFILE, **options)  # type: ignore[arg-type]


PROFILE = Profile({"B": Range(1, 1, 4), "S": Range(0, 6, 40), "C": Range(1, 3, 9)})

X = TensorSpec("x", "float32", ("B", "S", 8))
MASK = TensorSpec("event_mask", "bool", ("B", "S"))
Y = TensorSpec("y", "float32", ("B", "S", 4))


@pytest.fixture(scope="session")
def rtx() -> Backend:
    """TensorRT for RTX, which builds without a GPU."""
    if "tensorrt_rtx" not in available():
        pytest.skip("tensorrt_rtx is not installed: pip install 'ckv-export[rtx]'")
    return load("tensorrt_rtx")


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> FakeTensorRt:
    """TensorRT 11.4 on an H100."""
    fake = fake_builder.install(monkeypatch)
    monkeypatch.setattr("ckv_export.engine.loading.present_gpu", lambda: fake_builder.GPU)
    return fake


@pytest.fixture
def files(
    exported: Callable[[str], Export], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Files]:
    """The session's one export of each kind."""

    def get(kind: str) -> Files:
        if kind == "hstu":
            folder = exported_hstu(tmp_path_factory.getbasetemp())
            loaded = load_checkpoint(folder / "hstu.pt")
            model = build_model(loaded.spec, loaded.state)
            return Files(folder, {"prefill": PrefillGraph(model), "decode": DecodeGraph(model)})
        made = exported(kind)
        return Files(made.folder, dict(zip(GRAPHS, made.graphs(), strict=True)))

    return get


@pytest.fixture
def save_graph(tmp_path: Path) -> Callable[..., Graph]:
    """Write nodes as an ONNX file whose inputs and outputs are the given tensors."""

    def save(
        nodes: Sequence[onnx.NodeProto],
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        constants: dict[str, np.ndarray] | None = None,
        functions: Sequence[onnx.FunctionProto] = (),
        external: bool = False,
    ) -> Graph:
        graph = helper.make_graph(
            list(nodes),
            "graph",
            [_value_info(t) for t in inputs],
            [_value_info(t) for t in outputs],
            [numpy_helper.from_array(np.asarray(v), n) for n, v in (constants or {}).items()],
        )
        model = helper.make_model(
            graph,
            functions=list(functions),
            opset_imports=[helper.make_opsetid("", 20), helper.make_opsetid("ckv", 1)],
            ir_version=9,
        )
        path = tmp_path / "graph.onnx"
        onnx.save(
            model,
            path,
            save_as_external_data=external,
            location="graph.onnx.weights",
            size_threshold=0,
        )
        return Graph(path, GraphSpec("prefill", tuple(inputs), tuple(outputs)))

    return save


@pytest.fixture
def projection(save_graph: Callable[..., Graph]) -> Graph:
    """y = x W, with a mask that nothing reads: the smallest prefill-like graph."""
    weights = np.arange(32, dtype=np.float32).reshape(8, 4)
    node = helper.make_node("MatMul", ["x", "W"], ["y"], name="project")
    return save_graph([node], [X, MASK], [Y], {"W": weights})


def _value_info(tensor: TensorSpec) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(
        tensor.name, ELEMENT_TYPES[tensor.dtype], list(tensor.axes)
    )
