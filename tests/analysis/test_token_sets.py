"""Sets of tokens, random ones in their place, and what they are held against."""

import numpy as np

from massive_jax.analysis import mean_cosine, padded_sets, random_sets, uniform_share


def test_sets_are_filled_up():
    member = np.array([[False, True, True], [False, False, False]])
    assert padded_sets(member, 4).tolist() == [[1, 2, -1, -1], [-1, -1, -1, -1]]


def test_random_sets_are_of_other_tokens_that_most_queries_see():
    member = np.isin(np.arange(20), (0, 3))
    sets = random_sets(member, 400, np.random.default_rng(0), causal=True)
    assert sets.shape == (400, 2)
    assert set(sets.ravel().tolist()) == {1, 2, 4, 5, 6, 7, 8, 9}
    assert (sets[:, 0] != sets[:, 1]).all()
    everywhere = random_sets(member, 400, np.random.default_rng(0), causal=False)
    assert set(everywhere.ravel().tolist()) == set(range(20)) - {0, 3}


def test_random_sets_where_few_tokens_are_left():
    member = np.arange(20) < 9
    later = random_sets(member, 50, np.random.default_rng(0), causal=True)
    assert later.min() >= 9
    assert (random_sets(np.arange(20) < 12, 3, np.random.default_rng(0), causal=True) == -1).all()


def test_uniform_share_counts_what_a_query_sees():
    member = np.array([[True, False, False, True]])
    causal = np.tri(4, dtype=bool)
    np.testing.assert_allclose(uniform_share(member, causal), [(1 + 1 / 2 + 1 / 3 + 2 / 4) / 4])
    local = causal & ~np.tri(4, k=-2, dtype=bool)
    np.testing.assert_allclose(uniform_share(member, local), [(1 + 1 / 2 + 0 + 1 / 2) / 4])


def test_the_mean_cosine_of_pairs_is_known_from_the_sum():
    unit = np.random.default_rng(0).normal(size=(7, 5)) + 1
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    pairs = [unit[i] @ unit[j] for i in range(7) for j in range(i)]
    np.testing.assert_allclose(mean_cosine(unit.sum(axis=0), 7), np.mean(pairs))
    assert np.isnan(mean_cosine(unit[0], 1))
