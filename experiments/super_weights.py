"""Super weights (arXiv 2411.07191): single weights that massive activations come through, found and pruned.

  python -m experiments.super_weights --text=wikitext2 --workdir=results

Writes super_weights.json and super_weights.png. On the default model with four windows of 512 tokens about 40 s on
two cores; expect one super weight, of the down projection of block 12, 1229 → 507, value 5.88, the second largest of
884,736; on WikiText-2 perplexity 25.5 → 161 when that one weight is 0, and 31.9 when the 1,000 largest
others of its matrix are.

In every block the MLP's largest output has a place (position, dim); the largest input of the down projection at that
position is the weight's row, the dim its column. Where the output is massive (--massive_magnitude, and --massive_ratio
times the median of the block's output) the weight is put to the test: the model with it at 0, beside the model with
the --others largest others of its matrix at 0. It is a super weight if the first is worse than the whole model by 0.1
nats a token and more, and worse than the second, beyond the 95 % intervals of a bootstrap over windows (paired).

Can the birth be told from weights alone (arXiv 2605.08504)? Of every block the most that one unit of its MLP can write
to one dim, given the norm's scale and the MLP's matrices, is set beside where the activations show the birth. Of the
two blocks that have the largest such gain in one dim, the earlier one is named: what is added is taken away later.

Gemma-3-270M with BOS, which has two dims that are large on every token: no super weight, and the weights name block 17
where the largest activation is born at block 7.

super_weights.json: `massive_jax.report.results.SuperWeightsOf`.
"""

from __future__ import annotations

from absl import flags

import massive_jax as mj
from experiments import common
from experiments.flags import definition, model, text
from massive_jax.analysis import Thresholds
from massive_jax.data import Windows, load_text
from massive_jax.evaluate import measure_super_weights, super_weight_passes
from massive_jax.evaluate.super_weights import OTHERS, TESTED
from massive_jax.files import Path, write_json
from massive_jax.report import as_json, plot_super_weights, super_weight_rows, super_weight_title, told_in_words
from massive_jax.report.results import SuperWeightsOf

_OTHERS = flags.DEFINE_integer(
    "others", OTHERS, "How many of the largest other weights of the matrix are 0 for comparison.", lower_bound=1
)
_TESTED = flags.DEFINE_integer(
    "tested", TESTED, "In how many blocks a weight is tested at most: those of the largest outputs.", lower_bound=1
)

if __name__ == "__main__":
    for module in (common, model, text, definition):
        flags.adopt_module_key_flags(module)


def show(result: SuperWeightsOf) -> None:
    """Prints what was found."""
    rows = [(row.key, row.value, row.interval) for row in super_weight_rows(result)]
    common.print_table(("model", "perplexity", "95 % interval"), rows)
    for weight in result.found.tested:
        print(
            f"layer {weight.layer}, {weight.unit} → {weight.dim}: value {weight.value:.4g}, number {weight.rank} of "
            f"{weight.size:,}; {'confirmed' if weight.confirmed else 'not confirmed'}"
        )
    print(f"{super_weight_title(result)}.")
    print(told_in_words(result.found.from_weights))


def run(
    model: mj.Model,
    windows: Windows,
    workdir: Path,
    thresholds: Thresholds,
    *,
    source: str,
    others: int = OTHERS,
    tested: int = TESTED,
) -> SuperWeightsOf:
    """Measures, writes super_weights.json and super_weights.png, and returns what was written."""
    with common.progress(windows.tokens.size * super_weight_passes(tested), "super weights") as progress:
        found = measure_super_weights(
            model, windows, others=others, tested=tested, thresholds=thresholds, progress=progress
        )
    result = SuperWeightsOf(
        **common.header(model, windows.tokens, source, windows.bos),
        predicted_tokens=windows.num_predicted,
        found=found,
    )
    write_json(workdir / "super_weights.json", as_json(result))
    plot_super_weights(result, workdir / "super_weights.png")
    return result


def main() -> None:
    """Runs the binary."""
    out, content = common.workdir(), load_text(text.name())
    found = common.load_model()
    windows = common.windows(found, content, least=2)
    result = run(
        found,
        windows,
        out,
        definition.thresholds(),
        source=text.name(),
        others=_OTHERS.value,
        tested=_TESTED.value,
    )
    show(result)
    print(f"wrote {out / 'super_weights.json'} and {out / 'super_weights.png'}")


if __name__ == "__main__":
    common.run_experiment(main)
