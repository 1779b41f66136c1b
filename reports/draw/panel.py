"""What all figures share: the look, the title block, the legend, and the way to files.

A figure is one panel that stands alone: its title says what is held fixed, its legend is inside. A draw function takes
a theme and returns a matplotlib figure; :func:`render` makes light and dark SVG and PNG of it, and the themable text
that the page embeds.
"""

from __future__ import annotations

import io
import logging
import textwrap
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib import font_manager
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from reports.draw import svg, theme
from reports.draw.theme import DARK, LIGHT, Theme

WIDTH_IN = 5.8
MOST_LINES, MOST_LETTERS = 8, 80  # of a heading, of a line beside an axis: more than any but a hostile record's
PNG_DPI = 160
DASHES, DOTS = (0, (5, 3)), (0, (1, 2))
FONTS = ("Inter", "Helvetica Neue", "Arial", "Liberation Sans", "DejaVu Sans")


def _save_png(figure: Figure, path: Path) -> None:
    """A PNG of 256 colours: a third of the size, and no eye can tell."""
    canvas = FigureCanvasAgg(figure)
    figure.set_dpi(PNG_DPI)
    canvas.draw()
    drawn = Image.frombytes("RGBA", canvas.get_width_height(), bytes(canvas.buffer_rgba())).convert("RGB")
    small = drawn.quantize(256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    palette, index, ground = small.getpalette(), small.getpixel((0, 0)), drawn.getpixel((0, 0))
    if palette and isinstance(index, int) and isinstance(ground, tuple):
        palette[3 * index : 3 * index + 3] = ground  # the quantizer rounds; the ground must match the page exactly
        small.putpalette(palette)
    small.save(path)


@dataclass(frozen=True)
class Drawing:
    """A figure before it is drawn: ``draw(theme)`` gives the panel, ``tips`` its hover texts by artist."""

    name: str
    title: str
    alt: str
    draw: Callable[[Theme], Figure]
    tips: dict[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Picture:
    """A drawn figure: file stem, texts, and the SVG that a page embeds."""

    name: str
    title: str
    alt: str
    inline: str


def style(t: Theme) -> dict[str, object]:
    present = {f.name for f in font_manager.fontManager.ttflist}
    return {
        "font.family": next((f for f in FONTS if f in present), "sans-serif"), "font.size": 9.5,
        "svg.fonttype": "none", "svg.hashsalt": "pallatom-bench", "figure.facecolor": t.role("ground"),
        "axes.facecolor": t.role("ground"), "savefig.facecolor": t.role("ground"), "text.color": t.role("ink"),
        "axes.labelcolor": t.role("soft"), "axes.edgecolor": t.role("rule"), "xtick.color": t.role("rule"),
        "ytick.color": t.role("rule"), "xtick.labelcolor": t.role("soft"), "ytick.labelcolor": t.role("soft"),
        "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": t.role("grid"),
        "grid.linewidth": 0.8, "axes.axisbelow": True, "xtick.major.size": 3, "ytick.major.size": 0,
        "lines.linewidth": 1.6, "lines.markersize": 5.5, "legend.frameon": False, "legend.fontsize": 9,
        "axes.linewidth": 0.8, "text.parse_math": False,
    }  # fmt: skip


def render(drawing: Drawing, folder: Path) -> Picture:
    """Write ``NAME.svg NAME-dark.svg NAME.png NAME-dark.png`` into ``folder``."""
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    texts = {}
    for t, suffix in ((LIGHT, ""), (DARK, "-dark")):
        with matplotlib.rc_context(style(t)), warnings.catch_warnings():  # type: ignore[arg-type]
            warnings.filterwarnings("ignore", "Glyph .* missing")  # an SVG's viewer has fonts of its own
            figure = drawing.draw(t)
            _save_png(figure, folder / f"{drawing.name}{suffix}.png")
            if t is LIGHT:
                buffer = io.StringIO()
                figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
                texts["light"] = buffer.getvalue()
            plt.close(figure)
    light = svg.lighten(texts["light"], drawing.name, title=drawing.title, description=drawing.alt, tips=drawing.tips)
    (folder / f"{drawing.name}.svg").write_text(light, encoding="utf-8")
    (folder / f"{drawing.name}-dark.svg").write_text(svg.dark(light), encoding="utf-8")
    return Picture(drawing.name, drawing.title, drawing.alt, svg.inline(light))


def cut(label: str) -> str:
    """A label whose lines are no longer than any figure has room for."""
    return "\n".join(ln if len(ln) <= MOST_LETTERS else f"{ln[: MOST_LETTERS - 1]}…" for ln in label.split("\n"))


class Heading:
    """Title and subtitle at the top left, wrapped so that a wide fallback font still fits, and cut where a record's
    texts are longer than a figure has room for."""

    def __init__(self, title: str, subtitle: str) -> None:
        self.title = textwrap.wrap(title, 54, max_lines=MOST_LINES, placeholder=" …")
        self.subtitle = textwrap.wrap(subtitle, 76, max_lines=MOST_LINES, placeholder=" …")

    @property
    def inches(self) -> float:
        return 0.24 + 0.2 * len(self.title) + 0.17 * len(self.subtitle)

    def draw(self, figure: Figure, height: float, t: Theme) -> None:
        x, y = 0.12 / WIDTH_IN, 0.10
        for line in self.title:
            figure.text(x, 1 - y / height, line, va="top", ha="left", fontsize=11.5, fontweight="bold")
            y += 0.2
        for line in self.subtitle:
            figure.text(x, 1 - (y + 0.03) / height, line, va="top", ha="left", fontsize=8.8, color=t.role("soft"))
            y += 0.17


class Legend:
    """Entries below a panel, in as many columns as fit in the wider of the fonts that a browser may choose."""

    def __init__(self, labels: Sequence[str]) -> None:
        widest = 40 + 5.7 * max(map(len, labels), default=1)
        self.columns = max(1, min(3, int((WIDTH_IN - 0.2) * 72 // widest)))
        self.inches = 0.21 * -(-len(labels) // self.columns)

    def draw(self, figure: Figure, handles: Sequence[Artist]) -> None:
        figure.legend(
            handles=list(handles), loc="lower left", bbox_to_anchor=(0.02, 0.0), ncols=self.columns, handlelength=1.8,
            columnspacing=2.2, labelspacing=0.35, borderaxespad=0.3,
        )  # fmt: skip


def backend_handle(backend: str, t: Theme, names: Sequence[str], *, line: bool) -> Line2D:
    """The legend entry of a backend: its marker, on its line where it has one."""
    return Line2D(
        [], [], color=t.backend(backend, names), marker=theme.marker(backend, names),
        linestyle="-" if line else "none", markeredgecolor=t.role("ground"), markeredgewidth=0.6, label=backend,
        markersize=theme.marker_size(backend, names),
    )  # fmt: skip
