"""The C++ tests of the build that needs no nvcc, and what the presets promise."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

PLUGINS = Path(__file__).resolve().parents[2] / "plugins"


def test_cpp_tests_pass(cpu_build: Path) -> None:
    result = subprocess.run(
        ["ctest", "--output-on-failure"], cwd=cpu_build, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout


def test_presets_name_every_target_and_one_ptx() -> None:
    presets = json.loads((PLUGINS / "CMakePresets.json").read_text())
    names = {preset["name"] for preset in presets["configurePresets"]}
    assert names == {"release", "native", "cpu"}
    cmake = (PLUGINS / "CMakeLists.txt").read_text()
    assert '"75-real;80-real;86-real;89-real;90-real;100-real;120"' in cmake
