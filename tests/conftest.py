"""What every test shares: one thread, no network, the same examples in every run."""

import os
import signal

# Before any import reads them: a test never downloads, and what it starts has one thread as well.
os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from torch import nn

# Background jobs start with Ctrl-C ignored, and so would every process that a test starts and interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)

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


@pytest.fixture
def randomize() -> Callable[[nn.Module], nn.Module]:
    """A function that gives every BatchNorm of a network random statistics and weights, as training would."""

    def randomize(network: nn.Module) -> nn.Module:
        for norm in network.modules():
            if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
                nn.init.uniform_(norm.weight, 0.5, 1.5)
                nn.init.normal_(norm.bias, std=0.5)
                nn.init.normal_(norm.running_mean, std=0.5)
                nn.init.uniform_(norm.running_var, 0.5, 2.0)
        return network.eval()

    return randomize
