"""Files that a user asked a command to write: whole, or as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A path to write to, which becomes `path` when the block succeeds.

    It has the name of `path`. Raises `OSError` naming `path`. What is no plain file, such as
    ``/dev/stdout`` or a link, is written to as it is.
    """
    if path.is_symlink() or (path.exists() and not path.is_file()):
        yield path
        return
    try:
        with TemporaryDirectory(prefix=".ckv-", dir=path.parent) as folder:
            made = Path(folder) / path.name
            yield made
            made.replace(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
