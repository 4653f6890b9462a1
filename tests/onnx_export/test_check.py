"""A file that breaks the contract is refused before any runtime sees it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import onnx.inliner
import pytest
from ckv_testing.exports import Export

from ckv_export.errors import ExportError
from ckv_export.onnx_export.check import check_file

Change = Callable[[onnx.ModelProto], None]


@pytest.fixture
def made(exported: Callable[[str], Export]) -> Export:
    return exported("sim")


def refused(made: Export, tmp_path: Path, change: Change, graph: str = "decode") -> str:
    """The message about the exported graph after `change`."""
    model = onnx.load(made.folder / f"{graph}.onnx")
    change(model)
    path = tmp_path / f"{graph}.onnx"
    onnx.save(model, path)
    io = made.graphs()[graph == "decode"].io
    with pytest.raises(ExportError) as error:
        check_file(path, io, 1 if graph == "decode" else 0)
    return str(error.value)


def test_untouched_files_pass(made: Export):
    for graph, pools in zip(made.graphs(), (0, 1), strict=True):
        check_file(made.folder / f"{graph.io.name}.onnx", graph.io, pools)


def test_renamed_input(made: Export, tmp_path: Path):
    def change(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            node.input[:] = ["other" if n == "history_mask" else n for n in node.input]
        next(i for i in model.graph.input if i.name == "history_mask").name = "other"

    message = refused(made, tmp_path, change)
    assert message.startswith("the inputs of the decode graph must be")
    assert "('other', 9, ('B', 'S'))" in message
    assert "('history_mask', 9, ('B', 'S'))" in message


def test_renamed_axis(made: Export, tmp_path: Path):
    def change(model: onnx.ModelProto) -> None:
        model.graph.output[0].type.tensor_type.shape.dim[1].dim_param = "N"

    assert "('score', 1, ('B', 'N'))" in refused(made, tmp_path, change)


def test_fixed_axis(made: Export, tmp_path: Path):
    def change(model: onnx.ModelProto) -> None:
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2

    assert "(2, 1, 'K')" in refused(made, tmp_path, change)


def test_missing_output(made: Export, tmp_path: Path):
    def change(model: onnx.ModelProto) -> None:
        del model.graph.output[1]

    assert refused(made, tmp_path, change).startswith("the outputs of the decode graph must be")


def test_swapped_outputs(made: Export, tmp_path: Path):
    def change(model: onnx.ModelProto) -> None:
        outputs = list(model.graph.output)
        del model.graph.output[:]
        model.graph.output.extend([outputs[0], outputs[2], outputs[1], *outputs[3:]])

    assert refused(made, tmp_path, change).startswith("the outputs of the decode graph must be")


def test_other_type(made: Export, tmp_path: Path):
    def change(model: onnx.ModelProto) -> None:
        node = next(n for n in model.graph.node if "score" in n.output)
        node.output[:] = ["score_32"]
        model.graph.node.append(
            onnx.helper.make_node("Cast", ["score_32"], ["score"], to=onnx.TensorProto.DOUBLE)
        )
        model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.DOUBLE

    assert "('score', 11, ('B', 'C'))" in refused(made, tmp_path, change)


def test_missing_node_of_our_domain(made: Export, tmp_path: Path):
    def change(model: onnx.ModelProto) -> None:
        inlined = onnx.inliner.inline_local_functions(model)
        model.CopyFrom(inlined)

    message = refused(made, tmp_path, change)
    assert message == "the exported decode graph must have 1 nodes of domain ckv, got []"


def test_unexpected_node_of_our_domain(made: Export):
    path, io = made.folder / "decode.onnx", made.graphs()[1].io
    with pytest.raises(ExportError, match=r"must have 0 nodes of domain ckv, got \['.*PooledAtt"):
        check_file(path, io, 0)


@pytest.mark.parametrize("name", ["PooledAttention", "PoolGatherConcat"])
def test_missing_function_body(name: str, made: Export, tmp_path: Path):
    """Of the graph's own node, and of one within that node's body."""

    def change(model: onnx.ModelProto) -> None:
        (body,) = (f for f in model.functions if f.name == name)
        model.functions.remove(body)

    message = refused(made, tmp_path, change)
    assert message == f"the exported decode graph is not valid ONNX: no function body of {name}"


def test_contradicting_shapes(made: Export, tmp_path: Path):
    def change(model: onnx.ModelProto) -> None:
        tensor = next(i for i in model.graph.initializer if i.name.endswith("first.target.weight"))
        tensor.dims[:] = tensor.dims[::-1]

    assert "the exported decode graph is not valid ONNX" in refused(made, tmp_path, change)


def test_prefill_without_pools(made: Export, tmp_path: Path):
    def change(model: onnx.ModelProto) -> None:
        model.graph.input[0].name, model.graph.input[1].name = "a", "b"

    assert "prefill graph" in refused(made, tmp_path, change, "prefill")


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x08\x0a\x12"])
def test_file_that_is_no_model(content: bytes, made: Export, tmp_path: Path):
    path = tmp_path / "decode.onnx"
    path.write_bytes(content)
    with pytest.raises(ExportError, match="not valid ONNX"):
        check_file(path, made.graphs()[1].io, 1)
