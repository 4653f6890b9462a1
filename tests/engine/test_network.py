"""What the parser is told, and its refusals as sentences. The parser is a stand-in."""

from __future__ import annotations

import enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ckv_export.engine import Backend
from ckv_export.engine.messages import Messages
from ckv_export.engine.network import parse_onnx
from ckv_export.errors import EngineError


class Error(SimpleNamespace):
    """One of the parser's errors; older versions know no stack of functions."""

    def node_name(self) -> str:
        return self.node

    def node_operator(self) -> str:
        return "TopK"

    def desc(self) -> str:
        return self.text


class Parser:
    """Begins with a flag of its own, and refuses a file if it has errors."""

    num_errors = property(lambda self: len(self.errors))

    def __init__(self, *errors: Error) -> None:
        self.flags, self.errors = 1, errors

    def set_flag(self, flag: int) -> None:
        self.flags |= 1 << flag

    def parse_from_file(self, path: str) -> bool:
        return not self.errors and path == "x.onnx"

    def get_error(self, index: int) -> Error:
        return self.errors[index]


def parse(
    parser: Parser,
    *said: str,
    creation: str = "EXPLICIT_BATCH",
    parsing: str = "NATIVE_INSTANCENORM",
) -> int:
    """Parse with a library of these flags; returns those that the network was created with."""
    module = SimpleNamespace(
        NetworkDefinitionCreationFlag=enum.IntEnum("Creation", creation, start=0),
        OnnxParserFlag=enum.IntEnum("Parsing", parsing, start=0),
        OnnxParser=lambda network, logger: parser,
    )
    created: list[int] = []

    def create_network(flags: int) -> Any:
        created.append(flags)
        return SimpleNamespace(num_inputs=0, num_outputs=0)

    backend = Backend("tensorrt", module, "10.13")  # type: ignore[arg-type]
    builder = SimpleNamespace(create_network=create_network)
    parse_onnx(Path("x.onnx"), backend, builder, None, Messages(errors=list(said)))
    return created[0]


@pytest.mark.parametrize(
    ("names", "flags"),
    [
        ("EXPLICIT_BATCH STRONGLY_TYPED", 0b10),
        ("EXPLICIT_BATCH STRONGLY_TYPED PREFER_JIT PREFER_AOT_PYTHON_PLUGINS", 0b1010),
        ("PREFER_JIT PREFER_AOT_PYTHON_PLUGINS", 0b10),
        ("EXPLICIT_BATCH", 0),
    ],
)
def test_networks_are_strongly_typed_in_every_version(names: str, flags: int):
    assert parse(Parser(), creation=names) == flags


@pytest.mark.parametrize(
    ("names", "flags"),
    [("NATIVE_INSTANCENORM ENABLE_PLUGIN_OVERRIDE", 0b11), ("NATIVE_INSTANCENORM", 0b1)],
)
def test_a_plugin_wins_over_a_function_and_other_flags_stay(names: str, flags: int):
    parser = Parser()
    parse(parser, parsing=names)
    assert parser.flags == flags


@pytest.mark.parametrize(
    ("node", "text", "said", "says"),
    [
        ("", "Assertion failed: isLoaded: no weights", (), "read x.onnx: no weights"),
        ("", "anything", ("Failed to open file: w",), "read x.onnx: Failed to open file: w"),
        ("n", "Invalid Node - n\nn: K is odd. In go at /a.cpp:3", ("x",), "n: K is odd."),
        ("n", 'Assertion failed: (k > 0) && "K is none."', (), "K is none"),
        ("n", "Assertion failed: k > 0: K is none", (), "K is none"),
        ("n", "Error Code 4: API Usage Error (K is odd. In go at /a.cpp:3)", (), "K is odd."),
        ("n", "false", (), "the operator TopK is not supported"),
        ("n", "", (), "the operator TopK is not supported"),
    ],
)
def test_refusals(node: str, text: str, said: tuple[str, ...], says: str):
    where = "take x.onnx at node 'n' (TopK): " if node else ""
    with pytest.raises(EngineError) as failure:
        parse(Parser(Error(node=node, text=text)), *said)
    assert str(failure.value) == f"TensorRT 10.13 can't {where}{says}"


def test_the_function_that_a_node_stands_in():
    error = Error(node="n", text="false", local_function_stack=lambda: ["key (Pool)", "outer"])
    with pytest.raises(EngineError, match=r"'n' \(TopK\) in the function of node key \(Pool\): "):
        parse(Parser(error))


def test_a_refusal_without_a_reason():
    parser = Parser()
    parser.parse_from_file = lambda path: False  # type: ignore[method-assign]
    with pytest.raises(EngineError, match=r"can't read x\.onnx: the parser gives no reason"):
        parse(parser)
