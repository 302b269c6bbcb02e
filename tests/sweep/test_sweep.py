"""Every value of a sweep is that of one run under its edits; one program runs all; files, limits, what is refused."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import massive_jax as mj
from massive_jax.forward import left_pad
from massive_jax.models import AlibiConfig, AttentionBias
from massive_jax.sweep.metrics import find_metric
from massive_jax.sweep.run import _swept
from tests.fixtures.tiny import TINY_SITES, programs

CHOICE = (7, 11)
SLOW = pytest.mark.slow
KINDS = {
    "default": {},
    "alibi, parallel, window, slots": {
        "position": "alibi",
        "alibi": AlibiConfig(),
        "residual": "parallel",
        "window": 5,
        "window_layers": (True, False, True),
        "attention_bias": AttentionBias("kv", slots=2, prefix=True),
    },
    "learned, softcap": {"position": "learned", "logit_softcap": 3.0, "attention_softcap": 2.0},
    "sink tokens": {"attention_bias": AttentionBias("sink_token", slots=2), "norm_placement": "pre_and_output"},
}


@pytest.fixture(scope="module")
def texts():
    """Tokens int [2, 19], and where they are no padding."""
    rng = np.random.default_rng(3)
    return left_pad([rng.integers(0, 256, 19), rng.integers(0, 256, 13)])


def one_by_one(model, tokens, units, measured, mask=None):
    """The same by a run each."""
    return np.array([measured(np.asarray(model(tokens, edits=unit, mask=mask).logits)) for unit in units])


def difference(logits):
    """`logit_difference` of CHOICE, of sequences padded in front."""
    return (logits[:, -1, CHOICE[0]] - logits[:, -1, CHOICE[1]]).mean()


FEW = ("block_out", "attn_probs")
SOME = (*FEW, "key", "mlp_out")  # the others go the same way in every family


def units_of_sites(config, names, positions):
    """Units of one edit that does something and one of every other site that does not: they share a program."""
    rng = np.random.default_rng(0)

    def at(site, layer, position, op, value):
        names = (name for name in ("dim", "head", "key") if site.axis_of(name))
        fields = {name: int(rng.integers(0, 2)) for name in names}
        return mj.Edit(
            site.name, layer=layer if site.per_layer else None, position=position, op=op, value=value, **fields
        )

    sites = [mj.probe.SITES[name] for name in names if name not in config.absent_sites]
    for site, layer, position in itertools.product(sites, (1, 3), positions):
        if site.per_layer or layer == 1:
            some = (("scale", -1.5),) if site.name == "attn_probs" else (("set", 2.0), ("add", 3.0), ("noise", 2.0))
            op, value = some[int(rng.integers(0, len(some)))]
            unit = [at(other, 3, -1, "scale", 1.0) for other in sites if other is not site]
            yield [*unit, at(site, layer, position, op, value)]


@pytest.mark.parametrize(
    ("kind", "sites"),
    [
        ("alibi, parallel, window, slots", FEW),  # of the default the tests of a grid are quick
        *(pytest.param(kind, TINY_SITES if kind == "default" else SOME, marks=SLOW) for kind in KINDS),
    ],
)
def test_every_value_is_that_of_a_run(make_model, texts, kind, sites):
    model, (tokens, mask) = make_model(num_layers=3, **KINDS[kind]), texts
    units = list(units_of_sites(model.config, sites, (0, 9, -1)))
    before = programs(_swept)
    found = model.sweep(tokens, units, "logit_difference", data=CHOICE, mask=mask)
    np.testing.assert_allclose(found.values, one_by_one(model, tokens, units, difference, mask), rtol=2e-4, atol=2e-4)
    assert programs(_swept)[0] == before[0] + 1
    assert (found.effects != 0).sum() > len(units) / 2
    np.testing.assert_allclose(found.unedited, difference(np.asarray(model(tokens, mask=mask).logits)), rtol=1e-4)


@pytest.fixture(scope="module")
def small(make_model):
    """Two blocks."""
    return make_model(num_layers=2)


def loss(logits, tokens, mask):
    """Mean negative log-likelihood, sequence by sequence, in numpy."""
    found = []
    for row, ids, own in zip(logits, tokens, mask, strict=True):
        row, ids = row[own][:-1].astype(np.float64), ids[own][1:]
        found += [np.log(np.exp(r - r.max()).sum()) + r.max() - r[i] for r, i in zip(row, ids, strict=True)]
    return np.mean(found)


def mean_square(out, weight):
    """A person's own: a number a sequence."""
    return weight * (out.logits[:, -1] ** 2).mean(axis=-1)


GRID = mj.EditGrid("block_out", layers=[1, 2], positions=[0, 5, -1], dims=[3], op="set", value=9.0)


def test_a_grid_by_every_kind_of_metric(small, texts):
    tokens, mask = texts
    cells = [
        mj.Edit("block_out", layer=layer, position=position, dim=3, value=9.0)
        for layer in (1, 2)
        for position in (0, 5, -1)
    ]
    logits = [np.asarray(small(tokens, edits=cell, mask=mask).logits) for cell in [None, *cells]]
    whole = (loss(x, tokens, mask) for x in logits)
    square = ([float(s) for s in 2 * (x[:, -1] ** 2).mean(axis=-1)] for x in logits)
    for metric, data, (unedited, *expected) in (("loss", None, whole), (mean_square, np.float32(2), square)):
        found = small.sweep(tokens, GRID, metric, data=data, mask=mask, batch=4)
        assert found.axes == {"layer": (1, 2), "position": (0, 5, -1), "dim": (3,)}
        np.testing.assert_allclose(found.values.reshape(6, -1), np.reshape(expected, (6, -1)), rtol=2e-4)
        np.testing.assert_allclose(found.unedited, unedited, rtol=2e-4)
    assert "values" in repr(found)


def test_metrics_of_the_next_token(small, texts):
    tokens, mask = texts
    last = np.asarray(small(tokens, mask=mask).logits[:, -1], np.float64)
    log_probs = last - np.log(np.exp(last).sum(axis=-1, keepdims=True))
    ids = np.array([5, 9])
    for metric, expected in (
        ("logit", last[[0, 1], ids].mean()),
        ("log_probability", log_probs[[0, 1], ids].mean()),
        ("probability", np.exp(log_probs[[0, 1], ids]).mean()),
        ("kl", 0.0),
    ):
        found, data = find_metric(metric, None if metric == "kl" else ids, small, 2)
        value = found.last(jnp.asarray(last), last if metric == "kl" else data)
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)


def at_two(out):
    """Of what the token at position 2 predicts: a number a sequence."""
    return (out.logits[:, 2] ** 2).mean(axis=-1)


def scaled(x, value):
    """Of what is edited: a number that it was not."""
    return 0 * x + value


def flipped(x, value):
    """Of a whole tensor: the tokens in reverse order."""
    return x[:, ::-1] * value


def test_tokens_by_text_are_their_ids(small):
    assert [ids.tolist() for ids in find_metric("logit_difference", ("a", ["b", "c"]), small, 2)[1]] == [
        [97, 97],
        [98, 99],
    ]


def test_a_function_that_looks_at_one_later_key_runs_whole(small, texts):
    """Its query is in a chunk before that of the key, whose value the other edit changes."""
    tokens = texts[0]
    units = [
        [
            mj.Edit("block_out", layer=1, position=17, dim=3, value=9.0),
            mj.Edit("attn_probs", layer=2, head=head, position=2, key=17, op=scaled, value=np.float32(0.5)),
        ]
        for head in (0, 1)
    ]
    found = small.sweep(tokens, units, at_two)
    np.testing.assert_allclose(found.values, [at_two(small(tokens, edits=unit)) for unit in units], rtol=2e-4)
    assert found.effects.all()


def test_what_looks_ahead_runs_whole(small, tiny_tokens):
    """Later tokens' values, where a token's own may depend on them; logits that are edited."""
    units = [
        [
            mj.Edit("attn_out", layer=1, dim=dim, op="shuffle"),
            mj.Edit("attn_probs", layer=layer, key=6, head=1, value=0.4),
            mj.Edit("mlp_out", layer=layer, op=flipped, value=np.float32(scale)),
            mj.Edit("logits", dim=7, op="add", value=scale),
        ]
        for dim, layer, scale in ((3, 1, 0.5), (1, 2, 0.7))
    ]
    found = small.sweep(tiny_tokens, units, "logit_difference", data=CHOICE)
    np.testing.assert_allclose(found.values, one_by_one(small, tiny_tokens, units, difference), rtol=2e-4, atol=2e-4)
    assert found.effects.all()


def test_a_file_is_gone_on_from(small, texts, tmp_path):
    """Killed after some batches and run again: the same to the last bit, nothing twice; another sweep is refused."""
    tokens, mask = texts
    options = {"data": CHOICE, "mask": mask, "batch": 2}
    whole = small.sweep(tokens, GRID, "logit_difference", **options)
    path, told = tmp_path / "found.npz", []

    def stop(count):
        told.append(count)
        if len(told) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        small.sweep(tokens, GRID, "logit_difference", path=path, progress=stop, **options)
    assert told == [0, 2, 2]
    told.append(0)
    again = small.sweep(tokens, GRID, "logit_difference", path=str(path), progress=told.append, **options)
    assert told[4:] == [4, 2]
    np.testing.assert_array_equal(again.values, whole.values)
    assert small.sweep(tokens, GRID, "logit_difference", path=path, **options).values.tolist() == whole.values.tolist()
    other = mj.EditGrid("block_out", layers=[1, 2], positions=[0, 5, -1], dims=[3], op="set", value=8.0)
    changed = {**small.params, "embedding": small.params["embedding"] * 2}
    for model, its_tokens, grid, metric, what in (
        (small, tokens, other, "logit_difference", "of other edits"),
        (small, np.where(tokens == tokens[0, 0], 1, tokens), GRID, "logit_difference", "of other tokens"),
        (small.with_params(small.config, changed), tokens, GRID, "logit_difference", "of other model"),
        (small, tokens, GRID, "kl", "of other metric"),
    ):
        with pytest.raises(ValueError, match=f"found.npz' is of another sweep: {what}. Give another"):
            model.sweep(its_tokens, grid, metric, path=path, **options | {"data": CHOICE if metric != "kl" else None})
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match="found.npz' is damaged, or no sweep's"):
        small.sweep(tokens, GRID, "logit_difference", path=path, **options)


def gives_two(out):
    return out.logits[:, -1, :2]


def leaves_jax(out):
    return float(out.logits.sum())


def test_refused(small, tiny_tokens, tiny_vision, tiny_images, compilations, tmp_path):
    zero = mj.Edit("block_out", layer=1, position=0, dim=3)
    nan = mj.Edit("block_out", layer=1, value=float("nan"))
    for edits, message in (
        ([], "edits is empty: there is nothing to sweep"),
        (zero, "edits is Edit.*give a list of Edits"),
        ([zero, []], "units 1 have no edit"),
        ([zero, 3], "edits is 3"),
        ([zero, mj.Edit("block_out", layer=1, position=-9, dim=3)], "units 0 and 1 are the same: .*position=-9"),
        ([zero, mj.Edit("block_out", layer=1, position=9)], "unit 1: edit 0 .*position 9 is out of range"),
        ([nan], "value holds NaN or infinity"),
        (mj.EditGrid("block_out", layers=[1, 1]), "EditGrid: layers names 1 twice"),
        (mj.EditGrid("block_out", positions=[0, -9]), "units 0 and 1 are the same"),
        (mj.EditGrid("block_out", layers=[1, 3]), "^EditGrid: layer 3 is out of range; this model has layers 1 to 2.$"),
        (
            mj.EditGrid("block_out", positions=[0, 9, -10]),
            "position 9, -10 is out of range; there are positions 0 to 8.$",
        ),
        (mj.EditGrid("head_out", heads=[-1]), "^EditGrid: head -1 is out of range; head_out has head 0 to 3.$"),
        (mj.EditGrid("embed", layers=[1]), "embed is outside the blocks: leave layers out"),
        (mj.EditGrid("block_out", value=float("inf")), "^EditGrid: value holds NaN or infinity; give finite numbers.$"),
        (mj.EditGrid("block_out", value="a"), "^unit 0: .*value is 'a'; give a number .* The same of other units.$"),
        (mj.EditGrid("block_out", positions=[]), r"EditGrid: positions is \[\]; give 'every'"),
        (mj.EditGrid("block_out", heads="every"), "block_out has axes BTD and no head"),
        (mj.EditGrid("block_out", layers=None), "block_out is in every block; give layers"),
        (mj.EditGrid("block_out", value=np.zeros((3, 2, 9, 32))), "of 3 layers; the grid has 2"),
    ):
        with pytest.raises(ValueError, match=message):
            small.sweep(tiny_tokens, edits, "loss")
    for options, message in (
        ({"metric": "los"}, "unknown metric 'los'; the metrics are loss, perplexity, logit, .* and functions"),
        ({"metric": "logit"}, "metric logit takes a token as data, by id or text"),
        ({"metric": "logit", "data": 260}, "metric logit: data: token ids from 260 to 260 do not fit the vocabulary"),
        (
            {"metric": "logit", "data": [1, 2, 3]},
            r"data is \[1, 2, 3\]; give a token's id, its text, or one a sequence",
        ),
        ({"metric": "logit", "data": "two"}, "data 'two' is 3 tokens"),
        ({"metric": "logit_difference", "data": 3}, "takes two tokens as data"),
        ({"data": 3}, "metric loss takes no data"),
        ({"metric": gives_two}, r"metric gives_two gives float32\[2, 2\]; it has to give a float, or one a sequence"),
        ({"metric": leaves_jax}, "metric leaves_jax: it fails with"),
        ({"memory": 1000}, "memory is 1,000 bytes; one unit takes .*a metric of the last token"),
        ({"batch": 0}, "batch is 0; give a whole number, 1 or more"),
        ({"progress": "yes"}, "progress is 'yes'; give True, False"),
        ({"path": tmp_path}, "give the name of a file that ends in .npz"),
        ({"path": "a\0.npz"}, "give the name of a file that ends in .npz"),
    ):
        with pytest.raises(ValueError, match=message):
            small.sweep(tiny_tokens, [zero], **{"metric": "loss"} | options)
    with pytest.raises(ValueError, match="it takes images, not tokens"):
        tiny_vision.sweep(tiny_images, [zero], "loss")
    with pytest.raises(ValueError, match="needs at least two tokens a sequence"):
        small.sweep(tiny_tokens[:, :1], [zero], "loss")
    for under in (
        lambda x: small.sweep(x, [zero], "loss"),
        lambda x: small.sweep(tiny_tokens, [mj.Edit("block_out", layer=1, value=x)], "loss"),
        lambda x: small.sweep(tiny_tokens, mj.EditGrid("block_out", value=x), "loss"),
        lambda x: small.sweep(tiny_tokens, [zero], mean_square, data=x),
    ):
        with pytest.raises(ValueError, match="cannot run under a jax transform"):
            jax.jit(under)(tiny_tokens)
    assert compilations() == 0
