"""Buffers that stay from call to call, and CUDA graphs over them, on a stand-in for the GPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ckv_testing.fake_engine import (
    PLAN,
    RTX,
    SCRATCH,
    FakeRunner,
    GraphStrategy,
    expected,
    feeds,
)

from ckv_export.errors import EngineError
from ckv_export.runtimes.device_call import KEPT

BOTH = pytest.mark.parametrize("graphs", [False, True], ids=["plain", "graphs"])


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    path = tmp_path / "prefill.engine"
    path.write_bytes(PLAN)
    return path


@BOTH
def test_every_call_computes_its_own_inputs(engine: Path, graphs: bool):
    with FakeRunner(engine, cuda_graphs=graphs) as runner:
        for first in range(4):
            for users, events in ((2, 3), (1, 50), (3, 2), (2, 0)):
                given = feeds(users, events, first)
                np.testing.assert_array_equal(runner.infer(given)["y"], expected(given))


@BOTH
def test_a_result_is_the_callers_own(engine: Path, graphs: bool):
    with FakeRunner(engine, cuda_graphs=graphs) as runner:
        given = [feeds(2, 3, first) for first in range(4)]
        results = [runner.infer(one)["y"] for one in given]
        results[0][:] = -1
        again = runner.infer(given[0])["y"]
    for one, result in zip(given[1:], results[1:], strict=True):
        np.testing.assert_array_equal(result, expected(one))
    np.testing.assert_array_equal(again, expected(given[0]))


@BOTH
def test_a_second_call_allocates_nothing_and_waits_once(engine: Path, graphs: bool):
    with FakeRunner(engine, cuda_graphs=graphs) as runner:
        runner.infer(feeds(2, 3))
        memory = runner._memory
        made, waits, contexts = memory.made, memory.waits, len(runner._engine.contexts)
        assert memory.live() == 2 * len(["x", "mask", "y"]) + 1, "and the scratch memory"
        for call in range(1, 4):
            runner.infer(feeds(2, 3, call))
            assert (memory.made, memory.waits) == (made, waits + call)
        assert len(runner._engine.contexts) == contexts


def test_the_second_call_is_captured_and_later_ones_replay(engine: Path):
    with FakeRunner(engine, cuda_graphs=True) as runner:
        graphs = runner._memory.graphs
        for call in range(4):
            runner.infer(feeds(2, 3, call))
            assert len(graphs) == (call > 0)
        assert graphs[0]().replays == 3
        # Another set of shapes begins anew, in a context of its own, and leaves the first alone.
        for call in range(3):
            runner.infer(feeds(1, 5, call))
        runner.infer(feeds(2, 3))
        assert [graph().replays for graph in graphs] == [4, 2]


def test_no_graph_is_captured_unless_asked(engine: Path):
    with FakeRunner(engine) as runner:
        for call in range(3):
            runner.infer(feeds(2, 3, call))
        assert runner._memory.graphs == []


@BOTH
def test_few_sets_of_shapes_are_kept(engine: Path, graphs: bool):
    with FakeRunner(engine, cuda_graphs=graphs) as runner:
        memory = runner._memory
        for events in range(1, KEPT + 4):
            for _ in range(2):
                runner.infer(feeds(1, events))
        assert len(runner._calls) == KEPT
        assert memory.live() == 6 * KEPT + 1
        assert sum(graph() is not None for graph in memory.graphs) == KEPT * graphs
        # The one that was thrown out longest ago comes back with buffers of its own.
        for first in range(3):
            given = feeds(1, 1, first)
            np.testing.assert_array_equal(runner.infer(given)["y"], expected(given))
        assert len(runner._calls) == KEPT


def test_the_latest_used_are_kept(engine: Path):
    with FakeRunner(engine, cuda_graphs=True) as runner:
        for events in range(1, KEPT + 1):
            runner.infer(feeds(1, events))
        contexts = len(runner._engine.contexts)
        runner.infer(feeds(1, 1))
        runner.infer(feeds(1, KEPT + 1))
        runner.infer(feeds(1, 1))
        assert len(runner._engine.contexts) == contexts + 1
        runner.infer(feeds(1, 2))
        assert len(runner._engine.contexts) == contexts + 2


@BOTH
def test_all_is_freed_at_deactivation(engine: Path, graphs: bool):
    runner = FakeRunner(engine, cuda_graphs=graphs)
    with runner:
        for _ in range(2):
            runner.infer(feeds(2, 3))
        memory = runner._memory
    assert memory.live() == 0
    assert all(graph() is None for graph in memory.graphs)
    with runner:
        given = feeds(2, 3, 7)
        np.testing.assert_array_equal(runner.infer(given)["y"], expected(given))


@BOTH
def test_a_placed_input_is_sent_once_and_read_where_it_lies(engine: Path, graphs: bool):
    with FakeRunner(engine, cuda_graphs=graphs) as runner:
        masks = [np.arange(6).reshape(2, 3) % 2 == odd for odd in (0, 1)]
        placed = [runner.place({"mask": mask})["mask"] for mask in masks]
        for first in range(3):
            x = feeds(2, 3, first)["x"]
            for mask, held in zip(masks, placed, strict=True):
                got = runner.infer({"x": x, "mask": held})["y"]
                np.testing.assert_array_equal(got, x + mask)
        assert len(runner._calls) == 2, "a graph reads one address"
        assert all(list(call._inputs) == ["x"] for call in runner._calls._calls.values())
        with pytest.raises(ValueError, match="input 'mask' must be bool"):
            runner.infer({"x": feeds(2, 4)["x"], "mask": placed[0]})


@BOTH
def test_upload_sends_inputs_and_runs_nothing(engine: Path, graphs: bool):
    with FakeRunner(engine, cuda_graphs=graphs) as runner:
        for first in range(3):
            runner.infer(feeds(2, 3, first))
        (call,) = runner._calls._calls.values()
        before = call._outputs["y"].device.clone()
        given = feeds(2, 3, 9)
        runner.upload(given)
        sent = call._inputs["x"].device.numpy().reshape(2, 3)
        np.testing.assert_array_equal(sent, given["x"])
        assert before.equal(call._outputs["y"].device)


def test_a_capture_that_fails_says_what_to_do(engine: Path):
    with FakeRunner(engine, cuda_graphs=True) as runner:
        runner.infer(feeds(2, 3))
        runner._engine.fails = "capture"
        says = r"can't be captured in a CUDA graph, open .*cuda_graphs=False \(.*: the GPU fell off"
        for _ in range(2):
            with pytest.raises(EngineError, match=says):
                runner.infer(feeds(2, 3))
        runner._engine.fails = ""
        given = feeds(2, 3, 4)
        np.testing.assert_array_equal(runner.infer(given)["y"], expected(given))


def test_shapes_that_are_refused_leave_nothing_behind(engine: Path):
    with FakeRunner(engine, cuda_graphs=True) as runner:
        live = runner._memory.live()
        for _ in range(2):
            with pytest.raises(EngineError, match="takes input 'x' from"):
                runner.infer(feeds(5, 2))
        assert len(runner._calls) == 0
        assert runner._memory.live() == live


def test_a_device_without_room_for_an_engine_says_so(engine: Path):
    runner = FakeRunner(engine, room=SCRATCH - 1)
    with pytest.raises(EngineError, match=r"can't run .*: CUDA out of memory\. Tried to allocate"):
        runner.activate()
    assert not runner.active
    assert runner._engine is None


@BOTH
def test_a_call_that_has_no_room_leaves_room_for_others(engine: Path, graphs: bool):
    """Of 2 x 3 events x, mask and y take 54 bytes."""
    with FakeRunner(engine, room=SCRATCH + 54, cuda_graphs=graphs) as runner:
        for first in range(3):
            with pytest.raises(EngineError, match="CUDA out of memory"):
                runner.infer(feeds(2, 4))
            given = feeds(2, 3, first)
            np.testing.assert_array_equal(runner.infer(given)["y"], expected(given))
        with pytest.raises(EngineError, match="CUDA out of memory"):
            runner.place({"mask": np.ones((2, 3), bool)})


@pytest.fixture
def rtx_loggers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in's logger must not be taken for the real library's."""
    monkeypatch.setattr("ckv_export.engine.messages._loggers", {})


@pytest.mark.usefixtures("rtx_loggers")
@BOTH
def test_rtx_captures_by_itself(engine: Path, graphs: bool):
    from ckv_testing.fake_engine import IO

    with FakeRunner(engine, IO, RTX, cuda_graphs=graphs) as runner:
        for first in range(3):
            given = feeds(2, 3, first)
            np.testing.assert_array_equal(runner.infer(given)["y"], expected(given))
        assert runner._memory.graphs == []
        wanted = GraphStrategy.WHOLE_GRAPH_CAPTURE if graphs else GraphStrategy.DISABLED
        strategies = {c.runtime_config.cuda_graph_strategy for c in runner._engine.contexts}
        assert strategies == {wanted}
