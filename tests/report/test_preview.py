"""The picture of a report: nothing is cut or overlaps, and its sentence is whole."""

import pytest

from massive_jax.report import plot_preview, preview, results, style
from tests.fixtures.figures import assert_readable

# As long as that of `reproduce` on the default model.
HEADLINE = (
    "Setting one number (position 0, dim 507) to zero in smollm2_135m_instruct_q4_1, after block 12, takes its "
    "perplexity from 15.69 to 1,077,649 (95 % interval 673,927 to 1,743,193); with the other too it is 7,602,249; "
    "setting all 2 to the mean gives 15.72."
)


def explorer(headline, layers):
    one = results.ExploredInput(
        model="m",
        input="no BOS",
        tokens=("a", "b"),
        labels=("a", "b"),
        massive=(0,),
        layers=tuple(
            results.ExploredLayer(
                layer=n, median=0.5 * n, values=(-20_000.0 if n > layers // 2 else 90.0, 3.0), dims=(7, 7)
            )
            for n in range(1, layers + 1)
        ),
        attention=results.ExploredAttention(cells=(0, 1), causal=True, maps=()),
        map=results.ExploredMap(layer=1, cells=(0, 1), dims=(0,), rows=((1.0,), (1.0,))),
    )
    return results.Explorer(headline=headline, inputs=(one,))


@pytest.mark.parametrize("layers", [1, 30, 80])
def test_all_of_it_can_be_read(layers):
    with style.context():
        words = assert_readable(preview.draw(explorer(HEADLINE, layers), "Massive activations in a_model"))
    assert HEADLINE in " ".join(words)
    assert {"1", str(layers), "largest", "median", "layer"} <= set(words)


def test_a_sentence_without_end_says_that_it_goes_on(tmp_path):
    with style.context():
        words = assert_readable(preview.draw(explorer(HEADLINE * 9, 4), "x" * 200))
    assert sum(word.endswith(" …") for word in words) == 2
    plot_preview(explorer(HEADLINE * 9, 4), "x" * 200, tmp_path / "report.png")
    header = (tmp_path / "report.png").read_bytes()[16:24]
    assert (int.from_bytes(header[:4]), int.from_bytes(header[4:])) == (1200, 630)


def test_one_layer_is_a_point():
    with style.context():
        made = preview.draw(explorer(HEADLINE, 1), "a")
    assert [line.get_marker() for line in made.axes[0].lines] == ["o", "o"]
