"""A trained model's implicit attention bias made explicit: a prefix leaves the sequence and becomes keys and values.

  python -m experiments.explicit_bias --prefix=bos --windows=4 --context=512 --workdir=results

The keys and values of --prefix at every layer and head become slots of an explicit attention bias (paper, section 5),
the prefix leaves the sequence, and the outputs stay what they were. With it the massive activations leave the residual
stream, if they are the prefix's alone: in the default model; in Gemma-3-270M (--model=gemma3_270m_q4_k_m), where two
dims are large on every token, 103,795 only becomes 97,767. --prefix=mean takes the mean keys and values of the windows'
first tokens instead, for models whose sink is not a fixed token (this is not exact). --save=DIR keeps the new model:
any --model takes it.

On the default model with four windows of 512 tokens of the built-in text one to three minutes; expect the largest
activation to fall from 24,926 to 884, the perplexity to stay at 15.8, and the perplexity with every linear map's input
in int8 (one scale per tensor) to be about 19 instead of 29. What is left between the logits is rounding, as
--dtype=float64 shows.

Each window is --context tokens of text, after the prefix. Perplexities are over the same tokens: those from the second
of each window on. Writes explicit_bias.json (`massive_jax.report.results.ExplicitBias`) and explicit_bias.png, the
layers before and after.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from absl import flags

import massive_jax as mj
from experiments import common
from experiments.flags import paths
from experiments.flags import text as text_flags
from massive_jax.bias import absorb_mean, absorb_prefix, rebuild
from massive_jax.data import Windows, cut_windows, load_text, text_name
from massive_jax.evaluate import compare_logits, measure_profile
from massive_jax.evaluate.profile import PASSES
from massive_jax.files import Path, is_there, user_path, write_json
from massive_jax.loading import save
from massive_jax.report import as_json, number, plot_profiles, precision
from massive_jax.report.results import ExplicitBias, LogitsApart, Prefix, Profiles

_PREFIX = flags.DEFINE_string(
    "prefix", "bos", "What stands in front of every window: 'bos'; a text; or 'mean' (see above)."
)
_SAVE = paths.define("save", None, "Where to keep the new model: a directory that is not there yet.")

if __name__ == "__main__":
    for module in (common, text_flags):
        flags.adopt_module_key_flags(module)
    for name in ("model", "revision", "dtype", "allow_nonfinite", "workdir"):
        flags.declare_key_flag(name)


def prefix_tokens(model: mj.TextModel, prefix: str) -> list[int]:
    """Token ids of `prefix`; none for "mean"."""
    if prefix == "mean":
        return []
    if prefix == "bos":
        return [model.bos_id()]
    return model.encode(prefix)


def run(
    model: mj.TextModel, windows: Windows, prefix: Sequence[int], workdir: Path, *, text: str, name: str
) -> tuple[ExplicitBias, mj.Model]:
    """Measures the model behind `prefix` and the new one without; writes the results, returns them and the new model.

    `windows` are without the prefix; an empty one stands for the mean of their first tokens.
    """
    tokens, language = windows.tokens, model.config
    if prefix:
        config, params = absorb_prefix(language, model.params, prefix)
    else:
        config, params = absorb_mean(language, model.params, tokens)
    explicit = rebuild(model, config, params)
    front = np.tile(np.asarray(prefix, np.int32), (len(tokens), 1))
    behind = dataclasses.replace(windows, tokens=np.concatenate([front, tokens], axis=1))
    with common.progress((behind.tokens.size + tokens.size) * (PASSES + 1), "measuring") as progress:
        profiles = {
            "original": measure_profile(model, behind, skip=len(prefix), progress=progress),
            "explicit": measure_profile(explicit, windows, progress=progress),
        }
        logits = compare_logits(model, behind.tokens, explicit, tokens, progress)
    result = ExplicitBias(
        model=model.name,
        weights=common.stored_as(model),
        dtype=model.config.dtype,
        text=text,
        windows=len(tokens),
        context=windows.context,
        prefix=Prefix(text=name, tokens=tuple(prefix)),
        perplexity={which: p.original for which, p in profiles.items()},
        largest={which: float(p.largest.max()) for which, p in profiles.items()},
        int8_per_tensor={which: p.quantized for which, p in profiles.items()},
        logits=LogitsApart(**dataclasses.asdict(logits)),
        layers={which: common.profile_layers(p) for which, p in profiles.items()},
    )
    write_json(workdir / "explicit_bias.json", as_json(result))

    def change(pair: Mapping[str, float]) -> str:
        return f"{number(pair['original'])} → {number(pair['explicit'])}"

    figure = Profiles(
        title=f"{model.title}, {name} as explicit bias: largest activation {change(result.largest)}",
        conditions=f"{precision(result)} · {len(tokens)} windows of {windows.context} tokens · perplexity "
        f"{change(result.perplexity)}, int8 {change(result.int8_per_tensor)} · dotted: median",
        models=tuple(common.profile_curves(which, p) for which, p in profiles.items()),
    )
    plot_profiles(figure, workdir / "explicit_bias.png")
    return result, explicit


def show(result: ExplicitBias) -> None:
    """Prints the table."""
    rows = [
        (what, *(pair[which] for which in ("original", "explicit")))
        for what, pair in (
            ("perplexity", result.perplexity),
            ("perplexity, int8 inputs, a scale per tensor", result.int8_per_tensor),
            ("largest activation", result.largest),
        )
    ]
    common.print_table(("", "original", "explicit"), rows)
    found = result.logits
    print(
        f"logits differ by at most {number(found.largest_difference)}, and by {found.relative_difference:.1e} of "
        f"their norm at any of {found.positions:,} positions; by more than 1e-4 at {found.beyond}"
    )


def main() -> None:
    """Runs the binary."""
    if not _PREFIX.value:
        raise ValueError("--prefix is empty; give 'bos', 'mean' or a text.")
    out, content = common.workdir(), load_text(text_flags.name())
    if _SAVE.value is not None and (not _SAVE.value or is_there(user_path(_SAVE.value))):
        raise ValueError(f"--save={_SAVE.value}: give a directory that is not there yet.")
    lm = mj.TextModel.of(common.load_model())
    prefix = prefix_tokens(lm, _PREFIX.value)
    # One token of the context is the mean's, which has no prefix in front.
    room = lm.config.context_length - max(1, len(prefix))
    if room < 2:
        raise ValueError(f"a prefix of {len(prefix)} tokens leaves no room for text in the model's context.")
    windows = cut_windows(
        lm, content, context=text_flags.context(room), windows=text_flags.windows(), bos=False, tokens=2
    )
    if windows.context > room:
        raise ValueError(
            f"a context of {windows.context} tokens and the prefix are longer than the model's "
            f"{room + max(1, len(prefix))}."
        )
    result, explicit = run(lm, windows, prefix, out, text=text_name(text_flags.name()), name=_PREFIX.value)
    if _SAVE.value is not None:
        save(explicit, _SAVE.value)
    show(result)
    print(f"wrote {out / 'explicit_bias.json'} and .png{f', and the model to {_SAVE.value}' if _SAVE.value else ''}")


if __name__ == "__main__":
    common.run_experiment(main)
