"""How every figure looks, in one place: colours, fonts, sizes, and how tokens and numbers are written.

Figures are laid out in inches, from measured text, so that nothing is cut or overlaps whatever the labels
are.
"""

import contextlib
import functools
import math
import os
import pathlib
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from massive_jax import files

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which readers with any colour vision can tell apart; green darker, for text.
MASSIVE = "#D55E00"  # what is massive, in every figure
BLUE = "#0072B2"
GREEN = "#00805E"
INK = "#1F2328"
GREY = "#5E656D"
RULE = "#D5D9DE"  # grid lines, frames
TINT = "#FBEBDF"  # MASSIVE, as a background

FONT = "DejaVu Sans"  # comes with matplotlib, so a figure looks the same on every machine
TITLE, BODY, SMALL = 10.5, 8.5, 7.5  # points
DPI = 300
MARGIN = 0.1  # inches, around everything

_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_NAMED = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


# ---- words and numbers


@functools.cache
def glyphs() -> frozenset[int]:
    """The code points that both weights of the figures' font can draw."""
    import matplotlib
    from matplotlib import ft2font

    folder = pathlib.Path(matplotlib.get_data_path(), "fonts", "ttf")
    fonts = (ft2font.FT2Font(str(folder / name)) for name in ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf"))
    return frozenset.intersection(*(frozenset(font.get_charmap()) for font in fonts))


def plain(text: str, *, font: bool = True) -> str:
    r"""`text` with what cannot be seen or drawn escaped as in Python source ("\n", "\x00", "\u4e2d").

    With `font=False` only what no font can show is escaped: for a browser, which finds fonts for other
    scripts.
    """
    return "".join(_escape(char, font) for char in text)


def label(token: str, *, limit: int | None = None, font: bool = True) -> str:
    r"""Writes a token's text as it is shown: whitespace visible, nothing that the font cannot draw.

    Newline becomes "\n", a space "␣" ("_" where the font lacks it), a control character, half a surrogate
    pair, a lone combining mark and a character that the font lacks "\x00", "\ud83d", "\u0301" and "\u4e2d", a
    backslash two, and no text at all "(empty)".

    Args:
      token: the text, as the tokenizer gives it.
      limit: the most characters, at least 3; of a longer label the middle goes.
      font: whether the label must be drawn with the figures' font; False for HTML.
    """
    if not token:
        return "(empty)"
    space = "␣" if not font or ord("␣") in glyphs() else "_"
    shown = {" ": space, "\\": "\\\\"}
    return shorten("".join(shown.get(char) or _escape(char, font) for char in token), limit)


def shorten(text: str, limit: int | None) -> str:
    """`text`, without its middle where it is longer than `limit` characters."""
    if limit is None or len(text) <= limit:
        return text
    head = (limit - 1) - (limit - 1) // 3
    return text[:head] + "…" + text[len(text) - (limit - 1 - head) :]


def number(value: float | int | None, digits: int = 4) -> str:
    """Writes a number for people: 23.80, 206.1, 1,962,311, 1.962 × 10¹², inf, nan; None is "not finite"."""
    if value is None:
        return "not finite"
    if not math.isfinite(value):
        return str(float(value)).replace("-", "−")
    size = abs(value)
    if isinstance(value, int) and size < 1e9:
        text = f"{size:,}"
    elif size == 0:
        text = "0"
    elif size >= 1e9 or size < 1e-4:
        mantissa, exponent = f"{size:.{digits - 1}e}".split("e")
        text = f"{mantissa} × {power(int(exponent))}"
    else:
        decimals = max(0, digits - 1 - math.floor(math.log10(size)))
        text = f"{size:,.{decimals}f}"
        if decimals and float(text.replace(",", "")) >= 10.0 ** (digits - decimals):  # 999.96 → 1,000
            text = f"{size:,.{decimals - 1}f}"
    return f"−{text}" if value < 0 else text


def magnitude(value: float | None, digits: int = 4) -> str:
    """|value| for people, with the sign kept visible: 1,502 for 1502, |−1,502| for −1502."""
    text = number(value, digits)
    return f"|{text}|" if text.startswith("−") else text


def power(exponent: int) -> str:
    """10 to the power of `exponent`, in superscript digits."""
    return "10" + str(exponent).translate(_SUPERSCRIPT)


def count(n: int, noun: str) -> str:
    """`n` of `noun`: "1 token", "512 tokens"."""
    return f"{n:,} {noun}" + ("" if n == 1 else "s")


def spans(numbers: Sequence[int], most: int = 3) -> str:
    """Whole numbers as ranges: "3", "4–29", "4–12, 14–29"; beyond `most` ranges "26 in 4–29"."""
    ordered = sorted(set(numbers))
    ranges: list[list[int]] = []
    for n in ordered:
        if ranges and n == ranges[-1][1] + 1:
            ranges[-1][1] = n
        else:
            ranges.append([n, n])
    if len(ranges) > most:
        return f"{len(ordered)} in {ordered[0]}–{ordered[-1]}"
    return ", ".join(str(a) if a == b else f"{a}–{b}" for a, b in ranges)


def model_name(result: Mapping[str, Any]) -> str:
    """The model's name, not its path, as a title has room for it."""
    return shorten(plain(files.short_name(str(result["model"]))), 48)


def precision(result: Mapping[str, Any]) -> str:
    """Says a result's dtype, and what the weights were stored as where that is another: "Q4_1 weights in float32"."""
    dtype, weights = plain(str(result["dtype"])), result.get("weights")
    return dtype if weights is None or weights == result["dtype"] else f"{plain(str(weights))} weights in {dtype}"


def conditions(result: Mapping[str, Any]) -> str:
    """What a result holds for: "float32 · no BOS · 4 windows of 512 tokens of book.txt"."""
    if "images" in result:
        names, (height, width) = result["images"], result["image_size"]
        what = plain(names[0]) if len(names) == 1 else count(len(names), "image")
        return f"{precision(result)} · {shorten(what, 30)} · {height} × {width} pixels"
    parts = [precision(result), "BOS in front" if result["bos"] else "no BOS"]
    if "windows" in result and "context" in result:
        windows, context = int(result["windows"]), count(int(result["context"]), "token")
        if "text" in result and result["text"] is None:
            parts.append(f"a prompt of {context}")
        else:
            parts.append(f"{count(windows, 'window')} of {context}")
    if result.get("text") is not None:
        parts.append(f"text: {shorten(plain(pathlib.PurePath(result['text']).name), 30)}")
    return " · ".join(parts)


def as_float(value: Any) -> float:
    """A number from JSON, where null stands for what is not finite."""
    return math.nan if value is None else float(value)


def _escape(char: str, font: bool) -> str:
    if char in _NAMED:
        return _NAMED[char]
    category = unicodedata.category(char)
    unseen = category in ("Cc", "Cf", "Cs", "Cn", "Co", "Mn", "Me", "Zl", "Zp") or (category == "Zs" and char != " ")
    if unseen or (font and ord(char) not in glyphs()):
        code = ord(char)
        return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
    return char


# ---- figures


@contextlib.contextmanager
def context() -> Iterator[None]:
    """The settings under which figures are made and saved: the reader's own matplotlibrc plays no part."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(
            {
                "font.family": [FONT],
                "font.size": BODY,
                "text.color": INK,
                "text.parse_math": False,  # a token may hold dollar signs
                "axes.edgecolor": GREY,
                "axes.labelcolor": INK,
                "axes.labelsize": BODY,
                "axes.linewidth": 0.6,
                "axes.spines.top": False,
                "axes.spines.right": False,
                "axes.unicode_minus": True,
                "xtick.color": GREY,
                "ytick.color": GREY,
                "xtick.labelcolor": INK,
                "ytick.labelcolor": INK,
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


def figure(width: float, height: float) -> "Figure":
    """An empty white figure of `width` × `height` inches on the Agg canvas, apart from pyplot's list."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(made)
    return made


def save(made: "Figure", path: str | os.PathLike[str]) -> None:
    """Writes a figure whole or not at all, as PNG, PDF or SVG by `path`'s suffix; undated.

    Raises:
      ValueError: another suffix.
    """
    suffix = pathlib.Path(path).suffix.lower()
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
    """Text at a place in inches from the figure's lower left corner."""
    return made.text(x, y, words, transform=made.dpi_scale_trans, **options)


def line(made: "Figure", xs: Sequence[float], ys: Sequence[float], **options: Any) -> None:
    """A line through places in inches from the figure's lower left corner."""
    from matplotlib.lines import Line2D

    made.add_artist(Line2D(xs, ys, transform=made.dpi_scale_trans, **options))


def text_width(words: str, size: float = BODY, weight: str = "normal") -> float:
    """Width of one line of text, in inches."""
    from matplotlib.font_manager import FontProperties

    width, _, _ = _renderer().get_text_width_height_descent(
        words, FontProperties(family=[FONT], size=size, weight=weight), ismath=False
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
            text(made, MARGIN, y, row, size=SMALL, color=GREY, va="top")
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
