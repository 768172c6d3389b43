import numpy as np
import pytest

from music_ssl_fairseq.label.join import Joined


def test_usage_of_known_units():
    usage = Joined(k=5)
    usage.add(np.array([0, 0, 0, 1, 1, 0], np.int32))
    usage.add(np.array([], np.int32))
    usage.add(np.array([0, 3], np.int32))
    assert usage.counts.tolist() == [5, 2, 0, 1, 0]
    summary = usage.summary()
    assert summary["tracks"] == 3
    assert summary["labels"] == 8
    assert summary["used_clusters"] == 3
    assert summary["majority_share"] == pytest.approx(5 / 8)
    assert summary["mean_run_length"] == pytest.approx(8 / 5)
    shares = np.array([5, 2, 1]) / 8
    assert summary["perplexity"] == pytest.approx(2 ** -(shares * np.log2(shares)).sum(), abs=1e-3)


def test_equal_use_has_perplexity_k():
    usage = Joined(k=40)
    usage.add(np.repeat(np.arange(40), 3))
    assert usage.summary()["perplexity"] == pytest.approx(40)
    assert usage.summary()["mean_run_length"] == 3


def test_nothing_counted():
    assert Joined(k=3).summary()["majority_share"] == 0
