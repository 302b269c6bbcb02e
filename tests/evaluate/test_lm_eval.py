"""The lm-evaluation-harness: what others got wrong, one test each; the default model against the harness's own `hf`.

All slow: the package comes with `make test-all` alone, and imports for seconds.
"""

import types

import numpy as np
import pytest

import massive_jax as mj
from benchmarks.peer import torch_llama
from massive_jax.evaluate import quantized_inputs, quantized_weights
from massive_jax.models import AttentionBias
from tests.fixtures.harness_tasks import CHOICES, NAMES, write_tasks
from tests.fixtures.tiny import BOS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def harness():
    """The module, with the harness's warnings off."""
    from massive_jax.evaluate import lm_eval

    return lm_eval


@pytest.fixture(scope="module")
def lm(harness, tiny_model):
    return harness.HarnessLM(tiny_model)


def requests(*arguments):
    return [types.SimpleNamespace(args=args) for args in arguments]


def by_hand(model, ids, count, edits=None):
    """log p of the last `count` of `ids`, from the logits of a plain pass."""
    logits = np.asarray(model(np.array([ids[:-1]]), edits=edits).logits[0], np.float64)[-count:]
    logits -= logits.max(axis=-1, keepdims=True)
    scores = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return scores[np.arange(count), ids[-count:]].sum()


def test_the_continuation_is_what_is_scored(lm, tiny_model):
    """Neither one token more nor one less, and each from the row before it."""
    (score, _), (one, _) = lm.loglikelihood(requests(("ab", "cde"), ("ab", "c")), disable_tqdm=True)
    assert score == pytest.approx(by_hand(tiny_model, list(b"abcde"), 3), abs=1e-5)
    assert one == pytest.approx(by_hand(tiny_model, list(b"abc"), 1), abs=1e-5)


def test_greedy_is_the_most_likely_continuation(lm, tiny_model):
    made = tiny_model.generate(np.array([list(b"ab")]), max_new_tokens=3).tokens[0].tolist()
    other = [*made[:-1], (made[-1] + 1) % 256]
    found = lm._loglikelihood_tokens([(None, made[:2], made[2:]), (None, other[:2], other[2:])], disable_tqdm=True)
    assert [greedy for _, greedy in found] == [True, False]


def test_spaces_at_the_end_of_the_context_are_the_continuations(lm):
    apart, together = lm.loglikelihood(requests(("ab  ", "c"), ("ab", "  c")), disable_tqdm=True)
    assert apart == together
    assert lm.loglikelihood(requests(("  ", "c")), disable_tqdm=True)[0][0] < 0  # nothing but spaces


def test_bos_is_there_once(harness, tiny_model):
    """Also where the text, a chat template's say, begins with it."""
    lm = harness.HarnessLM(tiny_model, bos=True)
    assert lm.tok_encode("ab") == lm.tok_encode("<s>ab") == [BOS, 97, 98]
    assert lm.tok_encode("ab", add_special_tokens=False) == [97, 98]
    assert lm._encode_pair("ab", "c") == ([BOS, 97, 98], [99])
    empty, written = lm.loglikelihood(requests(("", "ab"), ("<s>", "ab")), disable_tqdm=True)
    assert empty == written
    assert empty[0] == pytest.approx(by_hand(tiny_model, [BOS, 97, 98], 2), abs=1e-5)
    assert lm.windows("<s>ab") == lm.windows("ab") == [([BOS], [97, 98])]


@pytest.mark.parametrize("bos", [False, True])
def test_every_window_of_a_long_text_has_bos(harness, tiny_model, bos):
    lm = harness.HarnessLM(tiny_model, bos=bos, max_length=8)
    text = "abcdefghijklmnopqrstuvw"
    windows = lm.windows(text)
    assert [context[0] == BOS for context, _ in windows] == [True, *[bos] * (len(windows) - 1)]
    assert all(BOS not in context[1:] and len(context) + len(rest) <= 9 for context, rest in windows)
    assert [token for _, rest in windows for token in rest] == list(text.encode())
    (found,) = lm.loglikelihood_rolling(requests((text,)), disable_tqdm=True)
    expected = sum(by_hand(tiny_model, context + rest, len(rest)) for context, rest in windows)
    assert found == pytest.approx(expected, abs=1e-4)


def test_a_long_context_keeps_bos_and_its_end(harness, tiny_model):
    lm = harness.HarnessLM(tiny_model, bos=True, max_length=5)
    assert lm._cut([BOS, *range(10)], [77, 78]) == ([BOS, 7, 8, 9], [77, 78])
    assert lm._cut([BOS, 1], [77, 78]) == ([BOS, 1], [77, 78])
    assert lm._cut_prompt([BOS, *range(10)], 4) == [BOS, 7, 8, 9]
    assert harness.HarnessLM(tiny_model, max_length=5)._cut(list(range(10)), [77]) == ([5, 6, 7, 8, 9], [77])
    with pytest.raises(ValueError, match="a continuation has 6 tokens; at most 5 can be scored"):
        lm._cut([BOS], [1, 2, 3, 4, 5, 6])


def test_a_cache_knows_of_edits(harness, tiny_model, tmp_path):
    """The harness's keys are the requests alone: another edit would be given the first one's answers."""
    from lm_eval.api.model import CachingLM

    ask, path = requests(("ab", "c")), str(tmp_path / "answers.db")
    edit = mj.Edit("block_out", layer=1, position=0, dim=3, value=9.0)
    plain = CachingLM(harness.HarnessLM(tiny_model), path).loglikelihood(ask)
    again = harness.HarnessLM(tiny_model)
    again._scored = None  # which would fail
    assert CachingLM(again, path).loglikelihood(ask) == plain
    others = {
        "edits": harness.HarnessLM(tiny_model, edit),
        "another value": harness.HarnessLM(tiny_model, mj.Edit("block_out", layer=1, position=0, dim=3, value=8.0)),
        "bos": harness.HarnessLM(tiny_model, bos=True),
        "weights": harness.HarnessLM(quantized_weights(tiny_model)),
    }
    for other in others.values():
        with pytest.raises(ValueError, match="has answers of another model, dtype, edits or options; name another"):
            CachingLM(other, path)
    assert len({other.fingerprint() for other in (again, *others.values())}) == 5


def test_generation_stops_where_it_is_told(harness, tiny_model):
    """Stretches, padding and other texts in the batch change nothing; nor does an edit by a rule of the prompt."""
    edits = [mj.Edit("block_out", layer=2, position="last", dim=3, value=9.0)]
    for lm, its in ((harness.HarnessLM(tiny_model), None), (harness.HarnessLM(tiny_model, edits), edits)):
        whole = []
        for prompt in ("ab", "hello there"):
            tokens = tiny_model.tokenize(prompt)
            made = tiny_model.generate(tokens, max_new_tokens=40, edits=its).tokens[0, tokens.shape[1] :]
            whole.append(lm.tok_decode(made.tolist()))
        until = whole[0][20]  # met in the second stretch at the latest
        asked = {"until": [until], "max_gen_toks": 40}
        found = lm.generate_until(requests(("ab", asked), ("hello there", asked)), disable_tqdm=True)
        assert found == [text.split(until)[0] for text in whole]
    with pytest.raises(ValueError, match="generation by {'num_beams': 4} is not known; known are until"):
        lm.generate_until(requests(("ab", {"num_beams": 4})), disable_tqdm=True)


def test_edits_bias_and_quantisation_are_active(harness, make_model):
    """The same numbers as a plain pass under them gives."""
    biased = make_model(attention_bias=AttentionBias("kv"))
    quantized = quantized_weights(make_model())
    zero = mj.Edit("block_out", layer=2, position=0, dim=3, value=50.0)
    for model, edits in ((biased, None), (biased, zero), (quantized, quantized_inputs(quantized.config))):
        (score, _), *_ = harness.HarnessLM(model, edits).loglikelihood(
            requests(("abc", "def"), ("a", "b")), disable_tqdm=True
        )
        assert score == pytest.approx(by_hand(model, list(b"abcdef"), 3, edits), abs=1e-4)


def test_what_does_not_suit_every_request_is_refused(harness, tiny_model):
    for edit, message in (
        (mj.Edit("logits", value=0.0), "do not build the logits whole, so they cannot edit them"),
        (mj.Edit("embed", position=np.array([0, 1])), "has a position for each of 2 inputs; give one for all of them"),
    ):
        with pytest.raises(ValueError, match=message):
            harness.HarnessLM(tiny_model, edit)
    with pytest.raises(ValueError, match="has no task 'no_such_task'"):
        harness.evaluate_tasks(tiny_model, ["no_such_task"])
    with pytest.raises(ValueError, match="the tokenizer has no chat template"):
        harness.evaluate_tasks(tiny_model, ["piqa"], chat=True)


@pytest.fixture(scope="module")
def local_tasks(tmp_path_factory):
    return str(write_tasks(tmp_path_factory.mktemp("tasks")))


@pytest.fixture(scope="module")
def plain(harness, default_model, local_tasks):
    return harness.evaluate_tasks(default_model, NAMES, include_path=local_tasks)


def test_the_default_model_answers_as_hugging_face_does(harness, default_model, local_tasks, plain, tmp_path):
    """Item by item, through the harness's own model class.

    With its softmax in float64: torch's in float32 adds 1e-5 to every token, always upwards.
    """
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    torch_llama(default_model).save_pretrained(tmp_path)
    default_model.tokenizer.save_directory(tmp_path)
    theirs = lm_eval.simple_evaluate(
        model=HFLM(pretrained=str(tmp_path), device="cpu", dtype="float32", softmax_dtype="float64", batch_size=8),
        tasks=list(NAMES),
        task_manager=TaskManager(include_path=local_tasks),
        bootstrap_iters=0,
    )
    apart = {"prose_choice": 0.0, "prose_rolling": 0.0}
    for name in NAMES:
        items = list(zip(plain["samples"][name], theirs["samples"][name], strict=True))
        assert len(items) == (48 if name == "prose_choice" else 12)
        for ours, its in items:
            assert ours["arguments"] == its["arguments"]
            answers, expected = np.ravel(ours["filtered_resps"]), np.ravel(its["filtered_resps"])
            if name == "prose_generate":
                assert answers.tolist() == expected.tolist()
                continue
            if name == "prose_choice":  # log-likelihood and greedy of each choice
                assert answers[1::2].tolist() == expected[1::2].tolist()
                answers, expected = answers[::2], expected[::2]
                assert np.argmax(answers) == np.argmax(expected)
            apart[name] = max(apart[name], np.abs(np.subtract(answers, expected)).max())
    assert max(apart.values()) < 1e-4, apart


def test_zeroing_massive_activations_leaves_chance(harness, default_model, local_tasks, plain):
    places = [mj.Edit("block_out", layer=12, position=0, dim=dim, value=0.0) for dim in (507, 247, 14)]
    zero = harness.evaluate_tasks(default_model, ["prose_choice"], places, include_path=local_tasks)
    before, after = (found["results"]["prose_choice"]["acc,none"] for found in (plain, zero))
    spread = np.sqrt((1 - 1 / CHOICES) / CHOICES / 48)
    assert before > 1 / CHOICES + 5 * spread
    assert abs(after - 1 / CHOICES) < 3 * spread
