"""FLOPs as nanoGPT counts them, and a metrics file that a kill has cut."""

import pytest

from massive_jax.train import flops_per_token, read_lines, take_census
from massive_jax.train.metrics import JsonLines
from massive_jax.train.presets import PRESETS
from tests.fixtures.train_shapes import GPT


def test_flops_of_gpt2():
    """nanoGPT's `estimate_mfu`: 6 N + 12 L H Q T, N all parameters but the position embedding."""
    model = PRESETS["paper"].model(attention_bias=None, dtype="bfloat16", kernel="xla")
    assert flops_per_token(model, 1024) == pytest.approx(6 * 123_550_464 + 12 * 12 * 768 * 1024, rel=1e-3)
    assert flops_per_token(GPT, 16) == 6 * (256 * 32 + 2 * (12 * 32 * 32 + 2 * 32) + 32) + 12 * 2 * 32 * 16


def test_lines_after_the_checkpoint_and_half_a_line_go(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    assert [record["step"] for record in read_lines(path)] == [1, 2, 3]
    lines = JsonLines(path, 2)
    lines.write({"step": 3, "loss": 1.0})
    lines.close()
    assert read_lines(path) == [{"step": 1}, {"step": 2}, {"step": 3, "loss": 1.0}]
    JsonLines(path, 0).close()
    assert read_lines(path) == []


@pytest.mark.parametrize("line", ["no JSON", "[1]", '{"loss": 1.0}', '{"step": "2"}', "\x00" * 9, "[" * 9999])
def test_a_line_that_is_no_record_is_named(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1}}\n{line}\n{{"step": 3}}\n')
    with pytest.raises(ValueError, match=r"metrics.jsonl: line 2 is no record of a training") as caught:
        JsonLines(path, 3)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_whole(name):
    preset = PRESETS[name]
    model = preset.model(attention_bias=None, dtype=preset.dtype, kernel="xla")
    assert model.num_layers == preset.shape["n_layer"]
    assert preset.options["batch"] % preset.options.get("accumulate", 1) == 0
    assert preset.options["context"] <= model.max_position


def test_the_paper_preset_is_the_papers():
    preset = PRESETS["paper"]
    assert preset.options["batch"] * preset.options["context"] == 491_520
    assert preset.options["steps"] == 50_000
    recipe = preset.optimizer
    assert (recipe.learning_rate, recipe.final_learning_rate) == (6e-4, 6e-5)
    assert (recipe.warmup_steps, recipe.decay_steps) == (2000, 600_000)
    assert (recipe.b1, recipe.b2, recipe.weight_decay, recipe.clip) == (0.9, 0.95, 0.1, 1.0)


def test_a_census_is_of_tokens_that_there_are(tiny_model, tiny_tokens):
    """Ids outside the vocabulary gave NaN."""
    for tokens, message in ((tiny_tokens + 260, "do not fit the vocabulary of 260"), (tiny_tokens[0], "give integers")):
        with pytest.raises(ValueError, match=message):
            take_census(tiny_model.module, tiny_model.params, tokens)
