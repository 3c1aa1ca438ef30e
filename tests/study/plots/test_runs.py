"""The plots are text for a page: well-formed, reproducible, colored by the page."""

import math
import re
from xml.etree import ElementTree

import pytest

from pmsm.study.plots import SERIES, accuracy_against_timesteps, entropy_per_site, spike_histograms
from pmsm.study.plots.runs import _spread

STEPS = [1, 2, 4, 8]
SITE = {
    "name": "stem.relu", "quant_min": -2, "quant_max": 2, "entropy_bits": 2.1, "max_bits": math.log2(5),
    "histogram": {"-2": 0.1, "-1": 0.2, "0": 0.4, "1": 0.2, "2": 0.1},
}  # fmt: skip


def accuracy(name: str = "PMSM", width: int = 720) -> str:
    return accuracy_against_timesteps(STEPS, [(name, [97.0, 98.0, 98.5, 98.6])], 98.9, width=width)


DRAWINGS = {
    "accuracy": accuracy,
    "entropy": lambda name="PMSM", width=720: entropy_per_site([(name, [SITE])], width=width),
    "histograms": lambda name="PMSM", width=720: spike_histograms([SITE | {"name": name}], width=width),
}
each_drawing = pytest.mark.parametrize("draw", DRAWINGS.values(), ids=DRAWINGS)


def texts(svg: str) -> list[str]:
    return [
        element.text or "" for element in ElementTree.fromstring(svg).iter() if element.tag.endswith("text")
    ]


@each_drawing
@pytest.mark.parametrize("width", [350, 720])
def test_a_plot_is_one_well_formed_svg_of_the_width_asked_for(draw, width):
    root = ElementTree.fromstring(draw(width=width))
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert root.attrib["viewBox"].startswith(f"0 0 {width} ")
    assert root.attrib["role"] == "img"
    assert root.attrib["aria-label"]


@each_drawing
def test_equal_data_gives_equal_bytes(draw):
    assert draw() == draw()


@each_drawing
def test_every_color_comes_from_the_page(draw):
    svg = re.sub(r"var\(--[a-z0-9-]+, #[0-9a-f]{6}\)", "variable", draw())
    assert set(re.findall(r"(?:fill|stroke): ([^;\"(]+)", svg)) <= {"url", "none", "currentColor", "variable"}


@each_drawing
def test_the_page_chooses_the_font(draw):
    assert "DejaVu" not in draw()


@each_drawing
def test_a_name_is_text_and_never_markup_or_a_formula(draw):
    svg = draw(name="<b>$x^2$ & 層")
    assert "<b>" not in svg
    assert "<b>$x^2$ & 層" in texts(svg)


@each_drawing
def test_a_name_may_hold_what_xml_may_not(draw):
    assert "bell \N{REPLACEMENT CHARACTER}" in texts(draw(name="bell \a"))


@each_drawing
def test_ids_are_unique_and_every_reference_has_its_target(draw):
    svg = draw()
    ids = re.findall(r'\bid="([^"]+)"', svg)
    references = re.findall(r'(?:url\(|href=")#([^")]+)', svg)
    assert len(ids) == len(set(ids))
    assert set(references) <= set(ids)


def test_two_plots_on_one_page_share_no_id():
    ids = [
        set(re.findall(r'\bid="([^"]+)"', draw(width=w))) for draw in DRAWINGS.values() for w in (350, 720)
    ]
    assert sum(map(len, ids)) == len(set.union(*ids))


def test_two_series_differ_in_marker_and_dash_and_not_in_color_alone():
    assert len({series.marker for series in SERIES}) == len(SERIES)
    assert len({str(series.dash) for series in SERIES}) == len(SERIES)


def test_a_missing_accuracy_leaves_a_gap_and_no_error():
    curves = [("a", [math.nan, 98.0, None, 98.6]), ("b", [None] * 4)]
    assert "nan" not in accuracy_against_timesteps(STEPS, curves, None)


def test_one_timestep_is_enough():
    assert "1" in texts(accuracy_against_timesteps([1], [("a", [98.0])], 98.9))


@pytest.mark.parametrize(("worst", "panels"), [(95.0, 1), (60.0, 2)])
def test_a_method_far_below_the_others_adds_a_panel_for_the_top(worst, panels):
    svg = accuracy_against_timesteps(
        STEPS, [("a", [97.0, 98.0, 98.5, 98.6]), ("b", [worst, 97, 97, 97])], 98.9
    )
    assert ("accuracy (%), top 6 points" in texts(svg)) == (panels == 2)


def test_rare_codes_are_drawn_on_a_log_scale_that_says_so():
    rare = SITE | {"histogram": {"-1": 0.0, "0": 0.999, "1": 0.001}}
    assert "share of codes, log scale" in texts(spike_histograms([rare]))
    assert "share of codes" in texts(spike_histograms([SITE]))


def test_the_rarest_code_keeps_a_visible_bar():
    with_it = spike_histograms([SITE | {"histogram": {"0": 0.999, "1": 0.001}}])
    without = spike_histograms([SITE | {"histogram": {"0": 0.999, "-1": 0.001}}])
    assert "--series-0" in with_it
    assert "--series-0" not in without


def test_an_entropy_that_is_not_known_leaves_its_lane_empty():
    unknown = SITE | {"entropy_bits": math.nan, "max_bits": None}
    assert "stem.relu" in texts(entropy_per_site([("a", [unknown])]))


def test_a_site_that_only_one_method_has_keeps_its_row():
    svg = entropy_per_site([("a", [SITE]), ("b", [SITE | {"name": "head"}])])
    assert {"stem.relu", "head"} <= set(texts(svg))


def test_labels_are_pushed_apart_around_their_mean():
    assert _spread([1.0, 1.0, 1.0, 9.0], 1.0) == [0.0, 1.0, 2.0, 9.0]
    assert _spread([0.0, 5.0], 1.0) == [0.0, 5.0]
