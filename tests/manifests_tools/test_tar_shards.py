"""`pretrain --shards`: the same crops from tar files as from single ones, here or on a server."""

import json
import os
import shutil
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch.utils.data import DataLoader

from manifests_tools import check, pretrain
from music_ssl_fairseq import audio
from music_ssl_fairseq.audio import tar_members as reading
from music_ssl_fairseq.data.audio_identity import note_names
from music_ssl_fairseq.data.crop_config import CropConfig
from music_ssl_fairseq.data.label_store import LabelStore
from music_ssl_fairseq.data.manifest import Manifest
from music_ssl_fairseq.data.pretraining_dataset import PretrainingDataset
from music_ssl_fairseq.data.units import LabelSet, UnitDictionary
from music_ssl_fairseq.errors import AudioError, InputError
from music_ssl_fairseq.frames import DEFAULT_CONV_LAYERS
from tests.audio_files import write_tone
from tests.file_server import serve
from tests.options import with_defaults

run = with_defaults(pretrain)

FILES = {"a/x.wav": 22050, "a/y.flac": 16000, "b/x.ogg": 44100, "b/z.wav": 8000, "c/x.wav": 16000}
SHARD_HOURS = 0.0011  # 4 s: a track or two


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Music; manifests and labels of copies in `single`, and of shards in `sharded`."""
    folder = tmp_path_factory.mktemp("shards")
    for i, (name, rate) in enumerate(FILES.items()):
        write_tone(folder / "music" / name, 2 + i / 4, rate, seed=i)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run("music", "single", 0.4, convert="copies")
        write_labels()
        run("music", "sharded", 0.4, shards="tars", shard_hours=SHARD_HOURS, labels="labels")
    return folder


def write_labels():
    os.makedirs("labels")
    for split in ("train", "valid"):
        lengths = Manifest(f"single/{split}.tsv").num_samples
        with open(f"labels/{split}.km", "w") as file:
            for number, length in enumerate(lengths):
                units = np.random.default_rng(number).integers(0, 12, 1 + (length - 400) // 160)
                file.write(" ".join(map(str, units)) + "\n")
    with open("labels/dict.km.txt", "w") as file:
        file.writelines(f"{unit} 1\n" for unit in range(12))
    with open("labels/metadata.json", "w") as file:
        json.dump({"label_rate": 100, "k": 12}, file)


@pytest.fixture(autouse=True)
def here(home, monkeypatch):
    monkeypatch.chdir(home)
    monkeypatch.setattr(reading.time, "sleep", lambda seconds: None)
    reading._first_block.cache_clear()
    return home


@pytest.fixture
def served(here, tmp_path):
    """The shards on a server, and manifests of those."""
    with serve(here / "tars") as server:
        for split in ("train", "valid"):
            text = (here / "sharded" / f"{split}.tsv").read_text()
            (tmp_path / f"{split}.tsv").write_text(text.replace(str(here / "tars"), server.url))
        server.manifests = tmp_path
        yield server


def same_audio(one: Manifest, other: Manifest) -> None:
    assert one.num_samples.tolist() == other.num_samples.tolist()
    for track, length in enumerate(one.num_samples.tolist()):
        for start, stop in ((0, length), (length // 3, length // 2), (length - 100, length)):
            parts = [audio.read(m.path(track), start, stop - start) for m in (one, other)]
            np.testing.assert_array_equal(*parts)


@pytest.mark.parametrize("split", ["train", "valid"])
def test_shards_hold_the_same_as_single_copies(split):
    single, sharded = Manifest(f"single/{split}.tsv"), Manifest(f"sharded/{split}.tsv")
    same_audio(single, sharded)
    store = LabelStore(f"labels/{split}.km")
    found, files = {}, sorted(map(str, Path("tars").glob(f"{split}-*.tar")))
    assert len(files) == {"train": 2, "valid": 1}[split]
    for file in files:
        with tarfile.open(file) as tar:
            found |= {member.name: tar.extractfile(member).read() for member in tar}
    assert {f"tars/{shard(name)}" for name in names(sharded)} == set(files)
    for track in range(len(single)):
        about = json.loads(found[f"{track:09d}.json"])
        assert os.path.splitext(about["name"])[0] + ".flac" == single.name(track)
        assert about["num_samples"] == single.num_samples[track]
        assert found[f"{track:09d}.km"].split() == [b"%d" % u for u in store.units(track)]


def names(manifest: Manifest) -> list[str]:
    return [manifest.name(track) for track in range(len(manifest))]


def shard(name: str) -> str:
    return audio.parse_member(name).shard


def test_webdataset_reads_them():
    webdataset = pytest.importorskip("webdataset")
    files = sorted(map(str, Path("tars").glob("train-*.tar")))
    samples = list(webdataset.WebDataset(files, shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == ["000000000", "000000001", "000000002"]
    assert set(samples[0]) >= {"flac", "json", "km"}


def test_check_accepts_them(capsys):
    with_defaults(check)("sharded", labels="labels")
    assert "all well" in capsys.readouterr().out


def test_a_second_run_keeps_finished_shards(capsys):
    def stamps():
        return {name: os.stat(f"tars/{name}").st_mtime_ns for name in os.listdir("tars")}

    def again(**options):
        run("music", "sharded", 0.4, shards="tars", labels="labels", force=True, **options)

    before = stamps()
    again(shard_hours=SHARD_HOURS)
    assert stamps() == before
    os.truncate("tars/train-000001.tar", 3000)
    Path("tars/.0123456789abcdef.99.tmp.tar").touch()  # as a killed run leaves it
    os.utime("tars/.0123456789abcdef.99.tmp.tar", (0, 0))
    again(shard_hours=SHARD_HOURS)
    after = stamps()
    assert set(after) == set(before)
    assert {name for name in before if before[name] != after[name]} == {"train-000001.tar"}
    source = next(Path("music").rglob("*.wav"))
    content, info = source.read_bytes(), audio.probe(source)
    write_tone(source, info.num_samples / info.sample_rate, info.sample_rate, info.channels, 99)
    os.utime(source, (0, 0))  # as what is moved here from elsewhere
    again(shard_hours=SHARD_HOURS)
    assert len([name for name, stamp in stamps().items() if stamp != after[name]]) == 1
    source.write_bytes(content)
    again(shard_hours=SHARD_HOURS)
    with_defaults(check)("sharded", labels="labels")
    assert "removed" not in capsys.readouterr().err


def test_shards_of_an_earlier_run_are_named(tmp_path, capsys):
    for shard_hours in (SHARD_HOURS, 1):
        options = {"shards": str(tmp_path / "tars"), "shard_hours": shard_hours, "force": True}
        run("music", str(tmp_path / "out"), 0.4, **options)
    assert "train-000001.tar: 1 shards of an earlier run" in capsys.readouterr().err


def test_a_server_gives_the_same_and_is_asked_for_parts(served):
    same_audio(Manifest("single/train.tsv"), Manifest(served.manifests / "train.tsv"))
    assert all(asked for _, asked in served.requests)


def test_check_reads_them_from_a_server(served, capsys):
    with_defaults(check)(str(served.manifests), labels="labels", workers=1)
    assert "all well" in capsys.readouterr().out


def test_a_server_without_parts_is_refused(served):
    served.ranges = False
    reading._first_block.cache_clear()
    with pytest.raises(InputError, match="sends whole files instead of parts: it needs HTTP range"):
        audio.read(Manifest(served.manifests / "train.tsv").path(0))


def test_a_worker_that_is_stopped_while_it_reads_ends(served, monkeypatch):
    monkeypatch.setattr(reading, "_fetch", lambda *_: sys.exit(1))
    reading._first_block.cache_clear()
    with pytest.raises(SystemExit):
        audio.read(Manifest(served.manifests / "train.tsv").path(0))


def test_a_server_that_fails_for_a_while_is_asked_again(served):
    path = Manifest(served.manifests / "train.tsv").path(0)
    served.failures = 4
    np.testing.assert_array_equal(
        audio.read(path), audio.read(Manifest("single/train.tsv").path(0))
    )
    reading._first_block.cache_clear()
    served.failures = 1000
    with pytest.raises(InputError, match=r"train-000000\.tar: bytes \d+ to \d+ could not be read"):
        audio.read(path)


@pytest.mark.parametrize("fault", ["short", "silent"])
def test_answers_that_end_early_or_stop_are_asked_for_again(served, monkeypatch, fault):
    monkeypatch.setattr(reading, "_SILENT_SECONDS", 0.3)
    reading._connected.cache_clear()
    reading._first_block.cache_clear()
    path = Manifest(served.manifests / "train.tsv").path(0)
    setattr(served, fault, 2)
    found = audio.read(path)
    assert getattr(served, fault) == 0
    np.testing.assert_array_equal(found, audio.read(Manifest("single/train.tsv").path(0)))
    reading._connected.cache_clear()


@pytest.mark.parametrize("kept", [600, 20_000])
def test_a_truncated_shard_on_a_server_is_unreadable_at_once(served, tmp_path, monkeypatch, kept):
    monkeypatch.setattr(reading.time, "sleep", lambda seconds: pytest.fail("asks again"))
    path = Path(shard(Manifest("sharded/train.tsv").path(0)))
    cut = path.with_name(f"cut-{kept}.tar")
    cut.write_bytes(path.read_bytes()[:kept])
    for place in ("512:30000", "25000:30000"):
        with pytest.raises(AudioError, match="the shard ends before this file does"):
            audio.read(f"{served.url}/{cut.name}:{place}")
    cut.unlink()


def test_what_is_not_there_is_unreadable(served, tmp_path):
    path = Manifest("sharded/train.tsv").path(0)
    for missing in (path.replace("train-0", "train-9"), f"{served.url}/none.tar:0:10"):
        with pytest.raises(AudioError, match=r"[Nn]o such file"):
            audio.read(missing)
    cut = tmp_path / "cut.tar"
    cut.write_bytes(Path(shard(path)).read_bytes()[:20_000])
    with pytest.raises(AudioError, match="the shard ends before this file does"):
        audio.read(path.replace(shard(path), str(cut)))
    with pytest.raises(AudioError, match="libsndfile"):
        audio.read(path.replace(":512:", ":0:"))


def test_crops_of_an_epoch_are_those_of_single_files(served):
    """In workers, which must not use a connection of the process that forks them."""

    def items(folder):
        units = UnitDictionary("labels/dict.km.txt")
        labels = [LabelSet(LabelStore("labels/train.km"), units, 100.0)]
        settings = {"crop_seconds": 0.7, "min_seconds": 0.5, "normalize": True}
        settings["conv_feature_layers"] = DEFAULT_CONV_LAYERS
        data = PretrainingDataset(
            Manifest(f"{folder}/train.tsv"),
            OmegaConf.structured(CropConfig(**settings, seed=0, mask_prob=0.65, mask_length=10)),
            training=True,
            labels=labels,
        )
        data.set_epoch(3)
        loader = DataLoader(data, None, sampler=data.ordered_indices(), num_workers=1)
        return list(loader)

    audio.read(Manifest(served.manifests / "train.tsv").path(0))
    pairs = list(zip(items("single"), items(served.manifests), strict=True))
    assert len(pairs) == 10
    for single, sharded in pairs:
        assert single.keys() == sharded.keys() == {"id", "source", "mask", "target"}
        torch.testing.assert_close(single, sharded, rtol=0, atol=0)


def test_labels_of_tracks_in_another_order_stay_out_of_shards(tmp_path):
    labels = shutil.copytree("labels", tmp_path / "labels")
    manifest = Manifest("single/train.tsv")
    noted = note_names(lambda track: manifest.name((track + 1) % len(manifest)), len(manifest))
    metadata = {"label_rate": 100, "k": 12, "splits": {"train": {"names": noted}}}
    (labels / "metadata.json").write_text(json.dumps(metadata))
    with pytest.raises(InputError, match="are not the labels of the"):
        run("music", str(tmp_path / "out"), 0.4, shards=str(tmp_path / "x"), labels=str(labels))


def test_labels_with_an_empty_line_stay_out_of_shards(tmp_path):
    labels = shutil.copytree("labels", tmp_path / "labels", ignore=lambda *_: ["train.offsets.npy"])
    lines = (labels / "train.km").read_text().splitlines()
    (labels / "train.km").write_text("\n".join(["", *lines[1:]]) + "\n")
    with pytest.raises(InputError, match=r"line 1 has no units.*leave out --labels"):
        run("music", str(tmp_path / "out"), 0.4, shards=str(tmp_path / "x"), labels=str(labels))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"convert": "x", "shards": "y"}, "--convert and --shards both write copies"),
        ({"labels": "labels"}, "--labels puts labels into shards: give --shards DIR"),
        ({"shards": "music/tars"}, "--shards .*music/tars and --root .* lie within each other"),
        ({"shards": "y", "shard_hours": 0.0}, "--shard-hours 0: "),
        ({"shards": "y", "labels": "labels", "group_by": "file"}, "are not the labels of the"),
        ({"shards": "y", "labels": "none"}, "no such label file"),
    ],
)
def test_what_does_not_go_together(options, message, tmp_path):
    with pytest.raises(InputError, match=message):
        run("music", str(tmp_path / "out"), 0.4, **options)
