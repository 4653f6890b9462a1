"""The first node of a graph whose result differs from that of a graph which is believed.

Bisection over cuts of the graph: at a cut behind node n, the tensors that are made by then and
still needed are all that later results can depend on. If one of them differs, the first difference
that matters lies before the cut, else behind it. Few tensors are marked as outputs at a time,
because marking one keeps ONNX Runtime from fusing it away.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ckv_export.parity.probe import GraphProbe, Step
from ckv_export.parity.tolerances import INSIDE, SENTINEL
from ckv_export.runtimes.base import Array

Pair = tuple[Step, Step]
_NEVER, _OUTPUT = -1, 1 << 60
_LOOKS = 24
_NUMBER = re.compile(r"_\d+$")


@dataclass(frozen=True)
class Divergence:
    """Node and tensor at which a graph first differs, and by how much of what is allowed.

    `error`: largest difference (for whole numbers and bools: how many differ); `allowed`: what
    rounding may make of it.
    """

    graph: str
    case: str
    node: str
    op: str
    tensor: str
    error: float
    allowed: float
    against: str

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        return asdict(self)

    def sentence(self) -> str:
        """Where the graph goes wrong."""
        return (
            f"{self.graph}: the first result to differ from {self.against} is that of node "
            f"{self.node}, tensor {self.tensor!r}: off by {self.error:.3g} where "
            f"{self.allowed:.3g} is rounding (case {self.case!r})"
        )


@dataclass(frozen=True)
class Difference:
    """`error` and `allowed` of the element that is farthest beyond its bound."""

    error: float
    allowed: float

    @property
    def counts(self) -> bool:
        """Whether it is more than rounding."""
        return not self.error <= self.allowed


class Localizer:
    """Compares the graph under test with one that is believed, on the same feeds.

    Both may be the same file, one without optimisations. `precision`: of the graph under test.
    """

    def __init__(self, tested: GraphProbe, truth: GraphProbe, precision: str = "fp32") -> None:
        self.tested, self.truth, self.precision = tested, truth, precision
        self.pairs = paired(tested.steps, truth.steps)
        self._feeds: tuple[Mapping[str, Array], Mapping[str, Array]] = ({}, {})
        self._inner: Mapping[str, Array] = {}
        self._last_use = last_uses(tested, [step for step, _ in self.pairs])

    def first(
        self,
        feeds: Mapping[str, Array],
        truth_feeds: Mapping[str, Array] | None = None,
        inner: Mapping[str, Array] | None = None,
    ) -> tuple[Step, str, Difference] | None:
        """The first node, its tensor and the difference; None where nothing differs.

        `truth_feeds`: where the graph that is believed takes others; `inner`: what it is given
        inside, see `GraphProbe.run`.
        """
        self._feeds = feeds, feeds if truth_feeds is None else truth_feeds
        self._inner = inner or {}
        low, high = -1, next(filter(self._differing, self._first_cuts()), -1)
        if high < 0:
            return None
        while high - low > 1:
            middle = (low + high) // 2
            if self._differing(middle):
                high = middle
            else:
                low = middle
        step = self.pairs[high][0]
        found = self._differing(high)
        tensor = next((name for name in step.outputs if name in found), next(iter(found)))
        return step, tensor, found[tensor]

    def _first_cuts(self) -> list[int]:
        """The outputs; then, where what went wrong has faded on the way to them, cuts before."""
        last = len(self.pairs) - 1
        if last < 0:
            return []
        return [last, *sorted({last * look // _LOOKS for look in range(_LOOKS)})]

    def _differing(self, cut: int) -> dict[str, Difference]:
        """The live tensors behind pair number `cut` that differ by more than rounding."""
        live = [
            names
            for tested, truth in self.pairs[: cut + 1]
            for names in zip(tested.outputs, truth.outputs, strict=False)
            if self._last_use.get(names[0], _NEVER) > cut
        ]
        got = self.tested.run(self._feeds[0], [tested for tested, _ in live])
        expected = self.truth.run(self._feeds[1], [truth for _, truth in live], self._inner)
        differences = {
            name: difference(got[name], expected[other], self.precision) for name, other in live
        }
        return {name: found for name, found in differences.items() if found.counts}


def paired(tested: Sequence[Step], truth: Sequence[Step]) -> list[Pair]:
    """The nodes that two graphs have in common, in the order of `tested`.

    Casts, which another precision adds, are left out, and so is what has no counterpart. A node's
    number tells none: where one graph has a node more, those behind it are counted on.
    """
    ours, theirs = ([s for s in steps if s.op != "Cast"] for steps in (tested, truth))
    if [s.op for s in ours] == [s.op for s in theirs]:
        return list(zip(ours, theirs, strict=True))
    a, b = ([f"{s.op} {_place(s)}" for s in steps] for steps in (ours, theirs))
    blocks = difflib.SequenceMatcher(None, a, b, autojunk=False).get_matching_blocks()
    alike = ((ours[m.a + n], theirs[m.b + n]) for m in blocks for n in range(m.size))
    return list(_of_pairs(alike, _uncast(tested), _uncast(truth)))


def _place(step: Step) -> str:
    return _NUMBER.sub("", step.name) if step.name else step.outputs[0]


def _uncast(steps: Sequence[Step]) -> dict[str, str]:
    """Output of a cast -> the tensor that it is of."""
    casts: dict[str, str] = {}
    for step in steps:
        if step.op == "Cast":
            casts[step.outputs[0]] = casts.get(step.inputs[0], step.inputs[0])
    return casts


def _of_pairs(
    alike: Iterable[Pair], ours: Mapping[str, str], theirs: Mapping[str, str]
) -> Iterator[Pair]:
    """Those that read the same: where both read what pairs have made, it is what one pair made.

    What only one graph has may be in between, as where a node is fed the wrong tensor.
    """
    mates: dict[str, str] = {}
    taken: set[str] = set()
    for a, b in alike:
        read = [
            (ours.get(x, x), theirs.get(y, y)) for x, y in zip(a.inputs, b.inputs, strict=False)
        ]
        if all(mates.get(x, y) == y or y not in taken for x, y in read):
            mates |= dict(zip(a.outputs, b.outputs, strict=False))
            taken |= set(b.outputs)
            yield a, b


def last_uses(graph: GraphProbe, steps: Sequence[Step]) -> dict[str, int]:
    """Tensor -> number of the last of `steps` that needs it, be it through other nodes."""
    number = {step: n for n, step in enumerate(steps)}
    uses = dict.fromkeys(graph.outputs, _OUTPUT)
    for step in reversed(graph.steps):
        through = max((uses.get(name, _NEVER) for name in step.outputs), default=_NEVER)
        for name in step.inputs:
            uses[name] = max(uses.get(name, _NEVER), number.get(step, through))
    return uses


def difference(got: Array, expected: Array, precision: str) -> Difference:
    """How far two tensors are apart; equal NaN and infinities are no difference."""
    if got.shape != expected.shape:
        return Difference(float("inf"), 0.0)
    if got.size == 0:
        return Difference(0.0, 0.0)
    if got.dtype.kind in "biu" or expected.dtype.kind in "biu":
        return Difference(float((got != expected).sum()), 0.0)
    a, b = got.astype(np.float64), expected.astype(np.float64)
    with np.errstate(invalid="ignore"):
        apart = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, np.abs(a - b))
    apart = np.where(np.isnan(apart), np.inf, apart)
    allowed = _allowed(b, precision)
    with np.errstate(over="ignore"):
        worst = int(np.argmax(apart / np.maximum(allowed, np.finfo(np.float64).tiny)))
    return Difference(float(apart.ravel()[worst]), float(allowed.ravel()[worst]))


def _allowed(expected: NDArray[np.float64], precision: str) -> NDArray[np.float64]:
    """A share of the element and of the tensor's largest, masks' huge numbers not counted."""
    size = np.where(np.isfinite(expected), np.abs(expected), 0.0)
    scale = float(size[size < SENTINEL].max(initial=0.0))
    allowed: NDArray[np.float64] = INSIDE[precision] * (scale + size)
    return allowed
