"""Where the batch lies: moves that come back, moves that do not, and what a run may do with the answer."""

import pytest
import torch
from torch import Tensor, nn

from pmsm import graph
from pmsm.methods import PMSM
from pmsm.qann.calibrate import calibrate
from pmsm.qann.quantize import quantize
from pmsm.snn.convert import convert
from pmsm.snn.simulate import simulate


class Tokens(nn.Module):
    """Two linear layers on [N, L, 6] with something of the test's in between."""

    def __init__(self, between):
        super().__init__()
        self.first, self.last, self.between = nn.Linear(6, 6), nn.Linear(6, 4), between

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.between(self.first(x).relu()))


def attention(x: Tensor) -> Tensor:
    """As timm writes it: the batch moves to dimension 1 and comes back."""
    q, k, v = x.reshape(*x.shape[:2], 3, 1, 2).permute(2, 0, 3, 1, 4).unbind(0)
    h = (q @ k.transpose(-2, -1)).softmax(-1) @ v
    return torch.cat([h.transpose(1, 2).reshape(*x.shape[:2], 2)] * 3, 2)


KEPT = {
    "attention": attention,
    "indexed": lambda x: torch.cat(
        [x.reshape(*x.shape[:2], 3, 2).permute(2, 0, 1, 3)[i] for i in range(3)], -1
    ),
    "swapped and back": lambda x: x.transpose(0, 1).transpose(0, 1),
    "swapped by negative numbers": lambda x: x.transpose(-3, -2).contiguous().permute(-2, 0, 2),
    "selected": lambda x: torch.cat([x.permute(2, 0, 1).select(0, 3).unsqueeze(2)] * 6, 2),
    "chunked": lambda x: torch.cat([part.permute(1, 2, 0) for part in x.permute(2, 0, 1).chunk(2, 0)], 2),
    "sliced": lambda x: x.permute(1, 0, 2)[:, :, :].permute(1, 0, 2),
}
MOVED = {
    "swapped": lambda x: x.transpose(0, 1),
    "something happens meanwhile": lambda x: x.transpose(0, 1).sigmoid().transpose(0, 1),
    "split along the batch": lambda x: torch.cat(x.chunk(2, 0), 1),
    "indexed in the batch": lambda x: x[:1],
    "selected from the batch": lambda x: x.unbind(0)[0].unsqueeze(0),
    "mixed": lambda x: x + x.flip(0),
    "rolled": lambda x: x.roll(1, 0),
    "merged in the wrong order": lambda x: x.transpose(0, 1).reshape(-1, 1, 6),
}


@pytest.mark.parametrize("between", KEPT.values(), ids=KEPT)
def test_a_batch_that_comes_back_is_in_its_place_and_both_schedules_agree(between):
    x = torch.randn(4, 5, 6)
    network = Tokens(between).eval()
    assert graph.keeps_batch_first(graph.trace(network, x))
    snn = convert(calibrate(quantize(network, PMSM(levels=9), x), x))
    a, b = (simulate(snn, x, 2, schedule=schedule) for schedule in ("steps", "layers"))
    assert torch.equal(a.outputs, b.outputs)


@pytest.mark.parametrize("between", MOVED.values(), ids=MOVED)
def test_a_batch_that_does_not_is_told(between):
    x = torch.randn(4, 5, 6)
    assert not graph.keeps_batch_first(graph.trace(Tokens(between).eval(), x))


def test_an_output_must_have_the_batch_first():
    class Last(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(x).permute(1, 0, 2)

    assert not graph.keeps_batch_first(graph.trace(Last().eval(), torch.randn(4, 5, 6)))
