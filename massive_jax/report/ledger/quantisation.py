"""Claims about outliers in eight bits, and about prefixes that take them away."""

from __future__ import annotations

from collections.abc import Sequence

from massive_jax.report.ledger import readings as read
from massive_jax.report.ledger.claim import Claim
from massive_jax.report.ledger.language import GEMMA, REFINED, SMOL

_RUNS = ((SMOL, "smollm2/explicit_bias"), (GEMMA, "gemma/explicit_bias"))


def quantisation() -> Sequence[Claim]:
    """Gives the claims about outliers in eight bits, and prefixes that take them away."""
    made = tuple((model, f"{model}, BOS as an attention bias", run) for model, run in _RUNS)
    return [
        *(
            Claim(
                paper="2208.07339",
                states="Outliers ruin inputs in int8 with one scale a tensor.",
                theirs="OPT-6.7B and larger: accuracy at chance",
                model=model,
                measure=read.of(run, read.int8_loss),
                holds=lambda ratio: ratio >= 1.25,
                rule="perplexity at least a quarter higher",
            )
            for model, _, run in made
        ),
        *(
            Claim(
                paper="2403.01241",
                states="A prefix's keys and values can be kept and the prefix left out, without loss.",
                theirs="lossless",
                model=biased,
                measure=read.of(run, read.lossless),
                holds=lambda apart: apart <= 1e-4,
                rule="logits apart by at most 10⁻⁴ of their norm at every position",
            )
            for _, biased, run in made
        ),
        *(
            Claim(
                paper="2410.05265",
                states="With outlier tokens in such a prefix, no outliers are left in the sequence.",
                theirs="Llama-2-7B, figures",
                model=biased,
                measure=read.of(run, read.fall),
                holds=lambda times: times >= 10,
                rule="largest activation at least 10 times smaller",
            )
            for _, biased, run in made
        ),
        *(
            Claim(
                paper="2410.05265",
                states="Then static quantisation with one scale a tensor works.",
                theirs="Llama-3-8B W4A4KV4: WikiText perplexity 7.43, unquantised 6.14",
                model=f"{biased}, int8",
                measure=read.of(run, read.regained),
                holds=lambda share: share >= 0.5,
                rule="at least half of int8's loss, in nats, comes back",
            )
            for _, biased, run in made
        ),
        *(
            Claim(
                paper=REFINED,
                states="In some models a key and value bias does not take the massive activations away.",
                theirs="GPT-2 trained so, and others",
                model=f"{biased}, not trained so",
                measure=read.of(run, read.fall),
                holds=lambda times: times <= 2,
                rule="largest activation at most halved",
            )
            for _, biased, run in made
        ),
        Claim(
            paper="2601.22966",
            states="Clipping outliers hurts, a gate after the norm helps: −1.2 points at W4A4.",
            theirs="own pre-trainings",
            why="pre-trainings of that size",
        ),
    ]
