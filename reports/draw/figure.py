"""What all figures share: the look, the frame (title above, legend below), and the way to files.

A figure stands alone: its title says what is held fixed, its legend is inside. A draw function takes a theme and
returns a matplotlib figure; :func:`render` makes light and dark SVG and PNG of it, and the themable text for the page.
"""

from __future__ import annotations

import io
import logging
import textwrap
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib import font_manager
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from reports.draw import svg
from reports.draw.theme import Theme

WIDTH_IN = 5.8
MOST_LINES, MOST_LETTERS = 8, 80  # of a heading, of a line beside an axis: more than any but a hostile record's
PNG_DPI = 160
DASHES, DOTS = (0, (5, 3)), (0, (1, 2))
FONTS = ("Inter", "Helvetica Neue", "Arial", "Liberation Sans", "DejaVu Sans")
NO_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))


@dataclass(frozen=True)
class Drawing:
    """A figure: ``draw(theme)`` gives it, ``tips`` its hover texts by artist; ``inline`` is its SVG, once rendered."""

    name: str
    title: str
    alt: str
    draw: Callable[[Theme], Figure]
    tips: Mapping[str, Sequence[str]] = field(default_factory=dict)
    inline: str = ""


@dataclass(frozen=True)
class Gallery:
    """Figures of one kind, with what is said above them."""

    title: str
    note: str
    drawings: list[Drawing]


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


def render(drawing: Drawing, folder: Path, slots: Mapping[str, int]) -> Drawing:
    """Write ``NAME.svg NAME-dark.svg NAME.png NAME-dark.png`` into ``folder``; the drawing with its inline SVG."""
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    text = io.StringIO()
    for t, suffix in ((Theme(False, slots), ""), (Theme(True, slots), "-dark")):
        with matplotlib.rc_context(style(t)), warnings.catch_warnings():  # type: ignore[arg-type]
            warnings.filterwarnings("ignore", "Glyph .* missing")  # an SVG's viewer has fonts of its own
            figure = drawing.draw(t)
            _save_png(figure, folder / f"{drawing.name}{suffix}.png")
            if not t.dark:
                for artist in figure.findobj():
                    artist.set_clip_on(False)  # axes are wide enough for all that is drawn in them
                figure.savefig(text, format="svg", metadata=NO_METADATA)
            plt.close(figure)
    light = svg.lighten(text.getvalue(), drawing.name, title=drawing.title, description=drawing.alt, tips=drawing.tips)
    (folder / f"{drawing.name}.svg").write_text(light, encoding="utf-8")
    (folder / f"{drawing.name}-dark.svg").write_text(svg.dark(light), encoding="utf-8")
    return replace(drawing, inline=svg.inline(light))


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


def cut(label: str) -> str:
    """A label whose lines are no longer than any figure has room for."""
    return "\n".join(ln if len(ln) <= MOST_LETTERS else f"{ln[: MOST_LETTERS - 1]}…" for ln in label.split("\n"))


class Frame:
    """An empty figure: title and subtitle at the top left, the legend below, ``plot_in`` inches between them.

    Titles wrap, and the legend has as many columns, as fits the wider of the fonts that a browser may choose; titles
    are cut where a record's texts are longer than a figure has room for.
    """

    def __init__(
        self, title: str, subtitle: str, handles: Sequence[Artist], t: Theme,
        *, plot_in: float, left_in: float, foot_in: float = 0.52, right_in: float = 0.24,
    ) -> None:  # fmt: skip
        widest = 40 + 5.7 * max((len(str(h.get_label())) for h in handles), default=1)
        columns = max(1, min(3, int((WIDTH_IN - 0.2) * 72 // widest)))
        titles = textwrap.wrap(title, 54, max_lines=MOST_LINES, placeholder=" …")
        subtitles = textwrap.wrap(subtitle, 76, max_lines=MOST_LINES, placeholder=" …")
        self.left_in, self.width_in = left_in, WIDTH_IN - left_in - right_in
        self.foot_in = foot_in + 0.21 * -(-len(handles) // columns)
        self.height_in = 0.24 + 0.2 * len(titles) + 0.17 * len(subtitles) + plot_in + self.foot_in
        self.figure = plt.figure(figsize=(WIDTH_IN, self.height_in))
        lines = [(line, 0.2, {"fontsize": 11.5, "fontweight": "bold"}) for line in titles]
        lines += [(line, 0.17, {"fontsize": 8.8, "color": t.role("soft")}) for line in subtitles]
        y = 0.1
        for line, height, looks in lines:
            y_in = y if height == 0.2 else y + 0.03
            self.figure.text(0.12 / WIDTH_IN, 1 - y_in / self.height_in, line, va="top", ha="left", **looks)
            y += height
        if handles:
            self.figure.legend(
                handles=list(handles), loc="lower left", bbox_to_anchor=(0.02, 0.0), ncols=columns, handlelength=1.8,
                columnspacing=2.2, labelspacing=0.35, borderaxespad=0.3,
            )  # fmt: skip

    def axes(self, bottom_in: float, height_in: float) -> Axes:
        """Axes as wide as the frame, ``bottom_in`` above the foot of the plot."""
        bottom = (self.foot_in + bottom_in) / self.height_in
        return self.figure.add_axes(
            (self.left_in / WIDTH_IN, bottom, self.width_in / WIDTH_IN, height_in / self.height_in)
        )


def backend_handle(backend: str, t: Theme, *, line: bool) -> Line2D:
    """The legend entry of a backend: its marker, on its line where it has one."""
    return Line2D(
        [], [], color=t.colour(backend), marker=t.marker(backend), linestyle="-" if line else "none",
        markeredgecolor=t.role("ground"), markeredgewidth=0.6, label=backend, markersize=t.marker_points(backend),
    )  # fmt: skip
