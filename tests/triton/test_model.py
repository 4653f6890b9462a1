"""The orchestrating model without a server: what it makes of requests, settings and answers."""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ckv_testing.scoring import ask, check
from ckv_testing.serving import Shop

from ckv_export.cli.main import main
from ckv_export.errors import BundleError, ExportError
from ckv_export.serving import Answer, ScorerOptions
from ckv_export.triton.config import FILE_NAME, parse_config

pytest.importorskip("tritonclient.grpc", reason="the package tritonclient is not installed")
pytestmark = pytest.mark.usefixtures("one_thread")

MODULE = "ckv_export.triton.model"


class Tensor:
    """A tensor of the server's."""

    def __init__(self, name: str, array: np.ndarray) -> None:
        self._name, self.array = name, array

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> np.ndarray:
        return self.array


class Family:
    """A counter that Prometheus would be told of."""

    COUNTER = "counter"
    counted: dict[str, int] = {}  # noqa: RUF012

    def __init__(self, name: str, description: str, kind: str) -> None:
        self.name = name

    def Metric(self, labels: dict[str, str]) -> Any:  # noqa: N802
        def increment(by: int) -> None:
            self.counted[self.name] = self.counted.get(self.name, 0) + by

        return SimpleNamespace(increment=increment)


class TritonError(SimpleNamespace):
    """A message and a code."""

    INTERNAL, INVALID_ARG, UNAVAILABLE = "internal", "invalid", "unavailable"

    def __init__(self, message: str, code: str) -> None:
        super().__init__(text=message, code=code, message=lambda: message)


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module, imported where Triton's own stands in."""
    utils = ModuleType("triton_python_backend_utils")
    vars(utils).update(
        Tensor=Tensor,
        TritonError=TritonError,
        MetricFamily=Family,
        InferenceResponse=lambda tensors, error=None: SimpleNamespace(
            error=error, **{t.name(): t.as_numpy() for t in tensors}
        ),
        PreferredMemory=lambda kind, device: (kind, device),
        TRITONSERVER_MEMORY_CPU="cpu",
    )
    monkeypatch.setitem(sys.modules, utils.__name__, utils)
    monkeypatch.setattr(Family, "counted", {})
    sys.modules.pop(MODULE, None)
    yield importlib.import_module(MODULE)
    sys.modules.pop(MODULE, None)


@pytest.fixture
def place(shops: Callable[[str], Shop], tmp_path: Path) -> Path:
    """The repository of SIM, whose graph runs in the model's process."""
    options = ["--platform=in-process", "--user-dtype=fp32", "--max-events=5", "--threads=2"]
    store = f"--store=sqlite:///{tmp_path / 'users.db'}"
    out = tmp_path / "repository"
    assert main(["triton", str(shops("sim").folder), f"--out={out}", store, *options]) == 0
    return next(p.parent for p in out.glob(f"*/{FILE_NAME}"))


def begun(module: ModuleType, place: Path) -> Any:
    """The model as a server begins it."""
    parameters = parse_config((place / FILE_NAME).read_text()).parameters
    config = {"parameters": {n: {"string_value": p.string_value} for n, p in parameters.items()}}
    model = module.TritonPythonModel()
    model.initialize(
        {
            "model_config": json.dumps(config),
            "model_repository": str(place),
            "model_version": "1",
            "model_name": place.name,
        }
    )
    return model


def texts(*values: str) -> np.ndarray:
    return np.array([[value.encode()] for value in values], object)


def sent(*rows: Any, named: tuple[str, ...] = (), **more: np.ndarray) -> Any:
    """A request of a row for each of some users' requests, which are equally long."""
    arrays = {n: np.stack([row.inputs[n] for row in rows]) for n in rows[0].inputs}
    arrays = {n: a[:, None] if a.ndim == 1 else a for n, a in arrays.items()}
    arrays |= {"user_id": texts(*(row.user for row in rows))} | more
    arrays |= {"append_id": texts(*named)} if named else {}
    return SimpleNamespace(inputs=lambda: [Tensor(n, a) for n, a in arrays.items()])


def test_settings_reach_scorer_and_store_and_it_is_warm_when_it_begins(
    module: ModuleType, place: Path, monkeypatch: pytest.MonkeyPatch
):
    threads, warmed, closed = [], [], []
    in_process = module.in_process

    def watched(*args: Any, **kwargs: Any) -> Any:
        threads.append(kwargs["threads"])
        return in_process(*args, **kwargs)

    monkeypatch.setattr(module, "in_process", watched)
    monkeypatch.setattr(module.Scorer, "warm_up", lambda scorer: warmed.append(scorer))
    model = begun(module, place)
    assert model.scorer.options == ScorerOptions("fp32", 5)
    assert (threads, warmed) == ([2], [model.scorer])
    assert model.store.where == f"sqlite:///{place.parent.parent / 'users.db'}"
    monkeypatch.setattr(model.store, "close", lambda: closed.append(True))
    model.finalize()
    assert closed


def test_the_environment_names_another_store(
    module: ModuleType, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    url = f"sqlite:///{tmp_path}/\N{LATIN SMALL LETTER E WITH ACUTE}.db"
    # As the Python in Triton's backend shows it.
    shown = url.encode().decode("ascii", "surrogateescape")
    monkeypatch.setattr("os.environ", os.environ | {"CKV_STORE_URL": shown})
    model = begun(module, place)
    assert model.store.where == url
    model.finalize()


def test_a_graph_that_is_not_the_exported_one_is_refused(module: ModuleType, place: Path):
    graph = place / "1" / "bundle" / "decode.onnx"
    graph.write_bytes(graph.read_bytes() + b"\0")
    with pytest.raises(BundleError, match=r"decode\.onnx is not the file that was exported"):
        begun(module, place)


def test_each_row_has_its_own_name_of_its_append_and_its_own_mask(
    module: ModuleType, place: Path, shops: Callable[[str], Shop], rng: np.random.Generator
):
    shop, model = shops("sim"), begun(module, place)
    users = {name: shop.user(0, rng) for name in "uv"}
    first = [ask(shop, user, rng, name, 2)[0] for name, user in users.items()]
    (answer,) = model.execute([sent(*first, named=("a", "b"))])
    assert (answer.error, answer.events.tolist()) == (None, [[2], [2]])
    # v's "a" is another append, u's is the one that was made.
    again = [ask(shop, user, rng, name, 1)[0] for name, user in users.items()]
    (answer,) = model.execute([sent(*again, named=("a", "a"))])
    assert answer.events.tolist() == [[2], [3]]
    mask = np.array([[True, True], [False, True]])
    masked = [ask(shop, user, rng, name, 2)[0] for name, user in users.items()]
    (answer,) = model.execute([sent(*masked, append_mask=mask)])
    assert answer.events.tolist() == [[4], [4]]
    counters = model.store.counters()
    assert Family.counted["ckv_store_writes"] == counters.writes == 5
    assert Family.counted["ckv_store_hits"] == counters.hits
    model.finalize()


def test_answers_and_refusals_stand_where_their_requests_do(
    module: ModuleType, place: Path, shops: Callable[[str], Shop], rng: np.random.Generator
):
    shop, model = shops("sim"), begun(module, place)
    asked = [ask(shop, shop.user(0, rng), rng, name, 2) for name in "abc"]
    (a, a_scores), (b, _), (c, c_scores) = asked
    short = sent(b, append_mask=np.ones((1, 3), bool))
    unreadable = sent(b, user_id=np.array([[b"\xff"]], object))
    answers = model.execute([sent(a), short, unreadable, sent(c)])
    for answer, scores in ((answers[0], a_scores), (answers[3], c_scores)):
        assert answer.error is None
        check(Answer(answer.score[0], int(answer.events[0, 0])), scores, 2)
    says = [(answers[i].error.code, answers[i].error.text) for i in (1, 2)]
    assert [code for code, _ in says] == ["invalid", "invalid"]
    assert "append_mask has the shape [1, 3]" in says[0][1]
    assert "both must begin with [B, T]" in says[0][1]
    assert "texts in UTF-8" in says[1][1]
    assert model.store.read(["b"]) == [None]
    model.finalize()


def test_decode_by_another_model_of_the_server(module: ModuleType, shops: Callable[[str], Shop]):
    io = shops("sim").manifest.graph("decode")
    made = {t.name: np.ones(t.shape(dict.fromkeys("BSKTC", 2)), t.dtype) for t in io.outputs}
    asked, failed = [], []

    def answered(**request: Any) -> Any:
        asked.append(request)
        response = SimpleNamespace(
            has_error=lambda: bool(failed), error=lambda: TritonError("out of memory", "internal")
        )
        return SimpleNamespace(exec=lambda: response)

    module.pb_utils.InferenceRequest = answered
    module.pb_utils.get_output_tensor_by_name = lambda response, name: Tensor(name, made[name])
    decode = module._of_the_server("shop_decode", io)
    feeds = {"user_age": np.array([1, 2]), "score": np.ones((3, 2)).T}
    got = decode(feeds)
    (request,) = asked
    assert request["model_name"] == "shop_decode"
    assert request["requested_output_names"] == list(made)
    given = {t.name(): t.as_numpy() for t in request["inputs"]}
    assert {n: a.shape for n, a in given.items()} == {"user_age": (2, 1), "score": (2, 3)}
    assert all(array.flags.c_contiguous for array in given.values())
    for name, array in made.items():
        array[:] = 0  # the memory is the response's
        assert (got[name] == 1).all()
    failed.append(True)
    with pytest.raises(ExportError, match="the model shop_decode failed: out of memory"):
        decode(feeds)
