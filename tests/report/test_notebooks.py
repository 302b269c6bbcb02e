"""Figures for notebooks: given back, shown, drawn into someone's axes; nothing global changes."""

import inspect

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure

import massive_jax.report
from massive_jax.report import plot_attention, plot_layerwise, plot_profiles, style
from tests.fixtures.figures import texts_of

PLOTS = [
    value for name, value in vars(massive_jax.report).items() if name.startswith("plot_") and name != "plot_preview"
]


def layers(count=3, **changes):
    top = [{"value": v, "position": 0, "dim": d, "token": "a"} for d, v in enumerate((900.0, 8.0, 6.0))]
    rows = [{"layer": layer, "top": top, "median": 0.5} for layer in range(1, count + 1)]
    return {
        "model": "tiny",
        "dtype": "float32",
        "bos": True,
        "windows": 1,
        "context": 4,
        "layers": rows,
        "massive": [],
    } | changes


def attention(T=3):
    probs = np.full((T, T), 1 / T)
    more = {
        "layer": 1,
        "head": 0,
        "tokens": ["a"] * T,
        "massive_positions": [0],
        "shares": [0.5, 0.6],
        "emergence_layer": 1,
    }
    return {"model": "tiny", "dtype": "float32", "bos": True, **more}, np.log(probs), probs


def inside(made, room):
    """Whether all words are in a box of pixels."""
    made.draw_without_rendering()
    boxes = [box for _, box in texts_of(made)]
    return all(
        room.x0 - 1 <= b.x0 and b.x1 <= room.x1 + 1 and room.y0 - 1 <= b.y0 and b.y1 <= room.y1 + 1 for b in boxes
    )


@pytest.mark.parametrize("plot", PLOTS, ids=lambda plot: plot.__name__)
def test_every_figure_is_given_back_and_saved_only_when_asked(plot):
    parameters = inspect.signature(plot).parameters
    assert [parameters[name].default for name in ("path", "axes", "dark")] == [None, None, False]
    assert all(parameters[name].kind is inspect.Parameter.KEYWORD_ONLY for name in ("axes", "dark"))


def test_a_figure_is_not_on_pyplots_list_and_changes_no_setting(tmp_path):
    import matplotlib.pyplot as plt

    before = dict(matplotlib.rcParams)
    figures = [plot_layerwise(layers()) for _ in range(3)]
    assert all(isinstance(made, Figure) for made in figures)
    assert plot_layerwise(layers(), tmp_path / "a.svg").axes
    assert (plt.get_fignums(), dict(matplotlib.rcParams)) == ([], before)


def test_a_notebook_shows_it_with_the_settings_it_was_made_with():
    made, text_colour = plot_layerwise(layers(), dark=True), matplotlib.rcParams["text.color"]
    data, metadata = vars(made)["_repr_mimebundle_"]()
    assert data["image/png"].startswith(b"\x89PNG")
    assert metadata["image/png"]["width"] == pytest.approx(style.SCREEN_DPI * layout_width(made), abs=1)
    with style.context(dark=True):
        colours = {style.INK, style.GREY}
    ticks = [tick.label1.get_color() for tick in made.axes[0].xaxis.get_major_ticks()]
    assert set(ticks) <= colours
    assert text_colour not in ticks


def layout_width(made):
    return made.get_size_inches()[0]


def test_axes_may_be_given():
    with matplotlib.rc_context({"backend": "agg"}):
        figure = Figure(figsize=(12, 12))
        ax, other = figure.subplots(2)
        other.plot([1, 2])
        room = ax.bbox.frozen()
        assert plot_layerwise(layers(), axes=ax) is figure
        assert tuple(figure.get_size_inches()) == (12, 12)
        assert ax.has_data()
        assert not ax.spines["top"].get_visible()
        assert len(figure.axes) == 2
        other.remove()
        assert inside(figure, room)


def test_several_axes_or_a_subfigure_are_one_room_which_grows():
    figure = Figure(figsize=(5, 4))
    upper, lower = figure.subfigures(2)
    plot_profiles(
        {
            "title": "a",
            "conditions": "b",
            "sink": "c",
            "models": [{"name": "m", "largest": [1, 2], "median": [1, 1], "sink_rate": [0, 1]}],
        },
        axes=lower,
    )
    assert figure.get_size_inches()[0] == 7
    assert inside(figure, lower.bbox)
    assert not upper.axes
    figure = Figure(figsize=(4, 3), layout="constrained")
    axes = figure.subplots(1, 6)
    plot_attention(*attention(), axes=axes)
    assert [ax.has_data() for ax in axes] == [True, True, True, True, True, False]
    assert not axes[-1].axison
    assert inside(figure, figure.bbox)


@pytest.mark.parametrize("layout", [None, "tight", pytest.param("constrained", marks=pytest.mark.slow)])
def test_the_same_axes_may_be_drawn_on_again(layout):
    figure = Figure(figsize=(9, 6), layout=layout)
    axes, drawn = figure.subplots(2, 1), []
    axes[1].set_ylabel("of someone else")
    for count in (30, 3):
        plot_layerwise(layers(count), axes=axes[0])
        figure.draw_without_rendering()
        drawn.append([*figure.get_size_inches(), len(figure.texts), *axes[0].get_position().bounds])
        (label,) = [text for text in figure.texts if text.get_text() == "Magnitude"]
        box = label.get_window_extent()
        assert box.x1 < axes[0].bbox.x0
        assert axes[0].bbox.y0 < box.y0 < box.y1 < axes[0].bbox.y1
    assert drawn[0] == pytest.approx(drawn[1])


@pytest.mark.parametrize(("wrong", "given"), [("a", "str"), ([], "nothing"), (3, "int")])
def test_what_is_no_axes_is_refused(wrong, given):
    with pytest.raises(ValueError, match=f"given {given}; give matplotlib axes"):
        plot_layerwise(layers(), axes=wrong)
