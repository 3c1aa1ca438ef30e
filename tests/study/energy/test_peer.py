"""Beside SpikingJelly 2.0: equal on the spikes that it is made for, and why signed ones need another count.

Skips without it. `$SPIKINGJELLY_PYTHON` names an interpreter that has it, if this one has not.
"""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pmsm.study.energy.measure import measure

PEER = os.environ.get("SPIKINGJELLY_PYTHON") or (sys.executable if find_spec("spikingjelly") else None)
pytestmark = pytest.mark.skipif(PEER is None, reason="needs spikingjelly >= 2.0, see $SPIKINGJELLY_PYTHON")


PROGRAM = """
import json
import sys

import torch
from spikingjelly.activation_based.op_counter import (
    ACCounter,
    DispatchCounterMode,
    MACCounter,
    SimpleEnergyCostConfig,
    SynOpCounter,
)
from torch import Tensor, nn


class Step(nn.Module):
    def __init__(self, signed: bool):
        super().__init__()
        self.signed = signed

    def forward(self, x: Tensor) -> Tensor:
        return x.round().clamp(-1, 1) if self.signed else (x >= 0.5).to(x.dtype)


case = torch.load(sys.argv[1], weights_only=False)
network = nn.Sequential(*(Step(case["signed"]) if isinstance(m, nn.ReLU) else m for m in case["network"]))
counters = synops, accumulates, macs = SynOpCounter(), ACCounter(), MACCounter()
with torch.no_grad(), DispatchCounterMode(list(counters)):
    network(case["x"])
cost = SimpleEnergyCostConfig.fp32()
energy_pj = macs.get_total() * cost.e_mac_pj + accumulates.get_total() * cost.e_ac_pj
print(json.dumps({"synops": synops.get_total(), "macs": macs.get_total(), "energy_pj": energy_pj}))
"""
# Its counters are read one by one: inside its SimpleEnergyProfiler, the sums that its memory counter makes
# for itself are counted as accumulates of the network.


def counted_by_peer(folder: Path, network: nn.Module, x: Tensor, *, signed: bool) -> dict:
    """Synaptic operations, MACs and energy in pJ at 45 nm and 32 bits, of all samples together."""
    torch.save({"network": network, "x": x, "signed": signed}, folder / "case.pt")
    command = [str(PEER), "-W", "ignore", "-c", PROGRAM, str(folder / "case.pt")]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def test_binary_spikes_are_counted_alike(spiking, tmp_path):
    ann = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=2, bias=False), nn.ReLU(),
        nn.Conv2d(8, 6, 3, dilation=2, bias=False), nn.ReLU(),
        nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1, bias=False), nn.ReLU(),
        nn.Flatten(), nn.Linear(196, 10, bias=False),
    )  # fmt: skip
    with torch.no_grad():
        for parameter in ann.parameters():
            parameter.mul_(4)  # so that spikes get through to the end
    x = torch.randn(5, 3, 16, 16)
    ours = measure(spiking(ann, x, 0, 1), x)
    theirs = counted_by_peer(tmp_path, ann, x, signed=False)
    assert ours.synops.mean * 5 == theirs["synops"] > 0
    assert ours.rows[0].work.macs * 5 == theirs["macs"]
    energy = (
        ours.totals.spikes_pj + ours.rows[0].energy_pj.mean
    )  # they do not charge the updates of our neurons
    assert energy * 5 == pytest.approx(theirs["energy_pj"])


@pytest.mark.parametrize("signed", [False, True])
def test_signed_spikes_are_no_dense_values(spiking, told, tmp_path, signed):
    x = torch.zeros(1, 400)
    x[0, :73] = 1
    if signed:
        x[0, 0] = -1
    ann = told(400, nn.Linear(400, 10, bias=False), dims=0)
    ours = measure(spiking(ann, x, -signed, 1), x)
    theirs = counted_by_peer(tmp_path, ann[1:], x, signed=signed)
    last = ours.rows[-1]
    assert last.synops.mean == 73 * 10
    if signed:  # one negative spike, and all 4,000 weights cost a MAC: 28 times as much
        assert (theirs["synops"], theirs["macs"]) == (0, 4000)
        assert theirs["energy_pj"] / last.energy_pj.mean == pytest.approx(28.0, abs=0.01)
    else:
        assert (theirs["synops"], theirs["macs"]) == (730, 0)
        assert theirs["energy_pj"] == pytest.approx(last.energy_pj.mean)
