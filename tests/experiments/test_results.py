"""What the experiments write, against direct computations on the tiny model's whole tensors."""

import chex
import jax
import numpy as np
import pytest

from massive_jax.data import cut_windows
from massive_jax.evaluate import perplexity
from massive_jax.probe import Capture, Edit
from massive_jax.report import as_record
from massive_jax.report.results import FeatureMap

BOS, PLANTED, LAYERS, HEADS = 256, 5, 3, 4  # as in conftest.py
PROMPT = "Summer is warm.\n"
TOKENS = len(PROMPT)  # every byte is one


def top(state, count):
    """The `count` largest magnitudes of [T, D]: (signed value, position, dim)."""
    order = np.argsort(-np.abs(state), axis=None)[:count]
    return [(float(state[t, d]), t, d) for t, d in zip(*np.unravel_index(order, state.shape), strict=True)]


def median(state):
    """Median magnitude; of an even number of them the lower of the middle two, as torch has it."""
    return np.sort(np.abs(state), axis=None)[(state.size - 1) // 2]


@pytest.mark.parametrize("bos", [False, True])
def test_layerwise_on_a_prompt(run, tiny, states, bos):
    got = run("layerwise", f"--prompt={PROMPT}", f"--bos={bos}", "--massive_magnitude=3", "--massive_ratio=4")
    tokens = tiny.tokenize(PROMPT, bos=bos)
    whole = states(tokens)[:, 0]
    assert (got["dtype"], got["bos"], got["text"], got["windows"], got["context"]) == ("float32", bos, None, 1, TOKENS)
    assert got["tokens"] == ["<s>"] * bos + [*PROMPT]
    assert got["model"] == tiny.name
    assert got["thresholds"] == {"magnitude": 3.0, "ratio": 4.0}
    assert [row["layer"] for row in got["layers"]] == [1, 2, 3]
    expected = []
    for row, state in zip(got["layers"], whole, strict=True):
        assert [(t["position"], t["dim"]) for t in row["top"]] == [(t, d) for _, t, d in top(state, 3)]
        np.testing.assert_allclose([t["value"] for t in row["top"]], [v for v, _, _ in top(state, 3)], rtol=1e-6)
        assert all(t["token"] == got["tokens"][t["position"]] and t["share"] == 1 for t in row["top"])
        middle = median(state)
        assert row["median"] == pytest.approx(middle, rel=1e-6)
        expected += [
            (row["layer"], t, d, abs(v) > 3, abs(v) > 4 * middle)
            for v, t, d in top(state, 16)
            if abs(v) > 3 or abs(v) > 4 * middle
        ]
    found = [(m["layer"], m["position"], m["dim"], m["meets_magnitude"], m["meets_ratio"]) for m in got["massive"]]
    assert found == expected
    assert len({m[3:] for m in found}) > 1
    final = np.asarray(tiny(tokens).last_hidden)[0]
    assert got["final_norm"]["top"][0]["value"] == pytest.approx(top(final, 1)[0][0], rel=1e-6)
    assert got["final_norm"]["layer"] is None


def test_the_planted_activation_is_found_with_bos_and_only_then(run):
    found = run("layerwise", "--bos")["massive"]
    both = [m for m in found if m["meets_magnitude"] and m["meets_ratio"]]
    assert [(m["layer"], m["position"], m["dim"], m["token"]) for m in both] == [
        (layer, 0, PLANTED, "<s>") for layer in (1, 2, 3)
    ]
    assert run("layerwise")["massive"] == []


def test_layerwise_over_windows(run, tiny, states, text_file):
    got = run("layerwise", f"--text={text_file}", "--windows=3", "--context=20", "--bos")
    windows = cut_windows(tiny, text_file.read_text(), context=20, windows=3, bos=True)
    state = states(windows.tokens)[1]  # layer 2: [W, T, D]
    row = got["layers"][1]
    assert (got["windows"], got["context"], got["text"]) == (3, 20, str(text_file))
    assert got["tokens"] == ["<s>", *text_file.read_text()[:20]]
    assert (row["top"][0]["position"], row["top"][0]["dim"], row["top"][0]["share"]) == (0, PLANTED, 1)
    assert row["top"][0]["value"] == pytest.approx(state[:, 0, PLANTED].mean(), rel=1e-6)
    ranked = -np.sort(-np.abs(state).reshape(3, -1), axis=1)[:, :3].mean(axis=0)
    np.testing.assert_allclose(row["magnitudes"], ranked, rtol=1e-6)
    medians = [median(window) for window in state]
    assert row["median"] == pytest.approx(np.mean(medians), rel=1e-6)


def test_a_token_that_differs_between_windows_has_no_text(run, text_file):
    got = run("layerwise", f"--text={text_file}", "--windows=3", "--context=19", "--massive_magnitude=1")
    places = [t for row in got["layers"] for t in row["top"] if t["share"] > 0.5]
    text = text_file.read_text()
    for t in places:
        characters = {text[19 * w + t["position"]] for w in range(3)}
        assert t["token"] == (characters.pop() if len(characters) == 1 else None)
    assert any(t["token"] is None for t in places)


@pytest.mark.parametrize("flag", ["--windows=2", "--context=30", "--text={}"])
def test_each_text_flag_means_a_text(run, text_file, flag):
    flag = flag.format(text_file)
    arguments = [flag, *(f for f in ("--windows=2", "--context=30") if f[:6] != flag[:6])]
    got = run("layerwise", *arguments)
    assert (got["windows"], got["context"]) == (2, 30)


@pytest.mark.parametrize("bos", [False, True])
def test_feature_map(run, tiny, states, bos):
    got = run("feature_map", f"--prompt={PROMPT}", f"--bos={bos}", "--layer=2")
    state = states(tiny.tokenize(PROMPT, bos=bos))[1, 0]
    assert got["layer"] == 2
    assert got["median"] == pytest.approx(median(state), rel=1e-6)
    if bos:
        (found,) = got["massive"]
        assert (found["position"], found["dim"], found["token"]) == (0, PLANTED, "<s>")
        assert found["value"] == pytest.approx(state[0, PLANTED], rel=1e-6)
        assert PLANTED in got["dims"]
    else:
        assert got["massive"] == []
        assert "no massive activation" in run.out
    assert (run.workdir / "feature_map.png").read_bytes().startswith(b"\x89PNG")


def test_feature_map_draws_that_layer(run, tiny, states, monkeypatch):
    drawn = []
    monkeypatch.setattr("experiments.feature_map.plot_feature_map", lambda *arguments: drawn.append(arguments))
    got = run("feature_map", f"--prompt={PROMPT}", "--layer=2")
    ((result, magnitudes, path),) = drawn
    assert as_record(FeatureMap, got) == result
    assert path == run.workdir / "feature_map.png"
    np.testing.assert_allclose(magnitudes, np.abs(states(tiny.tokenize(PROMPT))[1, 0]), rtol=1e-6)


def test_feature_map_lists_all_that_is_massive(run, states, tiny):
    got = run("feature_map", f"--prompt={PROMPT}", "--layer=3", "--massive_magnitude=0", "--massive_ratio=0")
    expected = {(t, d) for _, t, d in top(states(tiny.tokenize(PROMPT))[2, 0], 16)}
    assert {(m["position"], m["dim"]) for m in got["massive"]} == expected


@pytest.mark.parametrize(("head", "bos"), [("mean", True), ("2", True), ("mean", False)])
def test_attention_map(run, tiny, head, bos):
    got = run("attention_map", f"--prompt={PROMPT}", f"--bos={bos}", "--layer=2", f"--head={head}")
    tokens = tiny.tokenize(PROMPT, bos=bos)
    sites = tiny(tokens, capture=Capture(("attn_logits", "attn_probs"))).intermediates
    probs, logits = (np.asarray(sites[name])[:, 0] for name in ("attn_probs", "attn_logits"))  # [L, H, T, S]
    assert got["massive_positions"] == ([0] if bos else [])
    assert got["emergence_layer"] == (1 if bos else None)
    share = [sum(probs[i, :, :, p].mean() for p in got["massive_positions"]) for i in range(LAYERS)]
    np.testing.assert_allclose(got["shares"], share, rtol=1e-5)
    assert got["layer"] == 2
    assert got["head"] == ("mean" if head == "mean" else 2)
    saved = np.load(run.workdir / "attention_map.npz")
    future = np.triu(np.ones((tokens.shape[1],) * 2, bool), 1)
    for name, whole in (("probs", probs), ("logits", logits)):
        expected = whole[1].mean(axis=0) if head == "mean" else whole[1, 2]
        assert (np.isnan(saved[name]) == future).all()
        np.testing.assert_allclose(saved[name][~future], expected[~future], rtol=1e-5, atol=1e-6)


def test_the_layer_of_attention_map_is_the_one_after_full_size(run):
    # With BOS the activation has its full size at layer 1.
    assert run("attention_map", "--bos")["layer"] == 2
    assert run("feature_map", "--bos")["layer"] == 1


class TestIntervene:
    ARGUMENTS = ("--windows=3", "--context=24", "--bos", "--layer=2")

    @pytest.fixture
    def windows(self, tiny, text_file):
        return cut_windows(tiny, text_file.read_text(), context=24, windows=3, bos=True)

    def test_numbers(self, run, tiny, states, windows, text_file):
        sites = f"0:{PLANTED},7:1"
        got = run("intervene", f"--text={text_file}", *self.ARGUMENTS, f"--places={sites}", "--ops=zero,mean,scale=0.5")
        at = states(windows.tokens)[1]
        means = [at[:, 0, PLANTED].mean(), at[:, 7, 1].mean()]
        np.testing.assert_allclose(got["mean_values"], means, rtol=1e-6)
        assert [(s["position"], s["dim"], s["value_mean"]) for s in got["sites"]] == [
            (0, PLANTED, got["mean_values"][0]),
            (7, 1, got["mean_values"][1]),
        ]
        places = [(0, PLANTED), (7, 1)]

        def under(values, op="set"):
            edits = [
                Edit("block_out", layer=2, position=p, dim=d, op=op, value=v)
                for (p, d), v in zip(places, values, strict=True)
            ]
            return perplexity(tiny, windows, edits)

        found = got["perplexity"]
        assert found["original"] == pytest.approx(perplexity(tiny, windows), rel=1e-6)
        assert found["zero"] == pytest.approx(under([0, 0]), rel=1e-6)
        assert found["mean"] == pytest.approx(under(means), rel=1e-6)
        assert found["scale=0.5"] == pytest.approx(under([0.5, 0.5], "scale"), rel=1e-6)
        assert abs(found["zero"] / found["original"] - 1) > 0.01 > abs(found["mean"] / found["original"] - 1)
        assert got["predicted_tokens"] == 3 * 24
        assert (got["layer"], got["context"], got["windows"]) == (2, 24, 3)
        assert got["text"] == str(text_file)

    def test_controls(self, run, tiny, states, windows, text_file):
        got = run("intervene", f"--text={text_file}", *self.ARGUMENTS, "--ops=zero,mean")
        assert [(s["position"], s["dim"]) for s in got["sites"]] == [(0, PLANTED)]  # found, not given
        (control,) = got["controls"]
        state = np.abs(states(windows.tokens)[1, 0])
        assert state[control["position"], control["dim"]] == pytest.approx(median(state), rel=0.3)
        assert set(got["perplexity"]) == {"original", "zero", "mean", "random_zero", "random_mean"}
        position, dim = control["position"], control["dim"]
        for name, value in (
            ("zero", 0.0),
            ("mean", states(windows.tokens)[1, :, position, dim].mean(dtype=np.float64)),
        ):
            edit = Edit("block_out", layer=2, position=position, dim=dim, value=float(value))
            assert got["perplexity"][f"random_{name}"] == pytest.approx(perplexity(tiny, windows, edit), rel=1e-9)
        assert got["perplexity"]["random_zero"] != got["perplexity"]["random_mean"]
        assert got["perplexity"]["random_zero"] != got["perplexity"]["original"]
        again = run("intervene", f"--text={text_file}", *self.ARGUMENTS, "--ops=zero", "--seed=1")
        assert again["controls"] != got["controls"]
        assert again["perplexity"]["zero"] == got["perplexity"]["zero"]
        without = run("intervene", f"--text={text_file}", *self.ARGUMENTS, "--ops=zero", "--nocontrols")
        assert set(without["perplexity"]) == {"original", "zero"}
        assert without["controls"] == []

    def test_every_operation(self, run, text_file):
        operations = ["zero", "mean", "shuffle", "set=5", "scale=2", "add=-3", "noise=1e3"]
        got = run("intervene", f"--text={text_file}", *self.ARGUMENTS, f"--ops={','.join(operations)}", "--nocontrols")
        found = got["perplexity"]
        assert list(found) == ["original", *operations[:-1], "noise=1000"]
        changed = [name for name, value in found.items() if abs(value / found["original"] - 1) > 1e-4]
        assert set(changed) >= {"zero", "shuffle", "set=5"}
        assert f"0:{PLANTED} (mean" in run.out
        assert "noise=1000" in run.out

    def test_seed_is_that_of_noise(self, run, text_file):
        arguments = (f"--text={text_file}", *self.ARGUMENTS, "--ops=noise=3e3", "--nocontrols")
        values = [run("intervene", *arguments, f"--seed={s}")["perplexity"]["noise=3000"] for s in (0, 0, 1)]
        assert values[0] == values[1] != values[2]

    def test_place_at_a_delimiter(self, run, tiny, states, text_file):
        arguments = ("--windows=3", "--context=45", "--layer=1", "--places=delim:3", "--ops=zero", "--nocontrols")
        got = run("intervene", f"--text={text_file}", *arguments)
        windows = cut_windows(tiny, text_file.read_text(), context=45, windows=3)
        at = states(windows.tokens)[0]
        text = text_file.read_text()
        positions = [min(text[45 * w :].find(c, 1) for c in ".\n") for w in range(3)]
        assert len(set(positions)) > 1
        assert got["mean_values"][0] == pytest.approx(np.mean([at[w, p, 3] for w, p in enumerate(positions)]), rel=1e-5)
        edit = Edit("block_out", layer=1, position=np.asarray(positions), dim=3, value=0.0)
        assert got["perplexity"]["zero"] == pytest.approx(perplexity(tiny, windows, [edit]), rel=1e-6)
        assert got["perplexity"]["zero"] != got["perplexity"]["original"]

    def test_nothing_massive_is_an_error_that_says_what_is_there(self, run, text_file):
        with pytest.raises(ValueError, match=r"nothing at layer 2 meets the definition .* the largest, .*--places"):
            run("intervene", f"--text={text_file}", "--windows=3", "--context=24", "--layer=2")
        assert not run.workdir.exists()


@pytest.mark.slow
class TestDefaultModel:
    """PAPER.md's numbers."""

    def test_layerwise_reproduces_the_table(self, run):
        got = run("layerwise", "--model=smollm2_135m")
        expected = {
            2: ([(206.1, 0, 507), (79.1, 0, 247), (59.2, 1, 507)], 0.722),
            3: ([(713.0, 0, 507), (128.2, 0, 247), (122.0, 0, 260)], 0.897),
            12: ([(23147.1, 0, 507), (1692.8, 0, 247), (850.0, 0, 14)], 1.721),
            20: ([(23048.5, 0, 507), (1747.7, 0, 247), (862.3, 0, 14)], 3.359),
            None: ([(46.6, 8, 199), (33.0, 0, 199)], 0.649),
        }
        rows = {row["layer"]: row for row in [*got["layers"], got["final_norm"]]}
        for layer, (largest, median) in expected.items():
            found = rows[layer]["top"][: len(largest)]
            assert [(t["position"], t["dim"]) for t in found] == [(t, d) for _, t, d in largest]
            np.testing.assert_allclose([abs(t["value"]) for t in found], [v for v, _, _ in largest], rtol=1.5e-3)
            assert rows[layer]["median"] == pytest.approx(median, rel=1e-3)
        assert len(got["tokens"]) == 9
        assert len(got["layers"]) == 30
        at_12 = {m["dim"]: (m["meets_magnitude"], m["meets_ratio"]) for m in got["massive"] if m["layer"] == 12}
        assert at_12[507] == (True, True)
        assert at_12[247] == (True, False)

    def test_intervene_at_the_three_sites(self, run):
        got = run(
            "intervene", "--model=smollm2_135m", "--layer=12", "--places=0:507,0:247,0:14", "--context=256", "--draws=1"
        )["perplexity"]
        assert got["zero"] > 1e5
        for name in ("mean", "random_zero", "random_mean"):
            assert got[name] == pytest.approx(got["original"], rel=0.01)


def test_several_prompts_give_what_each_gives_alone(run):
    prompts = (PROMPT, "a longer prompt, of more tokens\n")  # of lengths that other tests here have
    together = run("layerwise", *(f"--prompt={text}" for text in prompts))["prompts"]
    assert [entry.pop("prompt") for entry in together] == list(prompts)
    for entry, text in zip(together, prompts, strict=True):
        alone = run("layerwise", f"--prompt={text}")
        chex.assert_trees_all_equal_structs(entry, alone)
        for got, expected in zip(jax.tree.leaves(entry), jax.tree.leaves(alone), strict=True):
            assert got == pytest.approx(expected, rel=1e-4) if isinstance(expected, float) else got == expected
    assert {"layerwise_1.png", "layerwise_2.png"} <= {path.name for path in run.workdir.iterdir()}


def test_criteria_of_zero_are_met_by_everything(run):
    got = run("layerwise", f"--prompt={PROMPT}", "--massive_magnitude=0", "--massive_ratio=0")
    assert all(m["meets_magnitude"] and m["meets_ratio"] for m in got["massive"])
    assert len(got["massive"]) == 16 * LAYERS
