"""ONNX graphs whose inner tensors can be asked for, in ONNX Runtime on the CPU."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner

from ckv_export.errors import ExportError
from ckv_export.runtimes.base import Array, Arrays
from ckv_export.runtimes.bf16 import rounded
from ckv_export.runtimes.onnxruntime import CPU, load_module

_LOGITS = re.compile(r"(?:layers/(?P<layer>\d+)/)?(?:.*/)?(?P<side>[kv])/router/logits/")


@dataclasses.dataclass(frozen=True)
class Step:
    """A node of a graph: `caller` is the ``ckv`` node whose function body it stands in, if any."""

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    caller: str = ""

    @property
    def title(self) -> str:
        """The node for a sentence."""
        inside = f" inside {self.caller}" if self.caller else ""
        return f"{self.op} {self.name or self.outputs[0]}{inside}"


class GraphProbe:
    """The ONNX file `path` with its functions inlined.

    The file itself is left alone, and its external weights are read from where they lie.
    `optimised`: whether ONNX Runtime may fuse and fold; `precision`: of the graph, of which bf16 is
    computed as `RoundedBf16Runner` does. Raises `ExportError`.
    """

    def __init__(self, path: Path, optimised: bool = True, precision: str = "fp32") -> None:
        self.path, self.optimised = path, optimised
        try:
            model = onnx.load(str(path), load_external_data=False)
            callers = {n.output[0]: n.name for n in model.graph.node if n.domain == "ckv"}
            callers |= {f"{output}/exact": name for output, name in callers.items()}
            inlined = rounded(path) if precision == "bf16" else None
            self.model = inlined or onnx.inliner.inline_local_functions(model)
        except Exception as error:  # protobuf and onnx raise several classes of their own
            raise ExportError(f"{path} is no ONNX model: {error}") from error
        self.steps = _steps(self.model, callers)
        self.inputs = [value.name for value in self.model.graph.input]
        self.outputs = [value.name for value in self.model.graph.output]

    def run(
        self,
        feeds: Mapping[str, Array],
        names: Sequence[str],
        inner: Mapping[str, Array] | None = None,
    ) -> Arrays:
        """Run once and return the tensors `names`, inner ones or outputs.

        `inner`: float32 tensors inside that are as given, whatever their nodes would compute.
        """
        given = {name: feeds[name] for name in self.inputs} | dict(inner or {})
        marked = self._taking(inner or {})
        known = {value.name for value in marked.graph.output}
        for name in dict.fromkeys(names):
            if name not in known:
                marked.graph.output.append(onnx.ValueInfoProto(name=name))
        session = self._session(marked.SerializeToString())
        try:
            return dict(zip(names, session.run(list(names), given), strict=True))
        except Exception as error:  # the binding raises several classes of its own
            raise ExportError(f"ONNX Runtime can't run {self.path.name}: {error}") from error

    def _taking(self, inner: Iterable[str]) -> onnx.ModelProto:
        """A copy of the model with tensors inside as inputs."""
        made = onnx.ModelProto()
        made.CopyFrom(self.model)
        names = set(inner)
        kept = [node for node in made.graph.node if not names.intersection(node.output)]
        del made.graph.node[:]
        made.graph.node.extend(kept)
        made.graph.input.extend(
            onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names
        )
        return made

    def _session(self, content: bytes) -> Any:
        ort = load_module()
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        folder = str(self.path.parent.resolve())
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", folder
        )
        if not self.optimised:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            return ort.InferenceSession(content, options, providers=[CPU])
        except Exception as error:  # as above
            raise ExportError(f"ONNX Runtime can't load {self.path.name}: {error}") from error

    def router_logits(self, side: str) -> dict[int, str]:
        """The tensors of the router logits of side "k" or "v" by layer: [B, N, >= M].

        A router may be padded to more rows than its pool has. A layer whose rows are looked up has
        none.
        """
        found: dict[int, str] = {}
        for step in self.steps:
            match = _LOGITS.match(step.name)
            if match and match["side"] == side:
                found[int(match["layer"] or 0)] = step.outputs[0]
        return found


def _steps(model: onnx.ModelProto, callers: Mapping[str, str]) -> list[Step]:
    steps: list[Step] = []
    body: list[int] = []
    for number, node in enumerate(model.graph.node):
        names = tuple(n for n in node.output if n)
        steps.append(Step(node.name, node.op_type, tuple(node.input), names))
        if node.name:
            body = []
            continue
        # Nodes of our functions have no names; the last of a body makes the caller's output.
        body.append(number)
        if names[0] in callers:
            for place in body:
                steps[place] = dataclasses.replace(steps[place], caller=callers[names[0]])
            body = []
    return steps


def top_margin(logits: Array) -> Array:
    """Distance of the two largest of logits [..., M]: [...]; infinity where all are the same."""
    rows = min(2, logits.shape[-1])
    top = np.partition(logits.astype(np.float32), -rows, axis=-1)[..., -rows:]
    best, runner_up = top.max(-1), top.min(-1)
    same = best == logits.min(-1).astype(np.float32)
    return np.where(same, np.float32(np.inf), best - runner_up)
