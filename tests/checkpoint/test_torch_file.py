"""Files that are no checkpoint: a sentence each, and nothing runs."""

from __future__ import annotations

import os
import pickle
import warnings
import zipfile
from pathlib import Path

import pytest
import torch

from ckv_export.checkpoint.load import load_checkpoint
from ckv_export.checkpoint.torch_file import read_torch_file
from ckv_export.errors import CheckpointError


class Bomb:
    """Creates a file when unpickled by a careless reader."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def _refused(path: Path) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(CheckpointError) as caught:
            load_checkpoint(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_bomb_does_not_go_off(tmp_path, zipped, protocol):
    path, target = tmp_path / "bomb.pt", tmp_path / "executed"
    torch.save(
        {"format": "ckv", "x": Bomb(target)},
        path,
        pickle_protocol=protocol,
        _use_new_zipfile_serialization=zipped,
    )
    message = _refused(path)
    assert "refused and nothing in it was executed" in message
    assert not target.exists()


def test_the_asked_for_name_is_told(tmp_path):
    path = tmp_path / "bomb.pt"
    torch.save(Bomb(tmp_path / "executed"), path)
    assert f"'{os.mkdir.__module__}.mkdir'" in _refused(path)


def test_a_bomb_in_a_run_folder(make_run, tmp_path):
    run = make_run()
    folder = run.write()
    torch.save({"W_a.weight": Bomb(tmp_path / "executed")}, folder / "toy_run.model")
    assert "refused and nothing in it was executed" in _refused(folder)
    assert not (tmp_path / "executed").exists()


def test_a_plain_pickle(tmp_path):
    path = tmp_path / "plain.pt"
    path.write_bytes(pickle.dumps({"a": 1}))
    assert "refused" in _refused(path)


def test_a_pickled_module(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")
    assert "save a state dict instead" in _refused(tmp_path / "module.pt")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "the file is empty"),
        (b"hello, this is a text", "not a checkpoint"),
        (b'{"a": 1}', "not a checkpoint"),
        (bytes(range(255, 0, -1)), "not a checkpoint"),
        (b"\x89HDF\r\n\x1a\n", "not a checkpoint"),
    ],
)
def test_junk(tmp_path, content, words):
    (tmp_path / "junk.pt").write_bytes(content)
    assert words in _refused(tmp_path / "junk.pt")


def test_truncated_zip(tmp_path):
    path = tmp_path / "cut.pt"
    torch.save({"a": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:2000])
    assert "the file is truncated: its zip archive" in _refused(path)


def test_truncated_old_format(tmp_path):
    path = tmp_path / "cut.pt"
    torch.save({"a": torch.zeros(1000)}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:-20])
    assert "damaged" in _refused(path)


def test_another_zip(tmp_path):
    with zipfile.ZipFile(tmp_path / "other.pt", "w") as file:
        file.writestr("x", "y")
    assert "damaged" in _refused(tmp_path / "other.pt")


def test_torchscript(tmp_path):
    path = tmp_path / "script.pt"
    with pytest.warns(DeprecationWarning, match=r"torch.jit"):
        torch.jit.save(torch.jit.script(torch.nn.Identity()), path)
    assert "TorchScript" in _refused(path)


def test_a_list_is_no_checkpoint(tmp_path):
    torch.save([torch.zeros(1)], tmp_path / "list.pt")
    assert "format must be 'ckv', got None" in _refused(tmp_path / "list.pt")


def test_the_old_format_is_read(tmp_path):
    path = tmp_path / "old.pt"
    torch.save({"a": torch.ones(3)}, path, _use_new_zipfile_serialization=False)
    assert torch.equal(read_torch_file(path)["a"], torch.ones(3))
