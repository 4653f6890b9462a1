"""Graphs that the C++ library runs in ONNX Runtime: requests score as the reference scores."""

from __future__ import annotations

import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
from ckv_cpp import CppError, CppSession, Library, SessionLibrary, run
from ckv_testing.cmake import ROOT, short_name
from ckv_testing.scoring import SCORE
from ckv_testing.servers import triton_python, triton_venv
from ckv_testing.serving import Shop, check_record

from ckv_export.cache.record import RecordLayout
from ckv_export.contract import GraphSpec
from ckv_export.runtimes.base import Array

pytestmark = pytest.mark.usefixtures("one_thread")
CPP = ROOT / "engines" / "cpp"
ARCHIVES = ("libckv_session.a", "libckv.a")
SHAPE, SESSION = 2, 5  # positions in ErrorCode
SIZES = {"B": 1, "S": 9, "K": 4, "T": 0, "C": 3}
Tensors = dict[str, Array]


def decode_graph(shop: Shop) -> GraphSpec:
    return shop.manifest.graph(shop.manifest.graph_names[-1])


def call_tensors(graph: GraphSpec, sizes: dict[str, int]) -> Tensors:
    """Every input, zero, and every output, with a value that no graph gives."""
    inputs = {t.name: np.zeros(t.shape(sizes), t.dtype) for t in graph.inputs}
    return inputs | {t.name: np.full(t.shape(sizes), -7, t.dtype) for t in graph.outputs}


class CppUser:
    """A user's record, kept and asked by the C++ library."""

    def __init__(self, shop: Shop, library: Library, session: CppSession) -> None:
        self.shop, self.session = shop, session
        self.layout = RecordLayout.of(shop.manifest, "float32", graph=decode_graph(shop).name)
        self.cpp = library.layout(shop.folder, "float32", decode_graph(shop).name)
        self.library = library
        nothing = {f.name: np.zeros(f.tensor_shape(0), f.dtype) for f in self.layout.fields}
        self.record = self.cpp.encode(self.layout, nothing)

    def ask(self, given: Tensors, appended: int, candidates: int) -> Array:
        """Scores [C]; what was done goes into the record."""
        events = self.cpp.batch_events([self.record], appended)
        sizes = {"B": 1, "S": events, "K": self.layout.window_rows(events)}
        sizes |= {"T": appended, "C": candidates}
        if self.shop.manifest.item_table:
            sizes["I"] = self.library.tensor_file(self.shop.folder)
        tensors = call_tensors(decode_graph(self.shop), sizes)
        for name in tensors:
            if name.startswith("item_"):
                self.library.tensor_file(self.shop.folder, name, tensors[name])
        for name, values in given.items():
            tensors[name] = np.ascontiguousarray(values[None])
        tensors["append_mask"][:] = True
        self.cpp.batch(self.layout, [self.record], events, self._batched(tensors))
        self.session.run(sizes, tensors)
        if appended:
            added = self.cpp.decode(self.layout, self.cpp.user_events(tensors, 0, "decode"))
            self.record = self.cpp.append(self.layout, self.record, added)
        return tensors["score"][0]

    def _batched(self, tensors: Tensors) -> Tensors:
        names = [f.name for f in self.layout.fields]
        return {name: tensors[name] for name in (*names, "history_mask")}


@pytest.mark.parametrize("threads", [1, 2])
def test_requests_score_as_the_reference_does(
    shop: Shop, library: Library, sessions: SessionLibrary, rng: np.random.Generator, threads: int
):
    session = sessions.open(shop.folder, decode_graph(shop).name, threads)
    asked, user = CppUser(shop, library, session), shop.user(0, rng)
    for appended, candidates in ((0, 3), (3, 1), (0, 4), (1, 2), (2, 3), (3, 2), (0, 5)):
        events = shop.next(user, appended, rng)
        shop.grow(user, events)
        offered = shop.offer(user, candidates, rng)
        scores = asked.ask(shop.inputs(user, events, offered), appended, candidates)
        np.testing.assert_allclose(scores, shop.scores(user, offered), rtol=0, atol=SCORE)
    check_record(shop, user, asked.layout, asked.record)


@pytest.fixture
def session(plain: Shop, sessions: SessionLibrary) -> CppSession:
    return sessions.open(plain.folder, "decode")


def random_call(shop: Shop, rng: np.random.Generator) -> Tensors:
    """A decode call of `SIZES`."""
    tensors = call_tensors(shop.manifest.graph("decode"), SIZES)
    for name, values in tensors.items():
        if values.dtype == np.int32:
            values[:] = rng.integers(1, 4, values.shape)
        elif name.startswith("cache_"):
            values[:] = rng.standard_normal(values.shape)
    tensors["history_mask"][:] = True
    return tensors


def test_many_threads_share_a_session(plain: Shop, session: CppSession, rng):
    alone = [random_call(plain, rng) for _ in range(8)]
    together = [{name: a.copy() for name, a in tensors.items()} for tensors in alone]
    for tensors in alone:
        session.run(SIZES, tensors)
    with ThreadPoolExecutor(4) as pool:
        for _ in range(20):
            list(pool.map(lambda tensors: session.run(SIZES, tensors), together))
    assert np.ptp([tensors["score"] for tensors in alone]) > 0
    for one, other in zip(alone, together, strict=True):
        for name, values in one.items():
            np.testing.assert_array_equal(values, other[name], name)


def other_decode(plain: Shop, folder: Path, score: str) -> Path:
    """A bundle like `plain` whose decode graph takes `SIZES` and computes `score`."""
    io = plain.manifest.graph("decode")
    kinds = {"int32": "int32", "bool": "bool", "float32": "float"}
    inputs, outputs = (
        [f"{kinds[t.dtype]}{list(t.shape(SIZES))} {t.name}" for t in tensors]
        for tensors in (io.inputs, io.outputs)
    )
    empty = "".join(
        f"{t.name} = Constant <value = {kinds[t.dtype]}{list(t.shape(SIZES))} {{}}> ()\n"
        for t in io.outputs
        if t.name != "score"
    )
    text = f"decode ({', '.join(inputs)}) => ({', '.join(outputs)}) {{\n{empty}{score}}}"
    header = '<ir_version: 9, opset_import: ["" : 20]>'
    onnx.save(onnx.parser.parse_model(f"{header} {text}"), folder / "decode.onnx")
    shutil.copyfile(plain.folder / "manifest.json", folder / "manifest.json")
    return folder


TINY = """\
least = Constant <value_float = 1e-37> ()
thousand = Constant <value_float = 1e3> ()
ids = Cast <to = 1> (candidate_item_id)
small = Mul (ids, least)
score = Div (small, thousand)
"""
BF16 = """\
row = Cast <to = 16> (candidate_item_id)
column = Transpose <perm = [1, 0]> (row)
square = MatMul (column, row)
wide = MatMul (row, square)
score = Cast <to = 1> (wide)
"""


def test_denormals_are_zero_in_calls_alone(
    plain: Shop, sessions: SessionLibrary, rng: np.random.Generator, tmp_path: Path
):
    """What the first session of a process does to its thread is undone, too."""
    tensors = random_call(plain, rng)

    def in_a_thread_of_its_own() -> None:
        sessions.c.ckv_default_numbers()  # Python's ONNX Runtime has been here
        assert sessions.c.ckv_has_denormals()
        session = sessions.open(other_decode(plain, tmp_path, TINY), "decode")
        assert sessions.c.ckv_has_denormals()
        session.run(SIZES, tensors)
        assert sessions.c.ckv_has_denormals()

    with ThreadPoolExecutor(1) as pool:
        pool.submit(in_a_thread_of_its_own).result()
    np.testing.assert_array_equal(tensors["score"], 0)


class TestWhatIsRefused:
    def check(self, session: CppSession, tensors: Tensors, code: int, words: str):
        before = {name: a.copy() for name, a in tensors.items()}
        with pytest.raises(CppError) as caught:
            session.run(SIZES, tensors)
        assert caught.value.code == code
        assert words in str(caught.value)
        for name, values in before.items():
            np.testing.assert_array_equal(values, tensors[name], name)

    def test_a_tensor_that_is_missing(self, plain: Shop, session: CppSession, rng):
        tensors = random_call(plain, rng)
        del tensors["history_mask"]
        words = "a call of decode needs a buffer for 'history_mask'"
        self.check(session, tensors, SHAPE, words)

    def test_an_id_outside_its_table(self, plain: Shop, session: CppSession, rng):
        tensors = random_call(plain, rng)
        tensors["candidate_item_id"][0, 1] = plain.spec.item_features[0].vocab_size
        self.check(session, tensors, SESSION, "can't run decode: ")

    def test_a_graph_that_is_not_there(self, plain: Shop, sessions: SessionLibrary):
        with pytest.raises(CppError, match="has the graphs decode, prefill, not 'decode_items'"):
            sessions.open(plain.folder, "decode_items")

    def test_a_file_that_is_damaged(self, plain: Shop, sessions: SessionLibrary, tmp_path: Path):
        shutil.copyfile(plain.folder / "manifest.json", tmp_path / "manifest.json")
        (tmp_path / "decode.onnx").write_bytes(b"no model")
        path = tmp_path / "decode.onnx"
        with pytest.raises(CppError, match=rf"ONNX Runtime 1\.\d+\.\d+ can't load {path}: "):
            sessions.open(tmp_path, "decode")

    def test_products_of_bf16(self, plain: Shop, sessions: SessionLibrary, tmp_path: Path):
        folder = other_decode(plain, tmp_path, BF16)
        with pytest.raises(CppError, match="export with --precision fp16 or fp32"):
            sessions.open(folder, "decode")


@pytest.fixture(scope="session")
def oldest_example(session_build: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example, linked to the oldest ONNX Runtime that we support."""
    triton_python()
    packages = triton_venv().glob("lib/python3.*/site-packages/onnxruntime/capi")
    (library,) = next(packages).glob("libonnxruntime.so.1.*")
    folder = tmp_path_factory.mktemp("oldest")
    link = short_name(library, folder)
    parts = [CPP / "examples" / "serve.cpp", *(session_build / n for n in ARCHIVES), link]
    options = [f"-I{CPP / 'include'}", f"-Wl,-rpath,{folder}"]
    run("c++", "-std=c++17", *options, *parts, "-o", folder / "serve", quiet=True)
    return folder / "serve"


@pytest.fixture(params=["linked", "oldest"])
def example(request: pytest.FixtureRequest, session_build: Path) -> Path:
    if request.param == "linked":
        return session_build / "ckv_serve"
    path: Path = request.getfixturevalue("oldest_example")
    return path


def test_the_example_serves_a_user(
    example: Path, plain: Shop, tmp_path: Path, rng: np.random.Generator
):
    user, record = plain.user(0, rng), tmp_path / "record"
    for appended, candidates in ((2, 3), (0, 1), (3, 4), (29, 2), (1, 3)):
        events = plain.next(user, appended, rng)
        plain.grow(user, events)
        offered = plain.offer(user, candidates, rng)
        new = [f"+{item}" for item in events["item_id"]]
        out = run(example, plain.folder, record, *new, *offered["item_id"], quiet=True)
        printed = [line.split() for line in out.splitlines()]
        assert [int(item) for item, _ in printed] == offered["item_id"].tolist()
        # What is printed has six digits, and what is kept of a user halves.
        scores = [float(score) for _, score in printed]
        np.testing.assert_allclose(scores, plain.scores(user, offered), rtol=0, atol=2e-3)
    assert user.count > plain.spec.max_len


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "usage: serve BUNDLE RECORD [+ITEM...] ITEM..."),
        (("nowhere", "record", 1), "nowhere is no bundle: there is no such folder"),
    ],
)
def test_the_example_says_what_is_wrong(session_build: Path, arguments, words: str):
    command = [str(part) for part in (session_build / "ckv_serve", *arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == f"serve: {words}\n"
