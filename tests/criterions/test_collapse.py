"""A run that collapses says so and stops; one that only begins slowly does not."""

from pathlib import Path

import pytest
import torch

from music_ssl_fairseq.criterions import collapse
from music_ssl_fairseq.criterions.collapse import (
    PATIENCE_UPDATES,
    WINDOW_UPDATES,
    SpreadWatch,
    UnitWatch,
)
from tests.fairseq_commands import SHALLOW, logged, train

CLASSES = 500
FRAMES = 10_000


def labels(majority: float) -> torch.Tensor:
    """`[classes]` counts, one unit more frequent than the others."""
    counts = torch.full((CLASSES,), FRAMES * (1 - majority) / (CLASSES - 1), dtype=torch.float64)
    counts[7] = FRAMES * majority
    return counts


def predictions(share: float, unit: int = 7) -> torch.Tensor:
    """`[classes]` counts: one unit has this share, all others have the rest."""
    counts = torch.full((CLASSES,), FRAMES * (1 - share) / (CLASSES - 1), dtype=torch.float64)
    counts[unit] = FRAMES * share
    return counts


def verdicts(states, warmup: int, majority: float = 0.01) -> list[tuple[int, str]]:
    """Return warnings from update 1 on; states: (updates, accuracy, share of the main unit)."""
    watch = UnitWatch(warmup, "Change optimization.lr and lr_scheduler.warmup_updates.")
    update, said = 0, []
    for count, accuracy, share in states:
        for _ in range(count):
            update += 1
            unit = update % 20  # a collapsed model names another unit now and then
            sums = FRAMES * accuracy, FRAMES, [predictions(share, unit)], [labels(majority)]
            message = watch.update(update, *sums)
            said += [(update, message)] if message else []
    return said


COLLAPSED = (0.01, 0.999)  # perplexity 1.02
NEARLY = (0.0103, 0.97)  # perplexity 1.4
LEARNING = (0.05, 0.2)


@pytest.mark.parametrize("state", [COLLAPSED, NEARLY])
def test_a_collapse_is_said_once_soon_after_the_warm_up(state):
    ((update, message),) = verdicts([(1400, *state)], warmup=300)
    assert 300 + PATIENCE_UPDATES <= update <= 300 + PATIENCE_UPDATES + 2 * WINDOW_UPDATES
    assert "\n" not in message
    assert message.startswith(f"collapsed: at update {update} the predictions' perplexity is 1.")
    assert "always naming the most frequent unit (1.00%)" in message
    assert "optimization.lr and lr_scheduler.warmup_updates" in message


@pytest.mark.parametrize(
    ("states", "warmup", "majority"),
    [
        ([(250, *COLLAPSED), (1000, *LEARNING)], 300, 0.01),  # a healthy short run
        ([(3000, *COLLAPSED), (500, *LEARNING)], 3200, 0.01),  # the paper's schedule
        ([(250, *COLLAPSED), (100, *LEARNING), (250, *COLLAPSED)], 0, 0.01),  # it passes
        ([(2000, 0.01, 0.3)], 300, 0.01),  # on the baseline, but with many units
        ([(2000, 0.97, 0.94)], 300, 0.9),  # one unit is most of the labels, and the others are told
        ([(2000, 0.02, 0.999)], 300, 0.01),  # right more often than the majority
    ],
)
def test_no_false_alarm(states, warmup, majority):
    assert verdicts(states, warmup, majority) == []


def test_what_was_learned_and_lost_is_said_within_the_warm_up():
    ((update, _),) = verdicts([(1000, *LEARNING), (1000, *COLLAPSED)], warmup=32_000)
    assert 1000 + PATIENCE_UPDATES <= update <= 1000 + PATIENCE_UPDATES + 2 * WINDOW_UPDATES


def test_a_label_set_that_is_learned_keeps_the_model_alive():
    def said(second):
        watch = UnitWatch(0, "")
        sets = [predictions(0.999), predictions(second)], [labels(0.01), labels(0.01)]
        correct = FRAMES * (0.01 + (0.01 if second > 0.9 else 0.2))
        return [
            x for update in range(1, 800) if (x := watch.update(update, correct, FRAMES, *sets))
        ]

    assert len(said(0.999)) == 1
    assert said(0.1) == []


@pytest.mark.parametrize(
    ("update", "target", "pred", "position", "says"),
    [
        (100, 0.05, 0.005, 0.1, None),  # the first moments
        (500, 0.05, 0.1, 0.1, "target_var is 0.0500, below criterion.min_target_var=0.1"),
        (4000, 0.35, 0.005, 0.1, None),
        (5100, 0.35, 0.005, 0.1, "pred_var is 0.0050, below criterion.min_pred_var=0.01"),
        (600, 0.35, 0.1, 0.97, "position in its crop explains 97% of the targets' variance"),
        (6000, 0.35, 0.1, 0.04, None),
    ],
)
def test_music2vec_s_signs(update, target, pred, position, says):
    watch = SpreadWatch(120, "Change it.", {"target": 0.1, "pred": 0.01})
    said = [
        watch.update(now, {"target": target, "pred": pred}, position)
        for now in range(100, update + 1, 100)
    ]
    found = [message for message in said if message]
    assert len(found) == (says is not None)
    if says:
        assert says in found[0]
        assert found[0].endswith(". Change it.")
    assert [now for now in range(301) if watch.due(now)] == [100, 200, 300]


@pytest.fixture
def impatient(corpus, monkeypatch):
    monkeypatch.chdir(corpus)
    monkeypatch.setattr(collapse, "PATIENCE_UPDATES", 4)
    monkeypatch.setattr(collapse, "WINDOW_UPDATES", 2)
    monkeypatch.setattr(collapse, "_CHECK_INTERVAL_UPDATES", 2)


HIGH = {
    "music_hubert": ["optimization.lr=[3.0]", "lr_scheduler.warmup_updates=2"],
    "music2vec": ["optimization.lr=[0.0005]", "criterion.min_target_var=9"],
}
SHORT = "optimization.max_update=14"


@pytest.mark.parametrize("family", HIGH)
def test_a_collapsed_run_stops_and_names_the_settings(impatient, family):
    with pytest.raises(SystemExit) as end:
        train(family, *SHALLOW[family], SHORT, *HIGH[family], f"hydra.run.dir=stop-{family}")
    message = str(end.value)
    assert message.startswith("error: collapsed: at update ")
    assert "\n" not in message
    assert f"optimization.lr=[{1 if family == 'music_hubert' else 0.00017}]" in message
    warmup = "warmup_updates=4 (now 2)" if family == "music_hubert" else "phase_ratio (now 0.03)"
    assert f"lr_scheduler.{warmup}" in message or warmup in message


def test_a_collapsed_run_trains_on_where_that_is_wanted(impatient):
    options = [*HIGH["music_hubert"], "criterion.stop_if_collapsed=false"]
    train("music_hubert", *SHALLOW["music_hubert"], SHORT, *options, "hydra.run.dir=on")
    assert "[WARNING] - collapsed: at update " in Path("on/hydra_train.log").read_text()
    assert logged(Path("on"), "train_inner")[-1]["num_updates"] == 14


@pytest.mark.parametrize("family", HIGH)
def test_a_run_that_has_not_collapsed_trains_to_its_end(impatient, family):
    run = Path(f"healthy-{family}")
    train(family, *SHALLOW[family], SHORT, f"hydra.run.dir={run}")
    assert "collapsed" not in (run / "hydra_train.log").read_text().replace("stop_if_collapsed", "")
    assert logged(run, "train_inner")[-1]["num_updates"] == 14
