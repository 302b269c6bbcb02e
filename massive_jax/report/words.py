"""How tokens, numbers and conditions are written, in figures, in the report and on the terminal."""

from __future__ import annotations

import functools
import math
import pathlib
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from massive_jax.files import short_name
from massive_jax.report.records import as_record
from massive_jax.report.results import ImageSource, Named, Numbers, On

_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_LEFT_TO_RIGHT = "\u200e"  # a mark that is not seen: numbers and quotes beside Hebrew or Arabic keep their order
_NAMED = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


@functools.cache
def glyphs() -> frozenset[int]:
    """Gives the code points that both weights of the figures' font can draw."""
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
    backslash two, and no text at all "(empty)". In a figure a text that is read from the right stands between
    marks (U+200E) that are not seen: what is beside it stays there.

    Args:
      token: the text, as the tokenizer gives it.
      limit: the most characters, at least 3; of a longer label the middle goes.
      font: whether the label must be drawn with the figures' font; False for HTML.
    """
    if not token:
        return "(empty)"
    space = "␣" if not font or ord("␣") in glyphs() else "_"
    shown = {" ": space, "\\": "\\\\"}
    text = shorten("".join(shown.get(char) or _escape(char, font) for char in token), limit)
    return f"{_LEFT_TO_RIGHT}{text}{_LEFT_TO_RIGHT}" if font and any(map(_is_from_the_right, text)) else text


def _is_from_the_right(char: str) -> bool:
    return unicodedata.bidirectional(char) in ("R", "AL")


def drawable(text: str) -> str:
    """`text` with what the figures' font lacks escaped."""
    return "".join(char if ord(char) in glyphs() else _escape(char, True) for char in text)


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


def on_axis(value: float, powers: bool = False) -> str:
    """Writes a number as axes have it: 0.25, 100,000, 10⁹, 2.5 × 10⁹; with `powers` 10⁵, too."""
    if value == 0 or (1e-4 <= abs(value) < 1e7 and not powers):
        return f"{value:,.10g}".replace("-", "−")
    mantissa, exponent = f"{value:.10e}".split("e")
    digits = f"{float(mantissa):g}".replace("-", "−")
    return power(int(exponent)) if digits == "1" else f"{digits} × {power(int(exponent))}"


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


def model_name(result: Named | Mapping[str, Any]) -> str:
    """The model's name, not its path, as a title has room for it."""
    return shorten(plain(short_name(as_record(Named, result).model)), 48)


def precision(result: Numbers | Mapping[str, Any]) -> str:
    """Says a result's dtype, and what the weights were stored as where that is another: "Q4_1 weights in float32"."""
    numbers = as_record(Numbers, result)
    dtype, weights = plain(numbers.dtype), numbers.weights
    return dtype if weights is None or weights == numbers.dtype else f"{plain(weights)} weights in {dtype}"


def nothing_to_see(values: np.ndarray) -> str:
    """Says why a map is of one colour: "everywhere 0.111" within 1 %, "no finite value"; otherwise ""."""
    finite = np.asarray(values, np.float64)[np.isfinite(values)]
    if not finite.size:
        return "no finite value"
    low, high = finite.min(), finite.max()
    if high - low > 0.01 * max(abs(low), abs(high)):
        return ""
    ends = dict.fromkeys(number(float(end), 3) for end in (low, high))
    return f"everywhere {' to '.join(ends)}"


def conditions(result: On | Mapping[str, Any]) -> str:
    """What a result holds for: "float32 · no BOS · 4 windows of 512 tokens · text: book.txt"."""
    run = as_record(On, result)
    source = run.source
    if isinstance(source, ImageSource):
        what = plain(source.images[0]) if len(source.images) == 1 else count(len(source.images), "image")
        height, width = source.image_size
        return f"{precision(run)} · {shorten(what, 30)} · {height} × {width} pixels"
    parts = [precision(run), "BOS in front" if source.bos else "no BOS"]
    if source.windows is not None and source.context is not None:
        tokens = count(source.context, "token")
        of_text = f"{count(source.windows, 'window')} of {tokens}"
        parts.append(f"a prompt of {tokens}" if source.text is None else of_text)
    if source.text is not None:
        parts.append(f"text: {shorten(plain(pathlib.PurePath(source.text).name), 30)}")
    return " · ".join(parts)


def _escape(char: str, font: bool) -> str:
    if char in _NAMED:
        return _NAMED[char]
    category = unicodedata.category(char)
    unseen = category in ("Cc", "Cf", "Cs", "Cn", "Co", "Mn", "Me", "Zl", "Zp") or (category == "Zs" and char != " ")
    if unseen or (font and ord(char) not in glyphs()):
        code = ord(char)
        return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
    return char
