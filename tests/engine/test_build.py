"""Engines built for real, without a GPU, by TensorRT for RTX."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ckv_testing import fake_config
from ckv_testing.fake_builder import FakeTensorRt
from ckv_testing.fake_config import Config
from onnx import TensorProto, helper

from ckv_export.contract import GraphSpec, Profile, Range, TensorSpec
from ckv_export.engine import Backend, BuildRequest, build_engine
from ckv_export.errors import EngineError

pytestmark = pytest.mark.tensorrt

node = helper.make_node


def test_engine_is_written_and_read_back(rtx: Backend, projection, tmp_path: Path) -> None:
    out = tmp_path / "prefill.engine"
    built = build_engine(projection.request(), rtx, out)
    assert out.stat().st_size == built.bytes > 0
    assert (built.path, built.backend, built.backend_version) == (out, rtx.name, rtx.version)
    assert built.targets == ("sm80", "sm86", "sm89", "sm120", "sm121")
    assert built.profile == {"B": "1:1:4", "S": "0:6:40"}
    assert [str(t) for t in built.inputs] == ["float32 [?, ?, 8]", "bool [?, ?]"]
    assert [(t.name, str(t)) for t in built.outputs] == [("y", "float32 [?, ?, 4]")]
    assert built.layers >= 1
    assert 0 < built.seconds < 600
    assert json.loads(json.dumps(built.to_dict()))["path"] == str(out)


def test_unused_input_stays_an_input(rtx: Backend, projection, tmp_path: Path) -> None:
    built = build_engine(projection.request(), rtx, tmp_path / "e")
    assert "event_mask" in [t.name for t in built.inputs]
    assert any("event_mask" in w for w in built.warnings)


@pytest.mark.parametrize("dtype", ["bool", "int32", "int64", "float32", "float16", "bfloat16"])
def test_every_dtype_is_read_by_its_name(
    rtx: Backend, save_graph, tmp_path: Path, dtype: str
) -> None:
    x, y = TensorSpec("x", dtype, ("B", 8)), TensorSpec("y", dtype, ("B", 8))
    graph = save_graph([node("Identity", ["x"], ["y"])], [x], [y])
    built = build_engine(graph.request(optimization_level=0), rtx, tmp_path / "e")
    assert [t.dtype for t in (*built.inputs, *built.outputs)] == [dtype, dtype]


def test_external_weights_are_found(rtx: Backend, save_graph, tmp_path: Path) -> None:
    x, y = TensorSpec("x", "float32", ("B", 8)), TensorSpec("y", "float32", ("B", 4))
    weights = {"W": np.ones((8, 4), np.float32)}
    product = node("MatMul", ["x", "W"], ["y"])
    graph = save_graph([product], [x], [y], weights, external=True)
    assert build_engine(graph.request(), rtx, tmp_path / "e").bytes > 0
    stored = next(p for p in tmp_path.iterdir() if p.name.startswith("graph.onnx."))
    whole = stored.read_bytes()
    stored.write_bytes(whole[: len(whole) // 2])
    assert "out of range for file" in refuse(graph.request(), rtx, tmp_path / "f")
    stored.unlink()
    assert f"Failed to open file: {stored}" in refuse(graph.request(), rtx, tmp_path / "f")


def test_function_of_domain_ckv_falls_back_to_its_body(
    rtx: Backend, save_graph, tmp_path: Path
) -> None:
    body = [
        node("Gather", ["f_pool", "f_index"], ["f_row"], axis=0),
        node("Concat", ["f_row", "f_user"], ["f_out"], axis=-1),
    ]
    function = helper.make_function(
        "ckv",
        "PoolGatherConcat",
        ["f_pool", "f_index", "f_user"],
        ["f_out"],
        body,
        [helper.make_opsetid("", 20)],
        attributes=["plugin_namespace", "plugin_version"],
    )
    call = node(
        "PoolGatherConcat",
        ["pool", "index", "user"],
        ["key"],
        name="key",
        domain="ckv",
        plugin_namespace="ckv",
        plugin_version="1",
    )
    graph = save_graph(
        [call],
        [
            TensorSpec("index", "int32", ("B", 1, "S")),
            TensorSpec("user", "float32", ("B", 1, "S", 2)),
        ],
        [TensorSpec("key", "float32", ("B", 1, "S", 8))],
        {"pool": np.zeros((11, 6), np.float32)},
        functions=[function],
    )
    built = build_engine(graph.request(), rtx, tmp_path / "e")
    assert built.plugins == ()
    assert built.layers == 3  # the pool, Gather and Concat


@pytest.mark.parametrize("masked", [-1e9, -3e38, -np.inf])
@pytest.mark.parametrize("least", [0, 1])
def test_masked_softmax_and_bounded_topk(
    rtx: Backend, save_graph, tmp_path: Path, masked: float, least: int
) -> None:
    nodes = [
        node("MatMul", ["q", "k"], ["raw"]),
        node("Where", ["mask", "raw", "masked"], ["scores"]),
        node("Softmax", ["scores"], ["weights"], axis=-1),
        node("Shape", ["weights"], ["shape"]),
        node("Gather", ["shape", "last"], ["events"]),
        node("Min", ["top", "events"], ["bounded"]),
        node("TopK", ["weights", "bounded"], ["values", "wide"], axis=-1),
        node("Cast", ["wide"], ["index"], to=TensorProto.INT32),
        node("Cast", ["mask"], ["ones"], to=TensorProto.INT32),
        node("CumSum", ["ones", "axis"], ["position"]),
    ]
    graph = save_graph(
        nodes,
        [
            TensorSpec("q", "float32", ("B", "C", 8)),
            TensorSpec("k", "float32", ("B", 8, "S")),
            TensorSpec("mask", "bool", ("B", 1, "S")),
        ],
        [
            TensorSpec("values", "float32", ("B", "C", "top")),
            TensorSpec("index", "int32", ("B", "C", "top")),
            TensorSpec("position", "int32", ("B", 1, "S")),
        ],
        {
            "masked": np.float32(masked),
            "last": np.array([2]),
            "top": np.array([5]),
            "axis": np.int64(2),
        },
    )
    profile = Profile({"B": Range(1, 1, 4), "S": Range(least, 6, 40), "C": Range(1, 3, 9)})
    assert build_engine(graph.request(profile), rtx, tmp_path / "e").bytes > 0


def test_axis_fixed_at_zero_builds(rtx: Backend, projection, tmp_path: Path) -> None:
    never = Profile({"B": Range(1, 1, 4), "S": Range(0, 0, 0)})
    assert build_engine(projection.request(never), rtx, tmp_path / "e").profile["S"] == "0:0:0"


def test_options_reach_the_builder(rtx: Backend, projection, tmp_path: Path) -> None:
    request = projection.request(targets=("ada",), workspace_mib=64, optimization_level=0)
    assert build_engine(request, rtx, tmp_path / "e").targets == ("sm89",)


def test_the_configuration_is_what_was_asked_for(
    full: FakeTensorRt, projection, tmp_path: Path
) -> None:
    long = Profile({"B": Range(1, 1, 2), "S": Range(41, 50, 90)})
    request = projection.request(
        targets=("current",), workspace_mib=64, optimization_level=4, more_profiles=(long,)
    )
    built = build_engine(request, full.backend, tmp_path / "e")
    (config,), module = full.configs, full.module
    # Router products must stay fp32.
    assert module.BuilderFlag.TF32 not in config.flags
    assert config.limits == {module.MemoryPoolType.WORKSPACE: 64 * 2**20}
    assert config.builder_optimization_level == 4
    assert config.profiling_verbosity == module.ProfilingVerbosity.DETAILED
    assert config.progress_monitor is None
    assert [profile.shapes["x"] for profile in config.profiles] == [
        ((1, 0, 8), (1, 6, 8), (4, 40, 8)),
        ((1, 41, 8), (1, 50, 8), (2, 90, 8)),
    ]
    assert built.profile == {"B": "1:1:4", "S": "0:6:40"}
    assert built.profiles == (built.profile, {"B": "1:1:2", "S": "41:50:90"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimization_level": 6}, "optimization_level must be 0 to 5, got 6"),
        ({"workspace_mib": 0}, "workspace_mib must be 1 or more, got 0"),
    ],
)
def test_bad_options_are_refused(projection, options: dict[str, int], message: str) -> None:
    with pytest.raises(EngineError, match=message):
        projection.request(**options)


def refuse(request: BuildRequest, rtx: Backend, out: Path) -> str:
    """Build what must fail; nothing may be left in the folder. Returns the sentence."""
    before = sorted(out.parent.iterdir())
    with pytest.raises(EngineError) as failure:
        build_engine(request, rtx, out)
    assert sorted(out.parent.iterdir()) == before
    sentence = str(failure.value)
    assert "\n" not in sentence
    return sentence


def test_shapes_that_the_library_refuses(
    full: FakeTensorRt, projection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = projection.request(targets=("current",))
    monkeypatch.setattr(Config, "add_optimization_profile", lambda self, profile: -1)
    sentence = refuse(request, full.backend, tmp_path / "e")
    assert "the shape ranges don't fit together: x (1, 0, 8) (1, 6, 8) (4, 40, 8), " in sentence

    def refused(self: fake_config.Profile, name: str, *shapes: object) -> None:
        raise ValueError("odd shapes")

    monkeypatch.setattr(fake_config.Profile, "set_shape", refused)
    sentence = refuse(request, full.backend, tmp_path / "e")
    assert sentence == "input 'x' can't have these shapes: odd shapes"


@pytest.mark.parametrize("kind", [TypeError, RuntimeError])
def test_no_builder(full: FakeTensorRt, projection, tmp_path: Path, kind: type[Exception]) -> None:
    """As the full TensorRT answers without a GPU, in its own words or the binding's."""

    def none(logger: Any, said: str | None = None) -> None:
        if said is not None:
            logger.log(full.module.ILogger.Severity.INTERNAL_ERROR, said)
        raise kind("factory function returned nullptr")

    request = projection.request(targets=("current",))
    full.module.Builder = none
    sentence = refuse(request, full.backend, tmp_path / "e")
    assert sentence == "TensorRT 11.4.0 can't start a build here: factory function returned nullptr"
    full.module.Builder = functools.partial(none, said="there is no driver")
    assert refuse(request, full.backend, tmp_path / "e").endswith(": there is no driver")


def test_what_is_said_twice_is_told_once(full: FakeTensorRt, projection, tmp_path: Path) -> None:
    real, severity = full.module.Builder, full.module.ILogger.Severity

    def builder(logger: Any) -> Any:
        for level, text in (("WARNING", "b"), ("WARNING", "a"), ("INFO", "c"), ("WARNING", "b")):
            logger.log(severity[level], text)
        return real(logger)

    full.module.Builder = builder
    built = build_engine(projection.request(targets=("current",)), full.backend, tmp_path / "e")
    assert built.warnings == ("b", "a")


def unary(op: str, **attributes: object) -> tuple[list, list, list]:
    x, y = TensorSpec("x", "int32", ("B",)), TensorSpec("y", "int32", ("B",))
    return [node(op, ["x"], ["y"], name="here", **attributes)], [x], [y]


def test_unsupported_operator_names_its_node(rtx: Backend, save_graph, tmp_path: Path) -> None:
    graph = save_graph(*unary("BitwiseNot"))
    sentence = refuse(graph.request(), rtx, tmp_path / "e")
    assert "'here' (BitwiseNot)" in sentence
    assert "not supported" in sentence


def test_unsupported_operator_inside_a_function_names_the_call(
    rtx: Backend, save_graph, tmp_path: Path
) -> None:
    inner = [node("BitwiseNot", ["f_x"], ["f_y"], name="inner")]
    body = helper.make_function(
        "ckv", "Flip", ["f_x"], ["f_y"], inner, [helper.make_opsetid("", 20)]
    )
    graph = save_graph(*unary("Flip", domain="ckv"), functions=[body])
    sentence = refuse(graph.request(), rtx, tmp_path / "e")
    assert "node 'inner' (BitwiseNot) in the function of node here (Flip)" in sentence


def test_operator_without_body_or_plugin(rtx: Backend, save_graph, tmp_path: Path) -> None:
    graph = save_graph(*unary("Flip", domain="ckv"))
    assert "'here' (Flip): Plugin not found" in refuse(graph.request(), rtx, tmp_path / "e")


def test_shape_error_carries_the_layers_own_words(rtx: Backend, save_graph, tmp_path: Path) -> None:
    x, y = TensorSpec("x", "float32", ("B", 7)), TensorSpec("y", "float32", ("B", 4))
    weights = {"W": np.ones((8, 4), np.float32)}
    graph = save_graph([node("MatMul", ["x", "W"], ["y"], name="here")], [x], [y], weights)
    sentence = refuse(graph.request(), rtx, tmp_path / "e")
    assert "'here' (MatMul)" in sentence
    assert "last dimension of input0 = 7" in sentence
    assert "/_src" not in sentence


def test_turing_refuses_fp32_products(rtx: Backend, projection, tmp_path: Path) -> None:
    sentence = refuse(projection.request(targets=("sm75",)), rtx, tmp_path / "e")
    assert "'project'" in sentence
    assert "FP32 GEMM is not supported" in sentence


def test_missing_axis_names_the_input(rtx: Backend, projection, tmp_path: Path) -> None:
    profile = Profile({"B": Range(1, 1, 4), "s": Range(0, 6, 40)})
    sentence = refuse(projection.request(profile), rtx, tmp_path / "e")
    assert "input 'x' [B, S, 8]: the profile has no range for the axis 'S'" in sentence


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (TensorSpec("x", "int32", ("B", "S", 8)), "must be int32 [B, S, 8]"),
        (TensorSpec("x", "float32", ("B", "S")), "must be float32 [B, S]"),
        (TensorSpec("x", "float32", ("B", "S", 9)), "must be float32 [B, S, 9]"),
        (TensorSpec("x", "float32", ("B", 40, 8)), "must be float32 [B, 40, 8]"),
        (TensorSpec("x", "float32", ("B", "S", "C")), "must be float32 [B, S, C]"),
        (TensorSpec("xx", "float32", ("B", "S", 8)), "input 'xx' is missing"),
    ],
)
def test_graph_that_breaks_the_contract(
    rtx: Backend, projection, tmp_path: Path, wrong: TensorSpec, message: str
) -> None:
    spec = GraphSpec("prefill", (wrong, projection.spec.inputs[1]), projection.spec.outputs)
    request = BuildRequest(projection.path, spec, projection.request().profile)
    assert message in refuse(request, rtx, tmp_path / "e")


def test_every_difference_is_listed(rtx: Backend, projection, tmp_path: Path) -> None:
    request = BuildRequest(
        projection.path, GraphSpec("prefill", (), ()), projection.request().profile
    )
    sentence = refuse(request, rtx, tmp_path / "e")
    for part in ("input 'x' is unknown", "input 'event_mask' is unknown", "output 'y' is unknown"):
        assert part in sentence


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is it an ONNX file?"),
        (b"hello world" * 10, "is it an ONNX file?"),
        (b"no graph at all " * 9, "Failed to parse the ONNX model"),
    ],
)
def test_file_that_is_no_onnx(
    rtx: Backend, projection, tmp_path: Path, content: bytes, message: str
) -> None:
    projection.path.write_bytes(content)
    assert message in refuse(projection.request(), rtx, tmp_path / "e")


def test_places_that_are_not_there(rtx: Backend, projection, tmp_path: Path) -> None:
    absent = BuildRequest(tmp_path / "no.onnx", projection.spec, projection.request().profile)
    assert "there is no ONNX file" in refuse(absent, rtx, tmp_path / "e")
    with pytest.raises(EngineError, match="there is no folder"):
        build_engine(projection.request(), rtx, tmp_path / "no" / "e")
    with pytest.raises(EngineError, match="is a folder"):
        build_engine(projection.request(), rtx, tmp_path)


def test_failed_build_keeps_the_old_engine(rtx: Backend, projection, tmp_path: Path) -> None:
    out = tmp_path / "prefill.engine"
    out.write_bytes(b"the old one")
    refuse(projection.request(targets=("sm75",)), rtx, out)
    assert out.read_bytes() == b"the old one"
    build_engine(projection.request(), rtx, out)
    assert out.read_bytes() != b"the old one"


def test_failed_write_leaves_nothing(
    rtx: Backend, projection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    out = tmp_path / "e"
    assert f"the engine {out}: No space left" in refuse(projection.request(), rtx, out)


ALL_LIBRARIES = """
import sys
import torch, onnxruntime
from pathlib import Path
from ckv_export.contract import GraphSpec, Profile, Range, TensorSpec
from ckv_export.engine import BuildRequest, build_engine, load
onnx, out = Path(sys.argv[1]), Path(sys.argv[2])
spec = GraphSpec("prefill", (TensorSpec("x", "float32", ("B", "S", 8)),
    TensorSpec("event_mask", "bool", ("B", "S"))), (TensorSpec("y", "float32", ("B", "S", 4)),))
session = onnxruntime.InferenceSession(str(onnx), providers=["CPUExecutionProvider"])
profile = Profile({"B": Range(1, 1, 4), "S": Range(0, 6, 40)})
for _ in range(2):
    build_engine(BuildRequest(onnx, spec, profile), load("tensorrt_rtx"), out)
feeds = {"x": torch.ones(1, 2, 8).numpy(), "event_mask": torch.ones(1, 2, dtype=torch.bool).numpy()}
print(session.run(None, feeds)[0].shape)
"""


def test_one_process_with_torch_and_onnxruntime(rtx: Backend, projection, tmp_path: Path) -> None:
    """And it ends with status 0: a logger freed too early crashes the interpreter's exit."""
    command = [sys.executable, "-c", ALL_LIBRARIES, str(projection.path), str(tmp_path / "e")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split("\n")[-2]) == (0, "(1, 2, 4)"), done.stderr
