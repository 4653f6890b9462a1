"""Writing and reading native checkpoints."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ckv_export.checkpoint.load import load_checkpoint
from ckv_export.checkpoint.native import save_native
from ckv_export.contract import AttentionSpec, DnnSpec, FeatureSpec, ModelSpec
from ckv_export.errors import CheckpointError
from ckv_export.model.parameters import expected_shapes

MAPS = Path("/proc/self/maps")


@pytest.fixture(params=["model.pt", "model"])
def path(request, tmp_path) -> Path:
    """Both forms: one file, a folder."""
    return tmp_path / request.param


@pytest.fixture
def loaded(make_run):
    return load_checkpoint(make_run().write())


def _rewrite(path: Path, change) -> None:
    """Apply `change` to everything in a native checkpoint but the tensors."""
    if path.suffix == ".pt":
        data = torch.load(path)
        change(data)
        torch.save(data, path)
    else:
        data = json.loads((path / "config.json").read_text())
        change(data)
        (path / "config.json").write_text(json.dumps(data))


@pytest.mark.parametrize("sample", ["sim_ebnerd", "sdim_micro"])
def test_a_sample_comes_back(samples, path, sample):
    before = load_checkpoint(samples / sample)
    save_native(str(path), before.spec, before.state)
    after = load_checkpoint(str(path))
    assert after.spec == before.spec
    assert list(after.state) == list(before.state) or path.suffix != ".pt"
    assert set(after.state) == set(before.state)
    assert all(torch.equal(after.state[name], before.state[name]) for name in before.state)
    assert after.notes == ()


def test_saving_again_replaces_and_leaves_no_scratch(path, loaded, tmp_path):
    for value in (1.0, 2.0):
        state = loaded.state | {"dnn.2.bias": torch.tensor([value])}
        save_native(path, loaded.spec, state)
        assert load_checkpoint(path).state["dnn.2.bias"].item() == value
    assert not list(tmp_path.glob("*.tmp"))


def test_a_link_stays_and_what_it_points_to_is_replaced(path, loaded, tmp_path):
    link = tmp_path / "links" / path.name
    link.parent.mkdir()
    save_native(path, loaded.spec, loaded.state)
    link.symlink_to(path)
    save_native(link, loaded.spec, loaded.state | {"dnn.2.bias": torch.tensor([7.0])})
    assert link.is_symlink()
    assert load_checkpoint(path).state["dnn.2.bias"].item() == 7


def test_the_folder_one_stands_in_has_a_name(tmp_path, loaded, monkeypatch):
    save_native(tmp_path / "model", loaded.spec, loaded.state)
    monkeypatch.chdir(tmp_path / "model")
    assert load_checkpoint(Path()).name == "model"


def test_others_may_read_what_the_umask_lets_them(tmp_path, loaded):
    save_native(tmp_path / "model", loaded.spec, loaded.state)
    modes = {file.stat().st_mode for file in (tmp_path / "model").iterdir()}
    assert len(modes) == 1


def test_a_loaded_file_may_be_saved_over(path, loaded):
    save_native(path, loaded.spec, loaded.state)
    first = load_checkpoint(path)
    before = first.state["dnn.2.bias"].clone()
    save_native(path, first.spec, first.state | {"dnn.2.bias": before + 1})
    assert torch.equal(first.state["dnn.2.bias"], before)
    for name, tensor in load_checkpoint(path).state.items():
        assert torch.equal(tensor, first.state[name] + (name == "dnn.2.bias"))


def test_one_tensor_under_two_names_stays_one(path, loaded):
    state = dict(loaded.state)
    state["long.v.weight"] = state["long.k.weight"] = torch.randn(16, 8).half()[8:]
    save_native(path, loaded.spec, state)
    after = load_checkpoint(path)
    assert after.state["long.k.weight"].data_ptr() == after.state["long.v.weight"].data_ptr()
    assert after.notes == ("weights stored as float16 were converted to float32",)


@pytest.mark.parametrize("metadata", [None, {"format": "pt", "dnn.2.bias": "dnn.1.bias"}])
def test_tensors_that_another_program_wrote(tmp_path, loaded, metadata):
    """Its metadata, if it writes any, names nothing that the file lacks."""
    save_native(tmp_path / "model", loaded.spec, loaded.state)
    save_file(loaded.state, tmp_path / "model" / "model.safetensors", metadata)
    after = load_checkpoint(tmp_path / "model").state
    assert all(torch.equal(after[name], tensor) for name, tensor in loaded.state.items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_become_float32(path, loaded, dtype):
    state = {name: tensor.to(dtype) for name, tensor in loaded.state.items()}
    save_native(path, loaded.spec, state)
    after = load_checkpoint(path).state
    for name, tensor in state.items():
        assert after[name].dtype == torch.float32
        assert torch.equal(after[name], tensor.float())


def test_a_slice_is_saved_without_its_base(tmp_path, loaded):
    base = torch.zeros(10_000_000)
    state = loaded.state | {"dnn.2.bias": base[:1]}
    save_native(tmp_path / "model.pt", loaded.spec, state)
    assert (tmp_path / "model.pt").stat().st_size < 100_000


def test_a_transposed_view_is_saved_as_it_reads(path, loaded):
    weight = torch.randn(8, 8).T
    save_native(path, loaded.spec, loaded.state | {"long.k.weight": weight})
    after = load_checkpoint(path).state["long.k.weight"]
    assert torch.equal(after, weight)
    assert after.is_contiguous()


@pytest.mark.skipif(not MAPS.exists(), reason="tells mapped files on Linux only")
def test_tensors_are_mapped_from_the_file_not_read(path, loaded):
    save_native(path, loaded.spec, loaded.state)
    checkpoint = load_checkpoint(path)
    assert str(checkpoint.files[-1]) in MAPS.read_text()


def test_changing_a_loaded_tensor_leaves_the_file_alone(path, loaded):
    save_native(path, loaded.spec, loaded.state)
    load_checkpoint(path).state["dnn.2.bias"] += 1
    assert torch.equal(load_checkpoint(path).state["dnn.2.bias"], loaded.state["dnn.2.bias"])


def test_biases_of_native_models(path, loaded):
    attention = dataclasses.replace(loaded.spec.attention, user_bias=True, router_bias=True)
    spec = dataclasses.replace(loaded.spec, attention=attention)
    with pytest.raises(CheckpointError, match=r"'attention.0.k.bias' is missing"):
        save_native(path, spec, loaded.state)
    biases = {f"attention.0.{s}.{p}": torch.zeros(n) for s in "kv" for p, n in BIASES.items()}
    save_native(path, spec, loaded.state | biases)
    assert load_checkpoint(path).spec.attention.router_bias


BIASES = {"bias": 2, "router.bias": 10}


def test_hstu_is_stored_and_checked_like_the_others(path):
    spec = ModelSpec(
        kind="hstu",
        features=(FeatureSpec("item", "item", "categorical", 4, vocab_size=5),),
        attention=AttentionSpec(8, 2, 2, 2, 10, 10),
        dnn=DnnSpec((), (), batch_norm=False),
        max_len=7,
        num_layers=2,
    )
    state = {n: torch.zeros([max(s, 1) for s in d]) for n, d in expected_shapes(spec).items()}
    save_native(path, spec, state)
    assert load_checkpoint(path).spec == spec
    with pytest.raises(CheckpointError, match=r"'attention.1.u.weight' must be \[8, 8\]"):
        save_native(path, spec, state | {"attention.1.u.weight": torch.zeros(8, 7)})


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_infinity_are_named(path, loaded, bad):
    state = {name: tensor.clone() for name, tensor in loaded.state.items()}
    state["attention.0.v.pool"][3, 1] = bad
    save_native(path, loaded.spec, state)
    with pytest.raises(CheckpointError, match=r"'attention.0.v.pool' holds NaN or infinity"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(format="onnx"), "format must be 'ckv', got 'onnx'"),
        (lambda d: d.pop("format"), "format must be 'ckv', got None"),
        (lambda d: d.update(version=2), "version must be 1, got 2"),
        (lambda d: d.pop("version"), "version must be 1, got None"),
        (lambda d: d.pop("config"), "must be a mapping, got NoneType"),
        (lambda d: d["config"].update(kind="din"), "unknown model kind 'din': known are .*hstu"),
        (lambda d: d["config"].update(kind="smi"), "did you mean 'sim'"),
        (lambda d: d["config"].update(features=7), "configuration is damaged"),
        (lambda d: d["config"].update(kind=["sim"]), "kind .*'sim'.*, which must be of type str"),
        (
            lambda d: d["config"].update(num_layers=10**9),
            "has one layer, got num_layers 1000000000",
        ),
        (lambda d: d["config"].update(window=None), "needs a window"),
        (lambda d: d["config"].update(options=[3]), "options must be a mapping, got .3."),
        (lambda d: d["config"].update(options={"a": [3]}), "unknown option 'a'"),
        (
            lambda d: d["config"].update(options={"topk": 2.5}),
            "must be of type int above 0, got 2.5",
        ),
        (
            lambda d: d["config"].update(options={"topK": 2}),
            "did you mean .topk.",
        ),
        (lambda d: d["config"]["dnn"].update(batch_norm=1), "batch_norm 1, .* of type bool"),
        (lambda d: d["config"]["attention"].update(use_silu=0), "use_silu 0, .* of type bool"),
        (lambda d: d["config"]["features"][0].update(length=True), "length True, .* of type int"),
        (
            lambda d: d["config"]["dnn"].update(activations=["relu", "rellu"]),
            "did you mean .relu.",
        ),
        (lambda d: d["config"]["dnn"].update(activations=["relu", "ReLU"]), "activation 'ReLU'"),
        (lambda d: d["config"]["dnn"].update(activations=["relu", [1]]), "by a text, got .1."),
        (lambda d: d["config"]["features"][0].update(name=3), "name must be a text, got 3"),
        (lambda d: d["config"].update(widnow=3), "unknown field 'widnow'; did you mean 'window'"),
        (lambda d: d["config"]["attention"].update(num_heads=3), "num_heads must divide d = 8"),
        (lambda d: d["config"]["attention"].update(user_k=3), r"'attention.0.k.weight' must be"),
    ],
)
def test_a_bad_head_is_told(path, loaded, change, message):
    save_native(path, loaded.spec, loaded.state)
    _rewrite(path, change)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(path)
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("dnn.1.bias"), r"'dnn.1.bias' is missing; did you mean 'dnn.\d"),
        (
            lambda s: s.update({"dnn.1.bais": torch.zeros(1)}),
            "1 of the tensors have no place in this model: 'dnn.1.bais'; did you mean 'dnn.1.bias'",
        ),
        (
            lambda s: s.update({f"x{i}": torch.zeros(1) for i in range(9)}),
            r"9 of the tensors have no place in this model: 'x0', 'x1', 'x2', 'x3', \.\.\.",
        ),
        (
            lambda s: s.update({"dnn.0.weight": torch.zeros(6, 27)}),
            r"'dnn.0.weight' must be \[6, 28\], got \[6, 27\]: attention is 8 wide",
        ),
        (lambda s: s.update({"dnn.2.bias": torch.zeros(1, dtype=torch.int64)}), "floating numbers"),
    ],
)
def test_a_bad_state_dict_is_told(path, loaded, change, message):
    state = dict(loaded.state)
    change(state)
    with pytest.raises(CheckpointError, match=message):
        save_native(path, loaded.spec, state)
    assert not path.exists()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (3, "maps names to tensors, got int for 'x'"),
        (torch.zeros(3).to_sparse(), "'x' must be dense"),
        (torch.zeros(3, device="meta"), "'x' must be dense"),
        (torch.zeros(3, dtype=torch.complex64), "'x' must be real"),
    ],
)
def test_values_that_are_no_plain_tensors(tmp_path, loaded, value, message):
    path = tmp_path / "model.pt"
    head = {"format": "ckv", "version": 1, "config": loaded.spec.to_dict()}
    torch.save(head | {"state_dict": loaded.state | {"x": value}}, path)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(path)


@pytest.mark.parametrize("given", [{}, {"state_dict": [1]}])
def test_a_file_without_state_dict(tmp_path, loaded, given):
    path = tmp_path / "model.pt"
    torch.save({"format": "ckv", "version": 1, "config": loaded.spec.to_dict()} | given, path)
    with pytest.raises(CheckpointError, match="has no 'state_dict'"):
        load_checkpoint(path)


def test_a_bare_fuxictr_file_is_recognised(tmp_path, make_run):
    torch.save(make_run().state, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=r"bare FuxiCTR state dict.*give the run folder"):
        load_checkpoint(tmp_path / "model.pt")


def test_damaged_folders(tmp_path, loaded):
    path = tmp_path / "model"
    save_native(path, loaded.spec, loaded.state)
    weights, config = path / "model.safetensors", path / "config.json"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"model.safetensors is damaged"):
        load_checkpoint(path)
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"no model.safetensors"):
        load_checkpoint(path)
    weights.write_bytes(whole)
    for text in ("{", "[" * 100_000):
        config.write_text(text)
        with pytest.raises(CheckpointError, match=r"config.json can't be read"):
            load_checkpoint(path)


@pytest.mark.parametrize("name", ["model.pt", "model"])
def test_a_place_that_can_not_be_written(tmp_path, loaded, name):
    with pytest.raises(CheckpointError, match=r"can't be written: (there is no|Parent dir)"):
        save_native(tmp_path / "absent" / name, loaded.spec, loaded.state)
