"""An exported file run: inlined, by another interpreter, on nothing and on wrong numbers."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx.inliner
import onnx.reference
import onnxruntime
import pytest
from ckv_testing.draw import KINDS
from ckv_testing.exports import Export
from ckv_testing.servers import triton_python

from ckv_export.errors import ExportError
from ckv_export.runtimes.base import Arrays

Exported = Callable[[str], Export]

RUN = """
import json, sys
import numpy as np
import onnxruntime
model, feeds, out = sys.argv[1:]
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
given, found = np.load(feeds), {}
for case in json.loads(str(given["cases"])):
    values = {i.name: given[f"{case}/{i.name}"] for i in session.get_inputs()}
    for output, value in zip(session.get_outputs(), session.run(None, values)):
        found[f"{case}/{output.name}"] = value
np.savez(out, **found)
"""


def run(model: onnx.ModelProto, feeds: Arrays) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    return session.run(None, feeds)


def decode_feeds(made: Export, case: int) -> Arrays:
    """What decode is fed in a case: the reference's cache and the case's own inputs."""
    expected = made.cases[case]
    kept = expected.case.cached - made.spec.cached_events(expected.case.cached)
    cache = {
        name: np.ascontiguousarray(a[:, :, kept:])
        for name, a in expected.outputs.items()
        if name.startswith("cache_")
    }
    return expected.case.inputs | cache


@pytest.mark.parametrize("kind", KINDS)
def test_inlined_file_gives_the_same_bits(kind: str, exported: Exported):
    made = exported(kind)
    model = onnx.load(made.folder / "decode.onnx")
    inlined = onnx.inliner.inline_local_functions(model)
    assert not inlined.functions
    assert {node.domain for node in inlined.graph.node} == {""}
    onnx.checker.check_model(inlined, full_check=True)
    for case in (0, 1, 5, len(made.cases) - 6, len(made.cases) - 1):
        feeds = decode_feeds(made, case)
        for got, expected in zip(run(inlined, feeds), run(model, feeds), strict=True):
            np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_the_oldest_onnxruntime_agrees(kind: str, exported: Exported, tmp_path: Path):
    """In all cases: those without users, events or candidates are what it can fail at."""
    made, python = exported(kind), triton_python()
    model = onnx.load(made.folder / "decode.onnx")
    cases = range(len(made.cases))
    feeds = {f"{c}/{n}": a for c in cases for n, a in decode_feeds(made, c).items()}
    np.savez(tmp_path / "feeds.npz", cases=np.array(json.dumps(list(cases))), **feeds)
    files = (made.folder / "decode.onnx", tmp_path / "feeds.npz", tmp_path / "out.npz")
    done = subprocess.run([python, "-c", RUN, *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = np.load(tmp_path / "out.npz")
    for case in cases:
        wanted = run(model, decode_feeds(made, case))
        for output, value in zip(model.graph.output, wanted, strict=True):
            got = found[f"{case}/{output.name}"]
            assert got.shape == value.shape
            assert got.dtype == value.dtype
            np.testing.assert_allclose(got, value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_onnx_reference_evaluator_agrees(kind: str, exported: Exported):
    """A second, independent reading of the operators; numbers within two fp32 roundings."""
    made = exported(kind)
    model = onnx.load(made.folder / "decode.onnx")
    session = onnx.reference.ReferenceEvaluator(model)
    for case in (1, 5, len(made.cases) - 5, len(made.cases) - 2):
        feeds = decode_feeds(made, case)
        with np.errstate(over="ignore"):
            results = session.run(None, feeds)
        for name, got, expected in zip(
            [o.name for o in model.graph.output], results, run(model, feeds), strict=True
        ):
            bound = 0.0 if name.endswith("_index") else 4e-6
            np.testing.assert_allclose(got, expected, rtol=bound, atol=bound, err_msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_no_users_no_candidates_no_events(kind: str, exported: Exported):
    """Axes of size 0 run and give outputs of size 0."""
    made = exported(kind)
    for runner in made.runners():
        with runner:
            for sizes in ({"B": 0}, {"C": 0}, {"B": 2, "S": 0, "K": 0, "T": 0}):
                sizes = {"B": 2, "S": 3, "K": 3, "T": 2, "C": 3} | sizes
                feeds = {t.name: np.zeros(t.shape(sizes), t.dtype) for t in runner.io.inputs}
                for tensor in runner.io.outputs:
                    got = runner.infer(feeds)[tensor.name]
                    assert got.shape == tensor.shape(sizes)
                    assert np.isfinite(got).all()


def test_index_beyond_the_pool_does_not_read_beyond_it(exported: Exported):
    """A wrong row number is an error in ONNX Runtime, not a read of other memory."""
    made = exported("sim")
    feeds = decode_feeds(made, 5)
    feeds["cache_k_index"] = np.full_like(feeds["cache_k_index"], 10)
    decode = made.runners()[1]
    with decode, pytest.raises(ExportError, match=r"can't run decode\.onnx"):
        decode.infer(feeds)


def test_nan_of_one_user_is_no_other_users_trouble(exported: Exported):
    """A vector feature comes from outside: NaN in it must not fail the batch, or read elsewhere."""
    made = exported("sim")
    case = next(i for i, c in enumerate(made.cases) if c.case.name == "repeated items")
    prefill, decode = made.runners()
    feeds = decode_feeds(made, case)
    events = {t.name: feeds[t.name.replace("event_", "history_")] for t in prefill.io.inputs}
    for runner, usual, name in (
        (prefill, events, "event_image"),
        (decode, feeds, "append_image"),
    ):
        given = usual | {name: usual[name].copy()}
        with runner:
            before = runner.infer(given)
            given[name][1, 2] = np.nan
            after = runner.infer(given)
        for tensor, array in after.items():
            np.testing.assert_array_equal(array[[0, 2]], before[tensor][[0, 2]])
            if tensor.endswith("_k_index"):
                assert ((array >= 0) & (array < 10)).all()
