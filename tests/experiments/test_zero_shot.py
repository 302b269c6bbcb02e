"""`experiments.zero_shot` on the tiny model and tasks of local files; slow: it needs the harness."""

import pytest

from massive_jax.analysis import Interval
from massive_jax.evaluate import Scores, TaskScores, mean_scores, task_scores
from massive_jax.report import as_json, plot_zero_shot, zero_shot_rows, zero_shot_title
from massive_jax.report.results import EditedPlace, Effect, TaskResult, TextSource, ZeroShot
from tests.experiments.conftest import PLANTED
from tests.fixtures.harness_tasks import write_tasks


@pytest.mark.slow
def test_edits_in_local_tasks(run, tmp_path, text_file, monkeypatch):
    """BOS carries what is massive: with --bos it is found at 0, set to zero and to its mean; answers are kept."""
    tasks = f"--include_path={write_tasks(tmp_path / 'tasks')}"
    names = "--tasks=prose_choice,prose_rolling,prose_generate"
    arguments = (names, tasks, "--bos", f"--text={text_file}", "--windows=2", "--context=32", "--limit=6")
    cache = f"--cache={tmp_path / 'cache'}"
    got = run("zero_shot", *arguments, "--edits=none,zero,mean", cache)
    assert [(s["position"], s["dim"]) for s in got["sites"]] == [(0, PLANTED)]
    assert (got["edits"], got["prompt_bos"], got["limit"]) == (["none", "zero", "mean"], True, 6)
    choice, rolling = got["tasks"]["prose_choice"], got["tasks"]["prose_rolling"]
    assert (choice["metric"], choice["items"], choice["chance"]) == ("acc", 6, 0.25)
    for edit in got["edits"]:
        assert choice["effects"][edit]["value"] == pytest.approx(choice["harness"][edit]["acc,none"])
        its = rolling["harness"][edit]["word_perplexity,none"]
        assert rolling["effects"][edit]["value"] == pytest.approx(its, rel=1e-9)
    values = {edit: rolling["effects"][edit]["value"] for edit in got["edits"]}
    assert values["mean"] == pytest.approx(values["none"], rel=1e-3)
    assert abs(values["zero"] / values["none"] - 1) > 1e-2
    assert set(got["mean_accuracy"]) == set(got["edits"])
    assert (run.workdir / "zero_shot.png").stat().st_size > 10_000
    assert "prose_choice, zero" in run.out
    monkeypatch.setattr("massive_jax.evaluate.continuations._scores", None)  # all of it is in the cache
    again = run("zero_shot", *arguments, "--edits=none,zero,mean", cache)
    assert again == got
    with pytest.raises(TypeError):
        run("zero_shot", *arguments, "--edits=none,set=1", cache)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--tasks=no_such_task",), "has no task 'no_such_task'"),
        (("--tasks=",), "there are no tasks; name one at least"),
        (("--include_path=/no/such/place",), "there is no directory '/no/such/place' of tasks"),
        (("--edits=none", "--places=0:5"), "--places has no effect without --edits"),
    ],
)
def test_what_is_not_there_is_said(run, arguments, message):
    with pytest.raises(ValueError, match=message):
        run("zero_shot", *arguments)


def sample(metrics, choices=1, filter="none"):
    return {"metrics": list(metrics), "filter": filter, "arguments": [("", "")] * choices, **metrics}


def test_scores_of_items():
    """As the harness averages them: accuracies over items, perplexities over words; the first filter counts."""
    found = task_scores([sample({"acc_norm": 0, "acc": k % 2}, 4) for k in range(4)] + [sample({"acc": 1}, 4, "other")])
    assert (found.metric, found.scores.value, found.chance) == ("acc", 0.5, 0.25)
    found = task_scores([sample({"word_perplexity": (-6.0, 2)}), sample({"word_perplexity": (-3.0, 1)})])
    assert (found.metric, found.chance) == ("word_perplexity", None)
    assert found.scores.value == pytest.approx(20.0855, rel=1e-4)  # e³
    assert task_scores([sample({"bleu": ("a", "b")})]) is None
    tasks = [TaskScores("acc", Scores("acc", k * found.scores.counts, found.scores.counts)) for k in (0, 1)]
    assert mean_scores(tasks) == 0.5
    assert mean_scores([*tasks[:1], found]) is None


def test_the_figure_says_what_was_found(tmp_path):
    def task(metric, values, chance=None):
        effects = {e: Effect(value=v, low=v - 0.1, high=v + 0.1, difference=Interval(0)) for e, v in values.items()}
        return TaskResult(version="1", items=50, num_fewshot=0, metric=metric, chance=chance, effects=effects)

    result = ZeroShot(
        model="tiny",
        dtype="float32",
        source=TextSource(bos=False, text="book.txt", windows=4, context=32),
        edits=("none", "zero"),
        layer=2,
        sites=(EditedPlace(position=0, dim=5, value_mean=300.0),),
        prompt_bos=False,
        chat=False,
        limit=None,
        seed=0,
        lm_eval="0.4.13",
        tasks={
            "choice": task("acc", {"none": 0.75, "zero": 0.25}, 0.25),
            "rolling": task("word_perplexity", {"none": 30.0, "zero": 9e4}),
        },
    )
    assert zero_shot_title(result) == (
        "tiny, accuracy in choice: 75.0 % as it is; 25.0 % with massive activations set to zero"
    )
    rows = zero_shot_rows(result)
    assert [(kind, [row.name for row in its]) for kind, its in rows.items()] == [
        ("accuracy", ["choice: unedited", "choice: set to zero"]),
        ("perplexity", ["rolling: unedited", "rolling: set to zero"]),
    ]
    plot_zero_shot(as_json(result), tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000
