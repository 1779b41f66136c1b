"""Matplotlib's SVG made themable and light: colours become variables, unused ids and excess digits go, points get
hover titles. The drawing itself stays: every point that was measured is in it.
"""

from __future__ import annotations

import html
import re
import xml.etree.ElementTree as ET
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence

from reports.draw.theme import replacements

SVG, HREF = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}href"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Liberation Sans', Arial, sans-serif"
DIGITS = {"d": 1, "x": 1, "y": 1, "points": 1, "transform": 2}
DEFAULTS = ("stroke-linejoin: round", "stroke-linecap: butt", "stroke-miterlimit: 100000")  # the root says the first
ET.register_namespace("", SVG.strip("{}"))
ET.register_namespace("xlink", HREF[1:].partition("}")[0])


def lighten(text: str, name: str, *, title: str, description: str, tips: Mapping[str, Sequence[str]]) -> str:
    """The light SVG of figure ``name``: accessible (role, title, description), its ids prefixed with the name.

    ``tips[gid][i]`` becomes the hover title of the i-th marker of the artist that was drawn with that gid.
    """
    root = ET.fromstring(text)
    for definitions in root.findall(f"{SVG}defs"):
        root.remove(definitions)  # one style for all that the root has too; markers are defined where they are used
    _add_tips(root, tips)
    prefix = f"f{zlib.crc32(name.encode()) % 16**6:06x}"
    _shorten_ids(root, prefix)
    for e in root.iter():
        for attribute in DIGITS.keys() & e.attrib.keys():
            e.set(attribute, _round(e.attrib[attribute], DIGITS[attribute]))
        if e.get("transform", "").startswith("rotate(-0 "):
            del e.attrib["transform"]
        if "style" in e.attrib:
            e.set("style", _style(e.attrib["style"]))
    _describe(root, prefix, title, description)
    out = re.sub(r">\s+<", "><", ET.tostring(root, encoding="unicode")).replace(" />", "/>")
    return re.sub(r"<g>(<use [^>]*?(?:/>|>.*?</use>))</g>", r"\1", out)


def dark(light: str) -> str:
    """The same drawing on the dark ground."""
    return _recolour(light, "dark")


def inline(light: str) -> str:
    """The same drawing for a page: CSS variables for colours, as wide as its box."""
    head, rest = _recolour(light, "css").split(">", 1)
    head = re.sub(r'\s(width|height|xmlns:xlink|xmlns)="[^"]*"', "", head)
    return head + ">" + rest.replace("xlink:href=", "href=")


def share_styles(pictures: Sequence[str]) -> tuple[list[str], str]:
    """Inline drawings of one page with their style attributes as classes, and the style sheet of these."""
    seen = Counter(style for picture in pictures for style in re.findall(r' style="([^"]*)"', picture))
    names = {style: f"s{i}" for i, (style, count) in enumerate(seen.most_common()) if count > 1}

    def shorten(match: re.Match[str]) -> str:
        return f' class="{names[match[1]]}"' if match[1] in names else match[0]

    sheet = "\n".join(f"figure .{name}{{{style}}}" for style, name in names.items())
    return [re.sub(r' style="([^"]*)"', shorten, picture) for picture in pictures], html.unescape(sheet)


def _recolour(light: str, target: str) -> str:
    table = replacements(target)
    return re.sub(r"#[0-9a-f]{6}\b", lambda m: table.get(m.group(0), m.group(0)), light)


def _add_tips(root: ET.Element, tips: Mapping[str, Sequence[str]]) -> None:
    for g in root.iter(f"{SVG}g"):
        kind, _, backend = g.get("id", "").partition("|")
        if kind != "pt":
            continue
        for use, text in zip(g.iter(f"{SVG}use"), tips.get(g.attrib["id"], ()), strict=False):
            ET.SubElement(use, f"{SVG}title").text = text
        g.set("data-b", backend.partition("|")[0])


def _shorten_ids(root: ET.Element, prefix: str) -> None:
    """Keep only the ids that something refers to, short and unique on a page of many figures."""
    used = sorted({e.attrib[HREF][1:] for e in root.iter() if HREF in e.attrib})
    short = {old: f"{prefix}{i}" for i, old in enumerate(used)}
    for e in root.iter():
        if "id" in e.attrib:
            old = e.attrib.pop("id")
            if old in short:
                e.set("id", short[old])
        if HREF in e.attrib:
            e.set(HREF, "#" + short[e.attrib[HREF][1:]])


def _style(style: str) -> str:
    """Without what the root or the format's defaults say, and with the size and weight alone of a font."""
    style = re.sub(r"font:\s*([^;]*?)([\d.]+)px [^;]*", _font, style)
    kept = (part.strip() for part in re.sub(r"font-family:[^;]*", "", style).split(";"))
    return ";".join(re.sub(r":\s+", ":", part) for part in kept if part and part not in DEFAULTS)


def _font(match: re.Match[str]) -> str:
    weight = re.search(r"\b([1-9]00|bold)\b", match[1])
    return f"font-size:{match[2]}px" + (f";font-weight:{weight[1]}" if weight else "")


def _round(text: str, digits: int) -> str:
    text = re.sub(r"-?\d+\.\d+", lambda m: f"{float(m.group(0)):.{digits}f}".rstrip("0").rstrip("."), text)
    return re.sub(r" ?([MLCQZz]) ?", r"\1", " ".join(text.split()))


def _describe(root: ET.Element, prefix: str, title: str, description: str) -> None:
    root.attrib.pop("version", None)
    root.set("role", "img")
    root.set("style", f"font-family:{FONT};stroke-linejoin:round")
    root.set("aria-labelledby", f"{prefix}-t {prefix}-d")
    for i, (tag, key, text) in enumerate((("title", "t", title), ("desc", "d", description))):
        e = ET.Element(f"{SVG}{tag}", {"id": f"{prefix}-{key}"})
        e.text = text
        root.insert(i, e)
