"""Claims about training: how sinks and massive activations come, and what keeps them away."""

from __future__ import annotations

from collections.abc import Sequence

from massive_jax.report.ledger import readings as read
from massive_jax.report.ledger.claim import Claim

_TOY = "3 blocks trained on bigram-backcopy"
_NONE = "backcopy/none"


def training() -> Sequence[Claim]:
    """Gives the claims, most of them on a small model whose copying head has nothing to do at most tokens."""
    return [
        Claim(
            paper="2508.03616",
            states="The ratio of largest to median over training steps follows a curve of five parameters.",
            theirs="Pythia, 188 layers: R² 0.984 on average, 0.93 in the worst size",
            model=_TOY,
            measure=read.of("backcopy/emergence", read.explained),
            holds=lambda r_squared: r_squared >= 0.93,
            rule="R² at least 0.93 on average over layers",
        ),
        Claim(
            paper="2508.03616",
            states="Massive activations are learned: at the start there are none.",
            theirs="Pythia-14M ends at 83 times the median, 1.4B at 2,350",
            model=_TOY,
            measure=read.of("backcopy/emergence", read.growth),
            holds=lambda times: times >= 2,
            rule="the largest ratio at least doubles",
        ),
        Claim(
            paper="2508.03616",
            states="Shallow and deep layers peak early, middle ones rise as a logarithm.",
            theirs="Pythia, 14M to 12B, 154 checkpoints each",
            why="the checkpoints are on a model hub: `experiments.emergence --revisions` takes them where that is",
        ),
        Claim(
            paper="2410.13835",
            states="A transformer of one to three blocks has a sink after training on bigram-backcopy.",
            theirs="nearly all attention of the head on the first token, where it has nothing to copy",
            model=_TOY,
            measure=read.of(_NONE, read.trained_sink),
            holds=lambda share: share >= 0.3,
            rule="at least 30 % of a layer's attention on position 0",
        ),
        Claim(
            paper="2410.13835",
            states="The sink's values are drained there, too.",
            theirs="value norm near 0",
            model=_TOY,
            measure=read.of("backcopy/census", read.drained),
            holds=lambda ratio: ratio <= 0.5,
            rule="value norm at position 0 at most half of the others', in the layer with the largest sink",
        ),
        Claim(
            paper="2603.05498",
            states="Sinks go without massive activations.",
            theirs="own trainings: without pre-norm the two come apart",
            model=_TOY,
            measure=read.of(_NONE, read.sink_without_spike),
            holds=lambda ratio: ratio < 100,
            rule="30 % of a layer's attention on position 0, and its largest under 100 times its median",
        ),
        Claim(
            paper="2402.17762",
            states="A learned key and value a head (k′, v′) take the place of the sink.",
            theirs="GPT-2 124M: massive activations vanish; figures",
            model=f"{_TOY}, kv",
            measure=read.sink_left("backcopy/kv", _NONE),
            holds=lambda share: share <= 0.25,
            rule="at most a quarter of the attention on position 0 is left",
        ),
        Claim(
            paper="2410.10781",
            states="Biases in the keys take the attention that the sink had.",
            theirs="sink on the bias, not on the first token",
            model=f"{_TOY}, kv",
            measure=read.of("backcopy/kv", read.slot_share),
            holds=lambda share: share >= 0.3,
            rule="at least 30 % of a layer's attention on the slot",
        ),
        Claim(
            paper="2309.17453",
            states="A sink token that is learned takes the attention that went to the first token.",
            theirs="160M, own pre-training, figures",
            model=f"{_TOY}, sink_token",
            measure=read.sink_left("backcopy/sink_token", _NONE),
            holds=lambda share: share <= 0.25,
            rule="at most a quarter of the attention on position 0 is left",
        ),
        Claim(
            paper="2505.06708",
            states="A sigmoid gate after attention, an element each, takes the sink away.",
            theirs="attention on the first token 46.7 % → 4.8 %",
            model=f"{_TOY}, gate_element",
            measure=read.sink_left("backcopy/gate_element", _NONE),
            holds=lambda share: share <= 0.25,
            rule="at most a quarter of the attention on position 0 is left",
        ),
        Claim(
            paper="2306.12929",
            states="A gate takes outliers away.",
            theirs="OPT-125M: kurtosis 1,777 → 18",
            model=f"{_TOY}, gate_element",
            measure=read.kurtosis_left("backcopy/gate_element", _NONE),
            holds=lambda share: share <= 0.5,
            rule="at most half of the largest kurtosis is left",
        ),
        Claim(
            paper="2410.17174",
            states="A softmax with one more in the denominator takes the sink away.",
            theirs="attention on the first token 65 % → 3.3 % (with OrthoAdam)",
            model=f"{_TOY}, softmax1",
            measure=read.sink_left("backcopy/softmax1", _NONE),
            holds=lambda share: share <= 0.25,
            rule="at most a quarter of the attention on position 0 is left",
        ),
        Claim(
            paper="2402.17762",
            states="With k′ and v′ GPT-2 has no massive activations, at the same loss.",
            theirs="GPT-2 124M, 50,000 steps: 3.04 with and without",
            why="weeks on two cores; the small models have none to begin with",
        ),
        Claim(
            paper="2410.10781",
            states="With sigmoid attention that is not normalised no sink emerges.",
            theirs="own pre-trainings up to 1B",
            why="its weights do not add up to one, and shares of them are another measure than the paper's",
        ),
        Claim(
            paper="2603.17771",
            states="A learned scale on the values keeps sinks and takes spikes away.",
            theirs="own pre-trainings",
            why="own pre-trainings of that size; docs/emergence.md tries it in a small one",
        ),
        Claim(
            paper="2503.22329",
            states="Variance regularisation with a dynamic tanh takes them away, at the same quality.",
            theirs="GPT-2, LLaMA-1B trained so",
            why="pre-trainings of that size",
        ),
    ]
