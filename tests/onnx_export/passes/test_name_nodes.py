from __future__ import annotations

import onnx
import onnx_ir as ir
import pytest

from ckv_export.onnx_export.passes import name_nodes

SCOPES = "pkg.torch.onnx.name_scopes"


def model(*scopes: str | None) -> ir.Model:
    """A chain of Neg nodes, each with the scopes the exporter would note on it."""
    nodes = "\n".join(f"v{i + 1} = Neg(v{i})" for i in range(len(scopes)))
    text = f'<ir_version: 10, opset_import: ["": 20]> g (float[N] v0) => (float[N] v{len(scopes)})'
    made = ir.serde.deserialize_model(onnx.parser.parse_model(f"{text} {{ {nodes} }}"))
    for node, scope in zip(made.graph, scopes, strict=True):
        if scope is not None:
            node.metadata_props[SCOPES] = scope
    return made


def names(*scopes: str | None) -> list[str | None]:
    made = model(*scopes)
    name_nodes.run(made)
    return [node.name for node in made.graph]


@pytest.mark.parametrize(
    ("scope", "expected"),
    [
        ("['', 'model', 'model.dnn', 'model.dnn.first.user', 'matmul']", "dnn/first/user/Neg_0"),
        ("['', 'model', 'model.attention.k.router', 'amax']", "attention/k/router/Neg_0"),
        ("['', 'cat']", "Neg_0"),
        ("['', 'model', 'cat']", "model/Neg_0"),
        ("[]", "Neg_0"),
        ("['neg']", "Neg_0"),
        ("['_empty_nn_module_stack_from_metadata_hook', 'cat']", "Neg_0"),
        (None, "Neg_0"),
    ],
)
def test_name_is_the_path_of_the_module(scope: str | None, expected: str):
    assert names(scope) == [expected]


def test_same_names_are_counted_in_graph_order():
    user, none = "['', 'model', 'model.dnn', 'neg']", None
    assert names(user, none, user, none, user) == [
        "dnn/Neg_0", "Neg_0", "dnn/Neg_1", "Neg_1", "dnn/Neg_2",
    ]  # fmt: skip


def test_names_are_unique_whatever_the_exporter_called_them():
    made = model(*[None] * 30)
    for node in made.graph:
        node.name = "n"
    name_nodes.run(made)
    assert len({node.name for node in made.graph}) == 30
