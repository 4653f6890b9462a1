from __future__ import annotations

import onnx
import onnx_ir as ir
import pytest

from ckv_export.onnx_export.passes import strip_metadata

PATH = "/home/somebody/project/model.py"


@pytest.fixture
def noted() -> ir.Model:
    """A model with a path in every place that can hold one."""
    text = '<ir_version: 10, opset_import: ["": 20]> g (float[N] x, float[N] w) => (float[N] y)'
    body = "{ a = Add(x, w)\n y = Neg(a) }"
    model = ir.serde.deserialize_model(onnx.parser.parse_model(f"{text} {body}"))
    weight = model.graph.inputs.pop()
    weight.const_value = ir.tensor([1.0], name="w")
    model.graph.register_initializer(weight)
    values = [*model.graph.inputs, *model.graph.initializers.values()]
    values += [value for node in model.graph for value in node.outputs]
    for holder in (model, model.graph, *model.graph, *values):
        holder.metadata_props["pkg.torch.onnx.stack_trace"] = PATH
    for node in model.graph:
        node.doc_string = PATH
    return model


def test_no_path_is_left(noted: ir.Model):
    before = ir.serde.serialize_model(noted).SerializeToString()
    assert before.count(PATH.encode()) >= 8
    strip_metadata.run(noted)
    after = ir.serde.serialize_model(noted)
    assert PATH.encode() not in after.SerializeToString()
    assert not after.metadata_props
    assert not after.graph.metadata_props


def test_nothing_else_changes(noted: ir.Model):
    before = [(n.op_type, [v.name for v in n.inputs]) for n in noted.graph]
    strip_metadata.run(noted)
    strip_metadata.run(noted)
    assert [(n.op_type, [v.name for v in n.inputs]) for n in noted.graph] == before
    assert list(noted.graph.initializers) == ["w"]
    onnx.checker.check_model(ir.serde.serialize_model(noted))


def test_no_doc_string_is_left(noted: ir.Model):
    """The pass says that none are left."""
    noted.doc_string = noted.graph.doc_string = PATH
    noted.graph.inputs[0].doc_string = PATH
    strip_metadata.run(noted)
    assert PATH.encode() not in ir.serde.serialize_model(noted).SerializeToString()
