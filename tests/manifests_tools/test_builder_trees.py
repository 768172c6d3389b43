"""Builders of data sets whose metadata is not at hand: made-up trees of the real layout."""

import hashlib
import json
import os
import re
import shutil

import numpy as np
import pytest

from manifests_tools import emomusic, magnatagatune, nsynth, vocalset
from manifests_tools.__main__ import main
from music_ssl_fairseq.data.manifest import Manifest
from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.probing.labels import ProbingSplit
from music_ssl_fairseq.probing.spec import SPLITS, read_spec
from music_ssl_fairseq.probing.writer import check_leakage
from tests.audio_files import write_tone
from tests.options import with_defaults


def names(folder, split: str) -> list[str]:
    manifest = Manifest(folder / f"{split}.tsv")
    return [manifest.name(i) for i in range(len(manifest))]


# MagnaTagATune: clips of each folder, as many as in the real one.

CLIPS = {"train": 18_709, "valid": 1_825, "test": 5_329}
FOLDERS = {"train": "0123456789ab", "valid": "c", "test": "def"}
TAGS = [f"tag {i:03d}" for i in range(60)]


@pytest.fixture(scope="module")
def mtt(tmp_path_factory):
    """annotations_final.csv of 25,863 clips, with 60 of its 188 tags.

    Tag i is on every (i + 2)-th clip.
    """
    folder = tmp_path_factory.mktemp("mtt")
    header = "\t".join(f'"{name}"' for name in ["clip_id", *TAGS, "mp3_path"])
    paths = [
        f"{FOLDERS[split][i % len(FOLDERS[split])]}/artist-album-{i:02d}-a_song-{i}-{i + 29}.mp3"
        for split in SPLITS
        for i in range(CLIPS[split])
    ]
    damaged = dict(zip((7, 800, 9000), magnatagatune.DAMAGED, strict=True))
    rows = [header]
    for i, path in enumerate(paths):
        clip = damaged.get(i, str(i + 100_000))
        cells = "\t".join('"1"' if i % (tag + 2) == 0 else '"0"' for tag in range(len(TAGS)))
        rows.append(f'"{clip}"\t{cells}\t"{path}"')
    (folder / "annotations_final.csv").write_text("\n".join(rows) + "\n")
    return folder, paths


def test_mtt_golden_counts(mtt, tmp_path):
    folder, paths = mtt
    data = magnatagatune.read(str(tmp_path), str(folder / "annotations_final.csv"))
    counts = {split: len(items) for split, items in data.splits.items()}
    assert counts == data.task.published == {**CLIPS, "train": 18_706}
    assert data.task.skipped == (paths[7], paths[800], paths[9000])
    assert list(data.task.classes) == TAGS[:50]
    by_name = {item.name: item.label for items in data.splits.values() for item in items}
    for i in (0, 1, 6, 20_000, 25_862):
        assert by_name[paths[i]] == tuple(TAGS[tag] for tag in range(50) if i % (tag + 2) == 0)
    data.refuse_unusable(str(tmp_path))


def test_mtt_from_audio_to_labels(stubs, tmp_path, capsys):
    clips = [("2", "0/a.mp3", 3), ("35644", "1/b.mp3", 0), ("9", "c/c.mp3", 2), ("4", "f/d.mp3", 5)]
    clips.append(("5", "f/e.mp3", 4))
    rows = ["\t".join(["clip_id", *TAGS[:60], "mp3_path"])]
    for clip, path, number in clips:
        rows.append("\t".join([clip, *(["1"] * number + ["0"] * (60 - number)), path]))
    (tmp_path / "annotations_final.csv").write_text("\n".join(rows) + "\n")
    stubs.lay(tmp_path / "mp3", ["0/a.mp3", "c/c.mp3", "f/d.mp3", "f/e.mp3"])
    assert main(["mtt", "--root", str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    task = read_spec(tmp_path / "out")
    assert (len(task.classes), task.skipped, task.missing) == (50, ("1/b.mp3",), 0)
    assert names(tmp_path / "out", "train") == ["mp3/0/a.mp3"]
    assert ProbingSplit(tmp_path / "out", "test", task).targets.sum(1).tolist() == [5, 4]
    shown = capsys.readouterr()
    assert "skipped, known to be damaged or double: 1/b.mp3" in shown.out
    assert "warning: train has no example of: tag 003, tag 004," in shown.err


def test_mtt_metadata_is_missing_or_another_file(tmp_path):
    with pytest.raises(InputError, match=r"annotations_final\.csv is not in .*https://mirg"):
        with_defaults(magnatagatune.tagging)(str(tmp_path), out=str(tmp_path / "out"))
    (tmp_path / "annotations_final.csv").write_text("clip_id,track,mp3_path\n")
    with pytest.raises(InputError, match="does not run from clip_id to mp3_path"):
        with_defaults(magnatagatune.tagging)(str(tmp_path), out=str(tmp_path / "out"))


# emoMusic


def artists_of(split: str, number: int) -> list[str]:
    """Made-up artists that the protocol's rule puts in a split."""
    found = []
    for i in range(100_000):
        letters = "".join(chr(97 + int(digit)) for digit in str(i))
        part = int(hashlib.sha1(f"the {letters}".encode()).hexdigest(), 16) % 10
        if (part < 8) == (split == "train"):
            # Accents, digits, punctuation and spaces do not count.
            found.append(f"  The  {letters.upper()}é 7!")
        if len(found) == number:
            break
    return found


def write_emomusic(folder) -> list[str]:
    artists = [("train", a) for a in artists_of("train", 504)]
    artists += [("valid", a) for a in artists_of("valid", 115)]
    artists += [("test", f"artist {i}") for i in range(125)]
    info = ["song_id,\tfile_name, Artist, Song title, Genre, Mediaeval 2013 set"]
    ratings = ["song_id, mean_arousal, std_arousal, mean_valence, std_valence"]
    for i, (split, artist) in enumerate(artists):
        kind = "evaluation" if split == "test" else "development"
        info.append(f'{i + 2}, {i + 2}.mp3,"{artist}","A, song\t", Rock, {kind}')
        ratings.append(f"{i + 2}, {1 + i / 100:.2f}, 0.5, {9 - i / 100:.2f}, 0.5")
    folder.mkdir(parents=True)
    (folder / "songs_info.csv").write_text("\r\n".join(info) + "\r\n")
    (folder / "static_annotations.csv").write_text("\n".join(ratings) + "\n")
    return [f"{i + 2}.mp3" for i in range(len(artists))]


@pytest.mark.parametrize("where", ["", "annotations"])
def test_emomusic_golden_counts(stubs, tmp_path, where):
    songs = write_emomusic(tmp_path / "emo" / where)
    stubs.lay(tmp_path / "emo" / "clips_45seconds", songs)
    out = tmp_path / "out"
    assert main(["emomusic", "--root", str(tmp_path / "emo"), "--out", str(out)]) == 0
    task = read_spec(out)
    assert task.counts == task.published == {"train": 504, "valid": 115, "test": 125}
    assert (task.kind, task.targets, task.classes) == ("regression", ("arousal", "valence"), ())
    assert names(out, "valid")[0] == "clips_45seconds/506.mp3"
    expected = [[1 + i / 100, 9 - i / 100] for i in range(504, 619)]
    np.testing.assert_allclose(ProbingSplit(out, "valid", task).targets, expected, atol=1e-9)


def test_emomusic_metadata(tmp_path):
    with pytest.raises(InputError, match=r"static_annotations\.csv is not in .*https://cvml"):
        with_defaults(emomusic.emotion)(str(tmp_path), out=str(tmp_path / "out"))
    write_emomusic(tmp_path / "m")
    with pytest.raises(InputError, match="train: 504 of 504 labelled files cannot be used"):
        with_defaults(emomusic.emotion)(
            str(tmp_path), out=str(tmp_path / "out"), metadata=str(tmp_path / "m")
        )
    ratings = tmp_path / "m" / "static_annotations.csv"
    header, first, *rest = before = ratings.read_text().splitlines()
    for again, said in (
        (first, "504 of 504"),
        (first.replace("1.00", "5.00"), "two lines of .* differ"),
    ):
        ratings.write_text("\n".join([header, first, *rest, again]))
        with pytest.raises(InputError, match=said):
            with_defaults(emomusic.emotion)(
                str(tmp_path), out=str(tmp_path / "o"), metadata=str(tmp_path / "m")
            )
    ratings.write_text("\n".join(before))
    info = tmp_path / "m" / "songs_info.csv"
    info.write_text(info.read_text().replace("Mediaeval 2013 set", "set"))
    with pytest.raises(InputError, match="no column 'Mediaeval 2013 set' in its first line"):
        with_defaults(emomusic.emotion)(
            str(tmp_path), out=str(tmp_path / "out"), metadata=str(tmp_path / "m")
        )


# NSynth


def write_nsynth(folder, stubs) -> dict[str, dict]:
    notes = {}
    for i, split in enumerate(SPLITS):
        families = nsynth.FAMILIES if split == "train" else nsynth.FAMILIES[:9]
        its = {
            f"{family}_acoustic_{i:03d}-{20 + 7 * i + j:03d}-050": {
                "pitch": 20 + 7 * i + j,
                "instrument_family_str": family,
                "qualities": [0, 1],
                "sample_rate": 16_000,
            }
            for j, family in enumerate(families)
        }
        (folder / f"nsynth-{split}").mkdir(parents=True)
        (folder / f"nsynth-{split}" / "examples.json").write_text(json.dumps(its))
        stubs.lay(folder / f"nsynth-{split}" / "audio", [f"{note}.wav" for note in its])
        notes[split] = its
    return notes


@pytest.mark.parametrize(
    ("label", "entry", "classes"),
    [("instrument", "instrument_family_str", 11), ("pitch", "pitch", 128)],
)
def test_nsynth(stubs, tmp_path, capsys, label, entry, classes):
    notes = write_nsynth(tmp_path, stubs)
    out = tmp_path / "out"
    assert main([f"nsynth-{label}", "--root", str(tmp_path), "--out", str(out)]) == 0
    task = read_spec(out)
    assert task.published == {"train": 289_205, "valid": 12_678, "test": 4_096}
    assert task.counts == {"train": 11, "valid": 9, "test": 9}
    assert len(task.classes) == classes
    for split in SPLITS:
        data = ProbingSplit(out, split, task)
        expected = [str(note[entry]) for note in notes[split].values()]
        assert [task.classes[i] for i in data.targets] == expected
        assert names(out, split)[0] == f"nsynth-{split}/audio/{next(iter(notes[split]))}.wav"
    shown = capsys.readouterr()
    assert "train: 11 notes (published 289205: -289194)" in shown.out
    if label == "instrument":
        assert "warning: valid has no example of: synth_lead, vocal\n" in shown.err


def test_nsynth_metadata(stubs, tmp_path):
    write_nsynth(tmp_path, stubs)
    file = tmp_path / "nsynth-valid" / "examples.json"
    file.write_text(file.read_text()[:-9])
    with pytest.raises(InputError, match=r"examples\.json: not JSON .*unpacked whole"):
        with_defaults(nsynth.pitch)(str(tmp_path), out=str(tmp_path / "out"))
    file.write_text('{"note-1": {"velocity": 1}}')
    with pytest.raises(InputError, match=r"examples\.json: note-1 has no pitch"):
        with_defaults(nsynth.pitch)(str(tmp_path), out=str(tmp_path / "out"))
    file.unlink()
    with pytest.raises(InputError, match=r"examples\.json is not in .*https://magenta"):
        with_defaults(nsynth.pitch)(str(tmp_path), out=str(tmp_path / "out"))


# VocalSet


@pytest.fixture(scope="module")
def voices(tmp_path_factory):
    """20 singers, 12 exercises each of two vowels; 3 to 7 s long, and one of 2 s."""
    root = tmp_path_factory.mktemp("vocalset")
    source = {n: write_tone(root / "source" / f"{n}.wav", n, 8_000).read_bytes() for n in (2, 4, 7)}
    techniques = [*vocalset.TECHNIQUES, "fast_forte", "slow_piano"]
    for s, singer in enumerate(vocalset.SINGERS):
        for t, technique in enumerate(techniques):
            for v, vowel in enumerate("ai"):
                context = ("scales", "arpeggios", "long_tones")[t % 3]
                file = (
                    root / "v" / "FULL" / singer / context / technique / f"{technique}_{vowel}.wav"
                )
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(source[(4, 7)[(s + t + v) % 2]])
    folder = root / "v" / "FULL" / "female2" / "scales" / "belt"
    (folder / "short.wav").write_bytes(source[2])
    (folder / "caro_vibrato.wav").write_bytes(source[4])
    (root / "v" / "FULL" / "readme.wav").write_bytes(source[4])
    return root / "v"


def build_voices(voices, out, label: str, split: str):
    assert (
        main([f"vocalset-{label}", "--root", str(voices), "--out", str(out), "--split", split]) == 0
    )
    task = read_spec(out)
    check_leakage(out)
    return task, {name: ProbingSplit(out, name, task) for name in SPLITS}


def test_vocalset_is_cut_into_chunks(voices, tmp_path, capsys):
    task, splits = build_voices(voices, tmp_path, "singer", "marble")
    assert task.classes == vocalset.SINGERS
    assert task.published == {}
    chunks = sum(len(data) for data in splits.values())
    assert chunks == sum(task.counts.values()) == 240 * 1 + 240 * 2
    for data in splits.values():
        assert set(data.segments.ravel().tolist()) == {0, 48_000, 96_000}
        for i, group in enumerate(data.groups):
            assert group == data.manifest.name(i)
            assert f"/{task.classes[data.targets[i]]}/" in group
    assert re.search(
        r"female2/scales/belt/short\.wav\ttoo short", (tmp_path / "left_out.tsv").read_text()
    )
    shown = capsys.readouterr().out
    assert "known to be damaged or double: FULL/female2/scales/belt/caro_vibrato.wav" in shown
    assert task.missing == 0


def recordings(data) -> set[str]:
    return set(data.groups)


def test_vocalset_singer_shares(voices, tmp_path):
    _, splits = build_voices(voices, tmp_path, "singer", "marble")
    counts = [len(recordings(splits[split])) for split in SPLITS]
    # 480 recordings and the short one: a fifth tests, two fifths of the rest validate.
    assert sum(counts) == 480
    assert abs(counts[2] - 97) <= 1
    assert abs(counts[1] - 154) <= 1


def test_vocalset_singer_disjoint_exercises(voices, tmp_path):
    _, splits = build_voices(voices, tmp_path, "singer", "disjoint")
    exercises = [{tuple(name.split("/")[2:4]) for name in recordings(splits[s])} for s in SPLITS]
    assert sum(map(len, exercises)) == len(set().union(*exercises)) == 12
    for data in splits.values():
        assert set(data.targets) == set(range(20))


@pytest.mark.parametrize("split", ["marble", "disjoint"])
def test_vocalset_technique(voices, tmp_path, split):
    task, splits = build_voices(voices, tmp_path, "technique", split)
    assert task.classes == vocalset.TECHNIQUES
    singers = {s: {name.split("/")[1] for name in recordings(splits[s])} for s in SPLITS}
    assert singers["test"] == {"female2", "female8", "male3", "male5", "male10"}
    assert not singers["test"] & (singers["train"] | singers["valid"])
    if split == "disjoint":
        assert not singers["train"] & singers["valid"]
        assert len(singers["train"]) == 11
    else:
        assert singers["train"] == singers["valid"]
        held_out = len(recordings(splits["valid"])) / (15 * 20)
        assert held_out == pytest.approx(0.4)
    for data in splits.values():
        assert set(data.targets) == set(range(10))


def test_vocalset_is_the_same_each_time(voices, tmp_path):
    for out in ("a", "b"):
        build_voices(voices, tmp_path / out, "singer", "marble")
    for split in SPLITS:
        assert names(tmp_path / "a", split) == names(tmp_path / "b", split)


def test_vocalset_recordings_that_cannot_be_read_are_named(voices, tmp_path):
    root = tmp_path / "v"
    shutil.copytree(voices, root, copy_function=os.link)
    singer = root / "FULL" / "male4" / "scales" / "belt"
    (singer / "._belt_a.wav").write_bytes(b"")
    (singer / "gone.wav").symlink_to("nothing.wav")
    with pytest.raises(InputError, match=r"belt/gone\.wav: cannot be opened: .*; the splits are"):
        with_defaults(vocalset.singer)(str(root), out=str(tmp_path / "out"))


def test_vocalset_wrong_folder(tmp_path):
    write_tone(tmp_path / "x" / "1.wav", 1.0)
    with pytest.raises(
        InputError, match=r"no audio in folders such as female1/arpeggios/belt.*http"
    ):
        with_defaults(vocalset.singer)(str(tmp_path), out=str(tmp_path / "out"))
