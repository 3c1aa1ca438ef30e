"""What is told of a network: fates, sites, costs; and that telling changes nothing."""

import copy
import io
import json
import textwrap
from importlib.util import find_spec

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import pmsm
from pmsm import PMSM, QCFS, RULES, Rule, graph
from pmsm.ann.models import resnet20, torchvision
from pmsm.errors import ConversionError, QuantizationError
from pmsm.methods.base import Quantizer
from pmsm.study.explain import Explanation, explain

X = torch.randn(2, 3, 8, 8)


def small() -> nn.Sequential:
    """Every fate of a plain network, short enough to be read."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 1), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2),
    )  # fmt: skip


def fates(found: Explanation) -> dict[str, str]:
    return {row.name: row.fate for row in found.rows}


def test_the_text_of_a_small_network():
    golden = """
    operator  kind               shape  fate        why                                              parameters   MACs  spikes
    0         Conv2d             4x8x8  analog      reads values that are no codes: MACs, no spikes         112  6,912  no
    1         BatchNorm2d        4x8x8  folded      on request into 0                                         8
    3         MaxPool2d          4x4x4  static map  not linear: runs on the mean of its inputs
    3_site    PMSM               4x4x4  site        rectified 0..8; replaces ReLU, behind MaxPool2d
    4         Conv2d             6x4x4  linear      runs at every step                                       30    384  yes
    5         GELU               6x4x4  static map  not linear: runs on the mean of its inputs
    5_site    PMSM               6x4x4  site        signed, chosen at calibration; behind GELU
    6         AdaptiveAvgPool2d  6x1x1  linear      runs at every step
    7         Flatten            6      passes      only moves values
    8         Linear             2      linear      runs at every step                                       14     12  yes

    Sequential with PMSM(levels=9): 10 operators, 2 of them sites; 164 parameters; 7,308 MACs per sample, 5.4% of them on spikes. Everything converts.
    """  # noqa: E501 -- a table, as it is printed
    assert str(explain(small(), X)) == textwrap.dedent(golden).strip()


def test_the_rich_table_holds_every_row():
    found = explain(small(), X)
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(found.table())
    text = console.export_text()
    assert all(row.name in text and row.why in text for row in found.rows)


def test_the_dictionary_is_json_and_says_everything():
    found = explain(small(), X)
    told = json.loads(found.as_json())
    assert told["rows"][0] == {
        "name": "0", "kind": "Conv2d", "shape": [4, 8, 8], "fate": "analog", "split": "",
        "why": "reads values that are no codes: MACs, no spikes",
        "parameters": 112, "macs": 6912, "spiking": False,
    }  # fmt: skip
    assert told["totals"] == {
        "operators": 10, "sites": 2, "parameters": 164, "macs": 7308, "uncounted": 0,
        "spiking_share": 396 / 7308, "unsupported": 0,
    }  # fmt: skip
    assert told["supported"] is True
    assert told["network"] == "Sequential"


@pytest.mark.parametrize(
    ("method", "behind_relu", "elsewhere"),
    [
        (PMSM(levels=5), "rectified 0..4", "signed, chosen at calibration"),
        (PMSM(levels=5, split="rectified"), "rectified 0..4", "rectified 0..4"),
        (PMSM(levels=5, split="symmetric"), "signed -2..2", "signed -2..2"),
        (PMSM(levels=5, split=(-1, 3)), "signed -1..3", "signed -1..3"),
        (QCFS(levels=5), "rectified 0..4", "rectified 0..4"),
        (QCFS(levels=5, start="entropy"), "rectified 0..4", "rectified 0..4"),
    ],
    ids=repr,
)
def test_a_site_tells_the_codes_that_its_method_may_choose(method, behind_relu, elsewhere):
    rows = [row for row in explain(small(), X, method).rows if row.fate == "site"]
    assert [row.split for row in rows] == [behind_relu, elsewhere]
    assert {row.kind for row in rows} == {type(method).__name__}
    assert {row.parameters for row in rows} == {0}


def test_it_takes_what_quantize_and_convert_take_and_tells_what_they_do():
    ann = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.InstanceNorm2d(4), nn.GELU(),
        nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1),
    )  # fmt: skip
    made = {"overrides": {"4_*": QCFS(levels=5)}, "skip": ["6*"]}
    found = explain(ann, X, **made, skip_operators=["3"])
    assert found.supported
    qann = pmsm.quantize(ann, PMSM(), X, **made)
    sites = {str(n.target): type(q.method).__name__ for n, q in graph.modules(qann, Quantizer)}
    assert {row.name: row.kind for row in found.rows if row.fate == "site"} == sites
    assert sites == {"1": "PMSM", "4_site": "QCFS"}
    assert [row.split for row in found.rows if row.kind == "QCFS"] == ["rectified 0..4"]
    assert fates(found)["7"] == "analog"
    assert fates(found)["3"] == "static map"
    pmsm.convert(pmsm.calibrate(qann, X), skip=["3"])
    with pytest.raises(QuantizationError, match="no site matches 'head'"):
        explain(ann, X, skip=["head"])
    with pytest.raises(ConversionError, match="skip matches no operator: 'head'"):
        explain(ann, X, skip_operators=["head"])


def test_a_site_names_what_computes_its_signal_through_what_only_moves_it():
    ann = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(2), nn.Dropout(), nn.Flatten(1), nn.Linear(144, 2))
    (site,) = (row for row in explain(ann, X).rows if row.fate == "site")
    assert site.why == "behind Conv2d"


def test_an_operator_without_a_rule_is_told_with_its_remedy_and_the_rest_stays():
    ann = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.InstanceNorm2d(4), nn.ReLU(),
                        nn.Conv2d(4, 2, 1))  # fmt: skip
    found = explain(ann, X)
    assert not found.supported
    assert fates(found) == {
        "0": "analog", "1": "site", "2": "linear", "3": "unsupported", "4": "site", "5": "linear"
    }  # fmt: skip
    assert found.rows[3].why == "no rule: rules=RULES | {nn.InstanceNorm2d: Rule.STATIC}, or skip=['3']"
    assert str(found).endswith(
        "6,320 MACs per sample (without 1 of unknown cost), 38.5% of them on spikes. 1 unsupported."
    )
    assert explain(ann, X, rules=RULES | {nn.InstanceNorm2d: Rule.STATIC}).supported


def test_a_rule_that_builds_a_module_is_told():
    found = explain(small(), X, rules=RULES | {nn.GELU: lambda gelu: nn.ReLU()})
    assert fates(found)["5"] == "replaced"


def test_a_batchnorm_of_the_batch_is_unsupported_for_the_reason_that_convert_gives():
    ann = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.ReLU(),
                        nn.Conv2d(4, 2, 3))  # fmt: skip
    row = explain(ann, X).rows[1]
    assert row.fate == "unsupported"
    with pytest.raises(ConversionError) as refused:
        pmsm.convert(pmsm.calibrate(pmsm.quantize(ann, PMSM(), X), X))
    assert row.why == str(refused.value)


def test_a_batchnorm_in_front_of_its_layer_is_not_folded():
    ann = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3))
    assert fates(explain(ann, X))["2"] == "linear"


class Attention(nn.Module):
    """Tokens with a parameter of their own, and products of signals."""

    def __init__(self):
        super().__init__()
        self.position = nn.Parameter(torch.randn(1, 5, 8))
        self.unused = nn.Parameter(torch.randn(100))
        self.embed, self.qkv, self.out = nn.Linear(6, 8), nn.Linear(8, 24), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.embed(x) + self.position).chunk(3, -1)
        return self.out(F.scaled_dot_product_attention(q, k, v).mean(1))


def test_products_of_signals_are_maps_of_means_that_read_codes():
    found = explain(Attention(), torch.randn(2, 5, 6))
    products = [row for row in found.rows if row.kind == "matmul"]
    assert [(row.fate, row.macs, row.spiking) for row in products] == [("static map", 5 * 5 * 8, True)] * 2
    linears = {row.name: (row.fate, row.spiking) for row in found.rows if row.kind == "Linear"}
    assert linears == {"embed": ("analog", False), "qkv": ("linear", True), "out": ("linear", True)}


def test_a_parameter_belongs_to_the_operator_that_reads_it_and_counts_once():
    found = explain(Attention(), torch.randn(2, 5, 6))
    (add,) = (row for row in found.rows if row.kind == "add")
    assert add.parameters == 5 * 8
    assert found.totals.parameters == 5 * 8 + (6 * 8 + 8) + (8 * 24 + 24) + (8 * 2 + 2)  # not the unused
    layer = nn.Linear(6, 6)
    twice = explain(nn.Sequential(layer, nn.ReLU(), layer, nn.ReLU(), nn.Linear(6, 2)), torch.randn(3, 6))
    assert [row.parameters for row in twice.rows if row.kind == "Linear"] == [42, 0, 14]


def test_costs_are_per_sample_whatever_the_batch():
    one, three = (explain(Attention(), torch.randn(n, 5, 6)).rows for n in (1, 3))
    assert [(row.shape, row.macs) for row in one] == [(row.shape, row.macs) for row in three]


def test_a_maximum_of_averages_gets_a_site_so_that_the_layer_behind_reads_spikes():
    ann = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AvgPool2d(2), nn.MaxPool2d(2), nn.Conv2d(4, 2, 1))
    *_, site, last = explain(ann, torch.randn(2, 3, 10, 10)).rows
    assert (site.name, site.fate) == ("3_site", "site")
    assert (last.fate, last.spiking) == ("linear", True)


def test_all_of_a_residual_network_but_its_first_layer_reads_spikes():
    found = explain(resnet20(), torch.randn(1, 3, 32, 32))
    first, *others = (row for row in found.rows if row.macs)
    assert (first.name, first.spiking, first.macs) == ("conv1", False, 32 * 32 * 16 * 27)
    assert all(row.spiking for row in others)
    assert found.totals.spiking_share == 1 - first.macs / found.totals.macs
    assert found.totals.sites == 19
    assert found.totals.parameters == sum(p.numel() for p in resnet20().parameters())


@pytest.mark.skipif(find_spec("torchvision") is None, reason="needs the extra zoo")
def test_torch_counts_the_same_multiplications_in_a_network_of_the_zoo():
    ann, x = torchvision().models.resnet18().eval(), torch.randn(1, 3, 224, 224)
    found = explain(ann, x)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        ann(x)
    assert found.totals.macs * 2 == counter.get_total_flops()
    assert found.totals.parameters == sum(p.numel() for p in ann.parameters())
    assert found.supported


def test_torch_counts_the_same_multiplications_in_attention():
    ann, x = Attention().eval(), torch.randn(3, 5, 6)
    # The fused kernels of attention have no entry in torch's table; the plain one consists of products.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        ann(x)
    assert explain(ann, x).totals.macs * 3 * 2 == counter.get_total_flops()


def test_the_network_is_left_alone():
    ann = small().train()
    before = copy.deepcopy(ann.state_dict())
    explain(ann, X)
    assert all(torch.equal(tensor, before[name]) for name, tensor in ann.state_dict().items())
    assert ann.training
    assert [type(layer) for layer in ann] == [type(layer) for layer in small()]


def test_supported_is_what_convert_says():
    for ann in (small(), nn.Sequential(*small()[:5], nn.InstanceNorm2d(6), nn.ReLU(), nn.Conv2d(6, 2, 1))):
        qann = pmsm.calibrate(pmsm.quantize(ann, PMSM(), X), X)
        if explain(ann, X).supported:
            pmsm.convert(qann)
        else:
            with pytest.raises(ConversionError, match="InstanceNorm2d"):
                pmsm.convert(qann)


def test_a_network_without_a_site_is_refused_as_quantize_does():
    with pytest.raises(QuantizationError, match="no site found"):
        explain(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()), X)
