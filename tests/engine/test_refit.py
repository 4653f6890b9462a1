"""Which weights an engine can exchange, and that it exchanges all of them or is left alone.

The full TensorRT is a stand-in here; what TensorRT for RTX does without a GPU is the real one.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from ckv_testing import fake_builder
from ckv_testing.bundles import manifest_of
from ckv_testing.exports import Export
from ckv_testing.fake_builder import FakeTensorRt, weights_of
from ckv_testing.hstu import exported_hstu
from onnx import helper, numpy_helper

from ckv_export.checkpoint.load import load_checkpoint
from ckv_export.contract import Profile
from ckv_export.engine import Backend, BuildRequest, Settings, build_engine
from ckv_export.engine.loading import BundleEngine
from ckv_export.engine.messages import listen
from ckv_export.engine.network import parse_onnx
from ckv_export.engine.refit import refit_engine
from ckv_export.engine.weights import changed_weights, learned_weights, mark_refittable
from ckv_export.errors import EngineError
from ckv_export.graphs.decode import DecodeGraph
from ckv_export.graphs.prefill import PrefillGraph
from ckv_export.manifest import EngineEntry, open_bundle
from ckv_export.model.registry import build_model

pytestmark = pytest.mark.usefixtures("one_thread")

REFIT = Settings(refit=True)
GRAPHS = ("prefill", "decode")
POOL = "model.attention.k.pool"


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> FakeTensorRt:
    """TensorRT 11.4 on an H100."""
    fake = fake_builder.install(monkeypatch)
    monkeypatch.setattr("ckv_export.engine.loading.present_gpu", lambda: fake_builder.GPU)
    return fake


@dataclasses.dataclass(frozen=True)
class Files:
    """A model's exported files and the modules that they were exported from."""

    folder: Path
    graphs: dict[str, Any]

    def learned(self, graph: str) -> set[str]:
        """What of the graph's floating-point state has come into its file, told by PyTorch."""
        state = self.graphs[graph].state_dict()
        floats = {name for name, tensor in state.items() if tensor.is_floating_point()}
        return floats & set(weights_of(self.folder / f"{graph}.onnx"))

    def request(self, graph: str, target: str = "current") -> BuildRequest:
        io = self.graphs[graph].io
        profile = Profile.default(self.graphs[graph].model.spec)
        path = self.folder / f"{graph}.onnx"
        return BuildRequest(path, io, profile, (target,), settings=REFIT)


@pytest.fixture
def files(
    exported: Callable[[str], Export], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Files]:
    """The session's one export of each kind."""

    def get(kind: str) -> Files:
        if kind == "hstu":
            folder = exported_hstu(tmp_path_factory.getbasetemp())
            loaded = load_checkpoint(folder / "hstu.pt")
            model = build_model(loaded.spec, loaded.state)
            return Files(folder, {"prefill": PrefillGraph(model), "decode": DecodeGraph(model)})
        made = exported(kind)
        return Files(made.folder, dict(zip(GRAPHS, made.graphs(), strict=True)))

    return get


# -- which weights


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("kind", ["sim", "hstu"])
def test_all_learned_weights_are_marked_and_no_constant(
    kind: str, graph: str, files: Callable[[str], Files], full: FakeTensorRt, tmp_path: Path
):
    made = files(kind)
    built = build_engine(made.request(graph), full.backend, tmp_path / "e")
    learned = made.learned(graph)
    assert len(learned) > 5
    assert set(full.networks[0].marked) == learned
    assert len(full.networks[0].marked) == len(learned)
    # Nothing that only the exporter knows, and nothing of a shape.
    rest = set(weights_of(made.folder / f"{graph}.onnx")) - learned
    assert rest
    assert not any(name.startswith("model.") for name in rest)
    flags = full.module.BuilderFlag
    assert flags.REFIT_INDIVIDUAL in full.configs[0].flags
    assert flags.REFIT not in full.configs[0].flags
    assert built.settings == {"refit": True}


def test_pools_and_routers_are_learned(files: Callable[[str], Files]):
    names = learned_weights(files("sim").folder / "decode.onnx")
    for side in "kv":
        assert f"model.attention.{side}.pool" in names
        assert f"model.attention.{side}.router.logits.weight" in names


def test_nothing_is_marked_unless_asked(
    files: Callable[[str], Files], full: FakeTensorRt, tmp_path: Path
):
    request = dataclasses.replace(files("sim").request("decode"), settings=Settings())
    built = build_engine(request, full.backend, tmp_path / "e")
    assert full.networks[0].marked == []
    assert full.module.BuilderFlag.REFIT_INDIVIDUAL not in full.configs[0].flags
    assert built.settings == {}


def test_a_weight_that_the_network_has_under_no_name(
    files: Callable[[str], Files], full: FakeTensorRt, tmp_path: Path
):
    full.faults.unnamed = POOL
    with pytest.raises(EngineError, match=f"can't make the weight '{POOL}'"):
        build_engine(files("sim").request("decode"), full.backend, tmp_path / "e")
    assert list(tmp_path.iterdir()) == []
    assert full.configs == []


@pytest.mark.tensorrt
@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("kind", ["sim", "eta", "sdim", "twin", "hstu"])
def test_rtx_accepts_every_mark(kind: str, graph: str, files: Callable[[str], Files], rtx: Backend):
    """Parsed by the real library, which knows the weights by the names of the file."""
    path = files(kind).folder / f"{graph}.onnx"
    with listen(rtx) as (logger, messages):
        builder = rtx.module.Builder(logger)
        parsed = parse_onnx(path, rtx, builder, logger, messages)
        mark_refittable(parsed.network, path, rtx, messages)
        learned = set(learned_weights(path))
        for name in learned:
            assert parsed.network.are_weights_marked_refittable(name)
        assert not parsed.network.mark_weights_refittable("model.no.such.weight")


@pytest.mark.tensorrt
def test_rtx_without_a_gpu_is_refused_before_it_tries(
    files: Callable[[str], Files], rtx: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("ckv_export.engine.targets.present_gpu", lambda: None)
    with pytest.raises(EngineError) as failure:
        build_engine(files("sim").request("decode", "sm86"), rtx, tmp_path / "e")
    sentence = str(failure.value)
    assert "can be refitted only on a machine with a GPU" in sentence
    assert "run ckv-export build on the GPU machine" in sentence
    assert "--pool input" in sentence
    assert list(tmp_path.iterdir()) == []


@pytest.mark.tensorrt
def test_rtx_with_a_gpu_is_allowed(rtx: Backend, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ckv_export.engine.targets.present_gpu", lambda: "sm120")
    REFIT.require_supported(rtx)


def test_what_can_not_be_combined_or_is_too_old(full: FakeTensorRt):
    both = dataclasses.replace(REFIT, version_compatible=True)
    with pytest.raises(EngineError, match="don't go together"):
        both.require_supported(full.backend)
    del full.module.BuilderFlag
    full.module.BuilderFlag = fake_builder.names("BuilderFlag", "TF32 REFIT")  # type: ignore[attr-defined]
    with pytest.raises(EngineError, match="can't choose the weights that an engine exchanges"):
        REFIT.require_supported(full.backend)


# -- what may differ


def edited(path: Path, to: Path, edit: Callable[[onnx.ModelProto], None]) -> Path:
    """A copy of an ONNX file, edited."""
    model = onnx.load(str(path))
    edit(model)
    onnx.save(model, str(to))
    return to


def retrained(rng: np.random.Generator, keep: str = "") -> Callable[[onnx.ModelProto], None]:
    """Other values for every tensor of the model but `keep`."""

    def edit(model: onnx.ModelProto) -> None:
        for tensor in model.graph.initializer:
            if tensor.name.startswith("model.") and tensor.name != keep:
                values = numpy_helper.to_array(tensor)
                moved = (values + rng.standard_normal(values.shape)).astype(values.dtype)
                tensor.CopyFrom(numpy_helper.from_array(moved, tensor.name))

    return edit


def test_changed_weights_are_told_by_value(
    files: Callable[[str], Files], tmp_path: Path, rng: np.random.Generator
):
    made = files("hstu")
    path = made.folder / "decode.onnx"
    kept = "model.layers.1.attention.v.pool"
    assert changed_weights(path, path) == frozenset()
    new = edited(path, tmp_path / "new.onnx", retrained(rng, keep=kept))
    assert changed_weights(path, new) == made.learned("decode") - {kept}


def test_weights_in_a_file_beside(
    files: Callable[[str], Files], tmp_path: Path, rng: np.random.Generator
):
    """Where they lie is no difference, and their values are read."""
    path = files("sim").folder / "decode.onnx"
    new = tmp_path / "new.onnx"
    onnx.save(
        onnx.load(str(path)), str(new), save_as_external_data=True, location="w", size_threshold=0
    )
    assert changed_weights(path, new) == frozenset()
    data = bytearray((tmp_path / "w").read_bytes())
    model = onnx.load(str(new), load_external_data=False)
    pool = next(t for t in model.graph.initializer if t.name == POOL)
    place = {entry.key: entry.value for entry in pool.external_data}
    data[int(place["offset"])] ^= 1
    (tmp_path / "w").write_bytes(data)
    assert changed_weights(path, new) == {POOL}


def _another_node(model: onnx.ModelProto) -> None:
    model.graph.node[-1].name += "_"


def _another_attribute(model: onnx.ModelProto) -> None:
    model.functions[0].node[0].attribute.append(helper.make_attribute("axis", 7))


def _another_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "N"


def _more_rows(model: onnx.ModelProto) -> None:
    pool = next(t for t in model.graph.initializer if t.name == POOL)
    values = numpy_helper.to_array(pool)
    pool.CopyFrom(numpy_helper.from_array(np.concatenate([values, values[:1]]), POOL))


def _no_pool(model: onnx.ModelProto) -> None:
    pool = next(t for t in model.graph.initializer if t.name == POOL)
    model.graph.initializer.remove(pool)


def _another_constant(model: onnx.ModelProto) -> None:
    scalar = next(t for t in model.graph.initializer if t.name.startswith("val_"))
    scalar.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(scalar) + 1, scalar.name))


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (_another_node, "it differs in its nodes"),
        (_another_attribute, "it differs in its functions"),
        (_another_input, "it differs in its inputs"),
        (_more_rows, f"the shape or type of {POOL} differs"),
        (_no_pool, f"the shape or type of {POOL} differs"),
        (_another_constant, "has other constants"),
    ],
)
def test_another_structure(
    files: Callable[[str], Files], tmp_path: Path, edit: Callable[..., None], says: str
):
    path = files("sim").folder / "decode.onnx"
    new = edited(path, tmp_path / "new.onnx", edit)
    for pair in ((path, new), (new, path)):
        with pytest.raises(EngineError) as failure:
            changed_weights(*pair)
        assert says in str(failure.value)
        assert "ckv-export build" in str(failure.value)


def test_what_is_no_onnx(files: Callable[[str], Files], tmp_path: Path):
    (tmp_path / "new.onnx").write_bytes(b"no graph at all " * 9)
    with pytest.raises(EngineError, match="can't be read as ONNX"):
        changed_weights(files("sim").folder / "decode.onnx", tmp_path / "new.onnx")


# -- the exchange


@pytest.fixture
def built(
    exported: Callable[[str], Export],
    files: Callable[[str], Files],
    full: FakeTensorRt,
    tmp_path: Path,
) -> BundleEngine:
    """A bundle of a SIM with a refittable engine of its decode graph."""
    folder = tmp_path / "old"
    (folder / "engines").mkdir(parents=True)
    for graph in GRAPHS:
        shutil.copyfile(exported("sim").folder / f"{graph}.onnx", folder / f"{graph}.onnx")
    engine = build_engine(files("sim").request("decode"), full.backend, folder / "engines" / "d")
    digest = manifest_of(exported("sim")).with_files(folder).files["decode.onnx"].sha256
    entry = EngineEntry(
        *("decode", "engines/d", "tensorrt", full.backend.version, engine.targets),
        profile=engine.profile,
        layers=engine.layers,
        seconds=engine.seconds,
        settings=engine.settings,
        onnx=digest,
    )
    manifest = dataclasses.replace(manifest_of(exported("sim")), pool="refit", engines=(entry,))
    manifest.with_files(folder).write(folder)
    return BundleEngine(folder, open_bundle(folder), entry)


@pytest.fixture
def new(built: BundleEngine, tmp_path: Path, rng: np.random.Generator) -> Path:
    """The graph of the retrained model."""
    return edited(built.graph_file, tmp_path / "new.onnx", retrained(rng))


def in_plan(plan: Path) -> dict[str, Any]:
    return json.loads(plan.read_bytes())["weights"]


def refuse(built: BundleEngine, new: Path, full: FakeTensorRt, tmp_path: Path) -> str:
    """Refit what must fail, leaving the file that was there; returns the sentence."""
    out = tmp_path / "out" / "e"
    out.parent.mkdir()
    out.write_text("before")
    with pytest.raises(EngineError) as failure:
        refit_engine(built, new, full.backend, out)
    assert {p.name: p.read_text() for p in out.parent.iterdir()} == {"e": "before"}
    return str(failure.value)


def test_an_engine_gets_every_weight(
    built: BundleEngine, new: Path, full: FakeTensorRt, tmp_path: Path
):
    before, out = built.path.read_bytes(), tmp_path / "e"
    assert refit_engine(built, new, full.backend, out)
    assert in_plan(out)["all"] == weights_of(new)
    assert in_plan(out)["all"] != in_plan(built.path)["all"]
    assert in_plan(out)["refittable"] == in_plan(built.path)["refittable"] != []
    assert json.loads(out.read_bytes())["inspector"] == json.loads(before)["inspector"]
    assert built.path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_before_it_could_stay_refittable(
    built: BundleEngine, new: Path, full: FakeTensorRt, tmp_path: Path
):
    """TensorRT before 10.14 writes a refitted engine for good."""
    flags = fake_builder.names("SerializationFlag", "EXCLUDE_WEIGHTS EXCLUDE_LEAN_RUNTIME")
    full.module.SerializationFlag = flags  # type: ignore[attr-defined]
    assert not refit_engine(built, new, full.backend, tmp_path / "e")
    assert in_plan(tmp_path / "e") == {"all": weights_of(new), "refittable": []}


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ({"combined": "fused"}, ("has no values for 'fused'", "which", "needs")),
        ({"refit": True}, ("can't refit the engine",)),
        ({"serialize": True}, ("can't write the refitted engine",)),
        ({"fixed": POOL}, ("can't exchange the weights", POOL, "which have changed")),
    ],
)
def test_a_library_that_refuses(
    built: BundleEngine,
    new: Path,
    full: FakeTensorRt,
    tmp_path: Path,
    fault: dict[str, Any],
    says: tuple[str, ...],
):
    full.faults = dataclasses.replace(full.faults, **fault)
    sentence = refuse(built, new, full, tmp_path)
    for part in says:
        assert part in sentence


def test_a_weight_that_the_engine_keeps_and_training_did_not_change(
    built: BundleEngine, full: FakeTensorRt, tmp_path: Path, rng: np.random.Generator
):
    full.faults.fixed = POOL
    new = edited(built.graph_file, tmp_path / "new.onnx", retrained(rng, keep=POOL))
    assert refit_engine(built, new, full.backend, tmp_path / "e")
    assert in_plan(tmp_path / "e")["all"] == weights_of(new)


def test_a_weight_that_the_file_lacks(
    built: BundleEngine, new: Path, full: FakeTensorRt, tmp_path: Path
):
    """Told in the parser's own words."""
    plan = json.loads(built.path.read_bytes())
    plan["weights"]["refittable"].append("model.of.an.earlier.version")
    sentence = refuse(replaced(built, json.dumps(plan)), new, full, tmp_path)
    assert "can't put the weights of" in sentence
    assert "Only successfully refitted" in sentence


def replaced(built: BundleEngine, text: str) -> BundleEngine:
    """The bundle with another engine file, listed as it is."""
    built.path.write_text(text)
    manifest = built.manifest.with_files(built.folder)
    return dataclasses.replace(built, manifest=manifest)


def test_an_engine_that_was_not_built_for_it(
    built: BundleEngine, new: Path, full: FakeTensorRt, tmp_path: Path
):
    plan = json.loads(built.path.read_bytes())
    plan["weights"]["refittable"] = []
    sentence = refuse(replaced(built, json.dumps(plan)), new, full, tmp_path)
    assert "was not built to be refitted: export with --pool refit" in sentence


def test_what_is_no_engine(built: BundleEngine, new: Path, full: FakeTensorRt, tmp_path: Path):
    assert "can't load the engine" in refuse(replaced(built, "{"), new, full, tmp_path)


def test_another_graph(built: BundleEngine, full: FakeTensorRt, tmp_path: Path):
    new = edited(built.graph_file, tmp_path / "new.onnx", _more_rows)
    assert "is another graph" in refuse(built, new, full, tmp_path)


def test_the_engine_is_checked_before_it_is_loaded(
    built: BundleEngine, new: Path, full: FakeTensorRt, tmp_path: Path
):
    built.path.write_bytes(built.path.read_bytes() + b" ")
    assert "its hash differs" in refuse(built, new, full, tmp_path)


def test_without_a_gpu(
    built: BundleEngine,
    new: Path,
    full: FakeTensorRt,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("ckv_export.engine.loading.present_gpu", lambda: None)
    assert "there is no GPU here" in refuse(built, new, full, tmp_path)


def test_the_command_that_builds_it_anew_needs_no_flag(built: BundleEngine, full: FakeTensorRt):
    """The bundle says that its engines are refittable; `build` has no such option."""
    assert built.entry.settings == {"refit": True}
    assert "refit" not in built.build_command(full.backend).replace(str(built.folder), "")


@pytest.mark.tensorrt
def test_the_stand_in_has_no_call_that_the_library_lacks(rtx: Backend):
    pairs = {
        "Refitter": fake_builder.Refitter,
        "OnnxParserRefitter": fake_builder.OnnxParserRefitter,
        "ISerializationConfig": fake_builder.SerializationConfig,
        "ICudaEngine": fake_builder.Engine,
    }
    for name, stand_in in pairs.items():
        calls = {n for n, part in vars(stand_in).items() if n[0] != "_" and callable(part)}
        calls -= {"get_engine_information"}  # of the inspector, which the stand-in is too
        assert calls
        assert calls <= set(dir(getattr(rtx.module, name)))
    for name in ("EXCLUDE_WEIGHTS", "INCLUDE_REFIT"):
        assert hasattr(rtx.module.SerializationFlag, name)
    assert hasattr(rtx.module.BuilderFlag, "REFIT_INDIVIDUAL")
    assert hasattr(rtx.module.ICudaEngine, "refittable")
