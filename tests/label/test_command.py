"""`python -m music_ssl_fairseq label` from files to files, and what it says when it cannot."""

import json
import os
import re
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser

from manifests_tools.__main__ import main as manifests_tools_main
from music_ssl_fairseq import audio
from music_ssl_fairseq.cli import override
from music_ssl_fairseq.data.label_check import check_labels
from music_ssl_fairseq.data.label_metadata import read_label_rate
from music_ssl_fairseq.data.label_store import LabelStore
from music_ssl_fairseq.data.manifest import Manifest, write_manifest
from music_ssl_fairseq.data.units import UnitDictionary
from music_ssl_fairseq.jobs import blocks, shards
from music_ssl_fairseq.label import kmeans
from music_ssl_fairseq.label.__main__ import get_parser, main
from tests import EXAMPLES
from tests.audio_files import write_tone
from tests.reference_mfcc import reference_mfcc

K = 20
OUTPUTS = (
    *("train.km", "train.units.npy", "train.offsets.npy"),
    *("valid.km", "valid.units.npy", "valid.offsets.npy"),
    *("dict.km.txt", "centroids.npy", "metadata.json"),
)
TRACKS = {
    "train": [("a.flac", 4.0, 16000, 1), ("b.ogg", 3.0, 44100, 2), ("c d.wav", 2.5, 8000, 1)],
    "valid": [("e.flac", 2.0, 16000, 1)],
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """A folder with `music/`, `manifests/`, and `labels/` as the plain command makes them.

    Manifests of `here`, its copy, still name this folder.
    """
    folder = tmp_path_factory.mktemp("corpus")
    for split, tracks in TRACKS.items():
        lines = []
        for seed, (name, seconds, rate, channels) in enumerate(tracks):
            path = write_tone(folder / "music" / name, seconds, rate, channels, seed)
            lines.append((name, audio.probe(path).length_at()))
        write_manifest(folder / "manifests" / f"{split}.tsv", folder / "music", lines)
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert main(["--k", str(K)]) == 0
    finally:
        os.chdir(before)
    return folder


def lines(file: Path) -> list[list[int]]:
    return [[int(unit) for unit in line.split()] for line in file.read_text().splitlines()]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def error_of(arguments: list[str], capsys) -> str:
    """Run, expect failure; return the line that says why, and perhaps the command that helps."""
    capsys.readouterr()
    assert main(arguments) == 1
    error = capsys.readouterr().err.rpartition("error: ")[2]
    assert error.count("\n") <= 2
    return error


def test_writes_what_it_promises(corpus):
    labels = corpus / "labels"
    assert sorted(path.name for path in labels.iterdir()) == sorted(OUTPUTS)
    centroids = np.load(labels / "centroids.npy")
    assert centroids.shape == (K, 39)
    assert centroids.dtype == np.float32
    assert (labels / "dict.km.txt").read_text() == "".join(f"{i} 1\n" for i in range(K))
    metadata = json.loads((labels / "metadata.json").read_text())
    assert metadata["features"] == "mfcc"
    assert metadata["k"] == K
    assert metadata["label_rate"] == 100
    assert metadata["sample_rate"] == 16000
    assert (metadata["frame_window"], metadata["frame_hop"]) == (400, 160)
    assert metadata["dimension"] == 39
    assert metadata["frames_fitted"] == metadata["splits"]["train"]["labels"]
    assert metadata["inertia_curve"][-1] == metadata["train_inertia"]
    assert metadata["fitted_by"].startswith("faiss")
    assert metadata["versions"]["faiss"]


@pytest.mark.parametrize("split", TRACKS)
def test_one_unit_a_frame_the_nearest_centroid(corpus, split):
    manifest = Manifest(corpus / "manifests" / f"{split}.tsv")
    centroids = torch.from_numpy(np.load(corpus / "labels" / "centroids.npy")).double()
    found = lines(corpus / "labels" / f"{split}.km")
    assert len(found) == len(manifest)
    for i, units in enumerate(found):
        assert len(units) == 1 + (manifest.num_samples[i] - 400) // 160
        waveform = torch.from_numpy(audio.read(manifest.path(i)))[None]
        nearest = torch.cdist(reference_mfcc(waveform).double(), centroids).argmin(1)
        assert (nearest.numpy() == units).mean() > 0.995


def test_train_inertia_and_usage_are_those_of_the_labels(corpus):
    metadata = json.loads((corpus / "labels" / "metadata.json").read_text())
    units = np.concatenate([np.array(line) for line in lines(corpus / "labels" / "train.km")])
    record = metadata["splits"]["train"]
    assert record["labels"] == len(units)
    assert record["used_clusters"] == len(np.unique(units))
    assert record["majority_share"] == pytest.approx(
        np.bincount(units).max() / len(units), abs=1e-6
    )


def test_the_datasets_own_check_agrees(corpus):
    labels = corpus / "labels"
    assert read_label_rate(labels) == 100
    units = UnitDictionary(labels / "dict.km.txt")
    for split in TRACKS:
        manifest = Manifest(corpus / "manifests" / f"{split}.tsv")
        check_labels(manifest, LabelStore(labels / f"{split}.km"), units, label_rate=100)


def test_stock_fairseq_reads_manifest_labels_and_dict(corpus):
    from fairseq.data import Dictionary, HubertDataset

    labels = corpus / "labels"
    dictionary = Dictionary.load(str(labels / "dict.km.txt"))
    assert len(dictionary) == K + 4
    dataset = HubertDataset(
        str(corpus / "manifests" / "valid.tsv"),
        sample_rate=16000,
        label_paths=[str(labels / "valid.km")],
        label_rates=[100],
        pad_list=[dictionary.pad()],
        eos_list=[dictionary.eos()],
        label_processors=[lambda line: dictionary.encode_line(line, append_eos=False)],
        pad_audio=False,
    )
    targets = dataset[0]["label_list"][0]
    assert dataset[0]["source"].shape == (32_000,)
    expected = [dictionary.index(str(unit)) for unit in lines(labels / "valid.km")[0]]
    assert targets.tolist() == expected
    assert dictionary.unk() not in expected


def test_labels_do_not_depend_on_workers(here):
    assert main(["--k", str(K), "--labels", "others", "--workers", "3"]) == 0
    assert contents(here / "others") == contents(here / "labels")


def test_a_finished_run_is_left_as_it_is(here, capsys):
    before = {path: path.stat().st_mtime_ns for path in (here / "labels").iterdir()}
    assert main(["--k", str(K)]) == 0
    output = capsys.readouterr().out
    assert "finished already" in output
    assert f"fairseq-hydra-train --config-dir {EXAMPLES / 'music_hubert'} --config-name " in output
    assert before == {path: path.stat().st_mtime_ns for path in (here / "labels").iterdir()}


@pytest.mark.parametrize(
    "folder",
    ["/a b/k=1,2", '/it\'s {"x"} $y', "/a\\'b\\", "/x[1]:~#", "2024", "null", "/é", "/plain/x"],
)
def test_hydra_reads_any_folder_in_the_next_command(folder):
    hydra = OverridesParser.create()
    for folders in ((folder,), (folder, "/other")):
        (argument,) = shlex.split(override("task.label_dir", *folders))
        found = hydra.parse_override(argument).value()
        texts = [str(each) for each in (found if isinstance(found, list) else [found])]
        assert texts == list(folders)


def test_labels_of_audio_that_was_replaced(here, capsys, caplog):
    manifest, labels = Manifest("manifests/train.tsv"), here / "labels"
    song = Path(manifest.path(0))
    content = song.read_bytes()
    song.write_bytes(content[: len(content) // 2] + content[: (len(content) - 1) // 2 : -1])
    assert main(["--k", str(K)]) == 0
    units = UnitDictionary(labels / "dict.km.txt")
    check_labels(manifest, LabelStore(labels / "train.km"), units, label_rate=100)
    song.write_bytes(content)
    warning = "train.tsv: its audio files have been replaced since"
    assert f"warning: manifests/{warning}" in capsys.readouterr().err
    assert warning in caplog.text


def test_the_next_command_says_where_the_labels_are_and_fits_the_machine(here, capsys, monkeypatch):
    (here / "labels").rename(here / "my labels")
    where = (here / "my labels").resolve()
    for device, name in (("cuda", "short"), ("cpu", "tiny")):
        monkeypatch.setattr("music_ssl_fairseq.label.__main__.choose_device", lambda d=device: d)
        assert main(["--k", str(K), "--labels", "my labels"]) == 0
        line = capsys.readouterr().out.splitlines()[-1]
        assert f" --config-name {name} task.label_dir='{where}'" in line
        assert line.endswith("on a machine with one, --config-name short") == (device == "cpu")


def test_other_labels_are_not_overwritten(here, capsys, monkeypatch):
    before = contents(here / "labels")
    typed = ["python", "-m", "music_ssl_fairseq", "label", "--k", "21"]
    monkeypatch.setattr(sys, "orig_argv", typed)
    error = error_of(["--k", "21"], capsys)
    assert error.endswith("\npython -m music_ssl_fairseq label --k 21 --labels labels-k21\n")
    assert error.startswith("labels: holds labels made with k 20 instead of 21; --labels writes")
    (here / "labels" / "metadata.json").unlink()
    assert "train.km: there already, without metadata.json" in error_of(["--k", str(K)], capsys)
    del before["metadata.json"]
    assert contents(here / "labels") == before


def test_errors_repeat_the_options_of_the_labels(here, capsys):
    """Obeying `check` gives the same labels again, and leaves others alone."""
    options = ["--k", "9", "--seed", "5", "--memory", "1G", "--labels", "jazz labels"]
    assert main([*options, "--max-frames", "2000", "--workers", "1"]) == 0
    before = contents(here / "labels"), contents(here / "jazz labels")
    units = here / "jazz labels" / "train.km"
    units.write_text(units.read_text().partition("\n")[2])
    for stale in units.parent.glob("train.*.npy"):
        stale.unlink()
    capsys.readouterr()
    assert manifests_tools_main(["check", "manifests", "--labels", "jazz labels"]) == 1
    advice = re.search(r"`python -m music_ssl_fairseq label (.*)`", capsys.readouterr().out)[1]
    assert main(shlex.split(advice)) == 0
    assert "--force" in advice
    assert (contents(here / "labels"), contents(here / "jazz labels")) == before


def test_several_features_in_one_pass(corpus, here, capsys, monkeypatch):
    """Each set is as if it were made alone, and no track is read twice."""
    asked = []
    with monkeypatch.context() as patch:
        patch.setattr(blocks, "ordered", lambda job, items, pool: map(job, note(items, asked)))
        assert main(["--k", str(K), "--features", "mfcc,mfcc+chroma", "--labels", "sets"]) == 0
    assert len(asked) == 2 * len(TRACKS["train"]) + len(TRACKS["valid"])
    sets = here / "sets"
    said = capsys.readouterr().out
    assert f"task.label_dir='[{sets / 'mfcc'},{sets / 'mfcc+chroma'}]'" in said
    assert not list(sets.glob("*/.work*"))
    alone = contents(corpus / "labels")
    for name in ("train.km", "valid.km", "dict.km.txt"):
        assert (sets / "mfcc" / name).read_bytes() == alone[name]
    assert json.loads((sets / "mfcc+chroma" / "metadata.json").read_text())["dimension"] == 51
    assert main(["--k", str(K), "--labels", "sets/mfcc"]) == 0
    assert "finished already" in capsys.readouterr().out
    (sets / "mfcc" / "valid.km").unlink()
    assert main(["--k", str(K), "--features", "mfcc,mfcc+chroma", "--labels", "sets"]) == 0
    assert (sets / "mfcc" / "valid.km").read_bytes() == alone["valid.km"]
    several = ["--k", "5", "--features", "mfcc,deep"]
    assert "deep is not one of them" in error_of(several, capsys)
    assert "names the same features twice" in error_of(["--features", "cqt,cqt"], capsys)


def test_force_starts_over(here):
    assert main(["--k", "7", "--seed", "3", "--force", "--max-frames", "300"]) == 0
    assert np.load("labels/centroids.npy").shape == (7, 39)
    assert max(max(line) for line in lines(here / "labels" / "train.km")) < 7
    metadata = json.loads(Path("labels/metadata.json").read_text())
    assert metadata["frames_fitted"] == 300
    assert sorted(contents(here / "labels")) == sorted(OUTPUTS)


@pytest.mark.parametrize("split", TRACKS)
def test_a_manifest_that_has_changed(here, capsys, split):
    with (here / "manifests" / f"{split}.tsv").open("a") as file:
        file.write("more.flac\t16000\n")
    error = error_of(["--k", str(K)], capsys)
    assert "another train manifest" in error or "valid.tsv: changed since" in error
    assert "--force" in error


def test_valid_labels_can_come_later(here, capsys, monkeypatch):
    shutil.rmtree(here / "labels")
    (here / "manifests" / "valid.tsv").rename(here / "valid.tsv")
    assert main(["--k", str(K)]) == 0
    assert "manifests/valid.tsv: none, so train is labelled alone" in capsys.readouterr().err
    assert not (here / "labels" / "valid.km").exists()
    train = (here / "labels" / "train.km").read_bytes()
    (here / "valid.tsv").rename(here / "manifests" / "valid.tsv")
    monkeypatch.setattr(kmeans, "fit", None)
    assert main(["--k", str(K)]) == 0
    assert len(lines(here / "labels" / "valid.km")) == 1
    assert (here / "labels" / "train.km").read_bytes() == train


def test_missing_manifest_names_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    error = error_of(["--k", "5"], capsys)
    assert "manifests/train.tsv: no such manifest" in error
    assert "python -m manifests_tools pretrain --root ." in error
    assert not (tmp_path / "labels").exists()


def test_more_clusters_than_frames(here, capsys):
    error = error_of(["--k", "2000", "--labels", "others"], capsys)
    assert "frames cannot make 2000 clusters" in error
    assert not (here / "others").exists()


def test_few_frames_are_a_warning(here, capsys):
    arguments = ["--k", "10", "--max-frames", "100", "--labels", "others", "--iterations", "2"]
    assert main(arguments) == 0
    assert "100 frames for 10 clusters are 10.0 per centroid" in capsys.readouterr().err


def gone(here: Path, corpus: Path, names: list[str]) -> list[Path]:
    """Give the copy music of its own, and take those tracks away."""
    shutil.copytree(corpus / "music", here / "music")
    for split in TRACKS:
        file = here / "manifests" / f"{split}.tsv"
        file.write_text(file.read_text().replace(str(corpus), str(here)))
    shutil.rmtree(here / "labels")
    for name in names:
        (here / "music" / name).rename(here / name)
    return [here / "music" / name for name in names]


def test_an_unreadable_track_loses_nothing(corpus, here, capsys, monkeypatch):
    whole = contents(here / "labels")
    (missing,) = gone(here, corpus, ["e.flac"])
    error = error_of(["--k", str(K)], capsys)
    assert error.startswith(f"{missing}: no such file; all else is kept: repair it and run")
    assert (here / "labels" / "train.km").read_bytes() == whole["train.km"]
    (here / "e.flac").rename(missing)
    monkeypatch.setattr(kmeans, "fit", None)
    assert main(["--k", str(K)]) == 0
    again = contents(here / "labels")
    for name in set(OUTPUTS) - {"metadata.json"}:
        assert again[name] == whole[name]
    assert sorted(again) == sorted(OUTPUTS)


def test_a_damaged_track_in_the_middle(corpus, here, capsys):
    (missing,) = gone(here, corpus, ["b.ogg"])
    missing.write_bytes((here / "b.ogg").read_bytes()[:200])
    error = error_of(["--k", str(K)], capsys)
    assert error.startswith(f"{missing}: not readable as audio")
    assert "--skip-unreadable" in error
    assert main(["--k", str(K), "--skip-unreadable"]) == 0
    assert "train: 1 track cannot be read" in capsys.readouterr().err
    labels = here / "labels"
    first, middle, last = lines(labels / "train.km")
    assert (len(first), len(middle), len(last)) == (398, 0, 248)
    assert json.loads((labels / "metadata.json").read_text())["splits"]["train"]["unreadable"] == [
        1
    ]
    store = LabelStore(labels / "train.km")
    assert store.counts.tolist() == [398, 0, 248]
    manifest = Manifest(here / "manifests" / "train.tsv")
    check_labels(manifest, store, UnitDictionary(labels / "dict.km.txt"), label_rate=100)


def test_no_track_can_be_read(corpus, here, capsys):
    gone(here, corpus, [name for name, *_ in TRACKS["train"]])
    error = error_of(["--k", str(K), "--skip-unreadable"], capsys)
    assert "0 frames cannot make 20 clusters" in error


def test_labelling_goes_on_at_the_block_it_had_reached(here, monkeypatch):
    monkeypatch.setattr(shards, "_BLOCK_SECONDS", 2)
    whole = contents(here / "labels")
    metadata = json.loads(whole["metadata.json"])
    record = metadata["splits"].pop("train")
    (here / "labels" / "metadata.json").write_text(json.dumps(metadata))
    monkeypatch.setattr(blocks, "ordered", stops_after_two)
    assert main(["--k", str(K)]) == 130
    asked = []
    monkeypatch.setattr(blocks, "ordered", lambda job, items, pool: map(job, note(items, asked)))
    assert main(["--k", str(K)]) == 0
    assert [Path(track.path).name for (track,) in asked] == ["c d.wav"]
    assert (here / "labels" / "train.km").read_bytes() == whole["train.km"]
    assert json.loads(Path("labels/metadata.json").read_text())["splits"]["train"] == record
    assert sorted(contents(here / "labels")) == sorted(OUTPUTS)


def stops_after_two(job, items, pool):
    for i, item in enumerate(items):
        if i == 2:
            raise KeyboardInterrupt
        yield job(item)


def note(items, asked):
    for item in items:
        asked.append(item)
        yield item


def test_a_track_of_another_length(corpus, here, capsys):
    manifest = here / "manifests" / "train.tsv"
    manifest.write_text(manifest.read_text().replace("\t64000", "\t80000"))
    error = error_of(["--k", str(K), "--labels", "others"], capsys)
    assert "a.flac: lasts 4.00 s, but its manifest says 5.00 s; rebuild the manifest" in error


def test_a_track_without_a_frame_has_an_empty_line(corpus, here):
    manifest = Manifest(here / "manifests" / "valid.tsv")
    short = os.fsdecode(b"not UTF-8 \xff.wav")
    write_tone(here / "music" / short, 0.02)
    name = os.path.relpath(here / "music" / short, manifest.root)
    tracks = [(name, 320), (manifest.name(0), int(manifest.num_samples[0])), (name, 320)]
    write_manifest(here / "manifests" / "valid.tsv", manifest.root, tracks)
    assert main(["--k", str(K), "--labels", "others"]) == 0
    found = (here / "others" / "valid.km").read_text().split("\n")
    expected = (corpus / "labels" / "valid.km").read_text().strip()
    assert found == ["", expected, "", ""]


def test_centroids_that_were_changed(here, capsys):
    metadata = json.loads(Path("labels/metadata.json").read_text())
    del metadata["splits"]["valid"]
    Path("labels/metadata.json").write_text(json.dumps(metadata))
    np.save("labels/centroids.npy", np.zeros((K, 39), np.float32))
    assert "centroids.npy: changed since" in error_of(["--k", str(K)], capsys)


def test_a_folder_that_cannot_be_written(here, capsys, monkeypatch):
    (here / "file").touch()
    monkeypatch.setattr(kmeans, "fit", None)
    error = error_of(["--k", str(K), "--labels", "file/labels"], capsys)
    assert error.startswith("file/labels: Not a directory")


@pytest.mark.parametrize(("terminal", "interval"), [(True, None), (False, "10")])
def test_progress_in_a_log_is_slow(monkeypatch, terminal, interval):
    """Also of the form with a dot, which reads its options itself."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    monkeypatch.delenv("TQDM_MININTERVAL", raising=False)
    get_parser()
    assert os.environ.get("TQDM_MININTERVAL") == interval
