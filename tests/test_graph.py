"""The graph of a network computes what the network computes, or is refused; folding keeps the function."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pmsm import graph
from pmsm.ann.models import CifarResNet, small_vgg
from pmsm.errors import TraceError
from pmsm.methods import PMSM
from pmsm.methods.base import Quantizer
from pmsm.qann.calibrate import calibrate
from pmsm.qann.quantize import quantize

X = torch.randn(2, 3, 8, 8)


class Net(nn.Module):
    """A network whose forward pass is a function of it and the input."""

    def __init__(self, forward):
        super().__init__()
        self.conv, self.relu, self.inplace = nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(), nn.ReLU(inplace=True)
        self.bn, self.drop, self.body = nn.BatchNorm2d(3), nn.Dropout(inplace=True), forward

    def forward(self, *inputs):
        return self.body(self, *inputs)


def one_input(forward) -> nn.Module:
    class OneInput(Net):
        def forward(self, x: Tensor):
            return self.body(self, x)

    return OneInput(forward).eval()


# ----------------------------------------------------------------------------------------------------------
# Trace
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", [small_vgg(3, width=4), CifarResNet(1)], ids=["vgg", "resnet"])
def test_the_graph_computes_what_the_network_computes(network, randomize):
    network, x = randomize(network), torch.randn(2, 3, 16, 16)
    traced = graph.trace(network, x)
    assert torch.equal(traced(x), network(x))
    assert not traced.training


def test_parameters_and_buffers_keep_their_names_and_values():
    network = CifarResNet(1)
    traced = graph.trace(network, torch.randn(2, 3, 16, 16)).state_dict()
    assert traced.keys() == network.state_dict().keys()
    assert all(torch.equal(traced[name], tensor) for name, tensor in network.state_dict().items())


def test_the_network_is_left_alone():
    network = one_input(lambda net, x: net.relu(net.inplace(net.conv(x))) + net.relu(x)).train()
    traced = graph.trace(network, X)
    with torch.no_grad():
        for parameter in traced.parameters():
            parameter.add_(1)
    assert network.training
    assert network.inplace.inplace
    assert not any(
        torch.equal(a, b) for a, b in zip(network.conv.parameters(), traced.conv.parameters(), strict=True)
    )


@pytest.mark.parametrize(
    "forward",
    [
        lambda net, x: net.conv(net.inplace(x)),
        lambda net, x: net.conv(x.add_(1)),
        lambda net, x: net.conv(F.relu_(x)),
    ],
    ids=["in-place module", "in-place method", "in-place function"],
)
def test_the_example_is_left_alone(forward):
    x = X.clone()
    graph.trace(one_input(forward), x)
    assert torch.equal(x, X)


def test_every_call_of_a_module_without_weights_is_a_module_of_its_own():
    traced = graph.trace(one_input(lambda net, x: net.relu(net.conv(net.relu(x) - net.relu(-x)))), X)
    relus = [module for _, module in graph.modules(traced, nn.ReLU)]
    assert len(relus) == len({id(module) for module in relus}) == 3


def test_a_module_with_weights_stays_shared():
    traced = graph.trace(one_input(lambda net, x: net.conv(net.relu(net.conv(x)))), X)
    assert len({str(node.target) for node, _ in graph.modules(traced, nn.Conv2d)}) == 1


def test_what_nobody_reads_is_dropped():
    def forward(net: Net, x: Tensor) -> Tensor:
        net.relu(x)
        return net.conv(x)

    traced = graph.trace(one_input(forward), X)
    assert not list(graph.modules(traced, nn.ReLU))


@pytest.mark.parametrize(
    "forward, inputs",
    [
        (lambda net, x: {"a": net.conv(x), "b": (x, [net.relu(x)])}, X),
        (lambda net, x: net.conv(x).flatten(1)[:, : x.shape[1] * 2], X),
        (lambda net, x: torch.cat(net.conv(x).chunk(3, 1)[::-1], 1), X),
    ],
    ids=["pytree", "size arithmetic", "chunks"],
)
def test_outputs_of_any_form_are_compared(forward, inputs):
    network = one_input(forward)
    wanted, got = network(inputs), graph.trace(network, inputs)(inputs)
    torch.testing.assert_close(got, wanted, rtol=0, atol=0)


def test_several_inputs_come_as_a_tuple():
    class Two(Net):
        def forward(self, x, y):
            return self.conv(x) + self.relu(y)

    network, y = Two(None).eval(), torch.randn_like(X)
    assert torch.equal(graph.trace(network, (X, y))(X, y), network(X, y))
    with pytest.raises(
        TraceError, match=r"Two takes 2 inputs, the example holds 1\. Pass a tensor for one input"
    ):
        graph.trace(network, X)
    with pytest.raises(TraceError, match="takes 2 inputs, the example holds 3"):
        graph.trace(network, (X, y, y))


def test_control_flow_on_data_is_refused_with_its_line_and_a_remedy():
    def forward(net: Net, x: Tensor) -> Tensor:
        if x.sum() > 0:  # the line to be named
            return net.conv(x)
        return x

    with pytest.raises(TraceError) as refused:
        graph.trace(one_input(forward), X)
    text = str(refused.value)
    assert "test_graph.py, line" in text
    assert "if x.sum() > 0:  # the line to be named" in text
    assert "leaves=[ThatModule]" in text
    assert "torch.where" in text


def test_a_leaf_hides_what_cannot_be_traced():
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    network = nn.Sequential(nn.Conv2d(3, 2, 3), Branching()).eval()
    with pytest.raises(TraceError):
        graph.trace(network, X)
    traced = graph.trace(network, X, [Branching])
    assert torch.equal(traced(X), network(X))


@pytest.mark.parametrize("shape", [(2, 4, 8, 8), (2, 3)], ids=str)
def test_an_example_that_the_network_refuses_is_named_by_its_shape(shape):
    with pytest.raises(
        TraceError, match=r"refuses the example of shape \(2, .*Pass one real batch, batch dimension"
    ):
        graph.trace(nn.Sequential(nn.Conv2d(3, 2, 3)), torch.randn(shape))


def test_a_network_that_gives_nan_is_refused_as_such():
    network = nn.Sequential(nn.Conv2d(3, 2, 3))
    nn.init.constant_(network[0].bias, float("nan"))
    with pytest.raises(TraceError, match="output on the example holds NaN or Inf"):
        graph.trace(network, X)


def _write_slice(net: Net, x: Tensor) -> Tensor:
    h = net.conv(x)
    h[:, 0] = 0
    return net.relu(h)


def _write_view(net: Net, x: Tensor) -> Tensor:
    h = net.conv(x)
    h.view(-1).mul_(2)
    return net.relu(h)


def _write_chunk(net: Net, x: Tensor) -> Tensor:
    h = net.conv(x)
    F.relu_(h[:, :1])
    return h


def _module_on_slice(net: Net, x: Tensor) -> Tensor:
    h = net.conv(x)
    net.inplace(h[:, :1])
    return h


def _read_after(net: Net, x: Tensor) -> Tensor:
    h = net.conv(x)
    y = h.add_(1)
    return net.relu(h) + y


def _read_before_and_after(net: Net, x: Tensor) -> Tensor:
    h = net.conv(x)
    before = h * 3
    h.mul_(2)
    h.add_(1)
    return before + h


def _two_names(net: Net, x: Tensor) -> Tensor:
    h = net.conv(x)
    other = h
    h = h.relu_()
    h.sub_(1)
    return other * 2


def _augmented(net: Net, x: Tensor) -> Tensor:
    h = net.conv(x)
    other = h
    h += 1
    return other + h


def _relu_module(net: Net, x: Tensor) -> Tensor:
    h = net.conv(x)
    return net.inplace(h) + h


def _relu_keyword(net: Net, x: Tensor) -> Tensor:
    h = net.conv(x)
    return F.relu(input=h, inplace=True) + h


def _relu_call_keyword(net: Net, x: Tensor) -> Tensor:
    h = net.conv(x)
    return torch.relu_(input=h) + h


def _module_keyword(net: Net, x: Tensor) -> Tensor:
    h = net.conv(x)
    return net.inplace(input=h) + h


def _dropout(net: Net, x: Tensor) -> Tensor:
    h = net.conv(x)
    return net.drop(h) + h


def _fill(net: Net, x: Tensor) -> Tensor:
    h = net.conv(x)
    h.fill_(1.0)
    return h


def _copy(net: Net, x: Tensor) -> Tensor:
    h = net.conv(x)
    h.copy_(net.relu(x))
    return h


def _out(net: Net, x: Tensor) -> Tensor:
    h = net.conv(x)
    torch.add(h, 1, out=h)
    return h


def _input(net: Net, x: Tensor) -> Tensor:
    y = net.conv(x)
    x.add_(1)
    return y + x


WRITES = [
    _write_slice, _write_view, _write_chunk, _module_on_slice, _read_after, _read_before_and_after,
    _two_names, _augmented, _relu_module, _relu_keyword, _relu_call_keyword, _module_keyword, _dropout, _fill,
    _copy, _out, _input,
]  # fmt: skip


@pytest.mark.parametrize("forward", WRITES, ids=lambda f: f.__name__)
def test_writes_in_place_are_right_or_refused_never_wrong(forward):
    network = one_input(forward)
    try:
        traced = graph.trace(network, X.clone())
    except TraceError:
        return
    for x in (X, torch.randn(2, 3, 8, 8)):
        with torch.no_grad():
            assert torch.equal(traced(x.clone()), network(x.clone()))


UNDONE = [_read_after, _read_before_and_after, _two_names, _relu_module, _relu_keyword, _relu_call_keyword,
          _module_keyword, _dropout, _input]  # fmt: skip


@pytest.mark.parametrize("forward", UNDONE, ids=lambda f: f.__name__)
def test_a_write_in_place_of_a_whole_tensor_is_undone(forward):
    network = one_input(forward)
    traced = graph.trace(network, X.clone())
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(traced(x.clone()), network(x.clone()))


def test_an_in_place_call_without_another_form_is_refused_by_name():
    with pytest.raises(TraceError, match=r"in-place call 'fill_'.*OUT_OF_PLACE.*y = x.op\(\)"):
        graph.trace(one_input(_fill), X)


def test_dropout_that_stays_active_in_evaluation_is_refused():
    with pytest.raises(TraceError, match="random layer that is active in evaluation mode"):
        graph.trace(one_input(lambda net, x: F.dropout(net.conv(x))), X)


# ----------------------------------------------------------------------------------------------------------
# Training
# ----------------------------------------------------------------------------------------------------------


class NormAct(nn.BatchNorm2d):
    """BatchNorm and activation in one, as timm has it: it calls the function itself."""

    def __init__(self, channels: int, affine: bool = True):
        super().__init__(channels, eps=1e-3, momentum=0.3, affine=affine)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        mean, var, training = self.running_mean, self.running_var, self.training
        if training:
            self.num_batches_tracked.add_(1)
        return self.act(F.batch_norm(x, mean, var, self.weight, self.bias, training, self.momentum, self.eps))


class Frozen(nn.Module):
    """The same function on constants: frozen in the float network, and therefore here."""

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("running_mean", torch.randn(channels))
        self.register_buffer("running_var", torch.rand(channels) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var)


class DropPath(nn.Module):
    """Stochastic depth of whoever wrote it."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x * torch.empty(len(x), 1, 1, 1).bernoulli_(0.5) * 2


class Deep(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.last = nn.Conv2d(3, 3, 1), NormAct(3), nn.Conv2d(3, 2, 1)
        self.frozen, self.plain, self.drop = Frozen(3), NormAct(3, affine=False), DropPath()
        self.register_buffer("gain", torch.rand(2, 1, 1), persistent=False)  # in no state dict

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop(self.norm(self.conv(x)))
        return self.last(x + self.drop(self.plain(self.frozen(x)))) * self.gain


def test_in_training_mode_the_graph_does_what_the_network_does_in_training_mode():
    network = Deep()
    traced = graph.trace(network, X).train()
    before = copy.deepcopy(network.state_dict())
    for _ in range(3):
        torch.manual_seed(5)
        got = traced(X)
        torch.manual_seed(5)
        wanted = network(X)
        assert torch.equal(got, wanted)
    assert not torch.equal(before["norm.running_mean"], network.state_dict()["norm.running_mean"])
    assert traced.state_dict().keys() == network.state_dict().keys()
    for name, tensor in network.state_dict().items():
        assert torch.equal(traced.state_dict()[name], tensor), name


def test_what_acts_in_training_only_is_absent_in_evaluation():
    network = Deep().eval()
    traced = pickle.loads(pickle.dumps(graph.trace(network, X)))
    assert sum(isinstance(module, graph.TrainingOnly) for module in traced.modules()) == 2
    assert torch.equal(traced(X), network(X))
    assert not torch.equal(copy.deepcopy(traced).train()(X), traced(X))


def test_attention_keeps_its_dropout_in_training():
    class Attends(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(4, 2, dropout=0.5, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(x, x, x)[0]

    x = torch.randn(2, 3, 4)
    traced = graph.trace(Attends(), x)
    torch.manual_seed(1)
    first = traced.train()(x)
    assert not torch.equal(first, traced(x))
    assert torch.equal(traced.eval()(x), traced(x))


def test_a_batchnorm_that_calls_the_function_is_one_to_all_who_ask():
    """Folded, and known to calibration without data; the activation inside it keeps its place."""
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), NormAct(4), nn.Conv2d(4, 2, 1), NormAct(2), nn.Conv2d(2, 2, 1)
    )
    nn.init.uniform_(network[1].running_var, 0.5, 2)
    qann = calibrate(quantize(network, PMSM(), X))
    assert {str(node.target) for node, _ in graph.modules(qann, Quantizer)} == {"1.act", "3.act"}
    folded = graph.fold_batchnorm(qann)
    assert not list(graph.modules(folded, nn.BatchNorm2d))
    assert not any("running" in name for name in folded.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(folded(X), qann(X), rtol=0, atol=1e-5)  # no code lies on a tie


# ----------------------------------------------------------------------------------------------------------
# Look
# ----------------------------------------------------------------------------------------------------------


def test_signals_are_what_depends_on_the_input():
    class Parts(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Parameter(torch.randn(3))

        def forward(self, x: Tensor) -> Tensor:
            return x.reshape(x.shape[0], -1) * torch.exp(self.table).sum()

    traced = graph.trace(Parts(), torch.randn(2, 3))
    names = {str(getattr(node.target, "__name__", node.target)) for node in graph.signals(traced)}
    assert names == {"x", "reshape", "mul", "output"}


@pytest.mark.parametrize("attribute", ["mT", "T", "H", "real"])
def test_a_transpose_written_as_an_attribute_is_a_signal(attribute):
    class Transposed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.gelu(getattr(x, attribute))

    traced = graph.trace(Transposed(), torch.randn(2, 3))
    assert any(graph.is_module(traced, node, (nn.GELU,)) for node in graph.signals(traced))


# ----------------------------------------------------------------------------------------------------------
# Fold
# ----------------------------------------------------------------------------------------------------------

LAYERS = {
    "conv1d": (lambda: nn.Conv1d(4, 6, 3), nn.BatchNorm1d(6), (2, 4, 9)),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6), (2, 4, 9, 9)),
    "conv3d": (lambda: nn.Conv3d(4, 6, 3), nn.BatchNorm3d(6), (2, 4, 5, 5, 5)),
    "grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6), (2, 4, 9, 9)),
    "depthwise": (lambda: nn.Conv2d(4, 8, 3, groups=4), nn.BatchNorm2d(8), (2, 4, 9, 9)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 3, 2), nn.BatchNorm2d(6), (2, 4, 5, 5)),
    "transposed grouped": (
        lambda: nn.ConvTranspose2d(4, 6, 3, groups=2, bias=False),
        nn.BatchNorm2d(6),
        (2, 4, 5, 5),
    ),
    "transposed 1d": (lambda: nn.ConvTranspose1d(4, 4, 3, groups=4), nn.BatchNorm1d(4), (2, 4, 5)),
    "linear": (lambda: nn.Linear(4, 6), nn.BatchNorm1d(6), (3, 4)),
    "not affine": (lambda: nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, affine=False), (2, 4, 9, 9)),
}


@pytest.mark.parametrize("layer, norm, shape", LAYERS.values(), ids=LAYERS)
def test_a_folded_network_computes_the_same(layer, norm, shape):
    norm = copy.deepcopy(norm)
    if norm.affine:
        nn.init.uniform_(norm.weight, -1.5, 1.5)
        nn.init.normal_(norm.bias)
    nn.init.normal_(norm.running_mean)
    nn.init.uniform_(norm.running_var, 0.1, 2)
    network = nn.Sequential(layer(), norm, nn.ReLU()).double().eval()
    x = torch.randn(shape, dtype=torch.float64)
    traced = graph.trace(network, x)
    folded = graph.fold_batchnorm(traced)
    assert not list(graph.modules(folded, nn.Module)) or not any(
        graph.is_module(folded, node, graph.BATCHNORMS) for node in folded.graph.nodes
    )
    torch.testing.assert_close(folded(x), network(x), rtol=0, atol=1e-10)  # float64 rounds at 1e-16
    assert torch.equal(traced(x), network(x)), "the network that was folded is left alone"
    assert set(folded.state_dict()) == {"0.weight", "0.bias"}


@pytest.mark.parametrize(
    "forward",
    [
        lambda net, x: net.bn(net.conv(net.bn(net.conv(x)))),
        lambda net, x: net.bn(h := net.conv(x)) + h,
        lambda net, x: net.bn(net.relu(net.conv(x))),
        lambda net, x: net.bn(input=x),
    ],
    ids=["shared layer", "two readers", "behind relu", "first, by keyword"],
)
def test_a_batchnorm_that_cannot_be_folded_stays(forward, randomize):
    network = randomize(one_input(forward).double())
    folded = graph.fold_batchnorm(graph.trace(network, X.double()))
    torch.testing.assert_close(folded(X.double()), network(X.double()), rtol=0, atol=1e-10)
    assert any(graph.is_module(folded, node, graph.BATCHNORMS) for node in folded.graph.nodes)


@pytest.mark.parametrize("tokens", [5, 6], ids=["as many tokens as features", "other"])
def test_a_batchnorm_over_tokens_behind_linear_is_not_folded_into_the_features(tokens, randomize):
    network = randomize(nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(tokens)).double())
    x = torch.randn(3, tokens, 4, dtype=torch.float64)
    folded = graph.fold_batchnorm(graph.trace(network, x))
    torch.testing.assert_close(folded(x), network(x), rtol=0, atol=1e-10)


def test_a_batchnorm_without_running_statistics_stays():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)).double().eval()
    folded = graph.fold_batchnorm(graph.trace(network, X.double()))
    torch.testing.assert_close(folded(X.double()), network(X.double()), rtol=0, atol=1e-10)


def test_the_folded_layer_keeps_precision_and_whether_it_trains():
    network = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)).eval().requires_grad_(False)
    layer = graph.fold_batchnorm(graph.trace(network, X)).get_submodule("0")
    assert {p.dtype for p in layer.parameters()} == {torch.float32}
    assert not any(p.requires_grad for p in layer.parameters())
