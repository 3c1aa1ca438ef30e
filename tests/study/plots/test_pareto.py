"""Accuracy against cost: measured points are filled, published ones hollow, and nothing hides in silence."""

import re
from xml.etree import ElementTree

import pytest

from pmsm.study.plots import accuracy_against_cost
from pmsm.study.plots.pareto import Point, front


def point(name: str, t: int, accuracy: float, energy: float | None = None, published: bool = False) -> Point:
    return Point(name, t, (accuracy, accuracy - 0.5, accuracy + 0.5), energy, published)


POINTS = {
    "CIFAR-10": [
        point("PMSM", 1, 90.0, 30_000.0), point("PMSM", 2, 90.5, 60_000.0), point("QCFS", 1, 10.0, 9_000.0),
        point("ViT-S (published)", 1, 98.5, published=True),
    ],
    "digits": [point("PMSM", 1, 99.0)],
}  # fmt: skip


def texts(svg: str) -> list[str]:
    return [e.text or "" for e in ElementTree.fromstring(svg).iter() if e.tag.endswith("text")]


@pytest.mark.parametrize("width", [350, 720])
def test_the_plot_is_one_well_formed_svg_that_names_every_series_and_data_set(width):
    svg = accuracy_against_cost(POINTS, width=width)
    words = texts(svg)
    assert {"CIFAR-10", "digits", "PMSM", "QCFS", "ViT-S (published)", "nJ per sample"} <= set(words)
    assert f'viewBox="0 0 {width} ' in svg


def test_what_lies_far_below_is_counted():
    assert texts(accuracy_against_cost(POINTS)).count("1 below") == 2  # QCFS, in both panels


def test_without_energy_there_is_one_panel():
    words = texts(accuracy_against_cost({"digits": POINTS["digits"]}))
    assert "nJ per sample" not in words
    assert "timesteps T (latency)" in words


def test_all_colors_are_the_pages():
    svg = accuracy_against_cost(POINTS)
    assert not re.findall(r"#0000[01][0-9a-f]", svg)


def test_of_equal_cost_the_best_is_in_front():
    assert front([(1, 80), (1, 85), (2, 85), (2, 86)]) == [(1, 85), (2, 86)]
