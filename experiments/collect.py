"""Collects activations into a store on disk: rows of a model's sites over a text, to train an SAE or a probe on.

  python -m experiments.collect --activations=block_out:15 --workdir=results
  python -m experiments.collect --text=FILE --tokens=1000000 --activations=block_out:15,mlp_out:15 --shuffle
  python -m experiments.collect --activations=block_out:15 --store_dtype=bfloat16 --rows=normal

Writes the directory activations, safetensors and an index.json: of every token a row of each site, the token, position
and window, and whether it is massive or a sink in a layer that is kept; of the rows' norms the quantiles, with these
tokens and without. `massive_jax.collect.ActivationStore` reads it. Of the default model's block 15 expect one massive
token in a window of 128, with 190 times the median norm: what an SAE would spend its loss on. Blocks after the last
that is kept are not run; windows are consecutive runs of --context tokens, all that the text fills. A run that is
killed goes on where it was when it is started again with the same flags, and writes the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

from absl import flags

import massive_jax as mj
from experiments import common
from experiments.flags import definition, model, seed, text
from massive_jax.collect import STORED_DTYPES, ActivationStore, collect_activations
from massive_jax.data import cut_windows, load_text, text_name
from massive_jax.probe.sites import find_site

_ACTIVATIONS = flags.DEFINE_list(
    "activations", [], "SITE:LAYER,…, or SITE for one outside the blocks (default block_out of the middle layer)."
)
_TOKENS = flags.DEFINE_integer("tokens", None, "How many, about: whole windows (default all).", lower_bound=1)
_STORE_DTYPE = flags.DEFINE_enum("store_dtype", "float32", STORED_DTYPES, "Of the rows in the store.")
_ROWS = flags.DEFINE_enum("rows", "all", ("all", "normal"), "'normal' leaves out massive and sink tokens.")
_SHUFFLE = flags.DEFINE_bool("shuffle", False, "Windows in random order, and the rows within a shard.")
_SHARD_ROWS = flags.DEFINE_integer(
    "shard_rows", None, "Rows of a shard, about (default 32,768, or what 256 MiB hold).", lower_bound=1
)
_SINKS = flags.DEFINE_bool("sinks", True, "Tells sink tokens, which needs attention's probabilities.")
_COLUMNS = ("site", "median norm", "99 %", "largest", "without massive and sinks: median", "99 %", "largest")
_SHOWN = (0.5, 0.99, 1.0)

if __name__ == "__main__":
    for module in (common, model, text, definition, seed):
        flags.adopt_module_key_flags(module)


def parse_activations(words: Sequence[str]) -> list[tuple[str, int | None]]:
    """Reads what --activations says: (site, layer) pairs; ValueError where it cannot be read."""
    found: list[tuple[str, int | None]] = []
    for word in words:
        site, colon, layer = word.strip().partition(":")
        per_layer = find_site(site).per_layer
        if per_layer != (colon == ":") or (per_layer and not (layer.isascii() and layer.isdecimal())):
            example = f"{site}:12" if per_layer else site
            raise ValueError(f"--activations: cannot read {word!r}; write {example}.")
        found.append((site, int(layer) if per_layer else None))
    if len(set(found)) < len(found):
        raise ValueError(f"--activations={','.join(words)} names a site and layer twice.")
    return found


def captures(kept: Sequence[tuple[str, int | None]], num_layers: int) -> list[mj.Capture]:
    """The captures that are asked for; of a model's middle layer where none are."""
    kept = kept or [("block_out", max(1, num_layers // 2))]
    sites = dict.fromkeys(site for site, _ in kept)
    layers = {site: [layer for name, layer in kept if name == site and layer is not None] for site in sites}
    return [mj.Capture(site, layers=layers[site] or None) for site in sites]


def show(store: ActivationStore) -> None:
    """Prints the quantiles of the norms, and how many tokens are odd."""
    quantiles, norms = store.index["quantiles"], store.index["norms"]
    at = [quantiles.index(q) for q in _SHOWN]
    rows = [
        (name, *(of[where][i] if of[where] else None for where in ("all", "normal") for i in at))
        for name, of in norms.items()
    ]
    common.print_table(_COLUMNS, rows)
    counts = store.index["counts"]
    sinks = f", {counts['sink']:,} sinks" if "sink" in counts else ""
    print(f"{store.index['tokens']:,} tokens, {len(store):,} rows: {counts['massive']:,} massive{sinks}")


def main() -> None:
    """Runs the binary."""
    kept, out = parse_activations(_ACTIVATIONS.value), common.workdir(shared=True) / "activations"
    if _TOKENS.value is not None:
        common.without_effect(("windows",), "beside --tokens")
    content = load_text(text.name())
    found = mj.TextModel.of(common.load_model())
    bos = model.BOS.value
    context = text.context(found.config.context_length - bos)
    count = text.WINDOWS.value if _TOKENS.value is None else -(-_TOKENS.value // (context + bos))
    windows = cut_windows(found, content, context=context, windows=count, bos=bos)
    with common.progress(windows.tokens.size, f"activations of {found.title}") as progress:
        store = collect_activations(
            found,
            windows,
            out,
            captures(kept, found.config.num_layers),
            dtype=_STORE_DTYPE.value,
            rows=_ROWS.value,
            shuffle=_SHUFFLE.value,
            seed=seed.SEED.value,
            shard_rows=_SHARD_ROWS.value,
            sinks=_SINKS.value,
            thresholds=definition.thresholds(),
            about={"text": text_name(text.name())},
            progress=progress,
        )
    show(store)
    print(f"wrote {out / 'index.json'} and {store.num_shards} shards")


if __name__ == "__main__":
    common.run_experiment(main)
