"""How long the histories of a call are."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ckv_export.serving.batch import history_events


@pytest.mark.parametrize(
    ("events", "most", "size"),
    [
        ((), 120, 0),
        ((0, 0), 120, 0),
        ((1, 0), 120, 32),
        ((5, 32), 120, 32),
        ((33, 5), 120, 64),
        ((100,), 120, 120),
        ((5,), 7, 7),
        ((130, 5), 120, 130),
    ],
)
def test_histories_without_a_window_are_padded_to_few_lengths(
    events: tuple[int, ...], most: int, size: int
):
    """To multiples of 32, no further than any history goes; a record may be of a larger cap."""
    layout: Any = SimpleNamespace(pad_to=None)
    assert history_events(layout, events, 3, most) == size


def test_with_a_window_history_and_new_events_are_as_long_as_in_training():
    layout: Any = SimpleNamespace(pad_to=9)
    assert [history_events(layout, (4,), appended, 9) for appended in (0, 3)] == [9, 6]
