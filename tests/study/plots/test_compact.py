"""Fewer words, the same picture."""

from pmsm.study.plots.compact import compact


def test_lines_of_one_look_are_one_path_and_filled_shapes_stay_apart():
    line, shape = '<path d="M 0 0 \nL {} 1.23456" style="fill: none; stroke: red"/>', '<path d="M {} 0 z"/>'
    svg = "<svg>" + line.format(1) + line.format(2) + shape.format(3) + shape.format(4) + "</svg>"
    assert compact(svg, "p-").split("\n")[1:-1] == [
        '<path d="M 0 0 L 1 1.23 M 0 0 L 2 1.23" style="fill: none; stroke: red" />', '<path d="M 3 0 z" />',
        '<path d="M 4 0 z" />',
    ]  # fmt: skip


def test_a_shape_that_nobody_sees_is_gone_but_not_a_marker_that_others_use():
    marker = '<defs><path id="a" d="M 0 0" style="fill: none" /></defs>'
    unseen = '<path d="M 0 0" style="fill: none" />'
    assert compact(f"<svg>{unseen}{marker}</svg>", "") == f"<svg>\n{marker}\n</svg>"


def test_a_style_that_recurs_is_a_class_of_the_page():
    text = '<text style="fill: red">{}</text>'
    svg = "<svg>" + text.format("a  b") + text.format("c") + '<text style="x: y">d</text></svg>'
    assert compact(svg, "p-") == (
        '<svg>\n<style>\n.p-s0 { fill: red; }\n</style>\n<text class="p-s0">a  b</text>\n'
        '<text class="p-s0">c</text>\n<text style="x: y">d</text>\n</svg>'
    )


def test_groups_that_say_nothing_are_gone_and_others_stay():
    svg = '<svg><g> <g/> <g clip-path="url(#a)"> <g><path d="M 0 0"/></g> </g> </g></svg>'
    assert compact(svg, "") == '<svg>\n<g clip-path="url(#a)">\n<path d="M 0 0" />\n</g>\n</svg>'


def test_a_turn_by_nothing_is_left_out():
    text = '<text x="1.999999" transform="rotate(-{} 1 2)">a</text>'
    svg = "<svg>" + text.format(0) + text.format(90) + "</svg>"
    assert compact(svg, "").split("\n")[1:-1] == [
        '<text x="2">a</text>', '<text x="2" transform="rotate(-90 1 2)">a</text>'
    ]  # fmt: skip
