"""Where the sites are, for every way in which networks are written; and what is refused."""

import copy
import math
import pickle
from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pmsm import graph
from pmsm.errors import QuantizationError
from pmsm.graph import Network
from pmsm.methods import PMSM, QCFS
from pmsm.methods.base import Quantizer
from pmsm.qann.calibrate import calibrate
from pmsm.qann.quantize import clipped, quantize

X = torch.randn(2, 3, 8, 8)


class Written(nn.Module):
    """Two convolutions with `between` in the middle: a function of the network and the first one's result."""

    def __init__(self, between, width: int = 4):
        super().__init__()
        self.conv1, self.conv2, self.between = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(width, 2, 3), between
        self.relu, self.gelu, self.pool = nn.ReLU(), nn.GELU(), nn.MaxPool2d(2)
        self.prelu, self.inplace = nn.PReLU(), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.between(self, self.conv1(x)))


def sites(qann: Network) -> dict[str, bool]:
    """Name of each site, in the order of execution -> whether it is rectified."""
    return {str(node.target): quantizer.site.rectified for node, quantizer in graph.modules(qann, Quantizer)}


def calls(qann: Network) -> list[str]:
    """Kinds of the modules that are called, in the order of execution."""
    return [type(graph.module_of(qann, node)).__name__ for node, _ in graph.modules(qann, nn.Module)]


def floats(qann: Network, x: Tensor) -> Tensor:
    """The output while every site lets its float signal pass."""
    for _, quantizer in graph.modules(qann, Quantizer):
        quantizer.observer = lambda _: None
    with torch.no_grad():
        return qann(x)


def test_a_chain_has_a_site_in_place_of_each_relu():
    ann = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3), nn.BatchNorm2d(2), nn.ReLU(),
        nn.Flatten(), nn.Linear(32, 5),
    )  # fmt: skip
    qann = quantize(ann, PMSM(), X)
    assert sites(qann) == {"2": True, "5": True}
    assert "ReLU" not in calls(qann)
    shapes = {
        q.site.name: (q.site.shape, q.site.channel_dim, q.site.neurons)
        for _, q in graph.modules(qann, Quantizer)
    }
    assert shapes == {"2": ((2, 4, 6, 6), 1, 144), "5": ((2, 2, 4, 4), 1, 32)}


RELUS = {
    "module": lambda net, h: net.relu(h),
    "in place": lambda net, h: net.inplace(h),
    "F.relu": lambda net, h: F.relu(h),
    "F.relu in place": lambda net, h: F.relu(h, inplace=True),
    "F.relu by keyword": lambda net, h: F.relu(input=h),
    "F.relu_": lambda net, h: F.relu_(h),
    "torch.relu": lambda net, h: torch.relu(h),
    "torch.relu by keyword": lambda net, h: torch.relu(input=h),
    "torch.relu_": lambda net, h: torch.relu_(h),
    "method": lambda net, h: h.relu(),
    "method in place": lambda net, h: h.relu_(),
}


@pytest.mark.parametrize("relu", RELUS.values(), ids=RELUS)
def test_every_spelling_of_relu_is_one_site(relu):
    ann = Written(relu).eval()
    qann = quantize(ann, PMSM(), X)
    assert list(sites(qann).values()) == [True]
    assert calls(qann) == ["Conv2d", "PMSMQuantizer", "Conv2d"]
    assert torch.equal(floats(qann, X), ann(X.clone()))


OTHERS = {
    "GELU module": lambda net, h: net.gelu(h),
    "F.gelu": lambda net, h: F.gelu(h),
    "F.gelu tanh": lambda net, h: F.gelu(h, approximate="tanh"),
    "F.leaky_relu": lambda net, h: F.leaky_relu(h, 0.2),
    "F.leaky_relu in place": lambda net, h: F.leaky_relu(h, 0.2, inplace=True),
    "F.silu": lambda net, h: F.silu(h),
    "F.elu": lambda net, h: F.elu(h, alpha=0.5),
    "F.relu6": lambda net, h: F.relu6(h),
    "F.hardtanh": lambda net, h: F.hardtanh(h, -0.5, 0.5),
    "F.hardswish": lambda net, h: F.hardswish(h),
    "F.mish": lambda net, h: F.mish(h),
    "torch.sigmoid": lambda net, h: torch.sigmoid(h),
    "torch.tanh": lambda net, h: torch.tanh(h),
    "sigmoid method": lambda net, h: h.sigmoid(),
    "F.softmax": lambda net, h: F.softmax(h, dim=1),
    "softmax method": lambda net, h: h.softmax(1),
    "PReLU": lambda net, h: net.prelu(h),
    "F.softplus": lambda net, h: F.softplus(h),
}


@pytest.mark.parametrize("activation", OTHERS.values(), ids=OTHERS)
def test_every_other_activation_stays_and_has_one_signed_site_behind_it(activation):
    ann = Written(activation).eval()
    qann = quantize(ann, PMSM(), X)
    assert list(sites(qann).values()) == [False]
    kinds = calls(qann)
    assert len(kinds) == 4
    assert kinds[2] == "PMSMQuantizer"
    assert torch.equal(floats(qann, X), ann(X))


# MaxPool(Q(x)) = Q(MaxPool(x)) for the monotone Q: the pool moves in front, every spelling of it.
POOLED = {
    "modules": lambda net, h: net.pool(net.relu(h)),
    "F.max_pool2d": lambda net, h: F.max_pool2d(F.relu(h), 2),
    "F.max_pool2d by keyword": lambda net, h: F.max_pool2d(F.relu(h), kernel_size=2, stride=2),
    "torch.max_pool2d": lambda net, h: torch.max_pool2d(torch.relu(h), 2, 2),
    "adaptive": lambda net, h: F.adaptive_max_pool2d(h.relu(), 4),
    "twice": lambda net, h: F.max_pool2d(net.pool(net.relu(h)), 3, 1, 1),
    "dropout between": lambda net, h: net.pool(F.dropout(net.relu(h), 0.3, training=False)),
    "padding between": lambda net, h: net.pool(F.pad(net.relu(h), (1, 1, 1, 1))),
    "GELU": lambda net, h: net.pool(net.gelu(h)),
    "concat of ReLUs": lambda net, h: net.pool(torch.cat([net.relu(h[:, :2]), net.relu(h[:, 2:])], 1)),
}


@pytest.mark.parametrize("pooled", POOLED.values(), ids=POOLED)
def test_a_max_pool_moves_in_front_of_the_one_site_behind_it(pooled):
    ann = Written(pooled).eval()
    qann = quantize(ann, PMSM(), X)
    kinds = calls(qann)
    assert kinds.count("PMSMQuantizer") == 1
    assert max(i for i, kind in enumerate(kinds) if "MaxPool" in kind) < kinds.index("PMSMQuantizer")
    assert list(sites(qann).values()) == [pooled is not POOLED["GELU"]]
    assert torch.equal(floats(qann, X), ann(X))


def test_a_max_pool_of_signed_and_rectified_codes_keeps_the_relu():
    ann = Written(lambda net, h: net.pool(torch.cat([net.relu(h[:, :2]), net.gelu(h[:, 2:])], 1))).eval()
    qann = quantize(ann, PMSM(), X)
    assert list(sites(qann).values()) == [False]
    assert "ReLU" in calls(qann)
    assert torch.equal(floats(qann, X), ann(X))


class Inception(nn.Module):
    """A ReLU read by a convolution and by a MaxPool with a convolution of its own."""

    def __init__(self):
        super().__init__()
        self.stem, self.left, self.right = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1), nn.Conv2d(4, 2, 1)
        self.relu, self.pool = nn.ReLU(), nn.MaxPool2d(3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.relu(self.stem(x))
        return torch.cat([self.left(h), self.right(self.pool(h))], 1)


def test_a_max_pool_in_a_branch_gets_a_site_of_its_own():
    ann = Inception().eval()
    qann = quantize(ann, PMSM(), X)
    assert sites(qann) == {"relu": True, "pool_site": True}
    pool = next(node for node, _ in graph.modules(qann, nn.MaxPool2d))
    assert str(pool.args[0].target) == "stem"
    assert torch.equal(floats(qann, X), ann(X))


def test_a_max_pool_behind_a_residual_sum_keeps_every_reader_right():
    class Net(Inception):
        def forward(self, x: Tensor) -> Tensor:
            h = self.relu(self.stem(x))
            return self.right(self.pool(torch.cat([h[:, :2], h[:, 2:]], 1)) + h) + self.left(h).sum()

    ann = Net().eval()
    assert torch.equal(floats(quantize(ann, PMSM(), X), X), ann(X))


def test_a_relu_behind_a_max_pool_is_an_ordinary_site():
    qann = quantize(Written(lambda net, h: net.relu(net.pool(h))), PMSM(), X)
    assert calls(qann) == ["Conv2d", "MaxPool2d", "PMSMQuantizer", "Conv2d"]
    assert sites(qann) == {"relu": True}


def test_a_max_pool_without_an_activation_gets_a_signed_site():
    qann = quantize(Written(lambda net, h: net.pool(h)), PMSM(), X)
    assert calls(qann) == ["Conv2d", "MaxPool2d", "PMSMQuantizer", "Conv2d"]
    assert sites(qann) == {"pool_site": False}


def test_a_relu_module_called_several_times_is_several_sites():
    ann = Written(lambda net, h: net.relu(net.conv1(net.relu(h)[:, :3]))).eval()
    qann = quantize(ann, PMSM(), X)
    assert sites(qann) == {"relu": True, "relu_1": True}
    quantizers = [quantizer for _, quantizer in graph.modules(qann, Quantizer)]
    assert quantizers[0] is not quantizers[1]


def test_a_prelu_called_several_times_has_a_site_behind_each_call():
    qann = quantize(Written(lambda net, h: net.prelu(net.conv1(net.prelu(h)[:, :3]))), PMSM(), X)
    assert list(sites(qann).values()) == [False, False]


def test_an_in_place_relu_hands_its_result_to_later_readers_of_its_input():
    def between(net: Written, h: Tensor) -> Tensor:
        return net.inplace(h) + h  # h has been overwritten by then: twice the ReLU

    ann = Written(between).eval()
    qann = quantize(ann, PMSM(), X)
    assert torch.equal(floats(qann, X), ann(X))


def test_a_residual_taken_before_an_in_place_relu_is_overwritten_as_in_the_network():
    def between(net: Written, h: Tensor) -> Tensor:
        identity = h
        h = net.inplace(h)
        h = net.conv1(h[:, :3])
        h += identity
        return net.inplace(h)

    ann = Written(between).eval()
    qann = quantize(ann, PMSM(), X)
    assert list(sites(qann).values()) == [True, True]
    assert torch.equal(floats(qann, X), ann(X))


@pytest.mark.parametrize(
    "between",
    [
        lambda net, h: h,
        lambda net, h: h + 1,
        lambda net, h: h * 0.5,
        lambda net, h: F.avg_pool2d(h, 2),
        lambda net, h: F.pad(h, (1, 1, 1, 1)),
        lambda net, h: net.relu(h) + h,
    ],
    ids=["nothing", "constant", "factor", "mean", "padding", "sum"],
)
def test_a_weighted_layer_that_would_read_no_code_gets_a_site_at_its_input(between):
    ann = Written(between).eval()
    qann = quantize(ann, PMSM(), X)
    last = [node for node, _ in graph.modules(qann, nn.Conv2d)][-1]
    assert graph.is_module(qann, last.args[0], (Quantizer,))
    assert torch.equal(floats(qann, X), ann(X))


@pytest.mark.parametrize(
    "between",
    [
        lambda net, h: F.avg_pool2d(net.relu(h), 2),
        lambda net, h: F.pad(net.relu(h), (1, 1, 1, 1)),
        lambda net, h: F.interpolate(net.relu(h), scale_factor=2),
        lambda net, h: torch.cat([net.relu(h), net.relu(-h)], 1)[:, 2:6],
    ],
    ids=["mean", "padding", "upsampling", "concat"],
)
def test_a_weighted_layer_that_reads_codes_on_a_detour_needs_no_other_site(between):
    qann = quantize(Written(between), PMSM(), X)
    assert all(sites(qann).values()), "every site is one of a ReLU"


def test_the_input_of_the_network_stays_analog_however_it_is_prepared():
    class Net(Written):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(F.pad((x - 0.5) / 0.25, (1, 1, 1, 1)))

    assert sites(quantize(Net(lambda net, h: net.relu(h)), PMSM(), X)) == {"relu": True}


def test_a_last_relu_without_a_weighted_layer_behind_it_has_no_site():
    ann = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3), nn.ReLU(), nn.Flatten())
    qann = quantize(ann, PMSM(), X)
    assert sites(qann) == {"1": True}
    assert "ReLU" in calls(qann)


def test_an_activation_of_weights_is_no_site():
    class Positive(nn.Module):
        """Weights kept positive by softplus; a table of tokens that a layer reads."""

        def __init__(self):
            super().__init__()
            self.conv, self.relu, self.weight = (
                nn.Conv2d(3, 4, 3),
                nn.ReLU(),
                nn.Parameter(torch.randn(2, 4, 1, 1)),
            )
            self.table, self.embed = nn.Parameter(torch.randn(2, 3)), nn.Linear(3, 1)

        def forward(self, x: Tensor) -> Tensor:
            h = F.conv2d(self.relu(self.conv(x)), F.softplus(self.weight))
            return h + self.embed(self.table).view(1, 2, 1, 1)

    assert sites(quantize(Positive(), PMSM(), X)) == {"relu": True}


def test_tokens_have_their_channels_last():
    ann = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4))
    qann = quantize(ann, PMSM(per_channel=True), torch.randn(2, 7, 6))
    assert [q.scale().shape for _, q in graph.modules(qann, Quantizer)] == [(1, 1, 5)]


@pytest.mark.parametrize("method", [PMSM(), QCFS()], ids=repr)
def test_quantizers_take_the_precision_of_the_network(method):
    qann = quantize(Written(lambda net, h: net.relu(h)).double(), method, X.double())
    assert {q.scale().dtype for _, q in graph.modules(qann, Quantizer)} == {torch.float64}


def test_the_float_network_is_left_alone():
    ann = Written(lambda net, h: net.pool(net.inplace(h))).train()
    before, x = copy.deepcopy(ann.state_dict()), X.clone()
    qann = quantize(ann, PMSM(), x)
    with torch.no_grad():
        for parameter in qann.parameters():
            parameter.add_(1)
    assert ann.training
    assert ann.inplace.inplace
    assert [type(m).__name__ for m in ann.children()] == [
        "Conv2d", "Conv2d", "ReLU", "GELU", "MaxPool2d", "PReLU", "ReLU"
    ]  # fmt: skip
    assert torch.equal(x, X)
    for name, tensor in ann.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_parameters_keep_their_names():
    ann = Written(lambda net, h: net.relu(h))
    names = {name for name, _ in quantize(ann, PMSM(), X).named_parameters()}
    assert names == {"conv1.weight", "conv1.bias", "conv2.weight", "conv2.bias", "relu.rho"}


def test_a_network_without_a_site_is_refused():
    with pytest.raises(
        QuantizationError, match=r"no site found in Sequential: .* its operators \(.*Conv2d.*\)"
    ):
        quantize(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()), PMSM(), X)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_refused_by_name(value):
    ann = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3))
    with torch.no_grad():
        ann[3].weight[0, 0, 0, 0] = value
        ann[1].running_var[2] = value
    with pytest.raises(QuantizationError, match=r"Sequential holds NaN or Inf in 3.weight, 1.running_var\."):
        quantize(ann, PMSM(), X)


@pytest.mark.parametrize("split", ["entropy", "symmetric"])
def test_the_clipped_network_clips_where_its_quantizers_saturate_and_does_not_round(split):
    qann = calibrate(quantize(Written(lambda net, h: net.relu(h)), PMSM(levels=3, split=split), X), X)
    limit = clipped(qann)
    quantizer = qann.get_submodule("relu")
    low, high = (quantizer.scale().detach() * bound for bound in (quantizer.quant_min, quantizer.quant_max))
    signal = torch.randn(100) * 5
    assert torch.equal(limit.get_submodule("relu")(signal), signal.clamp(low, high))
    assert not list(graph.modules(limit, Quantizer))
    assert list(graph.modules(qann, Quantizer))


def test_the_clipped_network_of_wide_quantizers_is_the_float_network():
    ann = Written(lambda net, h: net.pool(net.relu(h))).eval()
    qann = calibrate(quantize(ann, PMSM(levels=3), X), X)
    for _, quantizer in graph.modules(qann, Quantizer):
        quantizer.start.fill_(100.0)
    assert torch.equal(clipped(qann)(X), ann(X))


def test_a_quantized_network_can_be_copied_and_pickled():
    ann = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
    qann = calibrate(quantize(ann, PMSM(), X), X)
    for same in (copy.deepcopy(qann), pickle.loads(pickle.dumps(qann))):
        assert torch.equal(same(X), qann(X))


# ----------------------------------------------------------------------------------------------------------
# Sites by name
# ----------------------------------------------------------------------------------------------------------


def named() -> nn.Sequential:
    parts = [("stem", nn.Conv2d(3, 4, 3)), ("stem_relu", nn.ReLU()), ("body", nn.Conv2d(4, 4, 3))]
    parts += [("body_relu", nn.ReLU()), ("head", nn.Conv2d(4, 2, 1))]
    return nn.Sequential(OrderedDict(parts))


def test_a_pattern_gives_its_sites_another_method_and_the_last_one_wins():
    overrides = {"*_relu": PMSM(levels=33), "body*": PMSM(levels=5)}
    qann = calibrate(quantize(named(), PMSM(levels=9), X, overrides=overrides), X)
    levels = {str(node.target): q.levels for node, q in graph.modules(qann, Quantizer)}
    assert levels == {"stem_relu": 33, "body_relu": 5}


def test_a_skipped_site_stays_float():
    ann = named().eval()
    qann = quantize(ann, PMSM(), X, skip=["stem*"])
    assert list(sites(qann)) == ["body_relu"]
    assert isinstance(qann.get_submodule("stem_relu"), nn.ReLU)


@pytest.mark.parametrize("settings", [{"skip": ["nothing*"]}, {"overrides": {"nothing*": PMSM()}}])
def test_a_pattern_that_matches_no_site_is_refused_with_the_list_of_sites(settings):
    with pytest.raises(QuantizationError, match=r"no site matches 'nothing\*'.*stem_relu, body_relu"):
        quantize(named(), PMSM(), X, **settings)


def test_a_maximum_of_averages_is_no_code():
    ann = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AvgPool2d(2), nn.MaxPool2d(3), nn.Conv2d(4, 2, 1)
    ).eval()
    assert list(sites(quantize(ann, PMSM(), X))) == ["1", "3_site"]
