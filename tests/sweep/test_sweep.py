"""Every value of a sweep is that of one run under its edits; one program runs all; files, limits, what is refused."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import massive_jax as mj
from massive_jax.forward import _forward, left_pad
from massive_jax.models import AlibiConfig, AttentionBias
from massive_jax.sweep.run import _swept
from tests.fixtures.tiny import programs

CHOICE = (7, 11)
KINDS = {
    "default": {},
    "alibi, parallel, window": {
        "position": "alibi",
        "alibi": AlibiConfig(),
        "residual": "parallel",
        "window": 5,
        "window_layers": (True, False, True),
    },
    "slots": {"attention_bias": AttentionBias("kv", slots=2), "position": "learned", "logit_softcap": 3.0},
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


def units_of_every_site(config, positions):
    """Units of one edit that does something and one of every other site that does not: they share a program."""
    rng = np.random.default_rng(0)

    def at(site, layer, position, op, value):
        names = (name for name in ("dim", "head", "key") if site.axis_of(name))
        fields = {name: int(rng.integers(0, 2)) for name in names}
        return mj.Edit(
            site.name, layer=layer if site.per_layer else None, position=position, op=op, value=value, **fields
        )

    sites = [site for site in mj.probe.SITES.values() if site.name not in config.absent_sites]
    for site, layer, position in itertools.product(sites, (1, 3), positions):
        if site.per_layer or layer == 1:
            some = (("scale", -1.5),) if site.name == "attn_probs" else (("set", 2.0), ("add", 3.0), ("noise", 2.0))
            op, value = some[int(rng.integers(0, len(some)))]
            unit = [at(other, 3, -1, "scale", 1.0) for other in sites if other is not site]
            yield [*unit, at(site, layer, position, op, value)]


@pytest.mark.parametrize("kind", KINDS)
def test_every_value_is_that_of_a_run(make_model, texts, kind):
    model, (tokens, mask) = make_model(num_layers=3, **KINDS[kind]), texts
    units = list(units_of_every_site(model.config, (0, 9, -1)))
    before = programs(_swept)
    found = model.sweep(tokens, units, "logit_difference", data=CHOICE, mask=mask)
    np.testing.assert_allclose(found.values, one_by_one(model, tokens, units, difference, mask), rtol=2e-4, atol=2e-4)
    assert programs(_swept)[0] == before[0] + 1
    assert (found.effects != 0).sum() > len(units) / 2
    np.testing.assert_allclose(found.unedited, difference(np.asarray(model(tokens, mask=mask).logits)), rtol=1e-4)
