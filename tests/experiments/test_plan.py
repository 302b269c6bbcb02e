"""Plans from the command line, of the tiny model."""

import math

import pytest

slow = pytest.mark.slow


@pytest.mark.parametrize(
    ("experiment", "flags", "programs"),
    [
        ("layerwise", ("--windows=5",), ["layers"]),
        pytest.param("census", (), ["census"], marks=slow),
        pytest.param("feature_map", (), ["layers", "hidden state"], marks=slow),
        pytest.param("attention_map", (), ["layers", "attention"], marks=slow),
        pytest.param("intervene", (), ["layers", "perplexity, 31 times"], marks=slow),
        pytest.param("generate", ("--new_tokens=8",), ["prompt", "8 new tokens"], marks=slow),
        pytest.param("train_gpt2", (), ["step"], marks=slow),
    ],
)
def test_every_experiment(run, experiment, flags, programs):
    context = [] if experiment == "train_gpt2" else ["--context=32"]
    found = run("plan", f"--experiment={experiment}", "--chips=v5e-1", *context, *flags)
    assert [one["name"] for one in found["programs"]] == programs
    for one in found["programs"]:
        assert one["flops"] > 0
        assert one["memory"]["parameters"] > 0
        assert one["collectives"] == []
    assert (found["chips"], set(found["mesh"].values())) == ("v5e-1", {1})
    assert 0 < found["seconds"][0] < found["seconds"][1]
    assert "wrote" in run.out
    memory = found["programs"][-1]["memory"]
    if experiment == "train_gpt2":
        assert memory["optimiser"] > 2 * memory["gradients"] == 2 * memory["parameters"]
    if experiment == "generate":
        # Keys and values of 40 tokens of 4 prompts, in 3 layers of 2 heads of 8, and where each token stands.
        assert memory["cache"] == 4 * (2 * 3 * 4 * 40 * 2 * 8 + 4 * 40)
    if experiment == "layerwise":
        # 16 values with their two indices, and a median, of 5 windows at 3 blocks and the final norm.
        assert memory["captured"] == 4 * (16 * 3 + 1) * 5 * 4
        assert "if it were alone" in run.out


@slow
def test_a_mesh_is_found_and_what_is_sent_is_told(run):
    found = run("plan", "--chips=v5e-4", "--context=32", "--dtype=bfloat16")
    sizes = found["mesh"]
    assert math.prod(sizes.values()) == 4
    sent = {axis for axis, size in sizes.items() if size > 1 and axis != "data"}  # copies of a model send nothing
    assert {one["axis"] for one in found["programs"][0]["collectives"]} == sent
    assert ("all-" in run.out) is bool(sent)
    split = run("plan", "--chips=v5e-4", "--context=32", "--dtype=bfloat16", "--mesh=fsdp:2,tensor:2")
    assert {one["axis"] for one in split["programs"][0]["collectives"]} == {"fsdp", "tensor"}
    assert found["seconds"][1] <= split["seconds"][1]
    assert "all-" in run.out


def test_a_window_of_one_token_has_no_perplexity(run):
    with pytest.raises(ValueError, match="--context=1: perplexity needs at least two tokens"):
        run("plan", "--experiment=intervene", "--context=1")


@slow
def test_what_does_not_fit(run):
    with pytest.raises(
        ValueError, match=r"float32 on v5e-1, mesh data:1, needs .* It fits with .*--dtype=bfloat16"
    ) as e:
        run("plan", "--model=llama2_7b", "--chips=v5e-1")
    assert "\n" not in str(e.value)
    assert not run.workdir.exists()
