"""Multiply-accumulates, counted by hand on small layers and by torch on whole networks."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pmsm import graph
from pmsm.study.macs import MACS, count_macs


def macs(network: nn.Module, *example: Tensor) -> int:
    traced = graph.trace(network, example)
    return sum(count_macs(traced, node) or 0 for node in graph.signals(traced) if node.op != "output")


class Call(nn.Module):
    """A function of two tensors as a network."""

    def __init__(self, call):
        super().__init__()
        self.call = call

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.call(a, b)


@pytest.mark.parametrize(
    ("layer", "shape", "counted"),
    [
        # positions of the output x channels of the output x weights that each of them reads
        (nn.Conv2d(4, 6, 3), (4, 8, 8), (6 * 6) * 6 * (4 * 3 * 3)),
        (nn.Conv2d(4, 6, 3, padding=1), (4, 8, 8), (8 * 8) * 6 * (4 * 3 * 3)),
        (nn.Conv2d(4, 6, 3, stride=2, padding=1), (4, 8, 8), (4 * 4) * 6 * (4 * 3 * 3)),
        (nn.Conv2d(4, 6, 3, dilation=2), (4, 8, 8), (4 * 4) * 6 * (4 * 3 * 3)),
        (nn.Conv2d(4, 6, (1, 3), groups=2, bias=False), (4, 8, 8), (8 * 6) * 6 * (2 * 1 * 3)),
        (nn.Conv2d(4, 4, 3, groups=4), (4, 8, 8), (6 * 6) * 4 * 9),
        (nn.Conv1d(4, 6, 5), (4, 9), 5 * 6 * (4 * 5)),
        (nn.Conv3d(2, 3, 2), (2, 3, 4, 5), (2 * 3 * 4) * 3 * (2 * 8)),
        # transposed: positions of the input x channels of the input x weights that each of them feeds
        (nn.ConvTranspose2d(4, 6, 2, stride=2), (4, 5, 5), (5 * 5) * 4 * (6 * 2 * 2)),
        (nn.ConvTranspose2d(4, 6, 3, groups=2), (4, 5, 5), (5 * 5) * 4 * (3 * 3 * 3)),
        (nn.Linear(7, 5), (7,), 7 * 5),
        (nn.Linear(7, 5), (3, 7), 3 * 7 * 5),  # three tokens
        (nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4), nn.AvgPool2d(2), nn.Flatten()), (4, 8, 8), 0),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_layers_are_counted_by_hand(layer, shape, counted):
    assert macs(layer, torch.randn(2, *shape)) == 2 * counted


@pytest.mark.parametrize(
    ("call", "counted"),
    [
        (lambda a, b: a @ b, 2 * 3 * 4 * 5),
        (lambda a, b: torch.matmul(a, other=b), 2 * 3 * 4 * 5),
        (lambda a, b: a.matmul(b[0]), 2 * 3 * 4 * 5),
        (lambda a, b: torch.bmm(a, b), 2 * 3 * 4 * 5),
        (lambda a, b: a[0].mm(b[0]), 3 * 4 * 5),
        (lambda a, b: torch.einsum("nij,njk->nik", a, b), 2 * 3 * 4 * 5),
        (lambda a, b: torch.einsum("...ij, ...jk", [a, b]), 2 * 3 * 4 * 5),
        (lambda a, b: a * 2 + 1, 0),
    ],
    ids=["operator", "matmul", "method", "bmm", "mm", "einsum", "ellipsis", "elementwise"],
)
def test_matrix_products_are_counted_by_hand(call, counted):
    assert macs(Call(call), torch.randn(2, 3, 4), torch.randn(2, 4, 5)) == counted


@pytest.mark.parametrize(
    ("call", "counted"),
    [
        (lambda x, w: F.conv2d(x, w, padding=1, groups=2), (5 * 5) * 6 * (2 * 9)),
        (lambda x, w: F.conv_transpose2d(x, w[:4]), (5 * 5) * 4 * (2 * 9)),
        (lambda x, w: F.linear(x.flatten(2), weight=torch.ones(3, 25)), 4 * 25 * 3),
    ],
    ids=["conv2d", "conv_transpose2d", "linear"],
)
def test_weighted_calls_are_counted_like_their_layers(call, counted):
    assert macs(Call(call), torch.randn(2, 4, 5, 5), torch.randn(6, 2, 3, 3)) == 2 * counted


def test_attention_counts_both_of_its_products():
    heads = (2, 3)
    query, memory = torch.randn(*heads, 5, 8), torch.randn(*heads, 7, 8)
    attention = Call(lambda q, kv: F.scaled_dot_product_attention(q, kv, kv[..., :4]))
    assert macs(attention, query, memory) == math.prod(heads) * (5 * 7 * 8 + 5 * 7 * 4)


def test_an_operator_that_no_table_knows_has_no_count():
    traced = graph.trace(nn.Sequential(nn.GRU(3, 4, batch_first=True)), torch.randn(2, 5, 3))
    (node,) = (node for node in traced.graph.nodes if node.op == "call_module")
    assert count_macs(traced, node) is None


def test_every_matrix_product_of_the_graph_has_a_count():
    assert set(MACS) >= graph.MATRIX_PRODUCTS | graph.WEIGHTED_CALLS | set(graph.WEIGHTED)
