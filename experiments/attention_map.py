"""Attention of one layer, before and after the softmax, and the share of it that lands on the massive tokens per layer.

  python -m experiments.attention_map --layer=13 --head=mean --workdir=results
  python -m experiments.attention_map --model=dinov2_large --images=FILE

Writes attention_map.json, attention_map.npz (logits and probs, [T, S], masked entries NaN) and attention_map.png.
On the default model about 6 s; expect most of the attention on position 0 after layer 12 (paper, section 4).

attention_map.json: `massive_jax.report.results.AttentionMap`. Of an image: the first.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from absl import flags

import massive_jax as mj
from experiments import common
from experiments.flags import definition, layer, model, prompt
from massive_jax.analysis import attention_shares, find_massive
from massive_jax.evaluate import LayerTable, input_length, measure_layers
from massive_jax.files import Path, atomic_write, write_json
from massive_jax.models.attention import LOWEST, attention_probs
from massive_jax.parallel import fetch
from massive_jax.report import as_json, label, plot_attention
from massive_jax.report.results import AttentionMap

_probs: Any = jax.jit(attention_probs, static_argnums=0)  # one program, where its steps would be five

_HEAD = flags.DEFINE_string("head", "mean", "Head to draw, from 0; 'mean' averages over the heads.")
flags.register_validator(_HEAD, lambda text: text == "mean" or text.isdecimal(), "give 'mean' or a head, from 0 on.")

if __name__ == "__main__":
    for module in (common, model, prompt, layer, definition):
        flags.adopt_module_key_flags(module)
    for name in ("images", "image_size"):
        flags.declare_key_flag(name)


def parse_head(num_heads: int) -> int | None:
    """The head asked for; None for the mean. ValueError where the model does not have it."""
    text = _HEAD.value
    if text == "mean":
        return None
    if int(text) >= num_heads:
        raise ValueError(f"--head={text}: give 'mean' or a head of this model, 0 to {num_heads - 1}.")
    return int(text)


@dataclasses.dataclass(frozen=True)
class Seen:
    """Holds what one pass over one input gives.

    Attributes:
      mass: share of attention on every key, averaged over queries, [L, 1, H, S].
      logits: of the layer looked at, before the mask, float32 [H, T, S].
      hidden: output of the block asked for, float32 [T, D]; None where none was.
    """

    mass: np.ndarray
    logits: np.ndarray
    hidden: np.ndarray | None


def layer_after(table: LayerTable) -> int:
    """Gives the layer that is drawn: the one after activations reach full size."""
    return min(table.full_size_layer + 1, len(table.layers))


def captures(number: int, block: int | None = None) -> list[mj.Capture]:
    """What `look` keeps: the share on every key in every layer, whole logits of layer `number`, one block's output."""
    # Probabilities are made of the logits.
    found = [mj.Capture("attn_probs", mass=True), mj.Capture("attn_logits", layers=(number,))]
    return found if block is None else [*found, mj.Capture("block_out", layers=(block,))]


def look(model: mj.Model, inputs: np.ndarray, number: int, block: int | None = None) -> Seen:
    """Runs one input: the attention of layer `number`, and the output of `block`, in one program for any layers."""
    found = fetch(model(inputs, capture=captures(number, block), logits=False).intermediates)
    hidden = None if block is None else np.asarray(found["block_out"][0, 0], np.float32)
    return Seen(found["attn_probs"].mass, found["attn_logits"][0, 0], hidden)


def run(
    model: mj.Model,
    inputs: np.ndarray,
    table: LayerTable,
    number: int | None,
    head: int | None,
    workdir: Path,
    source: Sequence[str] | None = None,
    seen: Seen | None = None,
) -> AttentionMap:
    """Draws layer `number` (None: the one after activations reach full size) for one input; returns the result.

    `seen` is what `look` found of this layer; None to look.
    """
    number = number or layer_after(table)
    seen = seen or look(model, inputs, number)
    windowed = model.config.window_layers is None or model.config.window_layers[number - 1]
    distance = np.subtract.outer(*(np.arange(input_length(model, inputs)),) * 2)
    visible = (distance >= 0) | (not model.config.causal)
    if windowed and model.config.window is not None:
        visible &= distance < model.config.window
    # The slots of an attention bias are the last keys, in sight of every query.
    visible = np.pad(visible, ((0, 0), (0, model.config.num_slots)), constant_values=True)
    every = np.asarray(_probs(model.config, np.where(visible, seen.logits, np.float32(LOWEST))))
    logits, probs = (np.where(visible, _over_heads(x, head), np.nan) for x in (seen.logits, every))
    massive = [find_massive(summary.locations) for summary in table.layers]
    positions = sorted({int(found.position) for layer in massive for found in layer})
    tokens, slots = common.token_texts(model, inputs), range(1, model.config.num_slots + 1)
    result = AttentionMap(
        **common.header(model, inputs, source),
        tokens=tokens,
        layer=number,
        head="mean" if head is None else head,
        massive_positions=tuple(positions),
        shares=tuple(float(s) for s in attention_shares(seen.mass, positions)),
        emergence_layer=next((i for i, found in enumerate(massive, 1) if found), None),
        key_tokens=(*tokens, *(f"slot {i}" for i in slots)) if slots else None,
    )
    write_json(workdir / "attention_map.json", as_json(result))
    with atomic_write(workdir / "attention_map.npz") as path:
        np.savez_compressed(path, logits=logits, probs=probs)
    plot_attention(result, logits, probs, workdir / "attention_map.png")
    return result


def _over_heads(x: np.ndarray, head: int | None) -> np.ndarray:
    """[H, T, S] -> [T, S]."""
    return x.mean(axis=0) if head is None else x[head]


def main() -> None:
    """Runs the binary."""
    common.check_inputs(one_prompt=True)
    layer.check_one()
    out, lm = common.workdir(), common.load_model()
    number, head = layer.parse_layer(lm.config.num_layers), parse_head(lm.config.num_heads)
    inputs, source = common.prompt_or_image(lm)
    table = measure_layers(lm, inputs, thresholds=definition.thresholds())
    result = run(lm, inputs, table, number, head, out, source)
    if result.massive_positions:
        where = ", ".join(f"{p} {label(result.tokens[p])}" for p in result.massive_positions)
        print(f"massive tokens at position {where}; from layer {result.emergence_layer} on")
        common.print_table(("layer", "attention on them"), list(enumerate(result.shares, 1)))
    else:
        print("no token has a massive activation at any layer.")
    print(f"wrote {out / 'attention_map.json'}, .npz and .png")


if __name__ == "__main__":
    common.run_experiment(main)
