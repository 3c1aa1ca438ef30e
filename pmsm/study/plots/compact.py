"""An SVG in fewer words that looks the same: looks said once, no empty groups, hundredths of a pixel."""

import re
from collections import Counter
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

_NUMBER = re.compile(r"-?\d+\.\d{3,}")
_MEASURES = ("d", "x", "y", "width", "height", "transform")
_HOLDERS = ("svg", "g")


def compact(svg: str, prefix: str) -> str:
    """`svg`, without its namespaces, one line per element.

    Lines of one look that follow each other, but for text, become one path; styles that recur become classes.

    Args:
        svg: one element, whose names have no colons.
        prefix: of the classes, which hold for the whole page.
    """
    root = ElementTree.fromstring(svg)
    _unwrap(root)
    for element in root.iter():
        for name in _MEASURES:
            if name in element.attrib:
                element.attrib[name] = _short(element.attrib[name])
        if re.fullmatch(r"rotate\(-?0[ \d.-]*\)", element.get("transform", "")):
            del element.attrib["transform"]
    _join_lines(root)
    _name_styles(root, prefix)
    for element in [e for e in root.iter() if e.tag in _HOLDERS]:
        element.text = "\n"
        for child in element:
            child.tail = "\n"
    return ElementTree.tostring(root, encoding="unicode")


def _short(text: str) -> str:
    """Numbers in hundredths, on one line."""
    return _NUMBER.sub(lambda found: f"{float(found[0]):.2f}".rstrip("0").rstrip("."), " ".join(text.split()))


def _unwrap(parent: Element) -> None:
    """Put the children of groups that say nothing in their place."""
    for child in list(parent):
        _unwrap(child)
        child.tail = None
        if child.tag != "text":
            child.text = child.text and child.text.strip()
        if child.tag == "g" and not child.attrib:
            place = list(parent).index(child)
            parent[place : place + 1] = list(child)


def _join_lines(parent: Element) -> None:
    """Lines of one look, without a filling, are drawn as one where nothing but text stands between them; a
    shape with neither line nor filling is gone.
    """
    first, look = None, {}
    for child in list(parent):
        _join_lines(child)
        mine = {name: value for name, value in child.attrib.items() if name != "d"}
        if mine == {"style": "fill: none"}:
            parent.remove(child)
        elif child.tag == "path" and "id" not in mine and "fill: none" in mine.get("style", ""):
            if first is not None and mine == look:
                first.attrib["d"] += " " + child.attrib["d"]
                parent.remove(child)
            else:
                first, look = child, mine
        elif child.tag != "text":
            first = None


def _name_styles(root: Element, prefix: str) -> None:
    """Styles that occur more than once become classes."""
    inside = list(root.iter())[1:]
    often = Counter(element.attrib["style"] for element in inside if "style" in element.attrib)
    names = {style: f"{prefix}s{i}" for i, style in enumerate(s for s, times in often.items() if times > 1)}
    for element in inside:
        if element.get("style") in names:
            element.attrib["class"] = names[element.attrib.pop("style")]
    sheet = Element("style")
    sheet.text = "\n" + "".join(f".{name} {{ {style.rstrip('; ')}; }}\n" for style, name in names.items())
    if names:
        root.insert(0, sheet)
