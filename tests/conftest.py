"""What every test shares: one thread, no network, the same examples in every run."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before any import reads it: a test never downloads

from pathlib import Path

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)  # equal sums in every run, and no fight for the cores

# Derandomized: a failure in one run is a failure in the next. No deadline: the machine may be busy.
settings.register_profile("pmsm", derandomize=True, deadline=None)
settings.load_profile("pmsm")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def shared_data() -> Path:
    """The folder of real data and weights, `$PMSM_DATA` or beside the checkout; without it the test skips."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("PMSM_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"needs the real data in {folder} (set PMSM_DATA)")
    return folder
