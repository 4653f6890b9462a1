"""Options: each says what it is, and one that would be passed over beside the others is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from ckv_export.cli.main import VERBS, parser

STORE = "sqlite:///users.db"


@pytest.mark.parametrize("verb", VERBS)
def test_help_says_of_every_option_what_it_is_and_its_default(verb: str):
    verbs = next(action for action in parser()._actions if action.dest == "verb").choices
    assert isinstance(verbs, dict)
    said = " ".join(verbs[verb].format_help().split())
    for action in verbs[verb]._actions:
        assert action.help, action.dest
        default = action.default
        if type(default) in (str, int, float) and default not in ("", "==SUPPRESS=="):
            assert f"{' '.join(action.help.split())} ({default})" in said, action.dest


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("bench {bundle} --weights x", "--weights is for --checkpoint only"),
        ("bench {bundle} --params x", "--params is for --checkpoint only"),
        ("bench {bundle} --rate-seconds 1", "--rate-seconds is for --latency-bound only"),
        ("bench {bundle} --margin 1", "--margin is for --compare only"),
        ("bench {bundle} --any-machine", "--any-machine is for --compare only"),
        ("parity {bundle} --weights x", "--weights is for --checkpoint only"),
        ("parity {bundle} --params x", "--params is for --checkpoint only"),
        ("parity {bundle} --users 64", "--users is for --events only"),
        ("parity {bundle} --labels x.npz", "--labels is for --events only"),
        ("parity {bundle} --seed 0", "give --checkpoint MODEL or --against BUNDLE too"),
        ("parity {bundle} --checkpoint x --against {bundle}", "both say who is believed"),
        ("inspect {bundle} --events x.npz --seed 0", "--seed says nothing beside --events"),
        ("export {bundle} --out o --no-parity --seed 0", "--seed says nothing beside --no-parity"),
        (f"prefill {{bundle}} --events x --store {STORE} --workers 2", "--workers is for --ray"),
        (f"triton {{bundle}} --out o --store {STORE} --threads 1", "--platform in-process only"),
    ],
)
def test_what_would_be_passed_over_is_refused(
    words: str, says: str, refused, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    given = words.format(bundle=bundle).split()
    refused(*given, watched=tmp_path, says=(says,))


def test_a_twins_graph_localizes_beside_a_checkpoint_that_judges(
    cli, bundle: Path, run_folder: Path
):
    words = ("--checkpoint", run_folder, "--against", bundle, "--localize")
    ran = cli("parity", bundle, *words, "--runtime", "onnxruntime-cpu")
    assert ran.code == 0, ran.err
    assert f"the graph of {bundle}" in "".join(ran.out.split("\n"))
