"""A runner with constants bound to it takes the rest."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ckv_testing import fake_engine
from torch import Tensor, nn

from ckv_export.contract import GraphSpec, TensorSpec
from ckv_export.runtimes.bound import BoundRunner
from ckv_export.runtimes.torch import TorchRunner

IO = GraphSpec(
    "scaled",
    (TensorSpec("x", "float32", ("N",)), TensorSpec("factor", "float32", ("N",))),
    (TensorSpec("y", "float32", ("N",)),),
)


class Scaled(nn.Module):
    def forward(self, x: Tensor, factor: Tensor) -> tuple[Tensor]:
        return (x * factor,)


def bound(**constants: list[float]) -> BoundRunner:
    arrays = {name: np.array(values, np.float32) for name, values in constants.items()}
    return BoundRunner(TorchRunner(Scaled(), IO), arrays)


def test_constants_are_given_at_every_call():
    with bound(factor=[2, 3], another_graphs=[1]) as runner:
        assert [t.name for t in runner.io.inputs] == ["x"]
        assert runner.metadata().runtime == "pytorch"
        for x in ([1, 10], [2, 0]):
            y = runner.infer({"x": np.array(x, np.float32)})["y"]
            assert y.tolist() == [2 * x[0], 3 * x[1]]


def test_a_bound_input_is_no_input_and_the_rest_is_still_checked():
    one = np.ones(2, np.float32)
    with bound(factor=[2, 3]) as runner:
        with pytest.raises(ValueError, match=r"unknown \['factor'\]"):
            runner.infer({"x": one, "factor": one})
        with pytest.raises(ValueError, match="input 'factor' must be float32"):
            runner.infer({"x": np.ones(3, np.float32)})


def test_constants_go_to_the_device_once(tmp_path: Path):
    engine = tmp_path / "an.engine"
    engine.write_bytes(fake_engine.PLAN)
    mask = np.array([[True, False, True]])
    with BoundRunner(fake_engine.FakeRunner(engine), {"mask": mask}) as runner:
        for first in range(3):
            x = np.arange(3, dtype=np.float32)[None] + first
            np.testing.assert_array_equal(runner.infer({"x": x})["y"], x + mask)
        (call,) = runner.runner._calls._calls.values()
        assert list(call._inputs) == ["x"]
        memory = runner.runner._memory
        runner.upload({"x": x})
        held = runner.place({"x": x})["x"]
        np.testing.assert_array_equal(runner.infer({"x": held})["y"], x + mask)
        del held, call
    assert memory.live() == 0, "deactivation frees them"


def test_inner_runner_is_activated_and_deactivated():
    runner = bound(factor=[1])
    with pytest.raises(RuntimeError, match="not active"):
        runner.infer({"x": np.ones(1, np.float32)})
    with runner:
        assert runner.runner._active
    assert not runner.runner._active
