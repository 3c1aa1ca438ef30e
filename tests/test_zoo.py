"""Published architectures, small: the SNN at T=1 is its QANN bit for bit, and four steps stay finite."""

import copy
import runpy
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils import _pytree as pytree

from pmsm import graph
from pmsm.methods import PMSM
from pmsm.methods.base import Quantizer
from pmsm.qann.calibrate import calibrate
from pmsm.qann.quantize import quantize
from pmsm.snn.convert import convert
from pmsm.snn.simulate import simulate
from pmsm.snn.verify import verify
from pmsm.study.explain import explain

zoo = SimpleNamespace(**runpy.run_path(str(Path(__file__).parent.parent / "recipes" / "zoo.py")))

# What does not convert, and how the refusal begins; the results keep the reason in full.
REFUSED = {
    "timm:efficientvit_b0": "cannot trace EfficientVit.*autocast",  # a context manager is no operator
    "timm:sequencer2d_s": "no rule in snn.convert.RULES for: nn.LSTM",  # has a state of its own
    "torchvision:swin_t": "no rule in snn.convert.RULES for: torchvision.*shifted_window_attention",
}
# Left to the recipe, which finds them exact as well: 2 s and more each, in builders, blocks or pixels.
SLOW = {
    "timm:convmixer_768_32", "timm:davit_tiny", "timm:dm_nfnet_f0", "timm:eca_nfnet_l0",
    "timm:efficientvit_m0", "timm:focalnet_tiny_srf", "timm:gmlp_s16_224", "timm:mobileone_s0",
    "timm:mobilevit_xs", "timm:volo_d1_224", "torchvision:vgg16_bn", "torchvision:vit_b_16",
}  # fmt: skip
CONVERTED = [name for name in zoo.NETWORKS if name not in REFUSED.keys() | SLOW]


def built(name: str):
    """The small form of a network with random weights and statistics, and a batch for it."""
    entry = zoo.NETWORKS[name]
    if find_spec(entry.source) is None:
        pytest.skip(f"needs {entry.source}")
    ann = entry.build(False)
    return zoo.randomized(ann), entry.example(ann, False)


@pytest.fixture(scope="module", params=CONVERTED)
def published(request):
    """A network, its batch, and its calibrated form."""
    torch.manual_seed(0)
    ann, x = built(request.param)
    return ann, x, calibrate(quantize(ann, PMSM(levels=9), x), [x])


def test_a_published_architecture_converts_exactly(published):
    _, x, qann = published
    snn = convert(qann)
    report = verify(qann, snn, [x])  # refuses any difference, and any signal that is no code
    assert report.codes > 0
    assert report.max_difference == 0
    outputs = pytree.tree_leaves(simulate(snn, x, 4, record=None).outputs)
    assert all(bool(torch.isfinite(y).all()) for y in outputs)


def test_a_published_architecture_keeps_its_keys(published):
    """Float weights load strictly into its quantized form, beside the quantizers' own."""
    ann, _, qann = published
    sites = [(str(node.target), quantizer.state_dict()) for node, quantizer in graph.modules(qann, Quantizer)]
    own = {f"{site}.{key}": tensor for site, state in sites for key, tensor in state.items()}
    qann.load_state_dict(ann.state_dict() | own, strict=True)


def test_a_published_architecture_is_explained_as_it_is_quantized(published):
    ann, x, qann = published
    told = [row.name for row in explain(ann, x, PMSM(levels=9)).rows if row.fate == "site"]
    assert told == [str(node.target) for node, _ in graph.modules(qann, Quantizer)]


def test_a_published_architecture_trains_as_it_did(published):
    """While its sites let the float signal pass: the same output and the same running statistics."""
    networks = [copy.deepcopy(network).train() for network in published[::2]]
    for _, quantizer in graph.modules(networks[1], Quantizer):
        quantizer.observer = lambda _: None
    outputs = []
    for network in networks:
        torch.manual_seed(1)  # of dropout and stochastic depth
        with torch.no_grad():
            outputs.append(pytree.tree_leaves(network(published[1])))
    for wanted, got in zip(*outputs, strict=True):
        # Attention written out rounds otherwise; without the statistics or the dropout all would be wrong.
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-4 * float(wanted.abs().max()))
    wanted, got = (network.state_dict() for network in networks)
    torch.testing.assert_close({key: got[key] for key in wanted}, dict(wanted), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", REFUSED)
def test_an_architecture_that_does_not_convert_is_refused_with_its_reason(name):
    ann, x = built(name)
    with pytest.raises(Exception, match=REFUSED[name]):
        convert(calibrate(quantize(ann, PMSM(levels=9), x), [x]))


def test_the_list_is_long_enough_to_mean_something():
    assert len(CONVERTED) >= 30
