"""A network goes to a file and comes back: bit for bit, without its author's code, or not at all."""

import copy
import os
import runpy
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import pmsm
from pmsm import graph
from pmsm.ann.models import small_vgg
from pmsm.ann.models.vit import VisionTransformer
from pmsm.errors import CheckpointError
from pmsm.graph import Network
from pmsm.methods import PMSM, QCFS
from pmsm.methods.base import Quantizer

TESTS = Path(__file__).parents[1]
SMALL = runpy.run_path(str(TESTS / "test_laws.py"))["SMALL"]
HOSTILE = runpy.run_path(str(TESTS.parent / "recipes" / "hostile_mutations.py"))
split = HOSTILE["split"]
PUBLISHED = [
    "timm:densenet121", "timm:edgenext_xx_small", "transformers:Swin", "transformers:Roberta",
]  # fmt: skip


class Varied(nn.Module):
    """Two inputs, tied weights, a mask that the state dict does not hold, and a dict for an output."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.out = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 4)
        self.second.weight = self.first.weight
        self.register_buffer("mask", torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 1.0]), persistent=False)
        self.register_buffer("table", torch.tensor([2, 0, 1]))

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        h = F.relu(self.first(x)) * self.mask
        h = F.gelu(self.second(h + y))[:, self.table.repeat(2)].clamp(max=float("inf"))
        return {"logits": self.out(h), "hidden": h}


class Standardize(nn.Module):
    """Code of a user's, kept as one operator."""

    def forward(self, x: Tensor) -> Tensor:
        return x / (1 + x.abs().mean(1, keepdim=True))


def calibrated(ann: nn.Module, x, method=PMSM(levels=9), **options) -> Network:  # noqa: B008 -- frozen
    return pmsm.calibrate(pmsm.quantize(ann.eval(), method, x, **options), [x])


def outputs(net: Network, x, timesteps: int = 1) -> list[Tensor]:
    with torch.no_grad():
        inputs = x if isinstance(x, tuple) else (x,)
        found = pmsm.simulate(net, x, timesteps).outputs if "mode" in net.meta else net(*inputs)
    return pytree.tree_leaves(found)


def assert_comes_back(net: Network, x, path: Path, timesteps: int = 1) -> Network:
    pmsm.save(net, path)
    again = pmsm.load(path)
    wanted, got = outputs(net, x, timesteps), outputs(again, x, timesteps)
    assert wanted
    assert all(torch.equal(a, b) for a, b in zip(wanted, got, strict=True))
    return again


def assert_all_forms_come_back(qann: Network, x, path: Path) -> None:
    again = assert_comes_back(qann, x, path)
    for arguments, timesteps in (({}, 1), ({}, 4), ({"mode": "tracking", "burst": 1}, 4)):
        snn = pmsm.convert(qann, **arguments)
        assert_comes_back(snn, x, path, timesteps)
        converted = pmsm.convert(again, **arguments)
        wanted, got = outputs(snn, x, timesteps), outputs(converted, x, timesteps)
        assert all(torch.equal(a, b) for a, b in zip(wanted, got, strict=True))


@pytest.fixture(scope="module")
def zoo() -> dict:
    """The recipe that builds published architectures."""
    return runpy.run_path(str(TESTS.parent / "recipes" / "zoo.py"))


@pytest.fixture
def saved(tmp_path, randomize) -> tuple[Network, Tensor, Path]:
    """A small quantized network, a batch for it, and its file."""
    x = torch.randn(2, 3, 12, 12)
    qann, path = calibrated(randomize(small_vgg(3, width=4)), x), tmp_path / "net.safetensors"
    pmsm.save(qann, path)
    return qann, x, path


# ----------------------------------------------------------------------------------------------------------
# What comes back
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method", [PMSM(levels=9), PMSM(levels=3, split="symmetric", per_channel=True)], ids=repr
)
@pytest.mark.parametrize("network, shape", SMALL.values(), ids=SMALL)
def test_networks_as_people_write_them_come_back_bit_for_bit(network, shape, method, randomize, tmp_path):
    x = torch.randn(shape)
    assert_all_forms_come_back(calibrated(randomize(network()), x, method), x, tmp_path / "net")


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_architectures_come_back_bit_for_bit(name, zoo, tmp_path):
    if find_spec(name.partition(":")[0]) is None:
        pytest.skip("needs the extra zoo")
    ann = zoo["randomized"](zoo["NETWORKS"][name].build(False))
    x = zoo["NETWORKS"][name].example(ann, False)
    qann = calibrated(ann, x)
    assert_comes_back(qann, x, tmp_path / "net")
    assert_comes_back(pmsm.convert(qann), x, tmp_path / "net", timesteps=2)


def test_a_transformer_of_this_library_comes_back_bit_for_bit(tmp_path):
    x = torch.randn(2, 3, 8, 8)
    assert_all_forms_come_back(calibrated(VisionTransformer(8, 4, 16, 2, 2, 5), x), x, tmp_path / "net")


def test_several_inputs_tied_weights_and_unsaved_buffers_come_back(tmp_path):
    x = (torch.randn(3, 6), torch.randn(3, 6))
    qann = calibrated(Varied(), x)
    assert_all_forms_come_back(qann, x, tmp_path / "net")
    again = assert_comes_back(qann, x, tmp_path / "net")
    assert again.get_submodule("first").weight is again.get_submodule("second").weight
    assert again.state_dict().keys() == qann.state_dict().keys()
    assert {n for n, _ in again.named_buffers()} == {n for n, _ in qann.named_buffers()}
    assert pmsm.verify(again, pmsm.convert(qann), [x]).exact


def test_a_loaded_network_is_measured_as_the_one_that_was_saved(tmp_path):
    x = torch.randn(2, 3, 8, 8)
    snn = pmsm.convert(calibrated(VisionTransformer(8, 4, 16, 1, 2, 5), x))
    again = assert_comes_back(snn, x, tmp_path / "net")
    assert str(pmsm.measure(again, x)) == str(pmsm.measure(snn, x))


@pytest.mark.parametrize("arguments", [{"unroll": True}, {"fold": True}, {"skip": ["classifier.0"]}], ids=str)
def test_every_way_of_converting_comes_back(arguments, saved, tmp_path):
    qann, x, _ = saved
    again = assert_comes_back(pmsm.convert(qann, **arguments), x, tmp_path / "snn", timesteps=3)
    assert again.meta.get("micro_steps", 1) == (8 if "unroll" in arguments else 1)


@pytest.mark.parametrize("method", [QCFS(levels=5), PMSM(levels=5, split=(-1, 3))], ids=repr)
def test_every_method_comes_back_with_its_settings(method, tmp_path, randomize):
    x = torch.randn(2, 3, 12, 12)
    qann = calibrated(randomize(small_vgg(3, width=4)), x, method)
    assert_all_forms_come_back(qann, x, tmp_path / "net")
    sites = [site for _, site in graph.modules(assert_comes_back(qann, x, tmp_path / "net"), Quantizer)]
    assert {site.method for site in sites} == {method}
    assert [s.site for s in sites] == [s.site for _, s in graph.modules(qann, Quantizer)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_other_kinds_of_numbers_come_back(dtype, tmp_path, randomize):
    x = torch.randn(2, 3, 12, 12, dtype=dtype)
    assert_comes_back(calibrated(randomize(small_vgg(3, width=4)).to(dtype), x), x, tmp_path / "net")


def test_another_memory_layout_comes_back(tmp_path, randomize):
    x = torch.randn(2, 3, 12, 12).to(memory_format=torch.channels_last)
    ann = randomize(small_vgg(3, width=8)).to(memory_format=torch.channels_last)
    again = assert_comes_back(calibrated(ann, x), x, tmp_path / "net")
    assert again.get_submodule("features.3").weight.is_contiguous(memory_format=torch.channels_last)


def test_a_loaded_network_trains_as_the_one_that_was_saved(saved):
    qann, x, path = saved
    qann.get_parameter("features.0.weight").requires_grad_(False)
    pmsm.save(qann, path)
    states = []
    for net in (copy.deepcopy(qann), pmsm.load(path)):
        assert not net.training
        optimizer = torch.optim.SGD([p for p in net.train().parameters() if p.requires_grad], 0.1)
        F.cross_entropy(net(x), torch.tensor([1, 2])).backward()
        optimizer.step()
        states.append(net.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert states[0].keys() == states[1].keys()


def test_a_network_without_steps_comes_back_and_is_calibrated_there(tmp_path, randomize):
    x = torch.randn(2, 3, 12, 12)
    qann = pmsm.quantize(randomize(small_vgg(3, width=4)), PMSM(), x)
    pmsm.save(qann, tmp_path / "net")
    again = pmsm.calibrate(pmsm.load(tmp_path / "net"), [x])
    assert torch.equal(outputs(again, x)[0], outputs(pmsm.calibrate(qann, [x]), x)[0])


def test_saved_again_it_is_the_same_file_but_for_the_order_of_its_keys(saved, tmp_path):
    qann, _, path = saved
    for i, net in enumerate((qann, pmsm.convert(qann), pmsm.convert(qann, unroll=True))):
        pmsm.save(net, path)
        pmsm.save(pmsm.load(path), tmp_path / str(i))
        headers, bodies = zip(*(split(p.read_bytes()) for p in (path, tmp_path / str(i))), strict=True)
        assert headers[0] == headers[1]
        assert bodies[0] == bodies[1]


def test_what_acts_in_training_only_is_kept_by_name_and_refuses_to_train(tmp_path):
    class DropPath(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * torch.bernoulli(torch.tensor(0.5)) if self.training else x

    x = torch.randn(2, 6)
    ann = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), DropPath(), nn.Linear(6, 3))
    again = assert_comes_back(calibrated(ann, x), x, tmp_path / "net")
    pmsm.save(again, tmp_path / "net")
    with pytest.raises(
        CheckpointError, match=r"DropPath acted here in training.*m.module = torch.nn.Identity"
    ):
        pmsm.load(tmp_path / "net").train()(x)


def test_a_process_without_the_users_code_computes_the_same(tmp_path, randomize):
    """`Varied` and the networks of the laws are defined in tests, which the other process does not import."""
    wanted = {}
    for name, (network, shape) in SMALL.items():
        x = torch.randn(shape)
        qann = calibrated(randomize(network()), x)
        for form, net in (("qann", qann), ("snn", pmsm.convert(qann))):
            pmsm.save(net, tmp_path / f"{name}.{form}")
            wanted[f"{name}.{form}"] = (x, outputs(net, x)[0])
    torch.save(wanted, tmp_path / "wanted")
    code = """
import sys, torch, pmsm
torch.set_num_threads(1)
for name, (x, y) in torch.load(sys.argv[1] + "/wanted").items():
    net = pmsm.load(f"{sys.argv[1]}/{name}")
    with torch.no_grad():
        assert torch.equal(pmsm.simulate(net, x).outputs if "mode" in net.meta else net(x), y), name
assert not {"timm", "torchvision", "transformers", "pytest"} & sys.modules.keys()
"""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS.parent)}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_other_readers_of_safetensors_find_the_weights_under_their_names(saved):
    qann, _, path = saved
    with safe_open(path, framework="pt") as file:
        assert {*file.keys()} == {*qann.state_dict()}
        assert torch.equal(file.get_tensor("features.0.weight"), qann.get_parameter("features.0.weight"))


# ----------------------------------------------------------------------------------------------------------
# What does not go to a file
# ----------------------------------------------------------------------------------------------------------


def test_a_users_module_is_refused_by_name_and_nothing_is_written(tmp_path):
    ann = nn.Sequential(nn.Linear(6, 6), Standardize(), nn.ReLU(), Standardize(), nn.Linear(6, 3))
    qann = calibrated(ann, torch.randn(2, 6), leaves=[Standardize])
    with pytest.raises(CheckpointError, match=r"'1' \(.*Standardize\).*'3' \(.*quantize without leaves="):
        pmsm.save(qann, tmp_path / "net")
    assert not list(tmp_path.iterdir())


def test_a_users_function_is_refused_by_name(tmp_path):
    qann = calibrated(nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3)), torch.randn(2, 6))
    node = next(n for n in qann.graph.nodes if n.op == "call_module")
    node.op, node.target = "call_function", torch.special.expit
    with pytest.raises(CheckpointError, match=r"no file can hold the calls .*special_expit"):
        pmsm.save(qann, tmp_path / "net")


def test_a_network_that_cannot_be_told_whole_is_refused(saved, tmp_path):
    qann, _, _ = saved
    hooked = copy.deepcopy(qann)
    hooked.get_submodule("features.0").register_forward_hook(lambda *_: None)
    with pytest.raises(CheckpointError, match=r"'features.0' has forward hooks"):
        pmsm.save(hooked, tmp_path / "net")
    broken = copy.deepcopy(qann)
    with torch.no_grad():
        broken.get_parameter("features.0.weight")[0] = float("nan")
    with pytest.raises(CheckpointError, match=r"NaN or Inf in features.0.weight"):
        pmsm.save(broken, tmp_path / "net")
    widened = copy.deepcopy(qann)
    nn.utils.parametrizations.weight_norm(widened.get_submodule("features.0"))
    with pytest.raises(CheckpointError, match=r"'features.0'"):
        pmsm.save(widened, tmp_path / "net")
    snn = pmsm.convert(qann)
    with pmsm.running(snn), pytest.raises(CheckpointError, match="is running"):
        pmsm.save(snn, tmp_path / "net")
    with pytest.raises(CheckpointError, match="needs a network from"):
        pmsm.save(nn.Linear(2, 2), tmp_path / "net")  # pyright: ignore[reportArgumentType]
    with pytest.raises(CheckpointError, match="cannot write"):
        pmsm.save(qann, tmp_path)
