"""The README's way from a checkpoint to a server, command by command as it stands there."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ckv_testing.servers import RedisServer, TritonServer
from ckv_testing.serving import Shop, User

from ckv_export.cli.main import main, parser, with_default_verb
from ckv_export.parity.tolerances import TOLERANCES

pytest.importorskip("tritonclient.grpc", reason="the package tritonclient is not installed")
pytest.importorskip("pyarrow", reason="the package pyarrow is not installed")
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

README = (Path(__file__).resolve().parents[2] / "README.md").read_text()
SECTION = README.split("### Serving\n")[1].split("\n### ")[0]
[COMMANDS] = [b.splitlines() for b in re.findall(r"```sh\n(.*?)```", SECTION, re.DOTALL)]
HISTORIES, CLIENT = re.findall(r"```python\n(.*?)```", SECTION, re.DOTALL)


def test_every_line_is_run(
    shops: Callable[[str], Shop],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    shop = shops("items")
    monkeypatch.chdir(tmp_path)
    with RedisServer(tmp_path) as redis:
        server = TritonServer([tmp_path / "repository"], tmp_path)
        place_bundle(COMMANDS[0], shop, tmp_path)
        exec(compile(HISTORIES, "README.md", "exec"), {})
        for line in COMMANDS[1:3]:
            words = shlex.split(line.replace("redis://127.0.0.1:6379/0", redis.url))
            assert words[0] == "ckv-export"
            assert main(words[1:]) == 0
        launcher = tmp_path / COMMANDS[3]
        with server.launched_by(launcher):
            capsys.readouterr()
            client = CLIENT.replace("127.0.0.1:8001", f"127.0.0.1:{server.grpc}")
            for _ in range(2):
                exec(compile(client, "README.md", "exec"), {})
            printed = capsys.readouterr().out
    # Sent twice under one name, the click happened once.
    check(shop, printed)


def place_bundle(line: str, shop: Shop, folder: Path) -> None:
    """What the first command makes was made for the session, by the same options."""
    args = parser().parse_args(with_default_verb(shlex.split(line)[1:]))
    assert args.item_table
    assert args.item_features == Path("items.npz")
    assert shop.manifest.item_table
    assert shop.manifest.form.item_key == "item_id"
    shutil.copytree(shop.folder, folder / args.out / args.model.stem)
    manifest = folder / args.out / args.model.stem / "manifest.json"
    text = manifest.read_text().replace(f'"name": "{shop.manifest.name}"', '"name": "model"', 1)
    manifest.write_text(text)


def check(shop: Shop, printed: str) -> None:
    ids = np.array([3, 14, 15, 9], np.int32)
    ann = User(with_features(shop, ids), {"age": np.int32(3)})
    scores = shop.scores(ann, with_features(shop, np.array([2, 6, 5], np.int32)))
    lines = printed.splitlines()
    assert len(lines) == 2
    for line in lines:
        found = re.fullmatch(r"\[\[(.*?)\]\] \[\[4\]\]", line)
        assert found is not None, line
        np.testing.assert_allclose(
            [float(x) for x in found[1].split()],
            scores,
            rtol=0,
            atol=1e-6 + TOLERANCES["score"].absolute,
        )


def with_features(shop: Shop, ids: np.ndarray) -> dict[str, np.ndarray]:
    return {"item_id": ids} | {name: values[ids] for name, values in shop.items.items()}


def test_the_launcher_passes_on_what_it_is_given(
    shops: Callable[[str], Shop],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    """From another folder; so is the environment. Where Triton starts no model, it says so."""
    shop, out = shops("items"), tmp_path / "repository"
    command = ["triton", str(shop.folder), f"--out={out}", "--store=sqlite:///u.db"]
    assert main([*command, "--platform=in-process"]) == 0
    assert "from this folder" in capsys.readouterr().out, "the store's path is relative"
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "tritonserver").write_text(
        '#!/bin/sh\nprintf "%s\\n" "$@" "$MALLOC_MMAP_THRESHOLD_" "$MALLOC_TRIM_THRESHOLD_"\n'
    )
    (tmp_path / "bin" / "tritonserver").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "12345")
    done = subprocess.run(
        [out / "launch.sh", "--http-port=1", "--exit on error"],
        capture_output=True, text=True, check=True, cwd="/",
    )  # fmt: skip
    assert done.stdout.splitlines() == [
        f"--model-repository={out}",
        "--http-port=1",
        "--exit on error",
        "33554432",
        "12345",
    ]
    for name in ("a blank", "pr\N{LATIN SMALL LETTER E WITH ACUTE}s", "cash$", "it's", "a;b"):
        out = out.rename(tmp_path / name)
        done = subprocess.run([out / "launch.sh"], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("launch.sh: error: Triton's Python backend starts no model")
        assert done.stderr.endswith(f": move {out}\n")
