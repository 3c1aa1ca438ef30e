"""The vision transformers: timm's names, timm's numbers, and the whole way to spikes."""

from importlib.util import find_spec

import pytest
import torch
from torch import nn

import pmsm
from pmsm import graph
from pmsm.ann.models import torchvision
from pmsm.ann.models.vit import (
    DropPath,
    VisionTransformer,
    vit_small_patch4_32,
    vit_small_patch16_224,
    vit_tiny_patch4_32,
)
from pmsm.methods.base import Quantizer

needs_timm = pytest.mark.skipif(
    find_spec("timm") is None or find_spec("torchvision") is None, reason="needs timm and torchvision"
)

# Builder, its default classes, side, patch, width, depth.
NETWORKS = [
    (vit_small_patch16_224, 1000, 224, 16, 384, 12),
    (vit_small_patch4_32, 10, 32, 4, 384, 12),
    (vit_tiny_patch4_32, 10, 32, 4, 192, 9),
]


def timms(**settings) -> nn.Module:
    """timm's ViT-S/16 with every weight, bias and token random, so that each of them counts."""
    torchvision()  # timm imports it
    import timm

    network = timm.create_model("vit_small_patch16_224", **settings).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return network


def small(activation: type[nn.Module] = nn.GELU, **rates: float) -> VisionTransformer:
    """Two blocks, three heads, five tokens; weights wide enough that attention is not uniform."""
    network = VisionTransformer(8, 4, 12, 2, 3, 5, activation=activation, **rates)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return network.eval()


@needs_timm
def test_names_and_shapes_are_those_of_timm():
    theirs, ours = (network.state_dict() for network in (timms(), vit_small_patch16_224()))
    assert [(key, ours[key].shape) for key in ours] == [(key, theirs[key].shape) for key in theirs]


@needs_timm
@pytest.mark.parametrize("fused", [False, True], ids=["written out", "fused"])
@pytest.mark.parametrize("activation", [nn.GELU, nn.ReLU])
def test_with_weights_of_timm_the_outputs_are_those_of_timm(activation, fused):
    theirs = timms(act_layer=activation).double()
    for block in theirs.blocks:
        block.attn.fused_attn = fused
    ours = vit_small_patch16_224(activation=activation).double().eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.randn(1, 3, 224, 224, dtype=torch.float64)
    with torch.no_grad():
        wanted, got = theirs(x), ours(x)
    assert wanted.std() > 0.1
    # The same sums in another order: q is scaled before the product there, behind it here.
    assert (wanted - got).abs().max() <= 1e-9


@pytest.mark.parametrize("build, classes, side, patch, width, depth", NETWORKS)
def test_parameters_are_those_counted_by_hand(build, classes, side, patch, width, depth):
    tokens = (side // patch) ** 2 + 1
    embedding = (3 * patch**2 + 1) * width + (tokens + 1) * width
    block = 12 * width**2 + 13 * width  # weights 3 + 1 + 4 + 4; biases 3 + 1 + 4 + 1; two norms of 2
    head = 2 * width + (width + 1) * classes
    assert sum(p.numel() for p in build().parameters()) == embedding + depth * block + head


@pytest.mark.parametrize("build", [vit_small_patch4_32, vit_tiny_patch4_32])
def test_the_networks_for_cifar_take_its_pictures(build):
    assert build(100).eval()(torch.zeros(2, 3, 32, 32)).shape == (2, 100)


def test_depth_and_activation_can_be_chosen():
    network = vit_tiny_patch4_32(depth=6, activation=nn.ReLU)
    assert len(network.blocks) == 6
    assert {type(block.mlp.act) for block in network.blocks} == {nn.ReLU}


def test_weights_start_small_and_biases_at_zero():
    network = vit_tiny_patch4_32(depth=2)
    for module in network.modules():
        if isinstance(module, nn.Linear):
            # 1,920 weights at least: the standard error of their std is 1.6 %.
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.1)
            assert not module.bias.any()
    assert network.pos_embed.std().item() == pytest.approx(0.02, rel=0.1)
    assert 0 < network.cls_token.abs().max() < 1e-4
    with torch.no_grad():
        logits = network.eval()(torch.randn(8, 3, 32, 32))
    assert logits.abs().max() < 2  # every class is about as likely


def test_tokens_and_positions_are_spared_from_weight_decay():
    names = [name for name, _ in small().named_parameters(recurse=False)]
    assert names == list(VisionTransformer.no_decay)


def test_every_parameter_gets_a_gradient():
    network = small(dropout=0.1, drop_path=0.1).train()
    nn.functional.cross_entropy(network(torch.randn(16, 3, 8, 8)), torch.arange(16) % 5).backward()
    assert all(p.grad is not None and p.grad.any() for p in network.parameters())


def test_drop_path_drops_whole_samples_and_scales_the_others():
    drop = DropPath(0.25).train()
    x = torch.full((64, 5, 12), 3.0)
    y = drop(x)
    dropped = (y == 0).all((1, 2))
    assert torch.equal(y[~dropped], torch.full_like(y[~dropped], 4.0))  # 3 / (1 - 0.25)
    assert 0 < dropped.sum() < 32
    assert torch.equal(drop.eval()(x), x)


def test_drop_path_rises_linearly_from_zero():
    network = VisionTransformer(8, 4, 12, 3, 3, 5, drop_path=0.5)
    first, *others = ((block.drop_path1, block.drop_path2) for block in network.blocks)
    assert {type(module) for module in first} == {nn.Identity}
    assert [[path.drop.p for path in paths] for paths in others] == [[0.25, 0.25], [0.5, 0.5]]


def test_dropout_and_drop_path_outlive_quantization():
    x = torch.randn(4, 3, 8, 8)
    for rates in ({"dropout": 0.5}, {"drop_path": 0.5}):
        qann = pmsm.calibrate(pmsm.quantize(small(**rates), pmsm.PMSM(9), x), [x])
        assert torch.equal(qann(x), qann(x))
        qann.train()
        assert any(not torch.equal(qann(x), qann(x)) for _ in range(3))


def test_the_batch_stays_in_dimension_zero():
    assert graph.keeps_batch_first(graph.trace(small(drop_path=0.1), torch.randn(2, 3, 8, 8)))


@pytest.mark.parametrize("activation", [nn.GELU, nn.ReLU])
@pytest.mark.parametrize("levels", [5, 33])
def test_the_spiking_network_is_its_quantized_network(activation, levels):
    x = torch.randn(6, 3, 8, 8)
    qann = pmsm.quantize(small(activation, dropout=0.1, drop_path=0.1), pmsm.PMSM(levels), x[:2])
    pmsm.calibrate(qann, [x])
    snn = pmsm.convert(qann)
    report = pmsm.verify(qann, snn, x)
    assert report.exact
    assert report.codes > 0
    assert torch.equal(pmsm.simulate(snn, x, 1).output, qann(x))


def test_every_linear_layer_and_every_product_reads_codes():
    qann = pmsm.quantize(small(), pmsm.PMSM(9), torch.randn(2, 3, 8, 8))
    sites = [name for name, module in qann.named_modules() if isinstance(module, Quantizer)]
    # In each block: both norms, q, k, v, the weights of attention, its result, the activation.
    assert [sum(site.startswith(f"blocks.{block}.") for site in sites) for block in (0, 1)] == [8, 8]
    assert len(sites) == 17  # and the class token in front of the head


@pytest.mark.parametrize("side, patch, width, heads", [(30, 4, 12, 3), (32, 4, 10, 3)])
def test_sizes_that_do_not_fit_are_refused(side, patch, width, heads):
    text = (
        f"VisionTransformer needs side % patch == 0 and width % heads == 0, got {side} and {patch}, {width} "
        f"and {heads}."
    )
    with pytest.raises(ValueError, match=text.replace(".", r"\.")):
        VisionTransformer(side, patch, width, 1, heads, 10)
