import re

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from massive_jax.weights.table import Row, WeightTable, expand, move_axes
from massive_jax.zoo import FAMILIES

TABLE, GGUF_TABLE = FAMILIES["llama"].table, FAMILIES["llama"].gguf_table
SIZES = {"H": 3, "K": 2, "N": 4, "P": 2, "R": 2, "D": 5, "F": 7, "V": 6, "E": 3}
AXES = sorted({row.axes for table in (TABLE, GGUF_TABLE) for row in table.rows if row.axes})


def shape_of(side):
    groups = [group or letter for group, letter in re.findall(r"\((\w+)\)|(\w)", side)]
    return tuple(int(np.prod([SIZES[letter] for letter in group])) for group in groups)


def numbered(shape):
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


@st.composite
def axes(draw):
    """Any letters once each, in any order, in any groups, on both sides."""

    def side(letters):
        text = ""
        while letters:
            count = draw(st.integers(1, len(letters)))
            text += f"({''.join(letters[:count])})" if count > 1 else letters[0]
            letters = letters[count:]
        return text

    letters = draw(st.lists(st.sampled_from(sorted(SIZES)), min_size=1, max_size=5, unique=True))
    return side(letters), side(draw(st.permutations(letters)))


def test_of_the_rows_of_a_path_the_files_own_is_kept():
    one, all_of_them = Row("{l}.e.{e}.w", "layers/up"), Row("{l}.experts", "layers/up")
    table = WeightTable(rows=(one, Row("x", "y"), all_of_them))
    assert table.spelled({"0.e.0.w", "x"}).rows == (one, Row("x", "y"))
    assert table.spelled({"0.experts", "x"}).rows == (all_of_them, Row("x", "y"))
    assert table.spelled({"0.experts", "0.e.0.w"}).rows == (one, Row("x", "y"))
    assert table.spelled({"x"}).rows == (one, Row("x", "y"))


@given(axes())
@settings(deadline=None, max_examples=150)
def test_moving_axes_and_back_is_the_identity(sides):
    before, after = sides
    x = numbered(shape_of(before))
    moved = move_axes(x, f"{before}->{after}", SIZES)
    assert moved.shape == shape_of(after)
    np.testing.assert_array_equal(move_axes(moved, f"{after}->{before}", SIZES), x)


@given(axes())
@settings(deadline=None, max_examples=150)
def test_moving_axes_is_einsum_on_the_ungrouped_letters(sides):
    before, after = (re.sub(r"[()]", "", side) for side in sides)
    x = numbered(shape_of(sides[0]))
    expected = np.einsum(f"{before}->{after}", x.reshape([SIZES[letter] for letter in before]))
    np.testing.assert_array_equal(np.ravel(move_axes(x, "->".join(sides), SIZES)), np.ravel(expected))


@pytest.mark.parametrize("axes", AXES)
def test_a_wrong_shape_is_an_error_that_gives_both(axes):
    good = shape_of(axes.split("->")[0])
    bad = (good[0] + 1, *good[1:])
    with pytest.raises(ValueError, match=re.escape(f"has shape {list(bad)}, expected {list(good)}")):
        move_axes(numbered(bad), axes, SIZES)


def test_no_axes_is_as_stored():
    x = numbered((2, 3))
    assert move_axes(x, None, SIZES) is x


def permute(weights, n_head):
    """`permute` of llama.cpp's convert_hf_to_gguf.py, as it stands there."""
    return (
        weights.reshape(n_head, 2, weights.shape[0] // n_head // 2, *weights.shape[1:])
        .swapaxes(1, 2)
        .reshape(weights.shape)
    )


@pytest.mark.parametrize("kind", ["kernel", "bias"])
@pytest.mark.parametrize("projection", ["query", "key"])
@given(heads=st.integers(1, 5), pairs=st.integers(1, 6), width=st.integers(1, 4))
@settings(deadline=None, max_examples=30)
def test_gguf_rows_undo_llama_cpps_permutation(projection, kind, heads, pairs, width):
    sizes = {"H": heads, "K": heads, "N": 2 * pairs, "P": pairs, "R": 2, "D": width}
    path = f"layers/attn/{projection}/{kind}"
    huggingface, gguf = (next(row.axes for row in table.rows if row.path == path) for table in (TABLE, GGUF_TABLE))
    stored = numbered((heads * 2 * pairs, width) if kind == "kernel" else (heads * 2 * pairs,))
    wanted = move_axes(stored, huggingface, sizes)
    np.testing.assert_array_equal(move_axes(permute(stored, heads), gguf, sizes), wanted)
    if pairs > 1:
        assert not np.array_equal(move_axes(stored, gguf, sizes), wanted)  # it is not the identity


def test_every_other_tensor_is_the_same_in_both_formats():
    permuted = {f"layers/attn/{name}/{kind}" for name in ("query", "key") for kind in ("kernel", "bias")}
    huggingface, gguf = ({row.path: row.axes for row in table.rows} for table in (TABLE, GGUF_TABLE))
    common = set(huggingface) & set(gguf)
    assert {path for path in common if huggingface[path] != gguf[path]} == permuted
    assert {"embedding", "head", "norm/scale", "layers/attn/value/kernel", "layers/mlp/down/kernel"} <= common


def test_moving_axes_is_traced_and_abstract():
    x = jax.eval_shape(lambda x: move_axes(x, "(HN)D->DHN", SIZES), jax.ShapeDtypeStruct((12, 5), np.float32))
    assert x.shape == (5, 3, 4)


def test_expand():
    rows = (Row("a.{l}.b", "layers/b"), Row("c", "c"))
    assert [name for name, _, _ in expand(rows, 3)] == ["a.0.b", "a.1.b", "a.2.b", "c"]


@pytest.mark.parametrize("wrapper", ["", "model.", "transformer.", "language_model.", "_orig_mod.", "a.b."])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_backbones_names_with_a_prefix_too_few_or_too_many(family, wrapper):
    """Its prefix is there or not, a wrapper's is before all names or not, and the head is beside the backbone."""
    table = FAMILIES[family].table
    table = table.spelled({name for name, _, _ in expand(table.rows, 2, 2)})
    ours = table.prefix[0]
    for kept in (ours, ""):
        names = {
            wrapper + (name if row.path.startswith("head") else kept + name.removeprefix(ours)): row.path
            for name, row, _ in expand(table.rows, 2, 2)
        }
        found = FAMILIES[family].table.spelled(names)
        assert {name: row.path for name, row, _ in expand(found.rows, 2, 2)} == names
        assert found.tied.keys() <= {wrapper + name for name in table.tied} | FAMILIES[family].table.tied.keys()


@pytest.mark.parametrize("wrapper", ["", "model.", "transformer."])
def test_what_is_ignored_is_so_with_any_prefix(wrapper):
    table = FAMILIES["gpt2"].table
    for kept in ("transformer.", ""):
        names = (name.removeprefix("transformer.") for name, _, _ in expand(table.rows, 1))
        found = table.spelled({wrapper + kept + name for name in names})
        assert found.is_ignored(f"{wrapper}{kept}h.3.attn.bias")
        assert not found.is_ignored(f"{wrapper}{kept}h.3.attn.c_attn.bias")


def test_a_file_of_the_tables_own_spelling_keeps_it():
    table = FAMILIES["llama"].table
    other = {f"vision_tower.layers.0.self_attn.{x}_proj.weight" for x in "qkv"}
    assert table.spelled({"model.embed_tokens.weight", *other}).prefix == ("model.", "model.")
    assert table.spelled({"nothing"}).prefix == ("model.", "model.")


def test_a_repetition_stands_in_for_what_it_repeats():
    table = FAMILIES["llama"].table
    names, tied = {"model.norm.weight", "lm_head.weight"}, {"embedding", "norm/scale"}
    rows = table.spelled(names).standing_in(names, tied).rows
    assert {row.path: row.name for row in rows} == {"embedding": "lm_head.weight", "norm/scale": "model.norm.weight"}
    untied = {row.path: row.name for row in table.standing_in(names, tied | {"head"}).rows}
    assert (untied["embedding"], untied["head"]) == ("model.embed_tokens.weight", "lm_head.weight")
    whole = table.standing_in(names | {"model.embed_tokens.weight"}, tied).rows
    assert whole[0].name == "model.embed_tokens.weight"


def test_ignored_patterns_match_whole_names():
    table = WeightTable((), ignored=(r"x\.\d+",))
    assert table.is_ignored("x.12")
    assert not table.is_ignored("x.12.weight")
    assert not table.is_ignored("ax.1")
