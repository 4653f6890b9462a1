"""Tensors that aren't the model's: one sentence, exit code 2, nothing written."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from ckv_export.checkpoint.native import save_native


def spoil_weights(folder: Path, change: Callable[[dict], None]) -> Path:
    """Change the state dict of a run folder."""
    (path,) = folder.glob("*.model")
    state = torch.load(path, weights_only=True)
    change(state)
    torch.save(state, path)
    return path


def test_a_missing_tensor(export_refused, native):
    name = "long.gsu_event.weight"
    export_refused(native(drop=(name,)), says=("missing", repr(name)))


def test_a_misspelt_tensor_names_the_nearest(export_refused, native, checkpoint):
    moved = {"long.gsu_evnet.weight": checkpoint.state["long.gsu_event.weight"]}
    sentence = export_refused(native(moved, ("long.gsu_event.weight",)), says=("did you mean",))
    assert "'long.gsu_event.weight'" in sentence
    assert "'long.gsu_evnet.weight'" in sentence


def test_an_unexpected_tensor(export_refused, native):
    export_refused(
        native({"dnn.0.wieght": torch.zeros(3)}),
        says=("no place", "'dnn.0.wieght'", "did you mean 'dnn.0.weight'?"),
    )


def test_missing_and_unexpected_tensors_of_a_run_folder(export_refused, run_copy: Path):
    spoil_weights(run_copy, lambda state: state.pop("W_b.weight"))
    export_refused(run_copy, says=("no tensor 'W_b.weight'", "did you mean"))
    spoil_weights(
        run_copy, lambda s: s.update({"W_b.weight": s["W_a.weight"], "W_c.weight": torch.ones(2)})
    )
    export_refused(run_copy, says=("no place", "'W_c.weight'", "did you mean 'W_"))


def test_a_wrong_shape(export_refused, native, run_copy: Path, checkpoint):
    name = "attention.0.k.router.weight"
    rows, width = checkpoint.state[name].shape
    export_refused(
        native({name: torch.zeros(rows + 1, width)}),
        says=(repr(name), f"[{rows}, {width}]", f"got [{rows + 1}, {width}]"),
    )
    d, d_event = checkpoint.state["long.gsu_event.weight"].shape
    spoil_weights(run_copy, lambda s: s.update({"W_b.weight": torch.zeros(d, d_event + 1)}))
    export_refused(
        run_copy, says=("'W_b.weight'", f"[{d}, {d_event}]", f"got [{d}, {d_event + 1}]")
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_of_a_diverged_run(export_refused, native, run_copy: Path, checkpoint, value):
    name = "attention.0.v.pool"
    tensor = checkpoint.state[name].clone()
    tensor[-1, -1] = value
    export_refused(native({name: tensor}), says=("NaN or infinity", repr(name)))

    def spoil(state: dict) -> None:
        state["short_attention.global_V_pool"][-1, -1] = value

    spoil_weights(run_copy, spoil)
    export_refused(run_copy, says=("NaN or infinity", "'short_attention.global_V_pool'"))


def test_a_state_dict_of_other_things(export_refused, native):
    name = "dnn.0.bias"
    export_refused(native({name: [1.0, 2.0]}), says=("tensor", "list", repr(name)))
    export_refused(native({name: torch.ones(64, dtype=torch.complex64)}), says=("real", repr(name)))
    export_refused(native({name: torch.ones(64, dtype=torch.int64)}), says=("floating", repr(name)))
    export_refused(native(state_dict=[]), says=("state_dict",))


def test_safetensors_that_are_none(export_refused, checkpoint, tmp_path: Path):
    folder = tmp_path / "folder"
    save_native(folder, checkpoint.spec, checkpoint.state)
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    name, tensor = "dnn.0.bias", checkpoint.state["dnn.0.bias"]
    (length,) = struct.unpack("<Q", whole[:8])
    spoilt = {
        "cut": whole[:-1],
        "longer": whole + b"\0",
        "no header": b"",
        "header beyond the file": struct.pack("<Q", 1 << 60) + whole[8:],
        "no json": whole[:8] + b"x" * length + whole[8 + length :],
    }
    for data in spoilt.values():
        weights.write_bytes(data)
        export_refused(folder, says=("model.safetensors",))
    state = dict(checkpoint.state) | {name: torch.full_like(tensor, float("nan"))}
    safetensors.torch.save_file(state, weights)
    export_refused(folder, says=("NaN", repr(name)))
    weights.unlink()
    export_refused(folder, says=("no model.safetensors",))
