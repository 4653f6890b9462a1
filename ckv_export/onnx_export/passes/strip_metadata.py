"""Remove what the exporter noted for its own debugging."""

from __future__ import annotations

import onnx_ir as ir


def run(model: ir.Model) -> None:
    """Requires: nothing.

    Ensures: no metadata and no doc strings are left. The exporter's hold stack traces with the
    absolute paths of the machine that exported, and would differ from run to run.
    """
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    for node in model.graph:
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
