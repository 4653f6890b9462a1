"""Pools as inputs: swapped without another export, and only where nothing else changed."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from ckv_testing.draw import draw_state, make_spec
from ckv_testing.filling import filled, records
from ckv_testing.histories import write_npz
from ckv_testing.hstu import SPEC as HSTU
from ckv_testing.publishing import listing
from ckv_testing.serving import Shop, check_record
from onnx import numpy_helper
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from ckv_export.cache.pool_file import load_pools
from ckv_export.cache.record import RecordLayout
from ckv_export.checkpoint.load import load_checkpoint
from ckv_export.checkpoint.native import save_native
from ckv_export.cli.main import main
from ckv_export.contract import EventForm, ModelSpec
from ckv_export.deploy import fidelity
from ckv_export.deploy.bundle import ExportRequest, export_bundle
from ckv_export.deploy.fidelity import FidelityRequest, check_fidelity
from ckv_export.deploy.inspect import open_subject, report_on
from ckv_export.deploy.pools import write_pools
from ckv_export.deploy.prepare import FormRequest
from ckv_export.errors import BundleError, SpecError
from ckv_export.manifest import POOLS_FILE, Manifest, open_bundle
from ckv_export.model.fingerprint import Fingerprints
from ckv_export.model.registry import build_reference
from ckv_export.parity.bundle import judge_onnxruntime
from ckv_export.parity.expected import record
from ckv_export.parity.fault import Believed
from ckv_export.parity.inputs import generate
from ckv_export.stages import Stages
from ckv_export.training import initial_state
from ckv_export.triton.repository import RepositoryOptions, write_repository

pytestmark = pytest.mark.usefixtures("one_thread")

SIM = make_spec("sim", "rich, fuxictr mask, 2 heads")


def no_display() -> None:
    raise AssertionError("no engine is built")


def export(folder: Path, model: Path, parity: bool = False, **form: str) -> Path:
    request = ExportRequest(model, folder, parity=parity, form=FormRequest(**form))
    return export_bundle(request, Stages(), no_display).folder


def saved(path: Path, spec: ModelSpec, state: dict) -> Path:
    save_native(path, spec, state)
    return path


@pytest.fixture(scope="module")
def sim(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """A bundle that takes its pools, and the state it was made of."""
    folder = tmp_path_factory.mktemp("pools")
    state = draw_state(SIM, np.random.default_rng(0))
    return export(folder, saved(folder / "sim.pt", SIM, state), True, pool="input"), state


@pytest.fixture(scope="module")
def hstu(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """Another, whose prefill takes pools too."""
    folder = tmp_path_factory.mktemp("hstu")
    state = initial_state(HSTU, 0)
    return export(folder, saved(folder / "hstu.pt", HSTU, state), pool="input"), state


def with_pools(state: dict, change: Callable[[str], float]) -> dict:
    return {n: t + change(n) if n.endswith(".pool") else t for n, t in state.items()}


def test_bundle_takes_pools_and_passed_the_gate_with_them(sim: tuple[Path, dict]):
    folder, state = sim
    manifest = open_bundle(folder)
    assert manifest.pool == "input"
    assert manifest.parity is not None
    inputs = {t.name: t for t in manifest.graph("decode").inputs}
    pools = load_pools(folder, manifest)
    rows = {side: SIM.attention.pool_rows(side) for side in "kv"}
    assert {n: p.shape[0] for n, p in pools.items()} == {f"pool_{s}_0": rows[s] for s in "kv"}
    for name, pool in pools.items():
        assert inputs[name].axes == pool.shape
        raw = state[f"attention.0.{name[5]}.pool"].double().numpy()
        np.testing.assert_allclose(pool, raw / (1 + np.exp(-raw)), rtol=1e-6, atol=1e-7)
    with safe_open(folder / POOLS_FILE, framework="numpy") as file:
        entries = manifest.fingerprints["entries"]
        assert file.metadata() == {"fingerprint": manifest.fingerprint, "entries": entries}
    decode = onnx.load(str(folder / "decode.onnx"))
    shapes = {tuple(t.dims) for t in decode.graph.initializer}
    assert not shapes & {p.shape for p in pools.values()}, "a constant is left"
    assert [t.name for t in manifest.graph("prefill").inputs if "pool" in t.name] == []


def test_pools_are_read_by_inspect(sim: tuple[Path, dict]):
    folder, _ = sim
    pools = load_pools(folder, open_bundle(folder))
    for (layer, side), pool in open_subject(folder).pools.items():
        np.testing.assert_array_equal(pool, pools[f"pool_{side}_{layer}"])


def test_inspect_binds_the_pools(hstu: tuple[Path, dict]):
    """Those of the layers below decide what a layer caches."""
    reports = [
        report_on(open_subject(path), None, seed=1, user_dtype="fp16", users=None)
        for path in (hstu[0], hstu[0].parent / "hstu.pt")
    ]
    for one, other in zip(*(report.spectrum for report in reports), strict=True):
        assert (one.layer, one.side) == (other.layer, other.side)
        np.testing.assert_allclose(one.singular_values, other.singular_values, rtol=1e-3, atol=1e-3)


def test_fidelity_binds_the_pools(sim: tuple[Path, dict], monkeypatch: pytest.MonkeyPatch):
    """In PyTorch, in ONNX Runtime, and in the graphs that nodes are compared with."""
    folder, _ = sim
    pools = load_pools(folder, open_bundle(folder))

    def localize(
        folder: Path, manifest: Manifest, outcome: Any, believed: Believed, *_: Any
    ) -> str:
        for name, pool in pools.items():
            np.testing.assert_array_equal(believed.pools[name], pool)
        return "compared"

    monkeypatch.setattr(fidelity, "localize", localize)
    monkeypatch.setattr(
        fidelity, "export_graph", lambda graph: ir.load(folder / f"{graph.io.name}.onnx")
    )
    for against in (None, folder):
        request = FidelityRequest(
            folder, checkpoint=folder.parent / "sim.pt", against=against, localize=True
        )
        report = check_fidelity(request, Stages())
        assert report.passed
        assert [o.name for o in report.outcomes] == ["pytorch", "onnxruntime-cpu"]
        assert report.localized == {"onnxruntime-cpu": "compared"}


def swapped(folder: Path, pools: Path, to: Path) -> Path:
    """The bundle's graphs beside other pools."""
    to.mkdir()
    for name in ("prefill.onnx", "decode.onnx"):
        (to / name).write_bytes((folder / name).read_bytes())
    (to / POOLS_FILE).write_bytes(pools.read_bytes())
    return to


def test_swapped_pools_give_what_an_export_with_them_gives(sim: tuple[Path, dict], tmp_path: Path):
    """The old graphs with the new pools pass the gate of the new model, and not of the old one."""
    folder, state = sim
    retrained = saved(tmp_path / "new.pt", SIM, with_pools(state, lambda n: 0.5 + len(n) % 2))
    new = write_pools(folder, retrained, tmp_path / "new.safetensors")
    assert new.caches_valid
    manifest = open_bundle(folder)
    place = swapped(folder, new.path, tmp_path / "swapped")
    for model, passes in (((SIM, load_checkpoint(retrained).state), True), ((SIM, state), False)):
        cases = record(build_reference(*model), generate(SIM, 5))
        assert judge_onnxruntime(place, manifest, cases, None).passed == passes
    with safe_open(new.path, framework="numpy") as file:
        metadata = file.metadata()
    assert metadata["fingerprint"] == new.fingerprint != manifest.fingerprint
    assert metadata["entries"] == manifest.fingerprints["entries"]


def test_caches_of_layers_above_a_new_pool_are_not_valid(
    hstu: tuple[Path, dict], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """By the command, which says so."""
    folder, state = hstu
    manifest = open_bundle(folder)
    top = f"attention.{HSTU.num_layers - 1}"
    for name, moved, valid in (("top", top, True), ("below", "attention.0", False)):
        changed = with_pools(state, lambda n, moved=moved: float(n.startswith(moved)))
        model, out = saved(tmp_path / f"{name}.pt", HSTU, changed), tmp_path / name
        out.mkdir()
        assert main(["pool", str(model), "--bundle", str(folder), "--out", str(out)]) == 0
        said = " ".join(capsys.readouterr().out.split())
        prints = Fingerprints.of(HSTU, changed)
        assert said.startswith(f"{out / POOLS_FILE}: pools of the model {prints.model[:16]} ")
        about = "Caches made with the bundle are"
        assert (f"{about} valid" in said, f"{about} not valid" in said) == (valid, not valid)
        assert "[" not in said.removeprefix(str(out))
    taken = [t.name for t in manifest.graph("prefill").inputs if t.name.startswith("pool")]
    assert taken == ["pool_k_0", "pool_v_0"], "an entry of the last layer needs none of its own"


def test_bulk_prefill_binds_the_pools(
    hstu: tuple[Path, dict], tmp_path: Path, rng: np.random.Generator
):
    folder, state = hstu
    manifest = open_bundle(folder)
    shop = Shop("hstu", HSTU, state, folder, manifest, build_reference(HSTU, state))
    users, store = {"u": shop.user(0, rng)}, f"sqlite:///{tmp_path / 'users.db'}"
    shop.grow(users["u"], shop.next(users["u"], 3, rng))
    write_npz(tmp_path / "h.npz", shop, users)
    assert filled(shop, tmp_path / "h.npz", store).written == 1
    record = records(shop, store, users)["u"]
    assert record is not None
    check_record(shop, users["u"], RecordLayout.of(manifest, "float32"), record)


def test_a_served_graph_has_its_pools_as_constants(hstu: tuple[Path, dict], tmp_path: Path):
    """An input of Triton's has a batch axis."""
    pytest.importorskip("tritonclient.grpc", reason="the package tritonclient is not installed")
    folder, _ = hstu
    manifest = open_bundle(folder)
    for name in write_repository(folder, manifest, RepositoryOptions("sqlite:///u.db"), tmp_path):
        if name != manifest.name:
            model = onnx.load(tmp_path / name / "1" / "model.onnx")
            graph = name.removeprefix(f"{manifest.name}_")
            pools = {t.name for t in manifest.graph(graph).inputs if t.name.startswith("pool_")}
            given = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
            for pool, values in load_pools(folder, manifest).items():
                if pool in pools:
                    np.testing.assert_array_equal(given[pool], values)
            assert pools
            assert pools.isdisjoint(i.name for i in model.graph.input)


def test_half_precision_pools_are_half_precision_inputs(tmp_path: Path):
    state = draw_state(SIM, np.random.default_rng(1))
    model = saved(tmp_path / "sim.pt", SIM, {name: t.half() for name, t in state.items()})
    folder = export(tmp_path, model, pool="input", precision="fp16")
    assert open_bundle(folder).notes == load_checkpoint(model).notes != ()
    assert {p.dtype.name for p in load_pools(folder, open_bundle(folder)).values()} == {"float16"}
    retrained = load_file(write_pools(folder, model, tmp_path / "new.safetensors").path)
    assert {p.dtype.name for p in retrained.values()} == {"float16"}
    with pytest.raises(SpecError, match=r"can't be inputs of a bf16 graph.*choose fp16 or fp32"):
        export(tmp_path / "no", model, pool="input", precision="bf16")


def test_other_changes_are_refused(sim: tuple[Path, dict], tmp_path: Path):
    folder, state = sim
    changed = state | {"attention.0.q.weight": state["attention.0.q.weight"] + 1}
    model = saved(tmp_path / "new.pt", SIM, changed)
    with pytest.raises(BundleError, match="in more than its pools: export it"):
        write_pools(folder, model, tmp_path / "new.safetensors")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["new.pt"]


def test_caches_depend_on_what_the_graphs_look_up(sim: tuple[Path, dict], tmp_path: Path):
    """Which is the bundle's, not the new model's."""
    folder = Path(shutil.copytree(sim[0], tmp_path / "bundle"))
    prints = Fingerprints.of(SIM, sim[1], "ab" * 32)
    known = {"entries": prints.entries, "all but pools": prints.but_pools, "looked up": "ab" * 32}
    dataclasses.replace(open_bundle(folder), fingerprints=known).write(folder)
    retrained = saved(tmp_path / "new.pt", SIM, with_pools(sim[1], lambda n: 1.0))
    assert write_pools(folder, retrained, tmp_path / "new.safetensors").caches_valid


@pytest.mark.parametrize("option", ["weights", "params"])
def test_options_of_run_folders(
    sim: tuple[Path, dict], tmp_path: Path, option: str, capsys: pytest.CaptureFixture[str]
):
    words = ["pool", str(sim[0].parent / "sim.pt"), "--bundle", str(sim[0]), f"--{option}=x"]
    assert main([*words, "--out", str(tmp_path)]) == 2
    assert "are for FuxiCTR run folders only" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_bundle_with_constant_pools_is_refused(sim: tuple[Path, dict], tmp_path: Path):
    folder = Path(shutil.copytree(sim[0], tmp_path / "constant"))
    dataclasses.replace(open_bundle(folder), form=EventForm()).write(folder)
    with pytest.raises(BundleError, match="hold their pools: export with --pool input"):
        write_pools(folder, tmp_path / "any.pt", tmp_path)


@pytest.mark.parametrize("place", ["", POOLS_FILE, "other.safetensors"])
def test_no_bundle_is_written_to(sim: tuple[Path, dict], place: str):
    """Its hashes would no longer be those of its files."""
    folder, _ = sim
    before = listing(folder)
    with pytest.raises(BundleError, match=r"is a bundle.*choose another --out"):
        write_pools(folder, folder.parent / "sim.pt", folder / place)
    assert listing(folder) == before


@pytest.mark.parametrize(
    ("out", "says"),
    [
        ("own/model.safetensors", "is the checkpoint"),
        ("own/sub/../model.safetensors", "is the checkpoint"),
        ("new.pt", "a .safetensors file or a folder that exists"),
        ("new/", "a .safetensors file or a folder that exists"),
    ],
)
def test_the_checkpoint_is_not_written_to(
    sim: tuple[Path, dict], tmp_path: Path, out: str, says: str
):
    folder, state = sim
    weights = saved(tmp_path / "own", SIM, state) / "model.safetensors"
    (weights.parent / "sub").mkdir()
    before = weights.read_bytes()
    with pytest.raises(BundleError, match=says):
        write_pools(folder, weights.parent, tmp_path / out)
    assert weights.read_bytes() == before
    assert {p.name for p in tmp_path.iterdir()} == {"own"}


@pytest.mark.parametrize("damage", ["gone", "renamed", "other shape", "garbage"])
def test_damaged_pools_are_refused(sim: tuple[Path, dict], tmp_path: Path, damage: str):
    folder, _ = sim
    pools = load_file(folder / POOLS_FILE)
    if damage == "renamed":
        pools["pool_k_1"] = pools.pop("pool_k_0")
    if damage == "other shape":
        pools["pool_v_0"] = pools["pool_v_0"][1:].copy()
    if damage == "garbage":
        (tmp_path / POOLS_FILE).write_bytes(b"no pools")
    elif damage != "gone":
        save_file(pools, tmp_path / POOLS_FILE)
    with pytest.raises(BundleError, match=r"pools\.safetensors (holds no pools|must hold)"):
        load_pools(tmp_path, open_bundle(folder))
