"""State and feed checks that every runtime inherits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from ckv_export.contract import GraphSpec, TensorSpec
from ckv_export.runtimes.base import Array, Arrays, Runner, RunnerMetadata

IO = GraphSpec(
    "toy",
    (
        TensorSpec("ids", "int32", ("B", "S")),
        TensorSpec("mask", "bool", ("B", "S")),
        TensorSpec("vector", "float32", ("B", "C", 3)),
    ),
    (TensorSpec("out", "float32", ("B",)),),
)


class Toy(Runner):
    """Notes what is called."""

    def __init__(self, fails: bool = False) -> None:
        super().__init__(IO)
        self.fails, self.calls = fails, []

    def _activate(self) -> None:
        self.calls.append("activate")
        if self.fails:
            raise OSError("no device")

    def _deactivate(self) -> None:
        self.calls.append("deactivate")

    def _infer(self, feeds: Mapping[str, Array]) -> Arrays:
        self.calls.append("infer")
        return {"out": np.zeros(len(feeds["ids"]), np.float32)}

    def _describe(self) -> RunnerMetadata:
        return RunnerMetadata("toy", "1", "cpu", self.io.name)


def feeds(b: int = 2, s: int = 4, c: int = 1) -> dict[str, Any]:
    return {
        "ids": np.zeros((b, s), np.int32),
        "mask": np.ones((b, s), bool),
        "vector": np.zeros((b, c, 3), np.float32),
    }


def test_context_activates_and_frees_once():
    runner = Toy()
    with runner as same:
        assert same is runner
        assert list(runner.infer(feeds())) == ["out"]
    assert runner.calls == ["activate", "infer", "deactivate"]


def test_context_frees_after_an_error():
    runner = Toy()
    with pytest.raises(KeyError), runner:
        raise KeyError
    assert runner.calls == ["activate", "deactivate"]


def test_inactive_runner_does_not_infer():
    runner = Toy()
    with pytest.raises(RuntimeError, match="the runner of toy is not active"):
        runner.infer(feeds())
    with runner:
        pass
    with pytest.raises(RuntimeError, match="the runner of toy is not active"):
        runner.infer(feeds())
    assert "infer" not in runner.calls


def test_active_runner_is_not_activated_again():
    runner = Toy()
    with runner, pytest.raises(RuntimeError, match="the runner of toy is active already"):
        runner.activate()
    assert runner.calls == ["activate", "deactivate"]


def test_deactivating_twice_does_nothing():
    runner = Toy()
    runner.deactivate()
    runner.activate()
    runner.deactivate()
    runner.deactivate()
    assert runner.calls == ["activate", "deactivate"]
    with runner:
        runner.infer(feeds())


def test_runner_that_failed_to_activate_is_inactive():
    runner = Toy(fails=True)
    with pytest.raises(OSError, match="no device"), runner:
        pass
    with pytest.raises(RuntimeError, match="not active"):
        runner.infer(feeds())
    assert runner.calls == ["activate"]


def test_metadata_needs_no_activation():
    assert Toy().metadata() == RunnerMetadata("toy", "1", "cpu", "toy")


def refused(given: dict[str, Any]) -> str:
    with Toy() as runner:
        with pytest.raises(ValueError, match=r"\w") as error:
            runner.infer(given)
        assert "infer" not in runner.calls
    return str(error.value)


def test_missing_and_unknown_inputs_are_named():
    given = feeds()
    given["masks"] = given.pop("mask")
    assert refused(given) == "toy: inputs missing ['mask'], unknown ['masks']"
    assert refused({}) == "toy: inputs missing ['ids', 'mask', 'vector'], unknown []"
    assert "unknown ['more']" in refused(feeds() | {"more": np.zeros(1)})


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("ids", np.int64), ("ids", np.float32), ("mask", np.int32), ("vector", np.float64)],
)
def test_wrong_dtype_is_refused(name: str, dtype: type):
    message = refused(feeds() | {name: feeds()[name].astype(dtype)})
    wanted = next(t.dtype for t in IO.inputs if t.name == name)
    assert message.startswith(f"input {name!r} must be {wanted} ")
    assert f"got {np.dtype(dtype)} " in message


@pytest.mark.parametrize("shape", [(2,), (2, 4, 1), ()])
def test_wrong_rank_is_refused(shape: tuple[int, ...]):
    message = refused(feeds() | {"ids": np.zeros(shape, np.int32)})
    assert message.startswith("input 'ids' must be int32 ['B', 'S'] with {}, got int32 ")
    assert message.endswith(str(list(shape)))


def test_axis_has_one_size():
    message = refused(feeds() | {"mask": np.ones((2, 5), bool)})
    assert message == (
        "input 'mask' must be bool ['B', 'S'] with {'B': 2, 'S': 4}, got bool [2, 5]"
    )
    message = refused(feeds() | {"vector": np.zeros((3, 1, 3), np.float32)})
    assert "input 'vector'" in message
    assert "'B': 2" in message


def test_fixed_axis_has_its_size():
    assert "got float32 [2, 1, 4]" in refused(feeds() | {"vector": np.zeros((2, 1, 4), "float32")})


@pytest.mark.parametrize(("b", "s", "c"), [(0, 0, 0), (1, 1, 1), (0, 3, 2), (5, 0, 7)])
def test_any_size_that_is_the_same_everywhere_is_fine(b: int, s: int, c: int):
    with Toy() as runner:
        assert runner.infer(feeds(b, s, c))["out"].shape == (b,)
