"""Scripts that let NVIDIA's Polygraphy run a bundle's graphs on its recorded cases.

They are copied into the bundle, and need numpy alone.
"""

from __future__ import annotations

import shutil
from pathlib import Path

FOLDER = "polygraphy"
SCRIPTS = ("data_loader.py", "compare.py")


def write_scripts(bundle: Path) -> None:
    """Copy the scripts into `FOLDER` of a bundle that holds recorded cases and their report."""
    (bundle / FOLDER).mkdir(exist_ok=True)
    for name in SCRIPTS:
        shutil.copyfile(Path(__file__).with_name(name), bundle / FOLDER / name)
