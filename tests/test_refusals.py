"""Networks at the border: a right result, or a refusal that says what to do; never a wrong result."""

import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pmsm.errors import CalibrationError, ConversionError, QuantizationError, SimulationError, TraceError
from pmsm.graph import Network
from pmsm.methods import PMSM
from pmsm.qann.calibrate import calibrate
from pmsm.qann.quantize import clipped, quantize
from pmsm.snn.convert import RULES, convert
from pmsm.snn.simulate import simulate
from pmsm.snn.temporal import Rule
from pmsm.snn.verify import verify

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Two linear layers; subclasses say what happens between them."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)

    def middle(self, h: Tensor) -> Tensor:
        return F.relu(h)

    def forward(self, x: Tensor):
        return self.last(self.middle(self.first(x)))


def spiking(ann: nn.Module, x=X) -> tuple[Network, Network]:
    qann = calibrate(quantize(ann.eval(), PMSM(levels=9), x), [x])
    return qann, convert(qann)


def assert_right(ann: nn.Module, x=X) -> None:
    """Exact at T=1, over time towards the clipped network, which is near the float one."""
    qann, snn = spiking(ann, x)
    assert verify(qann, snn, [x]).max_difference == 0
    inputs = x if isinstance(x, tuple) else (x,)
    with torch.no_grad():
        limit, wanted = clipped(qann)(*inputs), ann(*inputs)
    run = simulate(snn, x, 64, record=None)
    leaves = [y for y in pytree.tree_leaves(run.outputs) if isinstance(y, Tensor)]
    limits = [y for y in pytree.tree_leaves(limit) if isinstance(y, Tensor)]
    floats = [y for y in pytree.tree_leaves(wanted) if isinstance(y, Tensor)]
    assert len(leaves) == len(limits) == len(floats) > 0
    for y, bound, value in zip(leaves, limits, floats, strict=True):
        scale = float(bound.abs().max())
        # The distance falls as 1/T, and is far below a tenth of the largest value at T=64. Clipping may cost
        # half of it against the float network, which still tells a wrong operator.
        assert float((y[-1] - bound).abs().max()) <= 0.1 * scale
        assert float((bound - value).abs().max()) <= 0.5 * float(value.abs().max())


# ----------------------------------------------------------------------------------------------------------
# Control flow
# ----------------------------------------------------------------------------------------------------------


class Branches(Net):
    def middle(self, h):
        return F.relu(h) if h.mean() > 0 else F.relu(-h)


class Loops(Net):
    def middle(self, h):
        while h.abs().max() > 1:
            h = h / 2
        return F.relu(h)


class CountsRows(Net):
    def middle(self, h):
        return F.relu(h) if h.shape[0] == 4 else h


@pytest.mark.parametrize("ann, line", [(Branches(), "h.mean"), (Loops(), "while"), (CountsRows(), "h.shape")])
def test_control_flow_on_the_data_or_on_the_batch_size_is_refused_at_its_line(ann, line):
    with pytest.raises(TraceError, match=rf"(?s)control flow.*test_refusals.*{line}.*leaves=\[ThatModule\]"):
        quantize(ann, PMSM(), X)


class ByShape(Net):
    """Decisions that shapes take, in every form that Python has for them."""

    def middle(self, h):
        if h.shape[-1] != 8 or len(h.shape) != 2:
            raise ValueError("not my input")
        times = 0
        while times < int(h.size(1) / 4):
            h, times = F.relu(h), times + 1
        return sum(part * (i + 1) for i, part in enumerate(h.split(8, 1)))


def test_control_flow_on_shapes_is_followed():
    assert_right(ByShape())
    qann, _ = spiking(ByShape())
    assert torch.equal(pickle.loads(pickle.dumps(qann))(X), qann(X))


class Pooled(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x):
        h = F.relu(self.first(x))
        return self.last(F.max_pool2d(h, 2) if x.shape[-1] > 6 else h)


def test_a_decision_by_shape_is_checked_whenever_the_network_runs():
    x = torch.randn(2, 3, 8, 8)
    _, snn = spiking(Pooled(), x)
    assert simulate(snn, x[..., :7, :7], 2).output.shape[-1] == 3
    with pytest.raises(AssertionError, match="traced for inputs of other sizes"):
        snn(x[..., :4, :4])


class Compares(Net):
    """Branches on the data that are operators: both sides are computed."""

    def middle(self, h):
        h = torch.where(h.mean(-1, keepdim=True) > 0, h, -h)
        positive = (h > 0) & ~(h >= 2)
        return F.relu(h) * positive + positive.float() * 0.1


def test_comparisons_between_operators_are_right():
    assert_right(Compares())


def test_a_choice_of_values_by_a_mask_has_no_size_and_is_refused():
    class Picks(Net):
        def middle(self, h):
            return h * h[h > 0].mean() + torch.masked_select(h, h < 0).mean()

    with pytest.raises(ConversionError, match=r"picks values by a mask.*x \* mask in place of x\[mask\]"):
        spiking(Picks())


# ----------------------------------------------------------------------------------------------------------
# Writes and side effects
# ----------------------------------------------------------------------------------------------------------


class Writes(Net):
    def middle(self, h):
        h = F.relu(h)
        h[:, 0] = 0
        return h


def test_writing_into_a_part_of_a_tensor_is_refused():
    with pytest.raises(TraceError, match=r"does not support item assignment.*out-of-place"):
        quantize(Writes(), PMSM(), X)


class InPlace(Net):
    def middle(self, h):
        skip = h
        h.add_(1)
        h.mul_(2).relu_()
        return h + skip


class Augmented(Net):
    def middle(self, h):
        skip = h
        h += 1  # changes skip as well
        return F.relu(h + skip)


def test_writing_into_a_whole_tensor_is_undone():
    assert_right(InPlace())


def test_augmented_assignment_to_a_tensor_with_two_names_is_refused():
    with pytest.raises(TraceError, match=r"does not compute what the network computes.*leaves="):
        quantize(Augmented(), PMSM(), X)


class Unknown(Net):
    def middle(self, h):
        return F.relu(h.sub_(1).fill_(2))


def test_an_in_place_call_without_a_counterpart_is_refused():
    with pytest.raises(TraceError, match=r"in-place call 'fill_'.*y = x\.op\(\)"):
        quantize(Unknown(), PMSM(), X)


# ----------------------------------------------------------------------------------------------------------
# Operators that nobody knows
# ----------------------------------------------------------------------------------------------------------


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad


class OwnFunction(Net):
    def middle(self, h):
        return F.relu(Doubled.apply(h))


@torch.library.custom_op("pmsm_tests::doubled", mutates_args=())
def doubled(x: Tensor) -> Tensor:
    """Twice x."""
    return 2 * x


class CustomOperator(Net):
    def middle(self, h):
        return F.relu(torch.ops.pmsm_tests.doubled(h))


def test_a_function_with_a_gradient_of_its_own_is_traced_through():
    assert_right(OwnFunction())


def test_an_operator_of_the_users_own_is_refused_until_it_gets_a_rule():
    with pytest.raises(ConversionError, match=r"pmsm_tests.doubled.*rules=RULES \|"):
        spiking(CustomOperator())
    qann = calibrate(quantize(CustomOperator(), PMSM(), X), [X])
    snn = convert(qann, rules=RULES | {torch.ops.pmsm_tests.doubled: Rule.LINEAR})
    assert verify(qann, snn, [X]).max_difference == 0


def test_a_layer_that_starts_at_zero_is_refused_until_it_starts_elsewhere():
    """As some networks start the last layer of each block: nothing tells the step of the site behind it."""
    ann = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 8, bias=False), nn.Linear(8, 3))
    nn.init.zeros_(ann[1].weight)
    with pytest.raises(CalibrationError, match=r"no signal at all reaches '1_site'.*nn.init.normal_\(layer"):
        spiking(ann)
    nn.init.normal_(ann[1].weight, std=0.01)
    assert_right(ann)


# ----------------------------------------------------------------------------------------------------------
# Outputs
# ----------------------------------------------------------------------------------------------------------


class Unused(Net):
    def forward(self, x):
        h = self.first(x)
        F.gelu(h)
        return self.last(F.relu(h))


def test_an_activation_that_nobody_reads_is_dropped():
    qann, _ = spiking(Unused())
    assert not any(isinstance(module, nn.GELU) for module in qann.modules())
    assert_right(Unused())


class WithNone(Net):
    def forward(self, x):
        return super().forward(x), None


class Nested(Net):
    def forward(self, x):
        h = F.relu(self.first(x))
        return {"logits": self.last(h), "more": [h, (self.last(h + 1), {"deep": h * 2})]}


@pytest.mark.parametrize("ann", [WithNone(), Nested()], ids=["none", "nested"])
def test_outputs_may_be_any_tree(ann):
    assert_right(ann)
    _, snn = spiking(ann)
    run = simulate(snn, X, 3)
    wanted = ann(X)
    assert pytree.tree_structure(run.output) == pytree.tree_structure(wanted)


# ----------------------------------------------------------------------------------------------------------
# Kinds of numbers
# ----------------------------------------------------------------------------------------------------------


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.first, self.last = nn.Embedding(10, 6), nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, ids):
        return self.last(F.relu(self.first(self.table(ids))).mean(1))


def test_integer_inputs_are_read_by_an_embedding():
    assert_right(Tokens(), torch.arange(12).view(4, 3) % 10)


class Spectrum(Net):
    def middle(self, h):
        return F.relu(torch.fft.fft(h).real)


def test_complex_numbers_are_refused_by_name():
    with pytest.raises(ConversionError, match=r"no rule in snn.convert.RULES for: .*fft"):
        spiking(Spectrum())


def test_a_network_without_values_is_refused_until_it_is_materialized():
    text = r"has no values in first.weight, .*meta device.*ann.to_empty\(device='cpu'\).load_state_dict"
    with pytest.raises(QuantizationError, match=f"Net {text}"):
        quantize(Net().to("meta"), PMSM(), X)
    qann, _ = spiking(Net())
    with pytest.raises(ConversionError, match=text):
        convert(qann.to("meta"))


def test_inputs_without_values_are_refused():
    x = X.to("meta")
    with pytest.raises(TraceError, match=r"refuses the example.*meta"):
        quantize(Net(), PMSM(), x)
    qann, snn = spiking(Net())
    with pytest.raises(
        CalibrationError, match=r"batch 0 has no values, it is on the meta device: pass real data"
    ):
        calibrate(qann, [x])
    with pytest.raises(SimulationError, match="the input has no values"):
        simulate(snn, x, 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_exact_as_well(dtype):
    x = X.to(dtype)
    qann, snn = spiking(Net().to(dtype), x)
    assert verify(qann, snn, [x]).max_difference == 0
    run = simulate(snn, x, 4, record=None)
    assert run.output.dtype == dtype
    assert bool(torch.isfinite(run.outputs).all())
