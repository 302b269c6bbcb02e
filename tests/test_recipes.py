"""docs/recipes.md: every recipe, as it stands there, against plain PyTorch; with other arguments it compiles nothing.

Axis letters: see `massive_jax.probe.sites`.
"""

import ast
import contextlib

import numpy as np
import pytest
import torch
import transformers

from massive_jax.forward import Output
from massive_jax.generate import Generation
from tests.fixtures import decoders, parity
from tests.fixtures.hf_reference import LLAMA
from tests.test_docs import _FENCE, read

L, H, N, D = 3, 4, 8, 32
RNG = np.random.default_rng(0)
A, B, C = (RNG.integers(1, 61, (2, 6)) for _ in range(3))  # batches of two sequences
IDS, OTHER_IDS = np.array([7, 9]), np.array([30, 4])
VECTORS = RNG.normal(size=(4, D)).astype(np.float32)
NOISE = RNG.normal(size=(2, 4, D)).astype(np.float32)
LABELS = RNG.integers(0, 2, (2, 2, 6))
BASES = [np.linalg.qr(VECTORS[i : i + 2].T)[0] for i in (0, 2)]
SAES = [
    {
        name: RNG.normal(0, 0.3, shape).astype(np.float32)
        for name, shape in {"W_enc": (D, 48), "b_enc": (48,), "W_dec": (48, D), "b_dec": (D,)}.items()
    }
    for _ in range(2)
]

BLOCKS = [code for _, code in _FENCE.findall(read("docs/recipes.md"))]
REFERENCES = {}


def definitions(code):
    """What a block of the page defines and imports, without what it does."""
    kept = [node for node in ast.parse(code).body if isinstance(node, ast.Import | ast.ImportFrom | ast.FunctionDef)]
    return compile(ast.Module(kept, []), "docs/recipes.md", "exec")


def recipe_of(code):
    """The name of a block's recipe: the last function that it defines."""
    return [node.name for node in ast.parse(code).body if isinstance(node, ast.FunctionDef)][-1]


RECIPES = [recipe_of(code) for code in BLOCKS[1:]]


def same_as(*cases):
    """Says with which arguments a recipe is to give what the function of its name does in PyTorch."""

    def keep(function):
        REFERENCES[function.__name__] = (function, cases)
        return function

    return keep


class Torch:
    """A model of Hugging Face's, whose tensors at sites are kept and changed by hooks."""

    def __init__(self, model):
        self.model, self.norm, self.head = model, model.model.norm, model.lm_head.weight

    def run(self, tokens, changes=(), keep=(), masks=()):
        """Logits, and (site, layer) -> tensor, after `changes`, (site, layer) -> function of it.

        `masks`, layer -> function of the mask [B, H, T, S] that is added to the attention's logits.
        """
        kept, changes, masks = {}, dict(changes), dict(masks)

        def seen(at, x):
            kept[at] = changes[at](x) if at in changes else x
            return kept[at]

        def after(at, item, output):
            if not isinstance(output, tuple):
                return seen(at, output)
            return (*output[:item], seen(at, output[item]), *output[item + 1 :])

        def masked(change, args, kwargs):
            mask = kwargs["attention_mask"].expand(-1, H, -1, -1).clone()
            return args, {**kwargs, "attention_mask": change(mask)}

        with contextlib.ExitStack() as stack:
            for at in dict.fromkeys([*changes, *keep]):
                place = LLAMA.places[at[0]]
                module = self.model.get_submodule(place.module.format(l=at[1] - 1))
                if place.side == "input":
                    handle = module.register_forward_pre_hook(lambda m, args, at=at: (seen(at, args[0]),))
                else:
                    handle = module.register_forward_hook(lambda m, a, out, at=at, i=place.item: after(at, i, out))
                stack.callback(handle.remove)
            for layer, change in masks.items():
                attention = self.model.model.layers[layer - 1].self_attn
                hook = attention.register_forward_pre_hook(
                    lambda m, args, kwargs, change=change: masked(change, args, kwargs), with_kwargs=True
                )
                stack.callback(hook.remove)
            return self.model(torch.tensor(tokens), use_cache=False).logits, kept

    def logits(self, tokens, changes=(), masks=()):
        with torch.no_grad():
            return self.run(tokens, changes, masks=masks)[0]

    def read(self, tokens, site, layer):
        with torch.no_grad():
            return self.run(tokens, keep=[(site, layer)])[1][site, layer]

    def generate(self, tokens, changes, count):
        """Greedily, by a pass over everything for each token: the tokens and each one's logits [n, B, V]."""
        kept = []
        for _ in range(count):
            kept.append(self.logits(tokens, changes)[:, -1])
            tokens = np.concatenate([tokens, kept[-1].argmax(-1, keepdim=True).numpy()], axis=1)
        return tokens, torch.stack(kept)

    def gradients(self, tokens, ids, places, changes=()):
        """Of `difference`, by (site, layer): gradients, and the tensors."""
        logits, kept = self.run(tokens, changes, keep=places)
        tensors = [kept[place] for place in places]
        found = torch.autograd.grad(difference(logits, ids).sum(), tensors)
        return torch.stack(found), torch.stack(tensors).detach()


def difference(logits, ids):
    return logits[:, -1, ids[0]] - logits[:, -1, ids[1]]


def put(value, *index):
    """A function that changes a tensor at an index, which `value` has too if it is as large."""
    index = index or (slice(None),)

    def change(x):
        x = x.clone()
        x[index] = value[index] if torch.is_tensor(value) and value.shape == x.shape else value
        return x

    return change


def put_heads(value, heads, positions=slice(None)):
    """As `put`, of the heads [B, T, H] of a tensor [B, T, H · N]."""

    def change(x):
        split = x.clone().unflatten(-1, (-1, N))
        new = value if not torch.is_tensor(value) else value.unflatten(-1, (-1, N))
        for head in np.atleast_1d(heads):
            split[:, positions, head] = new if not torch.is_tensor(value) else new[:, positions, head]
        return split.flatten(-2)

    return change


def add(vector):
    return lambda x: x + torch.as_tensor(vector)


EVERY = slice(None)


@same_as((A, "block_out", [1, 3]), (B, "block_out", [2, 1]))
def read_(t, tokens, site, layers):
    return torch.stack([t.read(tokens, site, layer) for layer in layers])


REFERENCES["read"] = REFERENCES.pop("read_")  # a name of this file


@same_as((A, [1, 3]), (B, [2, 1]))
def largest(t, tokens, layers):
    streams = read_(t, tokens, "block_out", layers).flatten(2)
    found = streams.abs().topk(3).indices
    return streams.gather(-1, found), found // D, found % D, streams.abs().median(-1).values


@same_as((A, [1, 3], [0, 2]), (B, [3, 2], [1, 0]))
def patterns(t, tokens, layers, heads):
    return read_(t, tokens, "attn_probs", layers)[:, :, heads]


@same_as((A,), (B,))
def induction_scores(t, tokens):
    probs = read_(t, np.tile(tokens, 2), "attn_probs", [1, 2, 3])
    return probs.diagonal(1 - tokens.shape[1], dim1=-2, dim2=-1).mean(-1)


@same_as((A, [1, 3]), (B, [2, 1]))
def lens(t, tokens, layers):
    with torch.no_grad():
        logits = t.norm(read_(t, tokens, "block_out", layers)) @ t.head.T
    found = logits.log_softmax(-1).topk(5)
    return found.indices, found.values


@same_as((A, *IDS), (B, *OTHER_IDS))
def attributed(t, tokens, answer, wrong):
    stream = t.read(tokens, "block_out", L)[:, -1]
    factor = torch.rsqrt(stream.square().mean(-1, keepdim=True) + t.norm.variance_epsilon)
    direction = factor * t.norm.weight.detach() * (t.head[answer] - t.head[wrong]).detach()
    attn, mlp, z = (read_(t, tokens, site, [1, 2, 3])[:, :, -1] for site in ("attn_out", "mlp_out", "head_out"))
    out = torch.stack([block.self_attn.o_proj.weight.detach() for block in t.model.model.layers])
    heads = torch.einsum("lbhn,ldhn,bd->lbh", z.unflatten(-1, (H, N)), out.unflatten(-1, (H, N)), direction)
    return (attn * direction).sum(-1), (mlp * direction).sum(-1), heads


@same_as((A, LABELS[0], 1), (B, LABELS[1], 3))
def probe(t, tokens, labels, layer):
    x = t.read(tokens, "block_out", layer).flatten(0, 1).double()
    x = torch.cat([x, torch.ones(len(x), 1)], dim=1)
    return torch.linalg.solve(x.T @ x + torch.eye(D + 1), x.T @ torch.tensor(labels.ravel()).double())


@same_as((A, B, 1, 3), (B, C, 2, -1))
def patch(t, tokens, other, layer, position):
    return t.logits(tokens, {("block_out", layer): put(t.read(other, "block_out", layer), EVERY, position)})


@same_as((A, B, IDS), (B, C, OTHER_IDS))
def patch_map(t, tokens, other, ids):
    found = [[difference(patch(t, tokens, other, layer, at), ids).mean() for at in range(6)] for layer in (1, 2, 3)]
    return torch.tensor(found)


@same_as((A, B, 1, [1]), (B, C, 3, [0, 2]))
def patch_heads(t, tokens, other, layer, heads):
    return t.logits(tokens, {("head_out", layer): put_heads(t.read(other, "head_out", layer), heads)})


@same_as((A, [1, 0], 1, [3, -1]), (B, [0, 0], 2, [-1, 4]))
def patch_within(t, tokens, order, layer, position):
    def change(x):
        new = x.clone()
        for row, at in enumerate(position):
            if at >= 0:
                new[row, at] = x[order[row], at]
        return new

    return t.logits(tokens, {("block_out", layer): change})


@same_as((A, B, (1, 2), (3, 1)), (B, C, (2, 0), (3, 3)))
def patch_path(t, tokens, other, sender, receiver):
    sites = [(site, layer) for site in ("head_out", "mlp_out") for layer in (1, 2, 3)]
    held = {at: put(t.read(tokens, *at)) for at in sites}
    said = t.read(other, "head_out", sender[0])
    held["head_out", sender[0]] = put_heads(said, sender[1])
    clean = t.read(tokens, "head_out", sender[0])
    held["head_out", sender[0]] = lambda x: put_heads(said, sender[1])(clean)
    arrived = {at: change for at, change in held.items() if at[1] < receiver[0]}
    with torch.no_grad():
        query = t.run(tokens, arrived, keep=[("query", receiver[0])])[1]["query", receiver[0]]
    return t.logits(tokens, {("query", receiver[0]): put_heads(query, receiver[1])})


@same_as((A[:, :5], B, (1, 2), (3, 1)), (C[:, 1:], A, (2, 5), (1, -1)))
def put_into(t, prompt, tokens, source, target):
    state = t.read(tokens, "block_out", source[0])[:, source[1]]
    return t.logits(prompt, {("block_out", target[0]): put(state, EVERY, target[1])})


@same_as((A, NOISE[:, :2], slice(1, 3), 2, 2), (B, NOISE, slice(0, 4), 1, 3))
def trace(t, tokens, noise, subject, layer, position):
    def broken(x):
        x = x.clone()
        x[:, subject] += torch.tensor(noise)
        return x

    clean = put(t.read(tokens, "block_out", layer), EVERY, position)
    return t.logits(tokens, {("embed", 0): broken, ("block_out", layer): clean})


@same_as((A, B, "attn_out", 1), (B, C, "attn_out", 3))
def direct_effect(t, tokens, other, site, layer):
    stream = t.read(tokens, "block_out", L)
    factor = torch.rsqrt(stream.square().mean(-1, keepdim=True) + t.norm.variance_epsilon) * t.norm.weight
    change = t.read(other, site, layer) - t.read(tokens, site, layer)
    return (((stream + change) * factor) @ t.head.T).detach()


@same_as((A, B, BASES[0], 1, 3), (B, C, BASES[1], 2, -1))
def interchange(t, tokens, other, basis, layer, position):
    source, basis = t.read(other, "block_out", layer)[:, position], torch.as_tensor(basis)

    def change(x):
        x = x.clone()
        x[:, position] += (source - x[:, position]) @ basis @ basis.T
        return x

    return t.run(tokens, {("block_out", layer): change})[0]


@same_as((A, B, IDS, BASES[0], 1, 3), (B, C, OTHER_IDS, BASES[1], 2, -1))
def learn_subspace(t, tokens, other, ids, basis, layer, position):
    basis = torch.tensor(basis)
    for _ in range(2):
        basis = basis.detach().requires_grad_()
        out = interchange(t, tokens, other, torch.linalg.qr(basis)[0], layer, position)
        basis = basis - 0.1 * torch.autograd.grad(-difference(out, ids).mean(), basis)[0]
    return torch.linalg.qr(basis)[0]


@same_as((A, 1, [1]), (B, 3, [0, 2]))
def knock_out(t, tokens, layer, heads):
    return t.logits(tokens, {("head_out", layer): put_heads(0.0, heads)})


@same_as((A,), (B,))
def head_effects(t, tokens):
    def loss(logits):
        return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), torch.tensor(tokens)[:, 1:].flatten())

    found = [[loss(knock_out(t, tokens, layer, head)) for head in range(H)] for layer in (1, 2, 3)]
    return torch.tensor(found) - loss(t.logits(tokens))


@same_as((A, [1]), (B, [2, 3]))
def without_blocks(t, tokens, layers):
    return t.logits(tokens, {(site, layer): put(0.0) for site in ("attn_out", "mlp_out") for layer in layers})


@same_as((A, B, "mlp_out", 1), (B, C, "mlp_out", 3))
def mean_ablated(t, tokens, texts, site, layer):
    return t.logits(tokens, {(site, layer): put(t.read(texts, site, layer).mean((0, 1)))})


@same_as((A, "attn_out", 1), (B, "attn_out", 3))
def resampled(t, tokens, site, layer):
    return t.logits(tokens, {(site, layer): lambda x: x[[1, 0]]})


@same_as((A, [1], -1, [2]), (B, [2, 3], 4, [0, 1]))
def cut(t, tokens, layers, query, keys):
    def change(mask):
        mask[:, :, query, keys] = -1e9
        return mask

    return t.logits(tokens, masks=dict.fromkeys(layers, change))


@same_as((A, B, 1, 2), (B, C, 3, 0))
def with_pattern(t, tokens, other, layer, head):
    pattern = t.read(other, "attn_probs", layer)[:, head]
    value = t.read(tokens, "value", layer).unflatten(-1, (-1, N))[:, :, head // 2]  # two heads share one

    def change(x):
        x = x.clone().unflatten(-1, (H, N))
        x[:, :, head] = pattern @ value
        return x.flatten(-2)

    return t.logits(tokens, {("head_out", layer): change})


@same_as((A, 1, False), (B, 2, True))
def without_massive(t, tokens, layer, mean):
    stream = t.read(tokens, "block_out", layer)
    places = [divmod(int(i), D) for i in stream[0].flatten().abs().topk(2).indices]

    def change(x):
        x = x.clone()
        for at, dim in places:
            x[:, at, dim] = stream[:, at, dim].mean() if mean else 0.0
        return x

    return t.logits(tokens, {("block_out", layer): change})


@same_as((A, B, 1), (B, C, 3))
def contrast(t, texts, others, layer):
    return (t.read(texts, "block_out", layer) - t.read(others, "block_out", layer))[:, -1].mean(0)


@same_as((A, VECTORS[0], [2], 4.0, 3), (B, VECTORS[1], [1, 3], -3.0, 3))
def steer(t, tokens, direction, layers, strength, new_tokens):
    return t.generate(tokens, {("block_out", layer): add(strength * direction) for layer in layers}, new_tokens)


@same_as((A, 1, [1], 3), (B, 3, [0, 2], 3))
def generate_without(t, tokens, layer, heads, new_tokens):
    return t.generate(tokens, {("head_out", layer): put_heads(0.0, heads)}, new_tokens)


@same_as((A, VECTORS[0]), (B, VECTORS[1]))
def without_direction(t, tokens, direction):
    unit = torch.tensor(direction / np.linalg.norm(direction))
    taken = {("block_out", layer): lambda x: x - (x @ unit)[..., None] * unit for layer in (1, 2, 3)}
    return t.logits(tokens, taken)


@same_as((A, 1, 7, 5.0), (B, 3, 40, -2.0))
def hold_neuron(t, tokens, layer, neuron, value):
    return t.logits(tokens, {("mlp_hidden", layer): put(value, ..., neuron)})


def encoded(x, sae):
    return torch.relu((x - torch.tensor(sae["b_dec"])) @ torch.tensor(sae["W_enc"]) + torch.tensor(sae["b_enc"]))


@same_as((A, SAES[0], 1), (B, SAES[1], 2))
def spliced(t, tokens, sae, layer):
    def change(x):
        return encoded(x, sae) @ torch.tensor(sae["W_dec"]) + torch.tensor(sae["b_dec"])

    return t.logits(tokens, {("block_out", layer): change})


@same_as((A, SAES[0], 1, 7, 4.0), (B, SAES[1], 2, 40, 0))
def hold_feature(t, tokens, sae, layer, feature, value):
    def change(x):
        return x + (value - encoded(x, sae)[..., feature, None]) * torch.tensor(sae["W_dec"][feature])

    return t.logits(tokens, {("block_out", layer): change})


@same_as((A, IDS, "mlp_out", [1, 3]), (B, OTHER_IDS, "mlp_out", [2, 1]))
def slopes(t, tokens, ids, site, layers):
    return t.gradients(tokens, ids, [(site, layer) for layer in layers])[0]


@same_as((A, B, IDS), (B, C, OTHER_IDS))
def attribution_map(t, tokens, other, ids):
    places = [("block_out", layer) for layer in (1, 2, 3)]
    gradients, here = t.gradients(tokens, ids, places)
    return ((t.gradients(other, ids, places)[1] - here) * gradients).sum(-1)


@same_as((A, IDS, 4), (B, OTHER_IDS, 4))
def integrated_gradients(t, tokens, ids, steps):
    embedded = t.read(tokens, "embed", 0)
    scaled = [(step + 0.5) / steps for step in range(steps)]
    way = [t.gradients(tokens, ids, [("embed", 0)], {("embed", 0): lambda x, s=s: s * x})[0][0] for s in scaled]
    return (embedded * sum(way) / steps).sum(-1)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The same tiny Llama twice, and what the page defines."""
    directory = tmp_path_factory.mktemp("recipes") / "llama"
    theirs = decoders.build(LLAMA, transformers.LlamaConfig(**decoders.SHAPE), directory)
    names = {}
    for code in BLOCKS:
        exec(definitions(code), names)
    return parity.load(directory), Torch(theirs), names


def arrays(result):
    """The numbers of whatever a recipe gives."""
    if isinstance(result, Output):
        return [np.asarray(result.logits)]
    if isinstance(result, Generation):
        return [result.tokens, np.asarray(result.logits)]
    several = result if isinstance(result, tuple) else (result,)
    return [x.detach().numpy() if torch.is_tensor(x) else np.asarray(x) for x in several]


# Those of few programs; each of the others compiles some of its own.
QUICK = (
    *("read", "patterns", "induction_scores", "patch", "patch_within", "interchange", "knock_out", "cut"),
    *("contrast", "without_direction", "spliced", "hold_feature"),
)


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in RECIPES]
)
def test_a_recipe_is_what_torch_does(name, pair, compilations):
    model, theirs, names = pair
    reference, cases = REFERENCES[name]
    found, compiled = [], []
    for case in cases:
        found.append(arrays(names[name](model, *case)))
        compiled.append(compilations())
        expected = arrays(reference(theirs, *case))
        assert len(found[-1]) == len(expected)
        for ours, its in zip(found[-1], expected, strict=True):
            np.testing.assert_allclose(ours, its, rtol=1e-4, atol=1e-4)
    assert compiled[0] == compiled[1], "other arguments compiled something"
    assert np.abs(found[0][-1] - found[1][-1]).max() > 1e-2  # the arguments do something


def test_the_recipes_are_many_and_short():
    """All that is on the page is compared here; ten lines with the call at the end, empty ones not counted."""
    assert len(RECIPES) >= 20
    assert set(RECIPES) == set(REFERENCES)
    for code in BLOCKS[1:]:
        assert len([line for line in code.splitlines() if line.strip()]) <= 10, recipe_of(code)
        assert max(map(len, code.splitlines())) <= 120, recipe_of(code)
