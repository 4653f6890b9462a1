"""Remove what the exporter noted for its own debugging."""

from __future__ import annotations

import onnx_ir as ir


def run(model: ir.Model) -> None:
    """Requires: nothing.

    Ensures: no metadata and no doc strings are left. The exporter's hold stack traces with the
    absolute paths of the machine that exported, and would differ from run to run.
    """
    values = (*model.graph.inputs, *model.graph.initializers.values())
    inner = (value for node in model.graph for value in node.outputs)
    for part in (model, model.graph, *values, *model.graph, *inner):
        part.metadata_props.clear()
        part.doc_string = None
