"""What the README tells a reader to type can be typed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from ckv_export.cli.main import VERBS, parser, with_default_verb

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
COMMANDS = [
    line for block in BLOCKS for line in block.splitlines() if line.startswith("ckv-export")
]


def test_there_are_commands():
    assert len(BLOCKS) >= 2
    assert COMMANDS


@pytest.mark.parametrize("line", COMMANDS)
def test_options_exist(line: str):
    args = parser().parse_args(with_default_verb(shlex.split(line)[1:]))
    assert args.verb in VERBS


@pytest.mark.parametrize("flag", sorted(set(re.findall(r"`(--[a-z-]+)", README))))
def test_flags_named_in_the_text_exist(flag: str):
    verbs = next(a for a in parser()._actions if a.dest == "verb").choices
    known = {option for verb in verbs.values() for option in verb._option_string_actions}
    assert flag in known


def test_the_two_commands_install_what_they_say_and_ci_runs_the_second():
    project = (ROOT / "pyproject.toml").read_text().split("[project.optional-dependencies]")[1]
    known = re.findall(r"^(\w+) = \[", project, re.MULTILINE)
    demo, tests = (next(b for b in BLOCKS if word in b) for word in ("demo", "pytest"))
    for block in (demo, tests):
        extras = re.search(r"'\.\[(.*?)\]'", block)
        assert extras is not None
        assert set(extras[1].split(",")) <= set(known)
    steps = [step.strip() for step in tests.replace(".venv/bin/", "").split("&&")]
    ci = (ROOT / ".ci" / "run").read_text().replace(".venv/bin/", "").replace(" --quiet", "")
    assert all(step in ci.splitlines() for step in steps)


def test_every_file_of_a_bundle_is_described():
    from ckv_export.cache import item_table
    from ckv_export.manifest import FILE_NAME
    from ckv_export.onnx_export.save import WEIGHTS_FILE
    from ckv_export.parity.bundle import CASES_FILE
    from ckv_export.parity.report import JSON_FILE, PAGE_FILE

    for name in (FILE_NAME, WEIGHTS_FILE, CASES_FILE, JSON_FILE, PAGE_FILE, item_table.FILE_NAME):
        assert f"`{name}`" in README
