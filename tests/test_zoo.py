"""Published architectures, small: the SNN at T=1 is its QANN bit for bit, and four steps stay finite."""

import runpy
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils import _pytree as pytree

from pmsm.methods import PMSM
from pmsm.qann.calibrate import calibrate
from pmsm.qann.quantize import quantize
from pmsm.snn.convert import convert
from pmsm.snn.simulate import simulate
from pmsm.snn.verify import verify

zoo = SimpleNamespace(**runpy.run_path(str(Path(__file__).parent.parent / "recipes" / "zoo.py")))

# What does not convert, and how the refusal begins; the results keep the reason in full.
REFUSED = {
    "timm:efficientvit_b0": "cannot trace EfficientVit.*autocast",  # a context manager is no operator
    "timm:sequencer2d_s": "no rule in snn.convert.RULES for: nn.LSTM",  # has a state of its own
    "transformers:Roberta": "no rule in snn.convert.RULES for: 'ne'",  # positions counted from the ids
    "torchvision:swin_t": "no rule in snn.convert.RULES for: torchvision.*shifted_window_attention",
}
# Left to the recipe, which finds them exact as well: 2 s and more each, in builders, blocks or pixels.
SLOW = {
    "timm:convmixer_768_32", "timm:davit_tiny", "timm:dm_nfnet_f0", "timm:efficientvit_m0",
    "timm:focalnet_tiny_srf", "timm:gmlp_s16_224", "timm:mobileone_s0", "timm:mobilevit_xs",
    "timm:volo_d1_224", "torchvision:vgg16_bn", "torchvision:vit_b_16",
}  # fmt: skip
CONVERTED = [name for name in zoo.NETWORKS if name not in REFUSED.keys() | SLOW]


def built(name: str):
    """The small form of a network with random weights and statistics, and a batch for it."""
    entry = zoo.NETWORKS[name]
    if find_spec(entry.source) is None:
        pytest.skip(f"needs {entry.source}")
    ann = entry.build(False)
    return zoo.randomized(ann), entry.example(ann, False)


@pytest.mark.parametrize("name", CONVERTED)
def test_a_published_architecture_converts_exactly(name):
    ann, x = built(name)
    qann = calibrate(quantize(ann, PMSM(levels=9), x), [x])
    snn = convert(qann)
    report = verify(qann, snn, [x])  # refuses any difference, and any signal that is no code
    assert report.codes > 0
    assert report.max_difference == 0
    outputs = pytree.tree_leaves(simulate(snn, x, 4, record=None).outputs)
    assert all(bool(torch.isfinite(y).all()) for y in outputs)


@pytest.mark.parametrize("name", REFUSED)
def test_an_architecture_that_does_not_convert_is_refused_with_its_reason(name):
    ann, x = built(name)
    with pytest.raises(Exception, match=REFUSED[name]):
        convert(calibrate(quantize(ann, PMSM(levels=9), x), [x]))


def test_the_list_is_long_enough_to_mean_something():
    assert len(CONVERTED) >= 30
