"""Claims about trained language models: what is massive, what it is for, what attention makes of it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

from massive_jax.report.ledger import readings as read
from massive_jax.report.ledger.claim import Claim

SMOL, GEMMA = "SmolLM2-135M-Instruct", "Gemma-3-270M"
# Models and where BOS is: the name in a row, and the folder of the results.
PLAIN = ((f"{SMOL}, no BOS", "smollm2"), (f"{GEMMA}, BOS", "gemma_bos"))
_MASSIVE, _SINKS, _SUPER, _REFINED = "2402.17762", "2410.10781", "2411.07191", "2503.22329"


def _each(run: str, make: Callable[[str, str], Claim]) -> list[Claim]:
    return [make(model, f"{folder}/{run}") for model, folder in PLAIN]


def activations() -> Sequence[Claim]:
    """Gives the claims about where and how large massive activations are."""
    return [
        *_each(
            "census",
            lambda model, run: Claim(
                paper=_MASSIVE,
                states="Some activations are above 100 and a thousand times the median of their hidden state.",
                theirs="LLaMA2-7B: about 2,500, median about 0.2",
                model=model,
                measure=read.of(run, read.largest_over_median),
                holds=lambda ratio: ratio >= 1000,
                rule="above 100 and 1,000 times the median at position 0",
            ),
        ),
        *_each(
            "census",
            lambda model, run: Claim(
                paper=_MASSIVE,
                states="They are at few dims, the same in every layer.",
                theirs="LLaMA2-7B: 1415 and 2533",
                model=model,
                measure=read.of(run, read.dims),
                holds=lambda count: count <= 4,
                rule="at most 4 dims are the largest of position 0, over all layers from the birth on",
            ),
        ),
        *_each(
            "census",
            lambda model, run: Claim(
                paper=_MASSIVE,
                states="Their values hardly change with the input.",
                theirs="near constant: setting them to their mean leaves the perplexity (LLaMA2-7B)",
                model=model,
                measure=read.of(run, read.spread),
                holds=lambda share: share <= 0.1,
                rule="standard deviation over windows at most a tenth of the mean",
            ),
        ),
        *_each(
            "census",
            lambda model, run: Claim(
                paper=_MASSIVE,
                states="They appear in one of the first layers, and stay as they are through most of the network.",
                theirs="LLaMA2-7B: blocks 1 to 29 of 32",
                model=model,
                measure=read.of(run, read.plateau),
                holds=lambda share: share >= 0.5,
                rule="at least 0.8 of the largest mean magnitude after half of the layers",
            ),
        ),
        *_each(
            "census",
            lambda model, run: Claim(
                paper=_MASSIVE,
                states="They fade in the last layers.",
                theirs="LLaMA2-7B: gone after the last block",
                model=model,
                measure=read.of(run, read.remains),
                holds=lambda share: share <= 0.2,
                rule="at most a fifth of the largest mean magnitude is left after the last block",
            ),
        ),
        *_each(
            "census",
            lambda model, run: Claim(
                paper=_SUPER,
                states="The activation that a super weight makes stays at its value to the end of the model.",
                theirs="Llama-7B: the same magnitude in every later layer",
                model=model,
                measure=read.of(run, read.remains),
                holds=lambda share: share >= 0.8,
                rule="at least 0.8 of the largest mean magnitude is left after the last block",
            ),
        ),
        *_each(
            "census",
            lambda model, run: Claim(
                paper=_SUPER,
                states="It is made in one of the first blocks.",
                theirs="Llama-7B: block 3 of 32; Mistral-7B: 2 of 32",
                model=model,
                measure=read.of(run, read.depth_of_birth),
                holds=lambda share: share <= 0.25,
                rule="half of the largest mean magnitude is there in the first quarter of the blocks",
            ),
        ),
        *_each(
            "census",
            lambda model, run: Claim(
                paper=_MASSIVE,
                states="They are at the first token, delimiters and weak words.",
                theirs='LLaMA2-7B: start, first delimiter; others: "and", "from", "of" or "2" too',
                model=model,
                measure=read.of(run, read.on_few_tokens),
                holds=lambda share: share >= 0.95,
                rule="95 % of those that meet the definition are at these",
            ),
        ),
        *_each(
            "census",
            lambda model, run: Claim(
                paper="2603.05498",
                states="One MLP of an early block makes them at one step.",
                theirs="Llama and Qwen models, figures",
                model=model,
                measure=read.of(run, read.made_by_mlp),
                holds=lambda share: share >= 0.9,
                rule="of the largest step, the MLP adds nine tenths",
            ),
        ),
        *_each(
            "census",
            lambda model, run: Claim(
                paper="2603.05498",
                states="They are taken back at one step near the end.",
                theirs="Llama and Qwen models, figures",
                model=model,
                measure=read.of(run, read.stepped_down),
                holds=lambda share: share >= 0.75,
                rule="the first step down by more than half is in the last quarter of the blocks",
            ),
        ),
        *(
            Claim(
                paper="2601.22966",
                states="Some dims are large on every token (residual sinks).",
                theirs="several model families, figures",
                model=model,
                measure=read.of(f"{folder}/census", read.residual_sink),
                holds=lambda ratio: ratio >= 20,
                rule="a dim that is the largest on nine tenths of the tokens, there 20 times the median (said as “most "
                "tokens” first; changed when the mean was seen to have the first token in it)",
            )
            for model, folder in ((f"{SMOL}, no BOS", "smollm2"), (f"{GEMMA}, no BOS", "gemma"))
        ),
        *_each(
            "census",
            lambda model, run: Claim(
                paper="2510.06477",
                states="Where massive activations are, the hidden states of all tokens become nearly one direction.",
                theirs="a valley of the matrix entropy in the middle layers, 410M to 120B parameters",
                model=model,
                measure=read.of(run, read.valley),
                holds=lambda share: share <= 0.5,
                rule="the lowest entropy from the birth on is at most half of the mean before",
            ),
        ),
        Claim(
            paper=_REFINED,
            states="Some models have no massive activations at all.",
            theirs="OLMo-2-7B",
            why="its weights are on a model hub; neither model here is one",
        ),
        Claim(
            paper="2506.19697",
            states="Training with Muon, single-scale norms and an embedding projection makes no outliers.",
            theirs="excess kurtosis 1,818 with Adam, 0.04; WikiText perplexity at 4 bits 14,476 against 45.9",
            why="a 1.4B model would have to be trained twice",
        ),
        Claim(
            paper="2410.17174",
            states="Adam, not the data, makes outlier dims: rotating its updates (OrthoAdam) leaves none.",
            theirs="kurtosis 1,657 → 3.1",
            why="the models that can be trained here have none with Adam either",
        ),
    ]


_Operation = tuple[str, str, str, Callable[[float], bool], str]  # name, claim, their number, holds, rule


def _of_operation(operation: _Operation, model: str, run: str) -> Claim:
    name, states, theirs, holds, rule = operation
    return Claim(
        paper=_MASSIVE,
        states=states,
        theirs=theirs,
        model=model,
        measure=read.times_worse(run, name),
        holds=holds,
        rule=rule,
    )


def interventions() -> Sequence[Claim]:
    """Gives the claims about what becomes of a model without them."""
    rows: list[Claim] = []
    operations: Sequence[_Operation] = (
        (
            "zero",
            "Setting them to zero where they appear ruins the model.",
            "LLaMA2-7B on WikiText: 5.47 → inf",
            lambda ratio: ratio >= 10,
            "perplexity at least 10 times as high",
        ),
        (
            "mean",
            "Setting them to their mean changes nothing.",
            "LLaMA2-7B on WikiText: 5.47 → 5.47",
            lambda ratio: 0.99 <= ratio <= 1.01,
            "perplexity within 1 %",
        ),
    )
    for operation in operations:
        rows += _each("intervene", functools.partial(_of_operation, operation))
    rows += _each(
        "intervene",
        lambda model, run: Claim(
            paper=_MASSIVE,
            states="Setting as many activations of median size to zero changes nothing.",
            theirs="LLaMA2-7B on WikiText: 5.47 → 5.47",
            model=model,
            measure=read.controls(run, "median_sized"),
            holds=lambda ratio: 0.99 <= ratio <= 1.01,
            rule="perplexity within 1 %, of 95 % of the draws",
        ),
    )
    rows += _each(
        "intervene",
        lambda model, run: Claim(
            paper=_REFINED,
            states="In some models setting them to zero does not hurt.",
            theirs="GPT-2: 30.22 → 30.21; OPT-6.7B: 10.97 → 10.98",
            model=model,
            measure=read.times_worse(run, "zero"),
            holds=lambda ratio: ratio <= 1.01,
            rule="perplexity at most 1 % higher",
        ),
    )
    for model, run in ((f"{SMOL}, no BOS", "smollm2/super_weights"), (f"{GEMMA}, BOS", "gemma_bos/super_weights")):
        rows += [
            Claim(
                paper=_SUPER,
                states="Without one scalar, a super weight, perplexity is a hundred times as high or more.",
                theirs="Llama-7B, WikiText-2: 5.67 → 1,211; “three orders of magnitude”",
                model=model,
                measure=read.of(run, read.one_weight),
                holds=lambda ratio: ratio >= 100,
                rule="perplexity at least 100 times as high without the strongest of those found",
            ),
            Claim(
                paper=_SUPER,
                states="It does more than the thousands of largest other weights together.",
                theirs="Llama-7B: without 7,000 others accuracy stays",
                model=model,
                measure=read.of(run, read.one_against_many),
                holds=lambda nats: nats > 0,
                rule="more nats are lost without it than without the largest others of its matrix",
            ),
            Claim(
                paper="2605.08504",
                states="The layer where they are born can be told from the weights alone.",
                theirs="of several model families",
                model=model,
                measure=read.of(run, read.birth_from_weights),
                holds=bool,
                rule="the layer that `super_weights` names by its MLPs' gains is that of the birth",
            ),
        ]
    rows += [
        Claim(
            paper="2504.02732",
            states="A model that was trained with BOS always first needs it: without it, it is no good.",
            theirs="Gemma-7B; a public issue has LAMBADA perplexity 3.46 → 5.9 × 10⁹",
            model=GEMMA,
            measure=read.without_bos("gemma_bos/intervene", "gemma/intervene"),
            holds=lambda ratio: ratio >= 2,
            rule="perplexity without BOS at least twice that with it",
        ),
        Claim(
            paper=_MASSIVE,
            states="The same of zero-shot accuracy.",
            theirs="LLaMA2-7B, mean of five tasks: 68.95 → 36.75 (zero), 68.94 (mean)",
            why="the tasks are on a data hub; a 135M model is near chance in most",
        ),
    ]
    return rows


def attention() -> Sequence[Claim]:
    """Gives the claims about sinks, and what they do."""
    rows = [
        *_each(
            "census",
            lambda model, run: Claim(
                paper=_MASSIVE,
                states="From where they appear on, attention goes to their tokens.",
                theirs="LLaMA2-7B, figures",
                model=model,
                measure=read.of(run, read.sink_after_birth),
                holds=lambda ratio: ratio >= 2,
                rule="twice the attention on position 0 in the layers after the birth as up to it",
            ),
        ),
        *_each(
            "census",
            lambda model, run: Claim(
                paper=_MASSIVE,
                states="What their tokens add to the others is nearly the same everywhere: an implicit bias.",
                theirs="LLaMA2-7B, figures",
                model=model,
                measure=read.of(run, read.bias_against_rest),
                holds=lambda ratio: ratio <= 0.5,
                rule="`bias_spread` at most half of `rest_spread`",
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
        *_each(
            "census",
            lambda model, run: Claim(
                paper=_MASSIVE,
                states="It is so by more than chance: random tokens' updates change more.",
                theirs="no number",
                model=model,
                measure=read.of(run, read.under_null),
                holds=lambda share: share >= 0.8,
                rule="`bias_spread` under 97.5 % of random tokens' in four of five layers after the birth",
            ),
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
        *_each(
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
        *_each(
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


def quantisation() -> Sequence[Claim]:
    """Gives the claims about outliers in eight bits, and prefixes that take them away."""
    rows: list[Claim] = []
    for model, run in ((SMOL, "smollm2/explicit_bias"), (GEMMA, "gemma/explicit_bias")):
        rows += [
            Claim(
                paper="2208.07339",
                states="Outliers ruin inputs in int8 with one scale a tensor.",
                theirs="OPT-6.7B and larger: accuracy at chance",
                model=model,
                measure=read.of(run, read.int8_loss),
                holds=lambda ratio: ratio >= 1.25,
                rule="perplexity at least a quarter higher",
            ),
            Claim(
                paper="2403.01241",
                states="A prefix's keys and values can be kept and the prefix left out, without loss.",
                theirs="lossless",
                model=f"{model}, BOS as an attention bias",
                measure=read.of(run, read.lossless),
                holds=lambda apart: apart <= 1e-4,
                rule="logits apart by at most 10⁻⁴ of their norm at every position",
            ),
            Claim(
                paper="2410.05265",
                states="With outlier tokens in such a prefix, no outliers are left in the sequence.",
                theirs="Llama-2-7B, figures",
                model=f"{model}, BOS as an attention bias",
                measure=read.of(run, read.fall),
                holds=lambda times: times >= 10,
                rule="largest activation at least 10 times smaller",
            ),
            Claim(
                paper="2410.05265",
                states="Then static quantisation with one scale a tensor works.",
                theirs="Llama-3-8B W4A4KV4: WikiText perplexity 7.43, unquantised 6.14",
                model=f"{model}, BOS as an attention bias, int8",
                measure=read.of(run, read.regained),
                holds=lambda share: share >= 0.5,
                rule="at least half of int8's loss, in nats, comes back",
            ),
            Claim(
                paper=_REFINED,
                states="In some models a key and value bias does not take the massive activations away.",
                theirs="GPT-2 trained so, and others",
                model=f"{model}, BOS as an attention bias, not trained so",
                measure=read.of(run, read.fall),
                holds=lambda times: times <= 2,
                rule="largest activation at most halved",
            ),
        ]
    rows.append(
        Claim(
            paper="2601.22966",
            states="Clipping outliers hurts, a gate after the norm helps: −1.2 points at W4A4.",
            theirs="own pre-trainings",
            why="pre-trainings of that size",
        )
    )
    return rows
