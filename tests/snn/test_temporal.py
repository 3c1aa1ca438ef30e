"""Maps over time: constants of any form, truth values and whole numbers, both schedules alike."""

import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pmsm import graph
from pmsm.errors import ConversionError
from pmsm.graph import Network
from pmsm.methods import PMSM
from pmsm.methods.base import Quantizer
from pmsm.qann.calibrate import calibrate
from pmsm.qann.quantize import clipped, quantize
from pmsm.snn.convert import RULES, convert
from pmsm.snn.simulate import simulate
from pmsm.snn.temporal import Rule, Static, StaticState
from pmsm.snn.verify import verify
from pmsm.study.explain import explain

X = torch.randn(6, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


class Mapped(nn.Module):
    """Returns a signal [N, 3, 4] that changes over time, and a map of it and of the input."""

    def __init__(self, function):
        super().__init__()
        self.first, self.second, self.function = nn.Linear(5, 8), nn.Linear(8, 12), function
        self.table = nn.Embedding(4, 2)

    def forward(self, x: Tensor):
        h = self.second(F.relu(self.first(x))).unflatten(1, (3, 4))
        return h, self.function(self, h)


def quantized(function) -> Network:
    """Codes at the ReLU only: the map alone is the claim here."""
    torch.manual_seed(0)
    qann = quantize(Mapped(function).double(), PMSM(levels=5), X)
    for node, quantizer in list(graph.modules(qann, Quantizer)):
        if not quantizer.site.rectified:
            graph.remove(qann, node)
    return calibrate(graph.finish(qann), X)


def second_largest(h: Tensor) -> Tensor:
    best = h.argmax(-1, keepdim=True)
    return torch.where(torch.arange(4) == best, h.amin() - 1, h).amax(-1)


MAPS = {
    # constants that hold several values, or stand behind several
    "layer_norm of a computed shape": lambda net, h: F.layer_norm(h, h.shape[1:]),
    "layer_norm of a computed last shape": lambda net, h: F.layer_norm(h, h.shape[-1:], None, None, 1e-3),
    "log_softmax by keyword": lambda net, h: torch.log_softmax(input=h, dim=-1),
    "norm of a list of dimensions": lambda net, h: torch.linalg.vector_norm(h, 2, [1, 2], keepdim=True) + h,
    "einsum of a list": lambda net, h: torch.einsum("nij,nkj->nik", [h, h]),
    "quotient by keyword": lambda net, h: torch.div(input=h, other=3.0),
    # truth values
    "comparison as numbers": lambda net, h: (h > 0).double(),
    "comparison times a number": lambda net, h: (h >= h.mean(-1, keepdim=True)) * 2.5,
    "comparison times the signal": lambda net, h: h * (h > 0.1),
    "choice by comparison": lambda net, h: torch.where(h > 0, h, 0.1 * h),
    "choice of constants": lambda net, h: torch.where(h.lt(0), -1.0, 1.0),
    "fill by comparison": lambda net, h: h.masked_fill(~(h > 0), -3.0),
    "mask of masks": lambda net, h: ((h > 0) & (h < 1) | (h == 2)).to(h.dtype).mean(1),
    "mask that moves": lambda net, h: (h > 0).flatten(1).unsqueeze(1).to(h) - 0.5,
    "any and all": lambda net, h: (h > 0).any(-1).type_as(h) + (h > -1).all(-1).double(),
    "truth of a number": lambda net, h: h.clamp(min=0).bool().double(),
    # whole numbers
    "count": lambda net, h: (h > 0).sum(-1) * 0.5,
    "rounded down": lambda net, h: h.long().double(),
    "largest and where": lambda net, h: h.max(-1)[0] + h.max(-1)[1],
    "look up": lambda net, h: net.table(h.argmax(-1)),
    "gather": lambda net, h: torch.gather(h, 2, h.argmin(-1, keepdim=True)),
    "take": lambda net, h: h[:, 0, :].gather(1, h.argsort(-1)[:, 1, : h.size(1)]),
    "one hot": lambda net, h: F.one_hot(h.argmax(-1), 4) * h,
    "quotient of a whole number": lambda net, h: 2 / (h.argmax(-1).double() + 1) + h.mean(-1),
}  # fmt: skip


@pytest.mark.parametrize("schedule", ["layers", "steps"])
@pytest.mark.parametrize("function", MAPS.values(), ids=MAPS)
def test_the_mean_output_is_the_map_of_the_mean_input(function, schedule):
    qann = quantized(function)
    snn = convert(qann)
    assert verify(qann, snn, X).max_difference == 0
    run = simulate(snn, X, 4, schedule=schedule)
    before, behind = run.outputs
    assert not torch.equal(before[0], before[3]), "the signal changes over time"
    net = Mapped(function).double()
    net.table.weight = qann.get_parameter("table.weight") if hasattr(qann, "table") else None
    for t in range(4):
        # Sums over the steps are taken and undone: rounding of float64. No value lies so near to a threshold.
        torch.testing.assert_close(behind[t].double(), function(net, before[t]).double(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("function", MAPS.values(), ids=MAPS)
def test_both_schedules_give_the_same_and_tend_to_the_clipped_network(function):
    qann = quantized(function)
    snn = convert(qann)
    layers, steps = (simulate(snn, X, 64, schedule=s).outputs for s in ("layers", "steps"))
    torch.testing.assert_close(layers, steps, rtol=0, atol=1e-10)  # float64, other batch sizes
    with torch.no_grad():
        wanted = clipped(qann)(X)[1]
    near = (steps[1][-1] - wanted).abs() <= 0.1 * float(wanted.abs().max())
    # At a threshold of the map itself a value may still stand on the other side.
    assert float(near.double().mean()) > 0.9


@pytest.mark.parametrize("function", MAPS.values(), ids=MAPS)
def test_the_tracking_mode_settles_on_the_quantized_network(function):
    qann = quantized(function)
    run = simulate(convert(qann, mode="tracking"), X, 3)
    with torch.no_grad():
        assert torch.equal(run.outputs[1][-1], qann(X)[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_a_map_of_single_values_is_the_same_bit_for_bit_in_both_schedules(dtype):
    x = torch.randn(7, 3, 5).to(dtype)
    once, stepped = Static(torch.abs), Static(torch.abs)
    once.state, stepped.state = StaticState(timesteps=7), StaticState()
    assert torch.equal(once(x.flatten(0, 1)), torch.cat([stepped(part) for part in x]))


def test_a_mask_that_the_network_is_given_is_a_constant():
    """The differences of a map over time would lose -inf; under a constant mask it is a step like any."""

    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(5, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            h = F.relu(self.first(x)).masked_fill(mask == 0, float("-inf"))
            return self.last(h.softmax(-1) * mask / (mask.sum(-1, keepdim=True) + 1))

    inputs = X.float(), torch.tensor([1, 1, 0, 1]).expand(6, 4)
    qann = calibrate(quantize(Masked(), PMSM(), inputs), [inputs])
    snn = convert(qann)
    for schedule in ("layers", "steps"):
        run = simulate(snn, inputs, 32, schedule=schedule)
        assert bool(torch.isfinite(run.outputs).all())
        torch.testing.assert_close(run.output, clipped(qann)(*inputs), rtol=0, atol=0.02)  # 1/T of a step


def test_numbers_that_have_no_mean_pass_a_map_as_they_are():
    mapped = Static(lambda x, i: (x.argmax(-1), x > 0, x * i))
    mapped.state = StaticState()
    for x in torch.randn(3, 2, 4):
        best, positive, product = mapped(x, torch.tensor(3))
        assert best.dtype == torch.int64
        assert positive.dtype == torch.bool
        assert product.is_floating_point()


@pytest.mark.parametrize("pick", [lambda net, h: h[h > 0].sum(), lambda net, h: h[torch.where(h > 0)].sum()])
def test_a_mask_as_an_index_is_refused_with_the_code_to_write(pick):
    with pytest.raises(ConversionError, match=r"picks values by a mask.*torch.where\(mask, x, 0\)"):
        convert(quantized(pick))
    rows = explain(Mapped(pick), X.float()).rows
    assert [row.why.endswith("in place of x[mask].") for row in rows if row.fate == "unsupported"] == [True]


def test_a_network_that_has_lost_its_kinds_of_numbers_is_refused_until_they_are_recorded():
    qann = quantized(MAPS["comparison as numbers"])
    lost = pickle.loads(pickle.dumps(qann))
    with pytest.raises(ConversionError, match=r"'gt' gives truth values .*pmsm.graph.record_shapes\(qann"):
        convert(lost)
    graph.record_shapes(lost, X)
    assert torch.equal(simulate(convert(lost), X, 3).outputs[1], simulate(convert(qann), X, 3).outputs[1])


def test_a_rule_of_the_user_may_give_whole_numbers():
    qann = quantized(lambda net, h: torch.bucketize(h, torch.tensor([-1.0, 0, 1]).double()) * 1.0)
    snn = convert(
        qann, rules=RULES | {torch.bucketize: Rule.LINEAR}
    )  # no map to numbers: static all the same
    run = simulate(snn, X, 4)
    wanted = torch.bucketize(run.outputs[0], torch.tensor([-1.0, 0, 1]).double()).double()
    torch.testing.assert_close(run.outputs[1].double(), wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("spread, falls", [(1, True), (1e4, False)])
def test_attention_tends_to_its_limit_as_1_over_t_where_its_softmax_is_no_maximum(spread, falls):
    """With huge scores it picks one key; a small error in front of it picks another, layer after layer."""

    class Attends(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(5, 8 * 8), nn.Linear(8, 3)
            self.qkv = nn.ModuleList(nn.Linear(8, 24) for _ in range(6))

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.first(x)).unflatten(1, (8, 8))
            for qkv in self.qkv:
                q, k, v = qkv(F.layer_norm(x, (8,))).chunk(3, -1)
                x = x + ((q @ k.transpose(1, 2)) * spread).softmax(-1) @ v
            return self.last(x)

    x = torch.randn(32, 5, dtype=torch.float64)
    qann = calibrate(quantize(Attends().double(), PMSM(), x), x)
    outputs = simulate(convert(qann), x, 64, record=None).outputs
    with torch.no_grad():
        distances = [float((outputs[t - 1] - clipped(qann)(x)).abs().mean()) for t in (1, 64)]
    assert (distances[1] < distances[0] / 16) == falls


MIXERS = {
    "max": lambda h: h / h.max(),
    "max over the batch": lambda h: h - torch.max(h, 0)[0],
    "std": lambda h: h / h.std(0),
    "argmax": lambda h: h * h.argmax(0),
    "any": lambda h: h * (h > 1).any(),
    "norm": lambda h: h / torch.norm(h),
    "softmax": lambda h: nn.Softmax(0)(h),
    "log_softmax": lambda h: F.log_softmax(h, 0),
    "normalize": lambda h: F.normalize(h, dim=0),
    "gather": lambda h: torch.gather(h, 0, (h > 1).long()),
}


@pytest.mark.parametrize("mix", MIXERS.values(), ids=MIXERS)
def test_a_map_over_the_batch_runs_step_by_step(mix):
    class Mixing(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(5, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(mix(F.relu(self.first(x))))

    snn = convert(calibrate(quantize(Mixing().double(), PMSM(), X), X))
    assert not snn.meta["batch_first"]
    assert torch.equal(simulate(snn, X, 3).outputs, simulate(snn, X, 3, schedule="steps").outputs)
