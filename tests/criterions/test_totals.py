"""What criteria log is summed and fetched at once."""

import pytest
import torch

from music_ssl_fairseq.criterions.totals import DelayedTotals, totals

LOGS = [
    {"loss": torch.tensor(1.5), "count": 3, "units": torch.tensor([1.0, 0.0]), "rate": 0.5},
    {"loss": torch.tensor(2.5), "count": 4, "units": torch.tensor([1.0, 5.0]), "rate": 0.5},
]


def test_totals():
    fetched = []

    def fetch(tensor):
        fetched.append(tensor)
        return tensor

    sums = totals(LOGS, fetch)
    assert len(fetched) == 1
    assert (sums["loss"], sums["count"], sums["rate"]) == (4.0, 7, 1.0)
    assert isinstance(sums["loss"], float)
    assert isinstance(sums["count"], int)
    torch.testing.assert_close(sums["units"], torch.tensor([2.0, 5.0], dtype=torch.float64))


def test_on_a_cpu_nothing_is_late():
    late = DelayedTotals()
    assert late(LOGS[:1])["count"] == 3
    assert late(LOGS[1:])["count"] == 4


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_totals_are_those_of_the_call_before():
    late = DelayedTotals()
    logs = [{**log, "loss": log["loss"].cuda()} for log in LOGS]
    found = [late([logs[0]]), late([logs[1]]), late([logs[0]])]
    assert [(sums["loss"], sums["count"]) for sums in found] == [(1.5, 3), (1.5, 3), (2.5, 4)]
