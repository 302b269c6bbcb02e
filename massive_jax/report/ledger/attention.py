"""Claims about attention in trained language models: sinks, and what they do."""

from __future__ import annotations

from collections.abc import Sequence

from massive_jax.report.ledger import attention_readings as attend
from massive_jax.report.ledger import readings as read
from massive_jax.report.ledger.claim import Claim
from massive_jax.report.ledger.language import GEMMA, MASSIVE, SMOL, each_of

_SINKS = "2410.10781"


def attention() -> Sequence[Claim]:
    """Gives the claims about sinks, and what they do."""
    rows = [
        *each_of(
            "census",
            lambda model, run: Claim(
                paper=MASSIVE,
                states="From where they appear on, attention goes to their tokens.",
                theirs="LLaMA2-7B, figures",
                model=model,
                measure=read.of(run, read.sink_after_birth),
                holds=lambda ratio: ratio >= 2,
                rule="twice the attention on position 0 in the layers after the birth as up to it",
            ),
        ),
        *each_of(
            "attention",
            lambda model, run: Claim(
                paper=MASSIVE,
                states="Attention concentrates on them.",
                theirs="LLaMA2-7B, figures",
                model=model,
                measure=read.of(run, attend.concentration),
                holds=lambda times: times >= 3,
                rule="at least 3 times the attention on massive tokens, after the birth, that a uniform one gives",
            ),
        ),
        *each_of(
            "attention",
            lambda model, run: Claim(
                paper=MASSIVE,
                states="Before the softmax their logits are slightly positive, the others' negative.",
                theirs="LLaMA2-7B, figures",
                model=model,
                measure=read.of(run, attend.signs),
                holds=lambda least: least > 0,
                rule="the one mean above 0, the other below",
            ),
        ),
        *each_of(
            "attention",
            lambda model, run: Claim(
                paper=MASSIVE,
                states="After the norm they are alike.",
                theirs="LLaMA2-7B, figures",
                model=model,
                measure=read.of(run, attend.alike),
                holds=lambda cosine: cosine >= 0.9,
                rule="mean cosine of two massive tokens' normed inputs at least 0.9, in the median layer",
            ),
        ),
        *each_of(
            "attention",
            lambda model, run: Claim(
                paper=MASSIVE,
                states="After the norm they are sparse.",
                theirs="LLaMA2-7B, figures",
                model=model,
                measure=read.of(run, attend.sparse),
                holds=lambda times: times >= 2,
                rule="twice as much of the squared norm in the largest hundredth of the dims as of other tokens",
            ),
        ),
        *each_of(
            "attention",
            lambda model, run: Claim(
                paper="2512.22213",
                states="Other tokens become sinks in later layers: an MLP turns them towards the first token.",
                theirs="of several model families",
                model=model,
                measure=read.of(run, attend.secondary),
                holds=lambda count: count >= 8,
                rule="such a token 8 times in 32 windows, the MLP's update with a cosine of 0.5 or more",
            ),
        ),
        *each_of(
            "census",
            lambda model, run: Claim(
                paper=MASSIVE,
                states="What their tokens add to the others is nearly the same everywhere: an implicit bias.",
                theirs="LLaMA2-7B, figures",
                model=model,
                measure=read.of(run, read.bias_against_rest),
                holds=lambda ratio: ratio <= 0.5,
                rule="`bias_spread` at most half of `rest_spread`",
            ),
        ),
        *each_of(
            "census",
            lambda model, run: Claim(
                paper=MASSIVE,
                states="It is so by more than chance: random tokens' updates change more.",
                theirs="no number",
                model=model,
                measure=read.of(run, read.under_null),
                holds=lambda share: share >= 0.8,
                rule="`bias_spread` under 97.5 % of random tokens' in four of five layers after the birth",
            ),
        ),
        *(
            Claim(
                paper=_SINKS,
                states="Attention sinks are in every model, small ones too, with BOS or without.",
                theirs="sink rates from LLaMA2-7B down to small Pythias",
                model=model,
                measure=read.of(f"{folder}/census", read.sink_rate),
                holds=lambda rate: rate >= 0.3,
                rule="sink rate (ε = 0.3, 64 tokens) at least 30 %",
            )
            for model, folder in (
                (f"{SMOL}, no BOS", "smollm2"),
                (f"{SMOL}, BOS", "smollm2_bos"),
                (f"{GEMMA}, no BOS", "gemma"),
                (f"{GEMMA}, BOS", "gemma_bos"),
            )
        ),
        Claim(
            paper="2603.05498",
            states="Massive activations go without sinks.",
            theirs="own trainings: without pre-norm the two come apart",
            model=f"{GEMMA}, no BOS",
            measure=read.of("gemma/census", read.spike_without_sink),
            holds=lambda rate: rate <= 0.05,
            rule="massive activations, and a sink rate of at most 5 %",
        ),
        Claim(
            paper="2504.02732",
            states="Where BOS was always first in training, the sink is BOS's: it leaves with it.",
            theirs="Gemma-7B, figures and own trainings",
            model=GEMMA,
            measure=read.lost_sink("gemma_bos/census", "gemma/census"),
            holds=lambda share: share <= 0.1,
            rule="at most a tenth of the sink rate is left without BOS",
        ),
        Claim(
            paper="2504.02732",
            states="The same, as a control: where it was not always first, the sink stays.",
            theirs="LLaMA 3.1, own trainings",
            model=SMOL,
            measure=read.lost_sink("smollm2_bos/census", "smollm2/census"),
            holds=lambda share: share >= 0.5,
            rule="at least half of the sink rate is left without BOS",
        ),
        *each_of(
            "census",
            lambda model, run: Claim(
                paper="2410.13835",
                states="A sink's values are small: it takes attention and adds little (value-state drain).",
                theirs="Llama-2-7B, OLMo, figures",
                model=model,
                measure=read.of(run, read.value_norms),
                holds=lambda ratio: ratio <= 0.5,
                rule="its value norm at most half of the others', in the median layer after the birth",
            ),
        ),
        *each_of(
            "census",
            lambda model, run: Claim(
                paper="2606.08105",
                states="There are two kinds of sinks: those that add nothing, and those that broadcast.",
                theirs="told by the value norm",
                model=model,
                measure=read.of(run, read.broadcasting),
                holds=lambda count: count >= 1,
                rule="a layer with a value norm ratio above 1 and one with less than 0.5",
            ),
        ),
        Claim(
            paper="2504.02732",
            states="With a sink, a change of one token spreads less to the others.",
            theirs="Gemma-7B, figures",
            why="no experiment of this project measures it yet",
        ),
        Claim(
            paper="2605.06611",
            states="Normalising every head's output speeds up convergence and restores the first token's variance.",
            theirs="own pre-trainings",
            why="pre-trainings of that size",
        ),
    ]
    return rows
