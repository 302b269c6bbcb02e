"""Claims about trained language models: what is massive, and what it is for."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from massive_jax.report.ledger import readings as read
from massive_jax.report.ledger.claim import Claim

SMOL, GEMMA = "SmolLM2-135M", "Gemma-3-270M"
# Models and where BOS is: the name in a row, and the folder of the results.
PLAIN = ((f"{SMOL}, no BOS", "smollm2"), (f"{GEMMA}, BOS", "gemma_bos"))
MASSIVE, REFINED = "2402.17762", "2503.22329"
_SUPER = "2411.07191"


def each_of(run: str, make: Callable[[str, str], Claim]) -> list[Claim]:
    """Makes a claim of each model, with its massive activations: of (the name in a row, the result's name)."""
    return [make(model, f"{folder}/{run}") for model, folder in PLAIN]


def activations() -> Sequence[Claim]:
    """Gives the claims about where and how large massive activations are."""
    return [
        *each_of(
            "census",
            lambda model, run: Claim(
                paper=MASSIVE,
                states="Some activations are above 100 and a thousand times the median of their hidden state.",
                theirs="LLaMA2-7B: about 2,500, median about 0.2",
                model=model,
                measure=read.of(run, read.largest_over_median),
                holds=lambda ratio: ratio >= 1000,
                rule="above 100 and 1,000 times the median at position 0",
            ),
        ),
        *each_of(
            "census",
            lambda model, run: Claim(
                paper=MASSIVE,
                states="They are at few dims, the same in every layer.",
                theirs="LLaMA2-7B: 1415 and 2533",
                model=model,
                measure=read.of(run, read.dims),
                holds=lambda count: count <= 4,
                rule="at most 4 dims are the largest of position 0, over all layers from the birth on",
            ),
        ),
        *(
            Claim(
                paper=MASSIVE,
                states="Their values hardly change with the input.",
                theirs="near constant: setting them to their mean leaves the perplexity (LLaMA2-7B)",
                model=f"{model}, no BOS",
                measure=read.of(f"{folder}/census", read.spread),
                holds=lambda share: share <= 0.1,
                rule="standard deviation over windows of the largest of position 0 at most a tenth of its mean",
            )
            for model, folder in ((SMOL, "smollm2"), (GEMMA, "gemma"))  # BOS is the same token in every window
        ),
        *each_of(
            "census",
            lambda model, run: Claim(
                paper=MASSIVE,
                states="They appear in one of the first layers, and stay as they are through most of the network.",
                theirs="LLaMA2-7B: blocks 1 to 29 of 32",
                model=model,
                measure=read.of(run, read.plateau),
                holds=lambda share: share >= 0.5,
                rule="at least 0.8 of the largest mean magnitude after half of the layers",
            ),
        ),
        *each_of(
            "census",
            lambda model, run: Claim(
                paper=MASSIVE,
                states="They fade in the last layers.",
                theirs="LLaMA2-7B: gone after the last block",
                model=model,
                measure=read.of(run, read.remains),
                holds=lambda share: share <= 0.2,
                rule="at most a fifth of the largest mean magnitude is left after the last block",
            ),
        ),
        *each_of(
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
        *each_of(
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
        *each_of(
            "census",
            lambda model, run: Claim(
                paper=MASSIVE,
                states="They are at the first token, delimiters and weak words.",
                theirs='LLaMA2-7B: start, first delimiter; others: "and", "from", "of" or "2" too',
                model=model,
                measure=read.of(run, read.on_few_tokens),
                holds=lambda share: share >= 0.95,
                rule="95 % of those that meet the definition are at these",
            ),
        ),
        *each_of(
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
        *each_of(
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
        *each_of(
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
            paper=REFINED,
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


def interventions() -> Sequence[Claim]:
    """Gives the claims about what becomes of a model without them."""
    rows = each_of(
        "edited",
        lambda model, run: Claim(
            paper=MASSIVE,
            states="Setting them to zero where they appear ruins the model.",
            theirs="LLaMA2-7B on WikiText: 5.47 → inf",
            model=model,
            measure=read.times_worse(run, "zero"),
            holds=lambda ratio: ratio >= 10,
            rule="perplexity at least 10 times as high",
        ),
    )
    rows.append(
        Claim(  # not of BOS, which is the same token in every window: its value is its mean
            paper=MASSIVE,
            states="Setting them to their mean changes nothing.",
            theirs="LLaMA2-7B on WikiText: 5.47 → 5.47",
            model=f"{SMOL}, no BOS",
            measure=read.times_worse("smollm2/edited", "mean"),
            holds=lambda ratio: 0.99 <= ratio <= 1.01,
            rule="perplexity within 1 %",
        )
    )
    rows += each_of(
        "edited",
        lambda model, run: Claim(
            paper=MASSIVE,
            states="Setting as many activations of median size to zero changes nothing.",
            theirs="LLaMA2-7B on WikiText: 5.47 → 5.47",
            model=model,
            measure=read.controls(run, "median_sized"),
            holds=lambda ratio: 0.99 <= ratio <= 1.01,
            rule="perplexity within 1 %, of 95 % of the draws",
        ),
    )
    rows += each_of(
        "edited",
        lambda model, run: Claim(
            paper=REFINED,
            states="In some models setting them to zero does not hurt.",
            theirs="GPT-2: 30.22 → 30.21; OPT-6.7B: 10.97 → 10.98",
            model=model,
            measure=read.times_worse(run, "zero"),
            holds=lambda ratio: ratio <= 1.01,
            rule="perplexity at most 1 % higher",
        ),
    )
    rows += each_of(
        "super_weights",
        lambda model, run: Claim(
            paper=_SUPER,
            states="Without one scalar, a super weight, perplexity is a hundred times as high or more.",
            theirs="Llama-7B, WikiText-2: 5.67 → 1,211; “three orders of magnitude”",
            model=model,
            measure=read.of(run, read.one_weight),
            holds=lambda ratio: ratio >= 100,
            rule="perplexity at least 100 times as high without the strongest of those found",
        ),
    )
    rows += each_of(
        "super_weights",
        lambda model, run: Claim(
            paper=_SUPER,
            states="It does more than the thousands of largest other weights together.",
            theirs="Llama-7B: without 7,000 others accuracy stays",
            model=model,
            measure=read.of(run, read.one_against_many),
            holds=lambda nats: nats > 0,
            rule="more nats are lost without it than without the largest others of its matrix",
        ),
    )
    rows += each_of(
        "super_weights",
        lambda model, run: Claim(
            paper="2605.08504",
            states="The layer where they are born can be told from the weights alone.",
            theirs="of several model families",
            model=model,
            measure=read.of(run, read.birth_from_weights),
            holds=bool,
            rule="the layer that `super_weights` names by its MLPs' gains is that of the birth",
        ),
    )
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
            paper=MASSIVE,
            states="The same of zero-shot accuracy.",
            theirs="LLaMA2-7B, mean of five tasks: 68.95 → 36.75 (zero), 68.94 (mean)",
            why="the tasks are on a data hub; a 135M model is near chance in most",
        ),
    ]
    return rows
