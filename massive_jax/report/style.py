"""How every figure looks, in one place: colours, fonts, sizes, and where things go.

Figures are laid out in inches, from measured text, so that nothing is cut or overlaps whatever the labels
are.

Colours are names of this module (`style.INK`): read them where something is drawn, never when a module is imported, as
those of a dark page are others.
"""

import contextlib
import contextvars
import functools
import io
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from massive_jax import files
from massive_jax.report import sheet
from massive_jax.report.words import (
    conditions,
    drawable,
    label,
    model_name,
    number,
    on_axis,
    plain,
    power,
    precision,
    shorten,
    spans,
)

# Also reached from here.
__all__ = ["conditions", "label", "model_name", "number", "plain", "power", "precision", "shorten", "spans"]

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    # Those of `_LIGHT` or, in `context(dark=True)`, of `_DARK`.
    MASSIVE: str
    BLUE: str
    GREEN: str
    INK: str
    GREY: str
    RULE: str
    TINT: str
    PALE: str
    FLOOR: str
    PAPER: str

# Okabe and Ito's colours, which readers with any colour vision can tell apart; green darker, for text.
_LIGHT = {
    "MASSIVE": "#D55E00",  # what is massive, in every figure
    "BLUE": "#0072B2",
    "GREEN": "#00805E",
    "INK": "#1F2328",
    "GREY": "#5E656D",
    "RULE": "#D5D9DE",  # grid lines, frames
    "TINT": "#FBEBDF",  # MASSIVE, as a background
    "PALE": "#E9F1F8",  # BLUE, as a background
    "FLOOR": "#F4F6F8",
    "PAPER": "white",  # what a figure is drawn on, and the inside of hollow marks
}
# The same, lighter: each has 4.5 : 1 or more on the dark paper, but for lines and backgrounds.
_DARK = {
    "MASSIVE": "#FF8A3D",
    "BLUE": "#58B3EA",
    "GREEN": "#35C49A",
    "INK": "#E6EDF3",
    "GREY": "#9BA5AF",
    "RULE": "#3A4149",
    "TINT": "#3B2617",
    "PALE": "#172531",
    "FLOOR": "#161B22",
    "PAPER": "#0D1117",
}
_colours = contextvars.ContextVar("colours", default=_LIGHT)
_transparent = contextvars.ContextVar("transparent", default=False)

if not TYPE_CHECKING:

    def __getattr__(name: str) -> str:
        """Gives a colour by its name."""
        if name not in _LIGHT:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return _colours.get()[name]


FONT = "DejaVu Sans"  # comes with matplotlib, so a figure looks the same on every machine
TITLE, BODY, SMALL = 10.5, 8.5, 7.5  # points
DPI, SCREEN_DPI = 300, 120  # of files, of notebooks
MARGIN = 0.1  # inches, around everything


@contextlib.contextmanager
def context(*, dark: bool = False, transparent: bool | None = None) -> Iterator[None]:
    """The settings under which figures are made and saved: the reader's own matplotlibrc plays no part.

    Args:
      dark: whether they are for a dark page.
      transparent: whether the page is seen behind them; None: where it is dark.
    """
    import matplotlib

    colours = _DARK if dark else _LIGHT
    ink, grey = colours["INK"], colours["GREY"]
    with (
        matplotlib.rc_context(),
        _set(_colours, colours),
        _set(_transparent, dark if transparent is None else transparent),
    ):
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(
            {
                "font.family": [FONT],
                "font.size": BODY,
                "text.color": ink,
                "text.parse_math": False,  # a token may hold dollar signs
                "axes.edgecolor": grey,
                "axes.labelcolor": ink,
                "axes.labelsize": BODY,
                "axes.facecolor": "none",
                "axes.linewidth": 0.6,
                "axes.spines.top": False,
                "axes.spines.right": False,
                "axes.unicode_minus": True,
                "xtick.color": grey,
                "ytick.color": grey,
                "xtick.labelcolor": ink,
                "ytick.labelcolor": ink,
                "xtick.labelsize": SMALL,
                "ytick.labelsize": SMALL,
                "xtick.major.width": 0.6,
                "ytick.major.width": 0.6,
                "xtick.minor.width": 0.4,
                "ytick.minor.width": 0.4,
                "pdf.fonttype": 42,
                "svg.hashsalt": "massive_jax",
            }
        )
        yield


@contextlib.contextmanager
def _set(variable: contextvars.ContextVar[Any], value: Any) -> Iterator[None]:
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


def is_dark() -> bool:
    """Whether figures are drawn for a dark page."""
    return _colours.get() is _DARK


def diverging() -> str:
    """Names the colour map of numbers of both signs, the middle near the paper."""
    return "berlin" if is_dark() else "coolwarm"


def shares() -> Any:
    """Gives the colour map of shares from 0 (near the paper) to 1."""
    from matplotlib.colors import LinearSegmentedColormap

    light, dark = ("#E9EFF5", "#8DB9DB", "#2878B0", "#08306B"), ("#17222D", "#1F5A8A", "#5AA9DD", "#DDF0FC")
    return LinearSegmentedColormap.from_list("shares", dark if is_dark() else light)


def ordered(count: int) -> np.ndarray:
    """Gives `count` colours of lines that come one after the other, such as layers: [count, 4]."""
    import matplotlib

    low, high = (0.25, 1.0) if is_dark() else (0.0, 0.9)
    return matplotlib.colormaps["viridis"](np.linspace(low, high, count))


def figure(width: float, height: float) -> "Figure":
    """An empty figure of `width` × `height` inches on the Agg canvas, or what `plot` draws on."""
    if (room := sheet.given()) is not None:
        return sheet.Sheet(room, width, height)  # type: ignore[return-value]  # what drawing asks of a figure
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    paper = "none" if _transparent.get() else _colours.get()["PAPER"]
    made = Figure(figsize=(width, height), dpi=DPI, facecolor=paper)
    FigureCanvasAgg(made)
    return made


def plot(
    draw: "Callable[[], Figure]", path: str | os.PathLike[str] | None = None, *, axes: Any = None, dark: bool = False
) -> "Figure":
    """Draws a figure, and saves it where a path is given; every function that plots ends here.

    The figure is not on pyplot's list: nothing has to be closed. As the last line of a notebook's cell it is shown.

    Args:
      draw: makes the figure with `figure`, in `context()`.
      path: as for `save`; None for no file.
      axes: where it is drawn: axes, an array of them in one figure, a subfigure or a figure. The room is the rectangle
        around them; where it is too small, the whole figure grows. Panels use given axes in their order, and what is
        over is hidden. None: a figure of its own.
      dark: for a dark page, which is seen behind it.

    Returns:
      The figure: the whole one that `axes` are in, where they are given.

    Raises:
      ValueError: as `draw` and `save`; or `axes` that are something else.
    """
    with context(dark=dark), sheet.into(axes):
        made = draw()
        for ax in made.axes:  # ticks are made as they are first asked for, with the settings of that time
            ax.get_xticklabels(), ax.get_yticklabels()
        whole: Figure = made.figure if axes is not None else made
        if path is not None:
            save(whole, path)
        if axes is None:
            whole.set_dpi(SCREEN_DPI)
            whole._repr_mimebundle_ = functools.partial(_shown, whole)  # type: ignore[attr-defined]
    return whole


def _shown(made: "Figure", include: Any = None, exclude: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a notebook shows of a figure, also where pyplot was never imported: twice as fine as its size says."""
    del include, exclude
    picture = io.BytesIO()
    made.savefig(picture, dpi=2 * SCREEN_DPI, format="png")
    width, height = (round(SCREEN_DPI * inches) for inches in made.get_size_inches())
    return {"image/png": picture.getvalue(), "text/plain": repr(made)}, {
        "image/png": {"width": width, "height": height}
    }


def save(made: "Figure", path: str | os.PathLike[str]) -> None:
    """Writes a figure whole or not at all, as PNG, PDF or SVG by `path`'s suffix; undated.

    Raises:
      ValueError: another suffix.
    """
    suffix = pathlib.PurePath(path).suffix.lower()
    undated: dict[str, dict[str, None]] = {".png": {}, ".pdf": {"CreationDate": None}, ".svg": {"Date": None}}
    if suffix not in undated:
        raise ValueError(f"cannot write a figure to {str(path)!r}: name it .png, .pdf or .svg")
    with files.atomic_write(path) as temporary:
        made.savefig(temporary, dpi=DPI, format=suffix[1:], metadata=undated[suffix])


def axes(made: "Figure", left: float, bottom: float, width: float, height: float, **options: Any) -> Any:
    """Axes at a place in inches from the figure's lower left corner."""
    w, h = made.get_size_inches()
    return made.add_axes((left / w, bottom / h, width / w, height / h), **options)


def text(made: "Figure", x: float, y: float, words: str, **options: Any) -> Any:
    """Text at a place in inches from the figure's lower left corner; what the font lacks is escaped."""
    return made.text(x, y, drawable(words), transform=made.dpi_scale_trans, **options)


def bar_ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Round numbers of a colour bar, and how they are written."""
    from matplotlib.ticker import MaxNLocator

    ticks = MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    nil = 1e-9 * (high - low)  # a tick at 0 may be off by a rounding
    return [(float(tick), on_axis(tick if abs(tick) > nil else 0.0)) for tick in ticks if low <= tick <= high]


def bar_width(ticks: Sequence[tuple[float, str]]) -> float:
    """Inches that a colour bar takes with its numbers and a little room before it."""
    return 0.26 + max(text_width(name, SMALL) for _, name in ticks)


def bar(made: "Figure", image: Any, left: float, bottom: float, height: float, ticks: Any) -> None:
    """A colour bar of an image, `bar_width` wide with its numbers from `left`, which is in inches as `bottom` is."""
    drawn = made.colorbar(image, cax=axes(made, left + 0.08, bottom, 0.1, height))
    drawn.outline.set_linewidth(0.5)  # pyright: ignore[reportCallIssue]
    drawn.set_ticks([value for value, _ in ticks], labels=[name for _, name in ticks])


def inches(made: "Figure", ax: Any, x: float, y: float) -> tuple[float, float]:
    """Where a point of axes is, in inches from the figure's lower left corner."""
    across, up = made.dpi_scale_trans.inverted().transform(ax.transData.transform((x, y)))
    return float(across), float(up)


def line(made: "Figure", xs: Sequence[float], ys: Sequence[float], **options: Any) -> None:
    """A line through places in inches from the figure's lower left corner."""
    from matplotlib.lines import Line2D

    made.add_artist(Line2D(xs, ys, transform=made.dpi_scale_trans, **options))


@functools.lru_cache(1 << 14)  # `wrap` asks for one beginning of a line after another
def text_width(words: str, size: float = BODY, weight: str = "normal") -> float:
    """Width of one line of text, in inches."""
    from matplotlib.font_manager import FontProperties

    width, _, _ = _renderer().get_text_width_height_descent(
        drawable(words), FontProperties(family=[FONT], size=size, weight=weight), ismath=False
    )
    return width / DPI


@functools.cache
def _renderer() -> Any:
    from matplotlib.backends.backend_agg import RendererAgg

    return RendererAgg(1, 1, DPI)


def text_height(size: float = BODY) -> float:
    """Height that one line of text takes, with the space to the next, in inches."""
    return 1.35 * size / 72


def wrap(words: str, width: float, size: float = BODY, weight: str = "normal") -> list[str]:
    """`words` in lines of at most `width` inches, broken at spaces, or anywhere in a word too long."""
    lines = [""]
    for word in words.split(" "):
        joined = f"{lines[-1]} {word}" if lines[-1] else word
        if text_width(joined, size, weight) <= width:
            lines[-1] = joined
            continue
        if lines[-1]:
            lines.append("")
        for char in word:
            if lines[-1] and text_width(lines[-1] + char, size, weight) > width:
                lines.append("")
            lines[-1] += char
    return lines


class Header:
    """A title (what the figure shows) and lines under it (what it holds for), wrapped to a figure's width."""

    def __init__(self, title: str, notes: Sequence[str], width: float):
        room = width - 2 * MARGIN
        self._title = wrap(title, room, TITLE, "bold")
        while len(self._title) > 1 and len(closer := wrap(title, room - 0.1, TITLE, "bold")) == len(self._title):
            self._title, room = closer, room - 0.1  # lines of about the same length
        room = width - 2 * MARGIN
        self._notes = [row for note in notes if note for row in wrap(note, room, SMALL)]
        heights = len(self._title) * text_height(TITLE) + len(self._notes) * text_height(SMALL)
        self.height = MARGIN + heights + 0.12  # inches, with the margin above and some air below

    def draw(self, made: "Figure") -> None:
        """Writes it at the top left of a figure."""
        y = made.get_size_inches()[1] - MARGIN
        for row in self._title:
            text(made, MARGIN, y, row, size=TITLE, weight="bold", va="top")
            y -= text_height(TITLE)
        for row in self._notes:
            text(made, MARGIN, y, row, size=SMALL, color=_colours.get()["GREY"], va="top")
            y -= text_height(SMALL)


def spread(
    targets: Sequence[float] | np.ndarray, sizes: Sequence[float] | np.ndarray, low: float, high: float
) -> np.ndarray:
    """Centres of labels along a line: nearest to their targets (least squares) without overlap.

    Isotonic regression on the targets less the room that the labels before take.

    Args:
      targets: where each label would like its centre, in any order.
      sizes: how long each is along the line, with the gap it needs.
      low: where the line starts.
      high: where the line ends; if the labels do not all fit, they run past it.

    Returns:
      The centres, in the order of `targets`.
    """
    order = np.argsort(np.asarray(targets, float), kind="stable")
    size = np.asarray(sizes, float)[order]
    offset = np.concatenate([[0.0], np.cumsum((size[:-1] + size[1:]) / 2)])[: len(order)]
    wanted = np.asarray(targets, float)[order] - offset
    blocks: list[tuple[float, int]] = []  # mean, members
    for value in wanted:
        mean, members = float(value), 1
        while blocks and blocks[-1][0] >= mean:
            before, n = blocks.pop()
            mean, members = (before * n + mean * members) / (n + members), n + members
        blocks.append((mean, members))
    centres = np.repeat([mean for mean, _ in blocks], [n for _, n in blocks])
    if len(order):
        first, last = low + size[0] / 2, high - size[-1] / 2 - offset[-1]
        centres = np.maximum(np.minimum(centres, last), first) + offset
    placed = np.empty(len(order))
    placed[order] = centres
    return placed


def layer_ticks(first: int, last: int, most: int = 16) -> list[int]:
    """Layers to number on an axis: each if they are at most `most`, or first, last and round ones."""
    step = next((s for s in (5, 10, 20, 50, 100) if last - first <= s * most), 1000)
    step = 1 if last - first < most else step
    between = [n for n in range(first, last) if n % step == 0 and min(n - first, last - n) > 0.6 * step]
    return sorted({first, *between, last})
