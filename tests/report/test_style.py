"""Colours of figures for a light page and a dark one."""

import ast
import pathlib

import matplotlib
import pytest
from matplotlib.colors import to_rgb

import massive_jax.report
from massive_jax.report import style


def luminance(colour):
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("dark", [False, True])
def test_every_colour_of_text_is_readable_on_its_page(dark):
    with style.context(dark=dark):
        for name, least in {"INK": 10, "GREY": 4.5, "BLUE": 4.5, "GREEN": 4.5, "MASSIVE": 3.8}.items():
            assert contrast(getattr(style, name), style.PAPER) > least, name
        for name in ("RULE", "TINT", "PALE", "FLOOR"):
            assert contrast(getattr(style, name), style.PAPER) < 2, name


def test_a_context_ends_with_its_colours_and_settings():
    before, ink = dict(matplotlib.rcParams), style.INK
    with pytest.raises(ZeroDivisionError), style.context(dark=True):  # noqa: PT012
        assert style.is_dark()
        assert matplotlib.rcParams["text.color"] == style.INK != ink
        with style.context():
            assert ink == style.INK
        raise ZeroDivisionError
    assert (dict(matplotlib.rcParams), style.INK, style.is_dark()) == (before, ink, False)
    with pytest.raises(AttributeError, match="'INKK'"):
        getattr(style, "INKK")  # noqa: B009


@pytest.mark.parametrize(
    ("options", "alpha"),
    [({}, 1), ({"dark": True}, 0), ({"dark": True, "transparent": False}, 1), ({"transparent": True}, 0)],
)
def test_the_page_is_seen_behind_what_is_dark_or_transparent(options, alpha):
    with style.context(**options):
        assert style.figure(1, 1).get_facecolor()[3] == alpha
        assert style.axes(style.figure(1, 1), 0, 0, 1, 1).get_facecolor()[3] == 0


def test_no_colour_is_read_when_a_module_is_imported():
    for path in pathlib.Path(massive_jax.report.__file__).parent.rglob("*.py"):
        tree = ast.parse(path.read_text())
        inside = {
            id(node) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for s in f.body for node in ast.walk(s)
        }
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Attribute)
                and getattr(node.value, "id", "") == "style"
                and node.attr in style._LIGHT
            ):
                assert id(node) in inside, f"{path}:{node.lineno}"
