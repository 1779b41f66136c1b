"""Matplotlib's SVG made light and themable: unused ids, metadata and excess digits go; points get hover titles.

The drawing itself stays: every point that was measured is in it.
"""

from __future__ import annotations

import html
import re
import xml.etree.ElementTree as ET
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence

from reports.draw.theme import replacements

SVG = "http://www.w3.org/2000/svg"
XLINK = "http://www.w3.org/1999/xlink"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Liberation Sans', Arial, sans-serif"
ET.register_namespace("", SVG)
ET.register_namespace("xlink", XLINK)


def lighten(text: str, name: str, *, title: str, description: str, tips: Mapping[str, Sequence[str]]) -> str:
    """The light SVG of figure ``name``: accessible (role, title, description), its ids prefixed with the name.

    ``tips[gid][i]`` becomes the hover title of the i-th marker of the artist that was drawn with that gid.
    """
    root = ET.fromstring(text)
    for metadata in root.findall(f"{{{SVG}}}metadata"):
        root.remove(metadata)
    _unclip(root)
    _add_tips(root, tips)
    prefix = f"f{zlib.crc32(name.encode()) % 16**6:06x}"
    _shorten_ids(root, prefix)
    for e in root.iter():
        for attribute, digits in (("d", 1), ("x", 1), ("y", 1), ("transform", 2), ("points", 1)):
            if attribute in e.attrib:
                e.set(attribute, _round(e.attrib[attribute], digits))
        if "d" in e.attrib:
            e.set("d", re.sub(r" ?([A-Za-z]) ?", r"\1", e.attrib["d"]))
        if e.get("transform", "").startswith("rotate(-0 "):
            del e.attrib["transform"]
        if "style" in e.attrib:
            e.set("style", _style(e.attrib["style"]))
    _share_styles(root)
    _name(root, prefix, title, description)
    _flatten(root)
    out = ET.tostring(root, encoding="unicode")
    return re.sub(r">\s+<", "><", out).replace(" />", "/>")


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

    def shorten(found: re.Match[str]) -> str:
        return f' class="{names[found[1]]}"' if found[1] in names else found[0]

    sheet = "\n".join(f"figure .{name}{{{style}}}" for style, name in names.items())
    return [re.sub(r' style="([^"]*)"', shorten, picture) for picture in pictures], html.unescape(sheet)


def _recolour(light: str, target: str) -> str:
    table = replacements(target)
    return re.sub(r"#[0-9a-f]{6}\b", lambda m: table.get(m.group(0), m.group(0)), light)


def _unclip(root: ET.Element) -> None:
    """Axes are always wide enough for all that is drawn in them: nothing needs to be cut off."""
    for parent in root.iter():
        parent.attrib.pop("clip-path", None)
        for child in [c for c in parent if c.tag == f"{{{SVG}}}defs" and c.find(f"{{{SVG}}}clipPath") is not None]:
            parent.remove(child)


def _add_tips(root: ET.Element, tips: Mapping[str, Sequence[str]]) -> None:
    for g in root.iter(f"{{{SVG}}}g"):
        texts = tips.get(g.get("id", ""))
        if texts is None:
            continue
        uses = list(g.iter(f"{{{SVG}}}use"))
        for use, text in zip(uses, texts, strict=False):
            ET.SubElement(use, f"{{{SVG}}}title").text = text
        g.set("data-b", g.get("id", "").split("|")[1])


def _shorten_ids(root: ET.Element, name: str) -> None:
    """Keep only the ids that something refers to, short and unique on a page of many figures."""
    whole = ET.tostring(root, encoding="unicode")
    used = set(re.findall(r'href="#([^"]+)"', whole))
    short = {old: f"{name}{i}" for i, old in enumerate(sorted(used))}
    href = f"{{{XLINK}}}href"
    for e in root.iter():
        if "id" in e.attrib:
            if e.attrib["id"] in short:
                e.set("id", short[e.attrib["id"]])
            else:
                del e.attrib["id"]
        if href in e.attrib:
            e.set(href, "#" + short[e.attrib[href][1:]])


def _style(style: str) -> str:
    style = re.sub(r"font:\s*([^;]*?)([\d.]+)px [^;]*", _font, style)
    style = re.sub(r"font-family:[^;]*", "", style)
    dropped = ("stroke-linejoin: round", "stroke-linecap: butt", "stroke-miterlimit: 100000")
    kept = (part.strip() for part in style.split(";"))
    return ";".join(re.sub(r":\s+", ":", part) for part in kept if part and part not in dropped)


def _share_styles(root: ET.Element) -> None:
    """The style that all markers of a group share moves to the group; the global rule moves to the root."""
    for parent in root.iter():
        for child in list(parent):
            if child.tag == f"{{{SVG}}}defs" and any(e.tag == f"{{{SVG}}}style" for e in child):
                parent.remove(child)
        uses = [e for e in parent if e.tag == f"{{{SVG}}}use"]
        styles = {e.get("style") for e in uses}
        if parent.tag == f"{{{SVG}}}g" and len(uses) > 1 and len(styles) == 1 and len(uses) == len(parent):
            parent.set("style", styles.pop() or "")
            for e in uses:
                del e.attrib["style"]


def _font(found: re.Match[str]) -> str:
    weight = re.search(r"\b([1-9]00|bold)\b", found[1])
    return f"font-size:{found[2]}px" + (f";font-weight:{weight[1]}" if weight else "")


def _round(text: str, digits: int) -> str:
    text = re.sub(r"-?\d+\.\d+", lambda m: f"{float(m.group(0)):.{digits}f}".rstrip("0").rstrip("."), text)
    return " ".join(text.split())


def _name(root: ET.Element, prefix: str, title: str, description: str) -> None:
    root.attrib.pop("version", None)
    root.set("role", "img")
    root.set("style", f"font-family:{FONT};stroke-linejoin:round")
    root.set("aria-labelledby", f"{prefix}-t {prefix}-d")
    label = ET.Element(f"{{{SVG}}}title", {"id": f"{prefix}-t"})
    label.text = title
    detail = ET.Element(f"{{{SVG}}}desc", {"id": f"{prefix}-d"})
    detail.text = description
    root.insert(0, label)
    root.insert(1, detail)


def _flatten(root: ET.Element) -> None:
    """Groups without an attribute say nothing: their children move up."""
    for parent in list(root.iter()):
        children: list[ET.Element] = []
        for child in list(parent):
            bare = child.tag == f"{{{SVG}}}g" and not child.attrib
            children.extend(list(child) if bare else [child])
        if children != list(parent):
            parent[:] = children
            _flatten(parent)
