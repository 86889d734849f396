"""Fixtures of all tests: one thread, reproducible examples, the reference data."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # also for the processes that tests start

import pytest
import torch
from hypothesis import Phase, settings

settings.register_profile(
    "psvit",
    deadline=None,
    derandomize=True,
    phases=(Phase.explicit, Phase.generate, Phase.shrink),
)
settings.load_profile("psvit")
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def reference() -> Path:
    """Folder of the reference data: ``vectors``, ``groups``, ``manifests``."""
    return Path(__file__).parent / "reference"
