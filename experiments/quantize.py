"""What quantisation costs a model, by setting and by what is done against it. What does absorbing BOS buy?

  python -m experiments.quantize --windows=4 --context=512 --workdir=results
  python -m experiments.quantize --settings=W8A8,W4A4,KV4 --scales=tensor,token --methods=plain,absorb,smooth
  python -m experiments.quantize --model=dinov2_reg_large --images=FOLDER

A setting is bits of weights, of what enters linear maps, and of keys and values: W4A8, KV4, W4A4KV4; 16 is not rounded.
Everything is rounded to the nearest of evenly spaced numbers from the largest magnitude down to its negative, and
computed in --dtype: what rounding does to a model, not how fast a machine would be. A scale is shared by what --scales
says: a tensor; a token, of inputs, and an output channel, of weights; or a channel of inputs.

A method is what is done beside rounding, and + puts several together: plain; zero (massive activations set to zero,
the mistake); apart (tokens with massive activations are not rounded); absorb (BOS becomes an attention bias, and with
it massive activations leave the stream: `massive_jax.bias.absorb_prefix`); super (the super weight is not rounded);
rotate (a random Hadamard rotation of the residual stream and of values, fused into weights, as QuaRot's, arXiv
2404.00456, without what that turns while the model runs); smooth (channels' sizes moved into weights, as SmoothQuant,
arXiv 2211.10438). By default plain, absorb, and both with a rotation, of which those that the model cannot take are
left out and named.

Windows have BOS in front where the model's tokenizer has one; --nobos says otherwise, and leaves absorb out. What is
rounded costs nats a token above the unquantised model, of the same tokens; intervals are 95 %, of a bootstrap over
windows, paired. Of images it costs nats of divergence between the classes' probabilities.

Writes quantize.json (`massive_jax.report.results.QuantizationOf`), its tables as quantize.md, and quantize.png. The
default takes some minutes on two cores; expect W8A8 with one scale a tensor to cost about 0.9 nats, a fifth of it
with BOS absorbed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from absl import flags

import massive_jax as mj
from experiments import common
from experiments.flags import definition, images, seed, text
from experiments.flags import model as model_flags
from massive_jax.analysis import Thresholds
from massive_jax.data import Windows, cut_windows, load_text
from massive_jax.evaluate import (
    Images,
    check_table,
    input_length,
    measure_quantization,
    quantization_passes,
    why_not_taken,
)
from massive_jax.files import Path, atomic_write, write_json
from massive_jax.quantize import METHODS, SCALES
from massive_jax.report import (
    as_json,
    markdown_table,
    outlier_rows,
    plot_quantization,
    quantization_rows,
    quantization_title,
)
from massive_jax.report.results import QuantizationOf

DEFAULT = ("plain", "absorb", "rotate", "rotate+absorb")

_SETTINGS = flags.DEFINE_list(
    "settings", ["W8A8", "W8A16", "W4A16", "W4A8", "W4A4", "KV8", "KV4"], "Bits: W8A8, W4A16, KV4, W4A4KV4, …"
)
_METHODS = flags.DEFINE_list(
    "methods", None, f"Any of {', '.join(METHODS)}, or several joined by + (default {','.join(DEFAULT)})."
)
_SCALES = flags.DEFINE_list("scales", ["tensor"], f"What shares a scale: any of {', '.join(SCALES)}.")
_ALPHA = flags.DEFINE_float(
    "alpha", 0.5, "How much of the inputs' outliers smoothing moves to the weights.", lower_bound=0, upper_bound=1
)
flags.register_validator(_ALPHA, math.isfinite, "give a finite number.")

if __name__ == "__main__":
    for module in (common, model_flags, text, definition, seed):
        flags.adopt_module_key_flags(module)
    for name in ("images", "num_images", "image_size"):
        flags.declare_key_flag(name)


def run(
    model: mj.Model,
    data: Windows | Images,
    workdir: Path,
    thresholds: Thresholds,
    *,
    source: str | Sequence[str],
    settings: Sequence[str],
    methods: Sequence[str] | None = None,
    scales: Sequence[str] = ("tensor",),
    alpha: float = 0.5,
    seed: int = 0,
) -> QuantizationOf:
    """Measures, writes quantize.json, quantize.md and quantize.png, and returns what was written.

    `methods` None: those of the default that the model can take.
    """
    left_out: dict[str, str] = {}
    if methods is None:
        reasons = {part: why_not_taken(model, data, part) for part in {*"+".join(DEFAULT).split("+")}}
        left_out = {part: why for part, why in sorted(reasons.items()) if why}
        methods = [method for method in DEFAULT if not left_out.keys() & method.split("+")]
    inputs = data.inputs
    passes = quantization_passes(len(settings), methods, len(scales))
    with common.progress(len(inputs) * input_length(model, inputs) * passes, "quantisations") as progress:
        found = measure_quantization(
            *(model, data, settings, methods),
            scales=scales,
            alpha=alpha,
            thresholds=thresholds,
            seed=seed,
            progress=progress,
        )
    windows = data if isinstance(data, Windows) else None
    result = QuantizationOf(
        **common.header(model, inputs, source, None if windows is None else windows.bos),
        count=len(inputs) if windows is None else None,
        predicted_tokens=None if windows is None else windows.num_predicted - windows.bos * len(inputs),
        alpha=alpha,
        seed=seed,
        left_out=left_out,
        found=found,
    )
    write_json(workdir / "quantize.json", as_json(result))
    with atomic_write(workdir / "quantize.md") as temporary:
        tables = (quantization_rows(result), quantization_rows(result, scores=True), outlier_rows(result))
        temporary.write_text("\n".join(markdown_table(*table) for table in tables), encoding="utf-8")
    plot_quantization(result, workdir / "quantize.png")
    return result


def show(result: QuantizationOf) -> None:
    """Prints the tables and the finding."""
    for columns, rows in (quantization_rows(result), outlier_rows(result)):
        common.print_table(columns, rows)
        print()
    for part, why in result.left_out.items():
        print(f"without {part}: {why}")
    print(f"{quantization_title(result)}.")


def main() -> None:
    """Runs the binary."""
    common.check_inputs()
    check_table(_SETTINGS.value, DEFAULT if _METHODS.value is None else _METHODS.value, _SCALES.value)
    out = common.workdir()
    content = None if images.IMAGES.value is not None else load_text(text.name())
    model = common.load_model()
    data: Windows | Images
    source: str | Sequence[str]
    if common.takes_images(model):
        data = common.images(model)
        source = data.names
    else:
        assert content is not None  # `takes_images` has refused --images
        data, source = _windows(mj.TextModel.of(model), content), text.name()
    result = run(
        *(model, data, out, definition.thresholds()),
        source=source,
        settings=_SETTINGS.value,
        methods=_METHODS.value,
        scales=_SCALES.value,
        alpha=_ALPHA.value,
        seed=seed.SEED.value,
    )
    show(result)
    print(f"wrote {out / 'quantize.json'}, the tables in {out / 'quantize.md'}, and {out / 'quantize.png'}")


def _windows(model: mj.TextModel, content: str) -> Windows:
    """With BOS in front where there is one, unless it is asked for or not."""
    bos = model.tokenizer is not None and model.tokenizer.bos_id is not None
    if flags.FLAGS["bos"].present:
        bos = bool(model_flags.BOS.value)
    context = text.context(model.config.context_length - bos)
    return cut_windows(model, content, context=context, windows=text.windows(), bos=bos, tokens=4)


if __name__ == "__main__":
    common.run_experiment(main)
