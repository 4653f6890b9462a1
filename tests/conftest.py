"""What every test shares: where the recorded samples lie, and what this machine lacks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

SAMPLES = Path(__file__).resolve().parents[2] / "shared" / "samples"

torch.set_num_threads(2)


@pytest.fixture(scope="session")
def samples() -> Path:
    """Folder of checkpoints with outputs recorded from the paper authors' training code."""
    if not SAMPLES.is_dir():
        pytest.skip(f"recorded sample checkpoints are not here: {SAMPLES}")
    return SAMPLES
