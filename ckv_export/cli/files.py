"""Files that a user asked a command to write: whole, or as they were."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from ckv_export.errors import InputError
from ckv_export.manifest import is_bundle


def check_places(*paths: Path | None, given: Sequence[Path | None] = ()) -> None:
    """Raise `InputError` where a file can't be written: told before there is what to write.

    `given`: files and folders that the command reads. It writes over none of the files, and into
    none of those folders that is a bundle.
    """
    taken: set[Path] = set()
    for path in paths:
        if path is None:
            continue
        if not path.parent.is_dir():
            raise InputError(f"the folder {str(path.parent)!r} of {path.name} is not there")
        if path.is_dir():
            raise InputError(f"{path} is a folder: give the name of a file to write")
        if not _stays(path) and not os.access(path.parent, os.W_OK):
            raise InputError(f"the folder {str(path.parent)!r} of {path.name} can't be written to")
        if not _stays(path) and path.resolve() in taken:
            raise InputError(f"{path} is given for two results")
        taken.add(path.resolve())
        for read in filter(None, given):
            _check_apart(path, read)


def _check_apart(path: Path, read: Path) -> None:
    written, place = path.resolve(), read.resolve()
    if written == place:
        raise InputError(f"{path} is read by this command: give another file to write")
    if is_bundle(place) and written.is_relative_to(place):
        raise InputError(
            f"{path} lies in the bundle {read}, whose files are those that were exported: give a "
            "file in another folder"
        )


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A path to write to, which becomes `path` when the block succeeds.

    It has the name of `path`. Raises `OSError` naming `path`. What is no plain file, such as
    ``/dev/stdout`` or a link, is written to as it is.
    """
    if _stays(path):
        yield path
        return
    try:
        with TemporaryDirectory(prefix=".ckv-", dir=path.parent) as folder:
            made = Path(folder) / path.name
            yield made
            made.replace(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def _stays(path: Path) -> bool:
    """Whether it is written to as it is, and no new file takes its place."""
    return path.is_symlink() or (path.exists() and not path.is_file())
