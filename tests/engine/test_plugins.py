"""Who computes the pool step: asked, built, and compared. Full TensorRT is a stand-in here."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from ckv_testing import fake_builder, fake_tensorrt
from ckv_testing.fake_builder import FakeTensorRt, write_library
from onnx import helper

from ckv_export.contract import Profile, Range, TensorSpec
from ckv_export.engine import Backend, PluginChoice, Settings, aot_plugin, build_engine
from ckv_export.engine.plugin_library import read, runs_on
from ckv_export.engine.plugins import PluginRecord, found_again
from ckv_export.errors import EngineError

PROFILE = Profile({"B": Range(1, 1, 4), "S": Range(0, 6, 40)})
GATHER = "PoolGatherConcat"


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> FakeTensorRt:
    """The full TensorRT, 11.4, on an H100."""
    return fake_builder.install(monkeypatch)


@pytest.fixture
def pools(save_graph: Callable[..., object]):
    """A graph with two nodes of domain ckv, the second one on what the first one wrote."""
    body = helper.make_function(
        "ckv",
        GATHER,
        ["f_pool", "f_index", "f_user"],
        ["f_out"],
        [
            helper.make_node("Gather", ["f_pool", "f_index"], ["f_row"], axis=0),
            helper.make_node("Concat", ["f_row", "f_user"], ["f_out"], axis=-1),
        ],
        [helper.make_opsetid("", 20)],
        attributes=["plugin_namespace", "plugin_version"],
    )
    named = {"domain": "ckv", "plugin_namespace": "ckv", "plugin_version": "1"}
    nodes = [
        helper.make_node(GATHER, ["pool", "index", "user"], ["k"], name="layers/0/key", **named),
        helper.make_node(GATHER, ["pool", "index", "k"], ["kk"], name="layers/1/key", **named),
    ]
    return save_graph(
        nodes,
        [TensorSpec("index", "int32", ("B", "S")), TensorSpec("user", "float32", ("B", "S", 2))],
        [TensorSpec("kk", "float32", ("B", "S", 14))],
        {"pool": np.zeros((11, 6), np.float32)},
        functions=[body],
    )


def request(pools, kind: str = "none", library: Path | None = None, **settings: object):
    choice = PluginChoice(kind, library)
    return pools.request(PROFILE, targets=("current",), settings=Settings(choice, **settings))


def refuse(pools, full: FakeTensorRt, tmp_path: Path, *asked: object, **settings: object) -> str:
    """Build what must fail and leave nothing; returns the sentence."""
    out = tmp_path / "e.engine"
    with pytest.raises(EngineError) as failure:
        build_engine(request(pools, *asked, **settings), full.backend, out)
    assert not out.exists()
    assert not list(tmp_path.glob(".*tmp"))
    return str(failure.value)


def test_native_layers_by_default(pools, full: FakeTensorRt, tmp_path: Path):
    built = build_engine(request(pools), full.backend, tmp_path / "e")
    assert (built.pool_step, built.plugin, built.plugins) == ("native", None, ())
    assert built.report is not None
    assert built.report.source == "built engine"
    assert dict(built.report.pool_steps) == {"layers/0/key": "native", "layers/1/key": "native"}
    assert built.report.parts == {"(pool step)": {"fp32": 4}}


def test_a_library_is_loaded_before_parsing_and_recorded(pools, full: FakeTensorRt, tmp_path: Path):
    file = write_library(tmp_path / "lib", [GATHER])
    built = build_engine(request(pools, "library", file.parent), full.backend, tmp_path / "e")
    assert full.loaded == [str(file)]
    assert built.pool_step == "plugin"
    assert built.plugins == ("layers/0/key", "layers/1/key")
    assert built.plugin is not None
    assert built.plugin.to_dict() == {
        "kind": "library",
        "sha256": read(file, full.backend, ()).sha256,
        "operator_version": "1",
        "tensorrt": "11.4.0",
        "targets": ["sm80", "sm90"],
        "carried": False,
    }
    assert full.configs[0].plugins_to_serialize == []
    flags = full.module.NetworkDefinitionCreationFlag
    assert full.networks[0].flags == 1 << flags.PREFER_AOT_PYTHON_PLUGINS
    # The next graph of the bundle finds it loaded: a registry takes no library twice.
    build_engine(request(pools, "library", file), full.backend, tmp_path / "f")
    assert full.loaded == [str(file)]


def test_a_version_compatible_engine_carries_the_library(
    pools, full: FakeTensorRt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file = write_library(tmp_path / "lib", [GATHER])
    monkeypatch.chdir(tmp_path)
    asked = request(pools, "library", Path("lib"), version_compatible=True)
    built = build_engine(asked, full.backend, tmp_path / "e")
    # By its whole path: the library looks a bare name up in places of its own.
    assert full.configs[0].plugins_to_serialize == full.loaded == [str(file)]
    assert full.module.BuilderFlag.VERSION_COMPATIBLE in full.configs[0].flags
    assert built.plugin is not None
    assert built.plugin.carried
    assert built.settings == {"version_compatible": True}


def test_a_plugin_that_the_parser_did_not_take(pools, full: FakeTensorRt, tmp_path: Path):
    file = write_library(tmp_path / "lib", [GATHER])
    full.faults.parser = True
    sentence = refuse(pools, full, tmp_path, "library", file)
    assert "--plugin library was asked for" in sentence
    assert "native layers for layers/0/key, layers/1/key" in sentence
    # Told before the build, not after it.
    assert full.configs == []


def test_a_plugin_that_is_not_in_the_engine(pools, full: FakeTensorRt, tmp_path: Path):
    file = write_library(tmp_path / "lib", [GATHER])
    full.faults.engine = True
    sentence = refuse(pools, full, tmp_path, "library", file)
    assert "0 plugin layers of 2; no engine was written" in sentence


def test_a_library_for_another_minor_version(pools, full: FakeTensorRt, tmp_path: Path):
    file = write_library(tmp_path / "lib", [GATHER], tensorrt="11.0.1")
    assert build_engine(request(pools, "library", file), full.backend, tmp_path / "e").plugin


def test_plugins_of_others_are_no_concern(pools, full: FakeTensorRt, tmp_path: Path):
    registry = full.module.get_plugin_registry()
    for given in ({"plugin_namespace": "theirs"}, {}):  # older creators have no namespace
        creator = SimpleNamespace(name="Theirs", plugin_version="1", **given)
        registry.register_creator(creator, str(given))
    assert build_engine(request(pools), full.backend, tmp_path / "e").pool_step == "native"


def test_kernels_inside_an_engine_are_looked_for_nowhere(full: FakeTensorRt):
    record = PluginRecord("embedded", "ab", "1", "11.4.0", ("sm90",), carried=True)
    assert found_again(record, PluginChoice("embedded"), full.backend) is record


def test_a_library_without_our_operator(pools, full: FakeTensorRt, tmp_path: Path):
    file = write_library(tmp_path / "lib", ["SomethingElse"])
    assert "native layers for" in refuse(pools, full, tmp_path, "library", file)


def test_native_layers_where_a_plugin_is_registered_already(
    pools, full: FakeTensorRt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As LD_PRELOAD of the registering library leaves it."""
    monkeypatch.setattr(aot_plugin, "_state", {})
    creator = fake_builder.Creator(GATHER)
    full.module.get_plugin_registry().register_creator(creator, "ckv")
    sentence = refuse(pools, full, tmp_path)
    assert "--plugin none can't be built in this process" in sentence
    assert GATHER in sentence
    file = write_library(tmp_path / "lib", [GATHER])
    assert "can't be built in this process" in refuse(pools, full, tmp_path, "library", file)
    assert "can't be built in this process" in refuse(pools, full, tmp_path, "embedded")


def test_a_registry_that_refuses_the_library(pools, full: FakeTensorRt, tmp_path: Path):
    file = write_library(tmp_path / "lib", [])
    assert "can't load the plugin library" in refuse(pools, full, tmp_path, "library", file)


def test_two_libraries_in_one_process(pools, full: FakeTensorRt, tmp_path: Path):
    files = [write_library(tmp_path / name, [GATHER, name]) for name in ("a", "b")]
    build_engine(request(pools, "library", files[0]), full.backend, tmp_path / "e")
    sentence = refuse(pools, full, tmp_path, "library", files[1])
    assert str(files[0]) in sentence
    assert "use a process of its own" in sentence


def test_a_tactic_that_fails_beside_one_that_is_taken(
    pools, full: FakeTensorRt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(aot_plugin, "_failures", [])
    real = fake_builder.Builder.build_serialized_network

    def build(self, network, config) -> bytes:
        aot_plugin._failures.append(EngineError("one tactic needs too much memory"))
        return real(self, network, config)

    monkeypatch.setattr(fake_builder.Builder, "build_serialized_network", build)
    assert build_engine(request(pools), full.backend, tmp_path / "e").bytes > 0


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ({"files": {}}, "does not list libckv_plugins_trt11.so"),
        ({"files": ["libckv_plugins_trt11.so"]}, "no record that this ckv-export reads"),
        ({"files": {"libckv_plugins_trt11.so": "00"}}, "is not the library that plugins.json"),
        ({"operator_version": "2"}, "has version 2 of the operators"),
        ({"tensorrt": "10.9.0"}, "was built for TensorRT 10.9.0 and TensorRT 11.4.0 can't"),
        ({"targets": ["sm75", "sm120"]}, "not for sm90"),
        ({"targets": "sm90"}, "no record that this ckv-export reads"),
        ({"schema_version": 2}, "no record that this ckv-export reads"),
    ],
)
def test_libraries_that_do_not_fit(
    pools, full: FakeTensorRt, tmp_path: Path, record: dict[str, object], says: str
):
    file = write_library(tmp_path / "lib", [GATHER], **record)
    sentence = refuse(pools, full, tmp_path, "library", file)
    assert says in sentence
    assert "ckv-export plugin build" in sentence
    assert full.loaded == []


def test_libraries_without_a_record_or_of_the_wrong_flavour(
    pools, full: FakeTensorRt, tmp_path: Path
):
    file = write_library(tmp_path / "lib", [GATHER])
    twin = file.with_name("libckv_plugins_registering_trt11.so")
    shutil.copy(file, twin)
    assert "is for Triton and LD_PRELOAD" in refuse(pools, full, tmp_path, "library", twin)
    for text in ("{", "{}", "[]"):
        (file.parent / "plugins.json").write_text(text)
        assert "no record of plugins" in refuse(pools, full, tmp_path, "library", file)
    (file.parent / "plugins.json").unlink()
    assert "no plugins.json beside it" in refuse(pools, full, tmp_path, "library", file)
    assert "there is no plugin library" in refuse(pools, full, tmp_path, "library", tmp_path)


@pytest.mark.parametrize(
    ("targets", "gpu", "runs"),
    [
        (("sm80",), "sm80", True),
        (("sm80",), "sm86", True),  # machine code of its major
        (("sm86",), "sm80", False),
        (("sm80", "sm120"), "sm90", False),
        (("sm80", "sm90"), "sm100", True),  # PTX of the newest
        (("sm80", "sm90"), "sm121", True),
        ((), "sm80", False),
    ],
)
def test_code_runs_on_later_minors_and_the_newest_on_all_later(
    targets: tuple[str, ...], gpu: str, runs: bool
):
    assert runs_on(targets, gpu) == runs


@pytest.mark.parametrize(
    ("kind", "library", "says"),
    [
        ("library", None, "give --plugin-library PATH"),
        ("none", Path("lib"), "--plugin-library is for --plugin library, got --plugin none"),
        ("embedded", Path("lib"), "got --plugin embedded"),
        ("embeded", None, "did you mean 'embedded'"),
    ],
)
def test_choices_that_contradict_themselves(kind: str, library: Path | None, says: str):
    with pytest.raises(EngineError, match=says):
        PluginChoice(kind, library)


def test_a_library_given_is_asked_for():
    assert PluginChoice.of(None, Path("lib")) == PluginChoice("library", Path("lib"))
    assert PluginChoice.of(None, None) == PluginChoice("none")


def test_rtx_has_no_plugins(pools, tmp_path: Path):
    """Refused before its parser could end the process."""
    module = fake_tensorrt.bindings()
    rtx = Backend("tensorrt_rtx", module, "1.7")
    with pytest.raises(EngineError, match=r"has no plugins, and its parser .*--plugin none"):
        build_engine(request(pools, "embedded"), rtx, tmp_path / "e")


# -- embedded: NVIDIA's own tensorrt.plugin over the stand-in


@pytest.fixture
def embedding(monkeypatch: pytest.MonkeyPatch):
    module = fake_tensorrt.installed(monkeypatch)
    yield fake_builder.install(monkeypatch, module)
    fake_tensorrt.forget()


@pytest.fixture
def nvcc() -> None:
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is not installed")


@pytest.mark.usefixtures("nvcc")
def test_embedded_kernels_are_the_parsers_choice(pools, embedding: FakeTensorRt, tmp_path: Path):
    built = build_engine(request(pools, "embedded"), embedding.backend, tmp_path / "e")
    assert built.pool_step == "plugin"
    assert built.plugin is not None
    recorded = built.plugin.to_dict()
    assert (recorded["kind"], recorded["carried"]) == ("embedded", True)
    assert (recorded["tensorrt"], recorded["targets"]) == ("11.4.0", ["sm90"])
    assert len(recorded["sha256"]) == 64
    # Registered once, for every graph of the process; native layers are then out of reach.
    build_engine(request(pools, "embedded"), embedding.backend, tmp_path / "f")
    assert "can't be built in this process" in refuse(pools, embedding, tmp_path)


@pytest.mark.usefixtures("nvcc")
def test_kernels_for_an_engine_of_several_generations_suit_the_oldest(
    pools, embedding: FakeTensorRt, tmp_path: Path
):
    asked = request(pools, "embedded", hardware_compatible=True)
    built = build_engine(asked, embedding.backend, tmp_path / "e")
    assert built.plugin is not None
    assert built.plugin.targets == ("sm80",)
    level = embedding.module.HardwareCompatibilityLevel.AMPERE_PLUS
    assert embedding.configs[0].hardware_compatibility_level == level


@pytest.mark.usefixtures("nvcc")
def test_what_fails_inside_a_plugin_is_told(
    pools, embedding: FakeTensorRt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The library drops a plugin's exception and gives no engine."""

    def build(self, network, config) -> None:
        aot_plugin._failures.append(EngineError("nvcc failed: a reason"))

    monkeypatch.setattr(fake_builder.Builder, "build_serialized_network", build)
    assert refuse(pools, embedding, tmp_path, "embedded") == "nvcc failed: a reason"
    # A later build of the process that fails has reasons of its own.
    monkeypatch.setattr(fake_builder.Builder, "build_serialized_network", lambda *given: None)
    assert "gives no reason" in refuse(pools, embedding, tmp_path, "embedded")
