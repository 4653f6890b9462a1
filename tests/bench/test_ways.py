"""What loading a way says of it, and who frees the graphs that ways share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from ckv_testing.draw import make_spec

from ckv_export.bench import ways
from ckv_export.bench.stored import Layout, Store
from ckv_export.bench.ways import LeftOut, Way, open_all, require_named
from ckv_export.contract import CacheSpec, decode_io
from ckv_export.errors import EngineError, InputError
from ckv_export.runtimes.base import Runner

SPEC = make_spec("sim")


class Graph(Runner):
    """A graph that loads, or doesn't."""

    def __init__(self, loads: bool = True) -> None:
        super().__init__(decode_io(SPEC))
        self.loads = loads

    def _activate(self) -> None:
        if not self.loads:
            raise EngineError("not for this GPU")

    def _deactivate(self) -> None: ...

    def _infer(self, feeds: Any) -> Any: ...

    def _describe(self) -> Any: ...


def way(name: str, prefill: Runner | None, decode: Runner) -> Way:
    return Way(name, "compact", prefill, decode, Layout(SPEC, CacheSpec.of(SPEC), "fp32"))


@pytest.mark.parametrize(
    ("resident", "taken"),
    [((100, 350), 250), ((350, 100), 0), ((None, 100), None), ((100, None), None)],
)
def test_what_loading_takes_of_the_host(
    monkeypatch: pytest.MonkeyPatch, resident: Sequence[int | None], taken: int | None
):
    """Memory that something else freed meanwhile is not what it took; it may not be known."""
    monkeypatch.setattr(ways, "resident_bytes", iter(resident).__next__)
    one = way("one", None, Graph())
    one.open()
    assert one.host_bytes == taken
    assert one.load_seconds > 0


def test_users_are_stored_without_padding_and_without_what_no_window_holds(
    rng: np.random.Generator,
):
    one, users, kept = way("one", None, Graph()), 3, 4
    compact = {
        f"cache_{name}": rng.integers(0, 9, one.layout.shape(name, users, kept)).astype(dtype)
        for name, dtype, _ in one.layout.cache.tensors
    }
    store = one.store_of(compact, (2, 0, 6), lambda way, blobs: Store(blobs))
    unpacked = store.unpack(one.layout, range(users), kept)
    for name, array in compact.items():
        expected = array.copy()
        expected[0, :, :2] = 0
        expected[1] = 0
        np.testing.assert_array_equal(unpacked[name], expected)


def test_a_graph_is_loaded_once_and_freed_with_the_last_way_that_runs_it():
    shared, own = Graph(), Graph()
    first, second = way("first", shared, own), way("second", shared, shared)
    assert open_all([first, second]) == ([first, second], [])
    first.close([second])
    assert (shared.active, own.active) == (True, False)
    second.close()
    assert not shared.active


def test_a_way_that_does_not_load_holds_nothing():
    loaded, bad = Graph(), Graph(loads=False)
    good = way("good", None, Graph())
    opened, left_out = open_all([way("bad", loaded, bad), good])
    assert (opened, left_out) == ([good], [LeftOut("bad", "not for this GPU")])
    assert not loaded.active


def test_only_names_a_way_that_there_is():
    there = [way("one, compact", None, Graph()), way("two", None, Graph())]
    absent = [LeftOut("three, compact", "no GPU")]
    require_named("compact", there, absent)
    with pytest.raises(InputError, match=r"'three' is for 'three, compact', .* here: no GPU"):
        require_named("three", there, absent)
    with pytest.raises(InputError, match=r"\('one, compact', 'two'\), got 'four'"):
        require_named("four", there, absent)
