"""The short window, with both mask rules, for every length around it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ckv_testing.draw import PLAIN, draw_state, make_spec
from ckv_testing.slow import Slow

from ckv_export.model.reference import short_window
from ckv_export.model.target_attention import window_positions
from ckv_export.parity.tolerances import TOLERANCES

# W = 4: three events. (events of the window, events whose mask it takes) by history length.
ALIGNED = {
    0: ([], []),
    1: ([0], [0]),
    2: ([0, 1], [0, 1]),
    3: ([0, 1, 2], [0, 1, 2]),
    4: ([1, 2, 3], [1, 2, 3]),
    5: ([2, 3, 4], [2, 3, 4]),
    9: ([6, 7, 8], [6, 7, 8]),
}
FUXICTR = ALIGNED | {
    4: ([1, 2, 3], [0, 1, 2]),
    5: ([2, 3, 4], [1, 2, 3]),
    9: ([6, 7, 8], [5, 6, 7]),
}
RULES = {"aligned": ALIGNED, "fuxictr": FUXICTR}


@pytest.mark.parametrize("rule", RULES)
def test_windows_by_hand(rule: str, rng: np.random.Generator):
    spec = make_spec("sim", window=4, mask_alignment=rule)
    slow = Slow(spec, {})
    for length, (events, masks) in RULES[rule].items():
        x = torch.from_numpy(rng.standard_normal((2, length, 3)))
        mask = torch.from_numpy(rng.random((2, length)) < 0.5)
        window, window_mask = short_window(spec, x, mask)
        assert torch.equal(window, x[:, events])
        assert torch.equal(window_mask, mask[:, masks])
        by_loops = slow.window(list(x[0].numpy()), mask[0].tolist())
        assert [list(e) for e in by_loops[0]] == window[0].tolist()
        assert by_loops[1] == window_mask[0].tolist()


@pytest.mark.parametrize("rule", RULES)
def test_split_windows_by_hand(rule: str):
    """The split model has only the last entries, whose positions are those of the window."""
    spec = make_spec("sim", window=4, mask_alignment=rule)
    for length, (events, masks) in RULES[rule].items():
        for appended in range(length + 1):
            cached = min(length - appended, 3) + appended
            kept, kept_mask = window_positions(spec, cached, length)
            assert (kept + length - cached).tolist() == events
            assert kept_mask.tolist() == masks


def test_one_event_in_the_smallest_window_is_masked_by_the_quirk():
    """W = 2 and two events, the later one real: the authors' mask is the padding's."""
    spec = make_spec("sim", window=2, mask_alignment="fuxictr", features=PLAIN)
    mask = torch.tensor([[False, True]])
    assert short_window(spec, torch.zeros(1, 2, 1), mask)[1].tolist() == [[False]]
    aligned = make_spec("sim", window=2, features=PLAIN)
    assert short_window(aligned, torch.zeros(1, 2, 1), mask)[1].tolist() == [[True]]


def test_the_mask_rule_changes_scores(rng: np.random.Generator):
    """Otherwise the tests of both rules would prove nothing."""
    scores: dict[str, np.ndarray] = {}
    state = draw_state(make_spec("sim"), rng)
    events = [rng.standard_normal(10) for _ in range(6)]
    targets = [rng.standard_normal(10) for _ in range(20)]
    for rule in RULES:
        slow = Slow(make_spec("sim", mask_alignment=rule), state)
        mask = [False] * 3 + [True] * 3
        scores[rule] = np.array(slow.scores(events, mask, targets, np.zeros(0)))
    differ = np.abs(scores["aligned"] - scores["fuxictr"]).max()
    assert differ > TOLERANCES["score"].absolute
