"""In a group of one process, normalizing over all processes is torch's BatchNorm."""

import copy

import pytest
import torch
from torch import distributed as dist
from torch import nn

from pmsm.ann.batchnorm import over_all_processes


@pytest.fixture(autouse=True)
def group():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize(
    "norm, shape",
    [
        (nn.BatchNorm2d(3), (4, 3, 5, 5)),
        (nn.BatchNorm1d(3), (6, 3)),
        (nn.BatchNorm1d(3, momentum=None), (6, 3, 7)),
        (nn.BatchNorm2d(3, affine=False, eps=0.1), (4, 3, 2, 2)),
        (nn.BatchNorm2d(3, track_running_stats=False), (4, 3, 2, 2)),
    ],
    ids=str,
)
def test_values_gradients_and_statistics_are_those_of_torch(norm, shape):
    other, x = copy.deepcopy(norm), torch.randn(shape) * 2 + 1
    one, two = x.clone().requires_grad_(), x.clone().requires_grad_()
    for _ in range(2):
        with over_all_processes(norm):
            norm(one).sin().sum().backward()
        other(two).sin().sum().backward()
    # Mean, variance and quotient are rounded in another order.
    torch.testing.assert_close(one.grad, two.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norm.state_dict(), other.state_dict())


def test_evaluation_is_left_as_it_is():
    norm, x = nn.BatchNorm2d(3).eval(), torch.randn(2, 3, 4, 4)
    expected = norm(x)
    with over_all_processes(norm):
        assert torch.equal(norm(x), expected)


def test_half_precision_comes_back_and_is_summed_in_float32():
    norm, x = nn.BatchNorm2d(3), torch.randn(64, 3, 16, 16).to(torch.bfloat16) + 8
    with over_all_processes(norm):
        y = norm(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(norm.running_mean, 0.1 * x.float().mean((0, 2, 3)))


def test_another_shape_is_refused_as_by_torch():
    norm = nn.BatchNorm2d(3)
    with over_all_processes(norm), pytest.raises(ValueError, match="expected 4D input"):
        norm(torch.zeros(2, 3))
