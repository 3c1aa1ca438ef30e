"""Energy per operator: every operator is drawn, alone or in a sum that says so."""

from xml.etree import ElementTree

import pytest

from pmsm.study.plots import energy_per_operator
from pmsm.study.plots.energy import MOST, _lanes


def operator(name: str, energy: float, reads: str = "spikes") -> dict:
    return {"name": name, "reads": reads, "energy_nj": energy, "float_nj": 5 * energy, "int8_nj": energy / 4}


OPERATORS = [
    operator("conv", 40.0),
    operator("relu", 0.5, "neurons"),
    operator("linear", 2.0),
    operator("flatten", 0),
]


@pytest.mark.parametrize("width", [350, 720])
def test_each_operator_has_a_lane_and_all_neurons_share_one(width):
    svg = energy_per_operator(OPERATORS, width=width)
    words = [e.text or "" for e in ElementTree.fromstring(svg).iter() if e.tag.endswith("text")]
    assert {"conv", "linear", "updates of all neurons"} <= set(words)
    assert {"spiking network", "float ANN, fp32", "quantized ANN, int8"} <= set(words)
    assert not {"relu", "flatten"} & set(words)  # what costs nothing has no lane


def test_the_lanes_sum_to_what_was_given():
    many = [operator(f"conv{i}", 1.0 + i) for i in range(MOST + 5)]
    lanes = _lanes(many)
    assert len(lanes) == MOST + 1
    assert lanes[-1]["name"] == "5 others"
    assert sum(lane["energy_nj"] for lane in lanes) == sum(o["energy_nj"] for o in many)
    assert [lane["name"] for lane in lanes[:-1]] == [o["name"] for o in many[5:]]


def test_nothing_that_costs_anything_is_still_a_plot():
    assert "<svg" in energy_per_operator([operator("flatten", 0.0)])
