"""Secondary sinks: planted in the shares that tokens get."""

import numpy as np
import pytest

from massive_jax.analysis import SinkCount, find_secondary_sinks

L, W, T = 12, 2, 30


def planted():
    """Shares, norms and cosines without a sink but the first token."""
    received = np.full((L, W, T), 0.02)
    received[:, :, 0] = 0.6
    return received, np.ones((L, W, T)), np.zeros((L, W, T))


def test_a_planted_sink_its_layers_and_the_mlp_that_made_it():
    received, norm, cosine = planted()
    received[4:9, 1, 7] = [0.2, 0.5, 0.3, 0.2, 0.11]
    received[10, 1, 7] = 0.9  # later, and alone
    norm[3, 1, 7], cosine[3, 1, 7] = 40.0, 0.98
    norm[6, 1, 7] = 90.0  # after it has begun
    (sink,) = find_secondary_sinks(received, norm, cosine)
    assert (sink.window, sink.position, sink.begins, sink.ends, sink.share) == (1, 7, 5, 9, 0.5)
    assert (sink.mlp_layer, sink.mlp_ratio, sink.mlp_cosine) == (4, 40.0, 0.98)


@pytest.mark.parametrize(
    ("layers", "position", "share"),
    [
        (slice(2, 4), 7, 0.5),  # for two layers only
        (slice(2, 9), 0, 0.5),  # the first token is the primary sink
        (slice(2, 9), T - 8, 0.5),  # of too few queries
        (slice(2, 9), 7, 0.09),
    ],
)
def test_what_is_no_secondary_sink(layers, position, share):
    received, norm, cosine = planted()
    received[layers, 0, position] = share
    assert find_secondary_sinks(received, norm, cosine) == []
    received[2:5, 0, T - 9] = 0.11
    assert len(find_secondary_sinks(received, norm, cosine)) == 1


def test_one_from_the_first_layer_on_was_made_by_no_mlp():
    received, norm, cosine = planted()
    received[:, 0, 3] = 0.2
    (sink,) = find_secondary_sinks(received, norm, cosine)
    assert (sink.begins, sink.ends, sink.mlp_layer) == (1, L, None)
    assert np.isnan(sink.mlp_ratio)


def test_groups_by_text_and_first_layer():
    received, norm, cosine = planted()
    received[4:9, :, 7], received[4:8, 0, 9], received[5:9, 0, 11] = 0.2, 0.4, 0.3
    norm[2, :, 7] = 10.0, 20.0
    norm[3, 0, 9] = 30.0
    count = SinkCount()
    for sink in find_secondary_sinks(received, norm, cosine):
        count.add(sink, " the", massive=sink.position == 9)
    first, second = count.groups()
    assert (first.token, first.begins, first.count, first.massive, first.ends) == (" the", 5, 3, 1, 9)
    assert first.mlp_layer == 3
    assert (first.share, first.mlp_ratio) == pytest.approx((0.8 / 3, 20.0))
    assert (second.begins, second.count, second.ends) == (6, 1, 9)
