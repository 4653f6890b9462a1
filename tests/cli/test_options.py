"""No option is passed over: one that says nothing beside the others, or without one, is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

STORE = "sqlite:///users.db"


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
