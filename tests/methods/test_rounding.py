"""The rounding rule, its gradients, and that neither memory layout nor size can change a bit of it."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pmsm.methods.rounding import count, quantize

pytestmark = pytest.mark.usefixtures("form")

# Multiples of 1/64: sums and quotients by powers of two are exact in float32, so no tolerance is needed.
dyadic = st.lists(st.integers(-1024, 1024), min_size=1, max_size=16).map(lambda k: torch.tensor(k) / 64)
power_of_two = st.integers(-3, 3).map(lambda k: torch.tensor(2.0**k))
bounds = st.sampled_from([(0, 8), (-4, 4), (-2, 6), (-6, 2), (0, 1), (-1, 1)])

BOUNDS = [(0, 4), (-2, 2), (-1, 3)]
SLACKS = pytest.mark.parametrize("slack", [0.5, 0.0], ids=["pmsm", "qcfs"])
LAYOUTS = pytest.mark.parametrize(
    "layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"]
)


def quarters(*shape: int) -> Tensor:
    """Random multiples of 1/4 in [-8, 8]: every tie and both sides of every bound are among them."""
    return torch.randint(-32, 33, shape) / 4


def gradients(
    x: Tensor, scale: Tensor, low: int, high: int, slack: float, grad: Tensor
) -> tuple[Tensor, Tensor]:
    """The formulas of the design, written out value by value in float64."""
    x, scale, grad = x.double(), scale.double(), grad.double()
    u = x / scale
    inside = (low - slack <= u) & (u < high + slack)
    code = (u + 0.5).floor().clamp(low, high)
    return inside * grad, (torch.where(inside, code - u, code) * grad).sum_to_size(scale.shape)


def backward(x: Tensor, scale: Tensor, low: int, high: int, slack: float, grad: Tensor) -> tuple[Tensor, ...]:
    x, scale = x.detach().requires_grad_(), scale.clone().requires_grad_()
    out = quantize(x, scale, low, high, slack)
    out.backward(grad)
    assert x.grad is not None
    assert scale.grad is not None
    return out.detach(), x.grad, scale.grad


@pytest.mark.parametrize(
    "v, wanted",
    [
        (-9.0, -2), (-2.5, -2), (-2.0, -2), (-1.5, -1), (-1.0, -1), (-0.5, 0), (-0.25, 0), (0.0, 0),
        (0.25, 0), (0.5, 1), (1.0, 1), (1.5, 2), (2.0, 2), (2.5, 3), (3.5, 3), (9.0, 3),
    ],
)  # fmt: skip
def test_count_rounds_to_the_nearest_and_ties_up(v, wanted):
    assert count(torch.tensor([v]), -2, 3).item() == wanted


def test_count_writes_over_its_own_input_when_asked():
    v = quarters(64)
    wanted = count(v, -2, 3)
    assert count(v, -2, 3, out=v) is v
    assert torch.equal(v, wanted)


@given(v=dyadic, bounds=bounds)
def test_count_is_the_written_out_rule(v, bounds):
    assert torch.equal(count(v, *bounds), torch.floor(v + 0.5).clip(*bounds))


@given(x=dyadic, scale=power_of_two, bounds=bounds)
def test_quantize_is_the_step_times_the_count(x, scale, bounds):
    assert torch.equal(quantize(x, scale, *bounds), scale * count(x / scale, *bounds))


@given(x=dyadic, scale=power_of_two, bounds=bounds)
def test_quantize_twice_is_quantize_once(x, scale, bounds):
    once = quantize(x, scale, *bounds)
    assert torch.equal(quantize(once, scale, *bounds), once)


@SLACKS
@LAYOUTS
@pytest.mark.parametrize("per_channel", [False, True], ids=["per_tensor", "per_channel"])
@pytest.mark.parametrize("bounds", BOUNDS, ids=str)
def test_gradients_are_the_written_out_formulas(bounds, per_channel, layout, slack):
    x = quarters(3, 4, 5, 6).to(memory_format=layout)
    grad = torch.randint(-2, 3, x.shape).float().to(memory_format=layout)
    scale = torch.tensor([0.5, 1.0, 2.0, 4.0]).view(1, 4, 1, 1) if per_channel else torch.tensor(2.0)
    out, grad_x, grad_scale = backward(x, scale, *bounds, slack, grad)
    wanted_x, wanted_scale = gradients(x, scale, *bounds, slack, grad)
    assert torch.equal(out, scale * count(x / scale, *bounds))
    assert torch.equal(grad_x.double(), wanted_x)
    assert torch.equal(grad_scale.double(), wanted_scale)
    assert grad_scale.shape == scale.shape


@SLACKS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("per_channel", [False, True], ids=["per_tensor", "per_channel"])
@pytest.mark.parametrize(
    "shape, dim",
    [
        ((3, 4, 5, 6), 1),
        ((3, 4, 9, 8), 1),
        ((2, 3, 50, 47), 1),
        ((3, 700), 1),
        ((2, 5, 7), 2),
        ((2, 2100), 1),
    ],
    ids=str,
)
def test_every_channel_adds_its_own_initial_potential_wherever_it_lies_in_memory(
    shape, dim, per_channel, dtype, slack
):
    along = [1] * len(shape)
    along[dim] = shape[dim]
    scale = 2.0 ** torch.randint(-1, 2, along) if per_channel else torch.tensor(0.5)
    initial = torch.randint(-2, 2, along) / 4
    x, grad = quarters(*shape).to(dtype), torch.randint(-2, 3, shape).to(dtype)
    wanted = (scale * count(x.float() / scale + initial, -2, 3)).to(dtype)
    x_, scale_, initial_ = (
        x.clone().requires_grad_(),
        scale.clone().requires_grad_(),
        initial.requires_grad_(),
    )
    out = quantize(x_, scale_, -2, 3, slack, initial_)
    assert torch.equal(out, wanted)
    out.backward(grad)
    u = x.double() / scale + initial.detach()
    inside = (-2 - slack <= u) & (u < 3 + slack)
    slope = torch.where(inside, (u + 0.5).floor() - x.double() / scale, count(u, -2, 3))
    assert torch.equal(x_.grad, (inside * grad).to(dtype))
    assert torch.equal(scale_.grad.double(), (slope * grad.double()).sum_to_size(scale.shape))
    assert torch.equal(initial_.grad.double(), (inside * grad.double() * scale).sum_to_size(initial.shape))


@SLACKS
@pytest.mark.parametrize("bounds", BOUNDS, ids=str)
def test_the_gradient_at_the_very_edge_of_its_range(bounds, slack):
    low, high = bounds
    edges = torch.tensor([low - slack, high + slack])
    below = torch.nextafter(edges, torch.tensor(-100.0))
    _, grad_x, _ = backward(torch.cat([edges, below]), torch.tensor(1.0), low, high, slack, torch.ones(4))
    at_low, at_high, below_low, below_high = grad_x.tolist()
    assert (at_low, at_high) == (1, 0)
    assert below_high == 1
    assert (
        below_low == 0 or low == slack == 0
    )  # just below 0 the quotient + 1/2 rounds: nothing to tell apart


@SLACKS
@LAYOUTS
@pytest.mark.parametrize("per_channel", [False, True], ids=["per_tensor", "per_channel"])
def test_large_tensors_equal_their_parts(per_channel, layout, slack):
    x = quarters(5, 8, 80, 85).to(memory_format=layout)  # 272,000 elements: two full blocks and a rest
    # Signs as gradients: every partial sum stays a multiple of 1/4 below 2**22, exact in float32.
    grad = (torch.randint(0, 2, x.shape) * 2.0 - 1).to(memory_format=layout)
    scale = torch.tensor([0.5, 1.0] * 4).view(1, 8, 1, 1) if per_channel else torch.tensor(1.0)
    out, grad_x, grad_scale = backward(x, scale, -2, 2, slack, grad)
    parts = [backward(x[i : i + 1], scale, -2, 2, slack, grad[i : i + 1]) for i in range(len(x))]
    assert torch.equal(out, torch.cat([part[0] for part in parts]))
    assert torch.equal(grad_x, torch.cat([part[1] for part in parts]))
    assert torch.equal(grad_scale, sum(part[2] for part in parts))
    assert torch.equal(grad_scale.double(), gradients(x, scale, -2, 2, slack, grad)[1])


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.transpose(1, 2),
        lambda x: x[:, ::2],
        lambda x: x[..., 1:],
        lambda x: x[:1].expand(6, -1, -1, -1),
        lambda x: x.permute(3, 2, 1, 0),
    ],
    ids=["transposed", "strided", "narrowed", "expanded", "permuted"],
)
@pytest.mark.parametrize("size", [8, 48], ids=["one_block", "several_blocks"])
def test_views_give_what_their_copies_give(view, size):
    x = view(quarters(6, 8, size, 64))
    grad = view(torch.randint(0, 2, (6, 8, size, 64)) * 2.0 - 1)
    scale = torch.tensor(1.0)
    for got, wanted in zip(
        backward(x, scale, -2, 2, 0.5, grad),
        backward(x.contiguous().clone(), scale, -2, 2, 0.5, grad.contiguous()),
        strict=True,
    ):
        assert torch.equal(got, wanted)


def test_forward_never_writes_to_its_input():
    x = quarters(6, 8, 64, 64)
    before = x.clone()
    quantize(x, torch.tensor(0.5), -2, 2)
    assert torch.equal(x, before)


@SLACKS
@pytest.mark.parametrize("bounds", BOUNDS, ids=str)
def test_gradients_are_the_differences_of_the_surrogate(bounds, slack):
    """The surrogate: x + scale * residual inside, scale * code outside, with the rounding residual frozen."""
    low, high = bounds
    x, weight = torch.randn(200, dtype=torch.float64) * 3, torch.randn(200, dtype=torch.float64)
    scale = torch.tensor(0.7, dtype=torch.float64)
    u = x / scale
    code = (u + 0.5).floor().clamp(low, high)
    inside = (low - slack <= u) & (u < high + slack)

    def surrogate(x: Tensor, scale: Tensor) -> Tensor:
        return weight * torch.where(inside, x + scale * (code - u), scale * code)

    _, grad_x, grad_scale = backward(x, scale, low, high, slack, weight)
    step = 1e-4
    by_x = (surrogate(x + step, scale) - surrogate(x - step, scale)) / (2 * step)
    by_scale = (surrogate(x, scale + step) - surrogate(x, scale - step)).sum() / (2 * step)
    # The surrogate is linear in x and in scale, so the differences are right up to float64 rounding / step.
    torch.testing.assert_close(grad_x, by_x, rtol=0, atol=1e-10)
    torch.testing.assert_close(grad_scale, by_scale, rtol=0, atol=1e-8)


@pytest.mark.parametrize("shape", [(3, 4, 5, 6), (5, 8, 80, 85)], ids=["one_block", "several_blocks"])
@pytest.mark.parametrize("per_channel", [False, True], ids=["per_tensor", "per_channel"])
def test_half_precision_is_computed_in_the_precision_of_the_step(per_channel, shape):
    x = (torch.randn(shape) * 3).bfloat16()
    grad = torch.randn(shape).bfloat16()
    scale = torch.rand(1, shape[1], 1, 1) + 0.5 if per_channel else torch.tensor(0.7)
    out, grad_x, grad_scale = backward(x, scale, -2, 2, 0.5, grad)
    wanted_out, wanted_x, wanted_scale = backward(x.float(), scale, -2, 2, 0.5, grad.float())
    assert (out.dtype, grad_x.dtype, grad_scale.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)
    assert torch.equal(out, wanted_out.bfloat16())
    assert torch.equal(grad_x, wanted_x.bfloat16())
    torch.testing.assert_close(grad_scale, wanted_scale, rtol=1e-4, atol=1e-2)  # sums in another order


@pytest.mark.filterwarnings(
    "ignore:.*should not be instantiated:DeprecationWarning"
)  # torch's own, in Dynamo
@SLACKS
@pytest.mark.parametrize("per_channel", [False, True], ids=["per_tensor", "per_channel"])
def test_compiled_equals_eager(per_channel, slack):
    torch.compiler.reset()
    x, grad = quarters(3, 4, 5, 6), torch.randint(-2, 3, (3, 4, 5, 6)).float()
    scale = torch.tensor([0.5, 1.0, 2.0, 4.0]).view(1, 4, 1, 1) if per_channel else torch.tensor(2.0)

    def run(function) -> tuple[Tensor, ...]:
        x_, scale_ = x.clone().requires_grad_(), scale.clone().requires_grad_()
        out = function(x_, scale_)
        return out.detach(), *torch.autograd.grad(out, (x_, scale_), grad)

    def eager(x: Tensor, scale: Tensor) -> Tensor:
        return quantize(x, scale, -2, 2, slack)

    compiled = torch.compile(eager, backend="aot_eager", fullgraph=True)
    for got, wanted in zip(run(compiled), run(eager), strict=True):
        assert torch.equal(got, wanted)
