"""examples/plot_training.py, on lines that fairseq's own progress bar wrote."""

import importlib
import logging
import sys
from pathlib import Path

import pytest
from fairseq.logging.progress_bar import JsonProgressBar

from music_ssl_fairseq.report.training_curves import draw
from tests import EXAMPLES

pytest.importorskip("matplotlib")

TRAIN_VALID = ("train", "valid")


@pytest.fixture(scope="module")
def plot():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        return importlib.import_module("plot_training")


@pytest.fixture
def write_log():
    """Log `(tag, statistics)` as a run of fairseq-hydra-train would, to `folder`."""

    def write(folder: Path, entries: list[tuple[str, dict]]) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        logger = logging.getLogger("fairseq.logging.progress_bar")
        handler = logging.FileHandler(folder / "hydra_train.log")
        handler.setFormatter(
            logging.Formatter("[%(asctime)s][%(name)s][%(levelname)s] - %(message)s")
        )
        level = logger.level
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        try:
            progress = JsonProgressBar([None], epoch=1, log_interval=1)
            next(iter(progress))
            for tag, stats in entries:
                if tag == "train_inner":
                    progress.log(stats, tag=tag, step=stats["num_updates"])
                else:
                    progress.print(stats, tag=tag)
            logger.info("a line of another kind {}")
        finally:
            logger.removeHandler(handler)
            logger.setLevel(level)
            handler.close()
        return folder

    return write


def hubert(update: int, loss: float) -> dict:
    return {
        "loss": loss + 0.5,
        "loss_m": loss,
        "accuracy_m": 0.1 * update,
        "majority_m": 0.05,
        "num_updates": update,
        "wps": 32_000.0 * update,
        "lr": 1e-4 * update,
    }


def test_reads_what_fairseq_writes(plot, write_log, tmp_path):
    entries = [("train_inner", hubert(update, 6 - update)) for update in (1, 2, 3)]
    entries += [("train", hubert(3, 4.5)), ("valid", hubert(3, 3.25))]
    curves = plot.read_log(write_log(tmp_path / "run", entries))
    assert plot.series(curves.train, "loss_m") == ([1, 2, 3], [5, 4, 3])
    assert plot.series(curves.train, "lr") == ([1, 2, 3], pytest.approx([1e-4, 2e-4, 3e-4]))
    assert plot.series(curves.valid, "loss_m") == ([3], [3.25])
    assert plot.series(curves.train, "target_var") == ([], [])


def test_after_a_resume_the_later_line_counts(plot, write_log, tmp_path):
    write_log(tmp_path, [("train_inner", hubert(u, 6)) for u in (1, 2, 3)])
    write_log(tmp_path, [("train_inner", hubert(u, 5)) for u in (2, 3, 4)])
    assert plot.series(plot.read_log(tmp_path).train, "loss_m") == ([1, 2, 3, 4], [6, 5, 5, 5])
    # Begun anew in the same folder: what came after belongs to the former run.
    write_log(tmp_path, [("valid", hubert(4, 5)), ("train_inner", hubert(1, 9))])
    curves = plot.read_log(tmp_path)
    assert plot.series(curves.train, "loss_m") == ([1], [9])
    assert not curves.valid


def test_of_several_validation_subsets_the_first_counts(plot, write_log, tmp_path):
    entries = [
        (tag, hubert(update, loss))
        for update in (1, 2)
        for tag, loss in (("train_inner", 7.0), ("valid_own", 6.0), ("valid", 9.0))
    ]
    valid = plot.read_log(write_log(tmp_path / "run", entries)).valid
    assert {update: stats["loss_m"] for update, stats in valid.items()} == {1: 6.0, 2: 6.0}


def test_a_run_shorter_than_the_log_interval_has_its_last_line(plot, write_log, tmp_path):
    curves = plot.read_log(write_log(tmp_path, [("train", hubert(2, 4.0))]))
    assert plot.series(curves.train, "loss_m") == ([2], [4.0])


def test_table(plot, write_log, tmp_path):
    folder = write_log(
        tmp_path / "music_hubert",
        [("train_inner", hubert(u, 6 - u)) for u in (1, 2, 3)] + [("valid", hubert(3, 3.25))],
    )
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "checkpoint_last.pt").touch()
    other = write_log(
        tmp_path / "music2vec",
        [("train_inner", {"loss": 2.0, "target_var": 0.7, "pred_var": 0.2, "num_updates": 5})],
    )
    header, rule, first, second = plot.markdown(
        [plot.read_log(folder), plot.read_log(other)]
    ).splitlines()
    assert header.count("|") == rule.count("|") == first.count("|") == second.count("|")
    assert first.startswith(f"| {tmp_path.name}/music_hubert | ")
    assert first.split(" | ")[1:-1] == [
        "3",
        "5.000 → 3.000",
        "3.250",
        "masked accuracy 0.300, most frequent unit 0.050",
        "5",  # median of the intervals after the first: 4 and 6 seconds of audio a second
    ]
    assert first.endswith(f"| {folder}/checkpoints/checkpoint_last.pt |")
    assert "std. of targets 0.700, of predictions 0.200" in second


@pytest.fixture
def command(plot, monkeypatch):
    """Call the program with these arguments."""

    def run(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["plot_training.py", *map(str, arguments)])
        return plot.main()

    return run


def test_command_line_draws(command, write_log, tmp_path, capsys):
    run = write_log(tmp_path / "run", [("train_inner", hubert(u, 6 - u)) for u in (1, 2, 3)])
    command(run, "--table", "--out", tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "/run | 3 | 5.000 → 3.000 |" in capsys.readouterr().out
    command(run, "--out", tmp_path / "curves.png")
    assert capsys.readouterr().out == f"curves: {tmp_path / 'curves.png'}\n"


def test_legends_have_the_names_of_the_logged_numbers(plot, write_log, tmp_path):
    stats = {"num_updates": 1, "target_var": 0.7, "pred_music": 0.1, "target_position": 0.2}
    run = plot.read_log(write_log(tmp_path, [("train_inner", stats)]))
    shown = {text for axes in draw([run]).axes for text in axes.get_legend_handles_labels()[1]}
    assert {"pred_music: saved by knowing the crop", "target_position: due to position"} <= shown


def test_runs_that_log_the_same_have_the_same_axes(plot, write_log, tmp_path):
    logs = {"a": hubert(1, 5), "b": hubert(1, 9), "c": {"num_updates": 1, "pred_var": 0.2}}
    runs = {
        n: plot.read_log(write_log(tmp_path / n, [("train_inner", x)])) for n, x in logs.items()
    }
    for names, shared in (("ab", True), ("ac", False)):
        first, second, *_ = draw([runs[name] for name in names]).axes
        assert (first.get_ylim() == second.get_ylim()) == shared


def two_sets(update: int, loss: float) -> dict:
    stats = {"loss_m": loss, "num_updates": update}
    for name in ("_0", "_1"):
        stats |= {f"accuracy_m{name}": 0.1, f"majority_m{name}": 0.05, f"perplexity_pred{name}": 9}
    return stats


@pytest.mark.parametrize(
    ("stats", "labels"),
    [
        (hubert(1, 5), ["train", "valid", *(f"most frequent unit ({s})" for s in TRAIN_VALID)]),
        (
            {"loss": 2.0, "target_var": 0.7, "pred_var": 0.2, "num_updates": 5},
            ["targets", "predictions", "targets (valid)", "predictions (valid)"],
        ),
        (
            two_sets(1, 5),
            [
                f"label set {i}: {name}"
                for i in (0, 1)
                for name in (*TRAIN_VALID, *(f"most frequent unit ({s})" for s in TRAIN_VALID))
            ],
        ),
    ],
)
def test_each_health_curve_has_the_baseline_of_its_split(plot, write_log, tmp_path, stats, labels):
    curves = plot.read_log(write_log(tmp_path, [("train_inner", stats), ("valid", stats)]))
    assert [line.get_label() for line in draw([curves]).axes[1].lines] == labels


def test_a_run_with_units_beside_the_teacher_shows_both(plot, write_log, tmp_path):
    """Its units may be learned while the teacher has collapsed."""
    teacher = {"target_var": 0.7, "pred_var": 0.2, "pred_music": 0.3, "target_position": 0.1}
    log = [("train_inner", {**hubert(update, 5), **teacher}) for update in (1, 2)]
    curves = plot.read_log(write_log(tmp_path / "units", log))
    alone = plot.read_log(write_log(tmp_path / "alone", [("train_inner", hubert(1, 5))]))
    figure = draw([curves, alone])
    drawn = {axes.get_ylabel() for axes in figure.axes if axes.lines}
    assert {"accuracy on masked frames", "share of the squared error"} < drawn
    assert len([axes for axes in figure.axes if not axes.lines and not axes.axison]) == 2


@pytest.mark.parametrize("text", [None, "no statistics\n"])
def test_a_folder_without_curves_is_one_clear_line(command, tmp_path, capsys, text):
    if text is not None:
        (tmp_path / "hydra_train.log").write_text(text)
    assert command(tmp_path) == 1
    assert capsys.readouterr().err.startswith(f"error: {tmp_path}/hydra_train.log: ")


def test_a_picture_that_cannot_be_written_is_one_clear_line(command, write_log, tmp_path, capsys):
    run = write_log(tmp_path / "run", [("train_inner", hubert(1, 5))])
    assert command(run, "--out", run / "hydra_train.log" / "curves.png") == 1
    assert capsys.readouterr().err.startswith(f"error: {run}/hydra_train.log: ")
    assert command(run, "--out", tmp_path / "curves.foo") == 1
    assert "curves.foo: no picture that can be written" in capsys.readouterr().err
