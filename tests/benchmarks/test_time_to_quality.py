"""The measure of `time_to_quality`: its held-out set, and what it reads in a log."""

import json
import re
import shutil
from datetime import datetime
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from music_ssl_fairseq.data.audio_identity import note_names
from music_ssl_fairseq.data.crops import MASKS, generator
from music_ssl_fairseq.data.label_check import check_labels
from music_ssl_fairseq.data.label_store import LabelStore
from music_ssl_fairseq.data.manifest import Manifest
from music_ssl_fairseq.data.masks import SpanMask
from music_ssl_fairseq.data.units import UnitDictionary
from music_ssl_fairseq.errors import InputError
from tests.benchmarks import held_out
from tests.benchmarks.time_to_quality import Run, _has_begun, earlier
from tests.benchmarks.time_to_quality_report import (
    entries,
    held_at,
    mean_and_interval,
    table,
    write,
)

BEGAN = datetime(2026, 11, 26, 23, 59, 50).timestamp()
LOG = """[2026-11-26 23:59:55,500][fairseq_cli.train][INFO] - begin training epoch 1
[2026-11-27 00:00:00,250][train_inner][INFO] - {"epoch": 1, "loss": "9.1", "num_updates": "10"}
[2026-11-27 00:00:01,000][valid][INFO] - {"valid_loss_m": "7.4", "valid_num_updates": "20"}
[2026-11-27 00:00:02,000][valid][INFO] - {"valid_loss_m": "7.6", "valid_num_updates": "40"}
[2026-11-27 00:00:03,000][valid][INFO] - {"valid_loss_m": "7.5", "valid_num_updates": "60"}
[2026-11-27 00:00:04,125][valid][INFO] - {"valid_loss_m": "7.3", "valid_num_updates": "80"}
"""


def test_a_level_must_hold_for_two_validations():
    run = Run([], SimpleNamespace(name="ours-1"), held_out.Path("caches"), "valid_loss_m")
    curve = run._curve(entries(LOG, BEGAN))
    assert curve[0] == [20, 11.0, 7.4]
    assert held_at(curve, 7.5, more_is_better=False) == 14.125
    assert held_at(curve, 7.3, more_is_better=False) is None
    assert held_at(curve, 7.35, more_is_better=True) == 12.0
    assert run.reached(7.5, False)(entries(LOG, BEGAN))
    assert not run.reached(7.4, False)(entries(LOG, BEGAN))


def test_a_cold_run_ends_once_training_and_validation_are_compiled():
    lines = LOG.splitlines(keepends=True)
    assert _has_begun(entries(LOG, BEGAN))
    assert not _has_begun(entries("".join(lines[:2]), BEGAN))
    assert not _has_begun(entries("".join(lines[2:]), BEGAN))


def test_the_table_says_what_was_reached_and_what_a_cold_start_costs():
    runs = {str(n): {"start": 10.0, "curve": [[1, n, 7.0], [2, 20.0 + n, 7.0]]} for n in (1, 2, 3)}
    runs_of_both = {"ours": runs, "fairseq": {"1": {"start": None, "curve": [[9, 9.0, 8.0]]}}}
    figures = {"runs": runs_of_both, "levels": [7.0], "more_is_better": False, "cold_start": 45.0}
    rows = table(figures).splitlines()[2:]
    assert rows[0] == "| ours | 7 | 22.0 [19.5, 24.5] | 21.0, 22.0, 23.0 | 57.0 | 10.0 |"
    assert rows[1] == "| fairseq | 7 | - | not reached | - | nan |"
    assert mean_and_interval([3.0]) == "3.0"


def test_a_record_goes_on_only_as_it_began(tmp_path):
    figures = {"device": "CPU", "torch": "2", "date": "today", "model": "music_hubert"}
    figures |= {"command": ["short"], "corpus": {"train.tsv": "8 tracks"}, "levels": [7.0]}
    figures |= {"more_is_better": False, "cold_start": None, "runs": {}}
    record, run = tmp_path / "record", tmp_path / "runs/ours-1"
    assert earlier(record, figures) is figures
    (run / ".hydra").mkdir(parents=True)
    for name in ("hydra_train.log", ".hydra/config.yaml"):
        (run / name).touch()
    done = {"start": 9.0, "curve": [[1, 1.0, 7.0], [2, 2.0, 7.0]]}
    write(figures | {"runs": {"ours": {"1": done}}}, tmp_path / "runs", record)
    assert earlier(record, figures)["runs"] == {"ours": {"1": done}}
    write(figures | {"runs": {"ours": {"1": done}}}, tmp_path / "gone", record)  # keeps its log
    assert {f.name for f in record.iterdir()} == {"README.md", "figures.json", "1.log", "1.yaml"}
    with pytest.raises(InputError, match=r"another corpus: .*8 tracks.*, here .*9 tracks"):
        earlier(record, figures | {"corpus": {"train.tsv": "9 tracks"}})


@pytest.fixture
def held(corpus, tmp_path):
    """The held-out set of labels whose metadata name as many tracks as there are crops."""
    manifests, labels, folder = corpus / "manifests", tmp_path / "labels", tmp_path / "held"
    shutil.copytree(corpus / "labels", labels)
    splits = {"valid": {"names": note_names("song {}".format, 4)}}
    (labels / "metadata.json").write_text(json.dumps({"label_rate": 100, "splits": splits}))
    held_out.make_corpus(manifests, labels, folder, seconds=1.0, crops=4)
    return folder


def test_held_out_crops_have_their_labels(corpus, held):
    rows = (held / "valid.tsv").read_text().splitlines()
    assert len(rows) == 5
    assert {row.split("\t")[1] for row in rows[1:]} == {"16000"}
    lines = (held / "valid.km").read_text().splitlines()
    assert [len(line.split()) for line in lines] == [100] * 4
    whole = (corpus / "labels" / "valid.km").read_text().splitlines()
    assert all(any(line in track for track in whole) for line in lines)
    assert re.fullmatch(r"4 \[\w{16}\]", held_out.digest(held))
    assert (held / "train.km").read_text() == (corpus / "labels" / "train.km").read_text()
    units = UnitDictionary(held / "dict.km.txt")
    check_labels(Manifest(held / "valid.tsv"), LabelStore(held / "valid.km"), units, 100)


def test_the_reference_is_scored_on_our_masks(held):
    def forward(model, source):
        return module.compute_mask_indices(
            (len(source), 49), None, 0.8, 10, "static", 0.0, min_masks=2
        )

    def draw(shape, *args, **kwargs):
        return np.zeros(shape, bool)

    hubert = type("HubertModel", (torch.nn.Module,), {"forward": forward})
    module = SimpleNamespace(HubertModel=hubert, compute_mask_indices=draw)
    held_out.fix_masks(module, str(held))
    crops = [held_out.soundfile.read(held / "held_out" / f"{n}.flac")[0] for n in (2, 0)]
    source = torch.from_numpy(np.stack(crops)).float()
    ours = [SpanMask(0.8, 10, 2).mask(49, generator(held_out.SEED, 0, n, MASKS)) for n in (2, 0)]
    model = module.HubertModel()
    assert np.array_equal(model.eval()(source), np.stack(ours))
    assert not model.train()(source).any()
