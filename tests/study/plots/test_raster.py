"""The raster: polarity is told apart without color, and the sizes are told in words."""

from xml.etree import ElementTree

import pytest

from pmsm.study.plots import spike_raster


def layer(*rows: list[int]) -> dict:
    return {"name": "block.relu", "neurons": 1024, "counts": list(rows)}


@pytest.mark.parametrize("width", [350, 720])
def test_each_layer_is_named_with_what_is_shown_of_it(width):
    svg = spike_raster([layer([0, 3, -1], [1, 0, 0])], 3, width=width)
    words = [e.text or "" for e in ElementTree.fromstring(svg).iter() if e.tag.endswith("text")]
    assert "block.relu: 2 of 1,024 neurons, at most 3 per step" in words
    assert {"1", "2", "3", "timestep"} <= set(words)


def test_negative_spikes_are_hollow_and_positive_ones_solid():
    solid, hollow = "fill: var(--series-0", "stroke: var(--series-1"
    both = spike_raster([layer([1, -2, 0])], 3)
    assert solid in both
    assert hollow in both
    assert hollow not in spike_raster([layer([1, 2, 0])], 3)


def test_silence_is_a_plot_too():
    assert "<svg" in spike_raster([layer([0, 0])], 2)
