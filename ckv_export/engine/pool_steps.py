"""Which implementation of the pool step a network or an engine got, node by node."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ckv_export.engine.backends import Backend
from ckv_export.engine.plugins import NAMESPACE, NONE, PluginChoice
from ckv_export.errors import EngineError

PLUGIN = "plugin"
NATIVE = "native"


def pool_nodes(onnx_file: Path) -> dict[str, str]:
    """Operator by name of every node of domain ``ckv`` in the file's graph, in its order."""
    # Imported late: whoever loads engines needs no onnx.
    import onnx

    model = onnx.load(str(onnx_file), load_external_data=False)
    return {node.name: node.op_type for node in model.graph.node if node.domain == NAMESPACE}


def pool_steps(nodes: Iterable[str], plugin_layers: Iterable[str]) -> dict[str, str]:
    """`PLUGIN` or `NATIVE` for each node; a plugin's layer has its node's name."""
    layers = set(plugin_layers)
    return {node: PLUGIN if node in layers else NATIVE for node in nodes}


def require_asked(steps: dict[str, str], choice: PluginChoice, backend: Backend) -> None:
    """Raise `EngineError` naming every node that is not what `choice` asks for."""
    wanted = NATIVE if choice.kind == NONE else PLUGIN
    odd = [node for node, built in steps.items() if built != wanted]
    if odd:
        raise EngineError(
            f"--plugin {choice.kind} was asked for, but {backend.label} took "
            f"{'native layers' if wanted == PLUGIN else 'a plugin'} for {', '.join(odd)}; "
            "no engine was written"
        )


def summary(steps: dict[str, str]) -> str:
    """`PLUGIN`, `NATIVE`, or ``none`` for a graph that reads no pool."""
    kinds = sorted(set(steps.values()))
    return " and ".join(kinds) or "none"
