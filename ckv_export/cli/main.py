"""Entry point: find the verb, run it, turn errors into one sentence and an exit code.

Verbs, and PyTorch with them, are imported within `main`: a Ctrl-C while they load is an interrupt
like any other.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from ckv_export import __version__
from ckv_export.cli import interrupts
from ckv_export.errors import CkvError, InputError, Interrupted, nearest

VERBS = (
    *("export", "inspect", "parity", "build", "bench", "plan", "plugin", "pool"),
    *("refit", "triton", "prefill", "doctor", "demo"),
)
"""Each is a module beside this one: `HELP`, `add_arguments(parser)`, `run(args) -> exit code`."""

EXIT_BAD_INPUT = 2

_EPILOG = """\
`ckv-export MODEL --out DIR` is short for `ckv-export export MODEL --out DIR`.
exit codes: 0 success, 1 the parity gate failed or a benchmark became slower, 2 bad input, a missing
package, a full disk or an interrupt; whatever goes wrong, the output folder is left as it was.
"""


class _Help(argparse.HelpFormatter):
    """Says an option's default in brackets, where it has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        default = action.default
        if default is None or default is False or default in ("", [], argparse.SUPPRESS):
            return action.help
        return f"{action.help} (%(default)s)"


class _Parser(argparse.ArgumentParser):
    """Complains of options as of any other bad input: one sentence, exit code 2."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Refuse what is left over here, where the verb's options are known."""
        known, unknown = super().parse_known_args(args, namespace)
        if unknown:
            meant = nearest(unknown[0].partition("=")[0], self._option_string_actions)
            raise InputError(
                f"unrecognized arguments: {' '.join(unknown)} (see {self.prog} --help){meant}"
            )
        return known, unknown

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see {self.prog} --help")


def parser() -> argparse.ArgumentParser:
    """The parser of all verbs."""
    root = _Parser(
        prog="ckv-export",
        description="Export CollectiveKV recommenders to ONNX and TensorRT, parity proven.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    root.add_argument("--version", action="version", version=f"ckv-export {__version__}")
    verbs = root.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name in VERBS:
        module = importlib.import_module(f"ckv_export.cli.{name}")
        verb = verbs.add_parser(
            name, help=module.HELP, description=module.HELP, formatter_class=_Help
        )
        module.add_arguments(verb)
    return root


def with_default_verb(arguments: Sequence[str]) -> list[str]:
    """Put ``export`` in front where no verb is given; raises `InputError` for a misspelt one."""
    first = arguments[0] if arguments else "--help"
    if first in VERBS or first in ("-h", "--help", "--version"):
        return list(arguments) or ["--help"]
    meant = "" if first.startswith("-") or os.path.lexists(first) else nearest(first, VERBS)
    if meant:
        raise InputError(f"there is no verb, file or folder {first!r}{meant}")
    return ["export", *arguments]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code. Never raises for bad input."""
    given = sys.argv[1:] if arguments is None else arguments
    # Read when PyTorch loads. Threads that wait by spinning make small tensors 20 times slower as
    # soon as another process wants a core.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        with interrupts.handled(until_exit=arguments is None):
            return _run(given)
    except KeyboardInterrupt:
        return _interrupted()
    except Interrupted as error:
        return _complain(str(error), error.exit_code)
    except Exception as error:
        if interrupts.seen():
            return _interrupted()
        return _failed(error)


def _failed(error: Exception) -> int:
    """Exit code of `error`, once told; raises it again if it is a bug."""
    match error:
        case CkvError():
            return _complain(str(error), error.exit_code)
        case BrokenPipeError():
            _discard_output()
            return 0
        case OSError():
            _discard_output()
            where = f" {error.filename}" if error.filename else ""
            return _complain(
                f"the system refused: {error.strerror or error}{where}", EXIT_BAD_INPUT
            )
        case MemoryError():
            return _complain("this machine has too little memory for that", EXIT_BAD_INPUT)
    raise error


def _interrupted() -> int:
    return _complain("interrupted; the output folder is as it was", EXIT_BAD_INPUT)


def _run(arguments: Sequence[str]) -> int:
    _require_folder()
    args = parser().parse_args(with_default_verb(arguments))
    code = int(importlib.import_module(f"ckv_export.cli.{args.verb}").run(args))
    if sys.stdout is not None:
        sys.stdout.flush()
    return code


def _require_folder() -> None:
    """Raise `InputError` where the working folder is gone: PyTorch would end the process."""
    try:
        Path.cwd()
    except FileNotFoundError:
        raise InputError(
            "the folder that this command runs in is no longer there: leave it, or enter what has "
            "taken its place with `cd .`"
        ) from None


def _discard_output() -> None:
    """Drop what standard output can't take, or Python would complain of it again at its end."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _complain(message: str, code: int) -> int:
    sentence = " ".join(message.split())
    with contextlib.suppress(OSError):
        print(f"ckv-export: error: {sentence}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
