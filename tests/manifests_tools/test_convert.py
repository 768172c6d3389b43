"""`pretrain --convert`: copies that equal their sources, and runs that go on where they stopped."""

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from manifests_tools import convert, examine, pretrain
from manifests_tools.convert import target_names, write_flac
from manifests_tools.find import find_audio
from music_ssl_fairseq import audio
from music_ssl_fairseq.data.manifest import Manifest
from music_ssl_fairseq.errors import InputError
from tests.audio_files import tone, write_tone
from tests.options import with_defaults

run = with_defaults(pretrain)


@pytest.fixture
def music(tmp_path: Path) -> Path:
    root = tmp_path / "music"
    songs = {
        "A/a.wav": (16_000, 1),
        "A/a.mp3": (44_100, 2),
        "A/b.ogg": (8_000, 1),
        "B/c d.opus": (48_000, 2),
        "B/e.flac": (44_100, 3),
        os.fsdecode(b"B/f\xe9.wav"): (22_050, 1),
    }
    for i, (name, (rate, channels)) in enumerate(songs.items()):
        write_tone(root / name, 1.2 + 0.1 * i, rate, channels, seed=i)
    return root


def copies(folder: Path) -> dict[str, Path]:
    return {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}


def test_copies_equal_their_sources_and_the_manifests_list_them(music, tmp_path):
    run(str(music), str(tmp_path / "out"), convert=str(tmp_path / "16k"), workers=2)
    sources = {
        "A/a.wav.flac": "A/a.wav", "A/a.mp3.flac": "A/a.mp3", "A/b.flac": "A/b.ogg",
        "B/c d.flac": "B/c d.opus", "B/e.flac": "B/e.flac",
        os.fsdecode(b"B/f\xe9.flac"): os.fsdecode(b"B/f\xe9.wav"),
    }  # fmt: skip
    assert set(copies(tmp_path / "16k")) == set(sources)
    listed = {}
    for split in ("train", "valid"):
        manifest = Manifest(tmp_path / "out" / f"{split}.tsv")
        assert manifest.root == str(tmp_path / "16k")
        track_names = [manifest.name(i) for i in range(len(manifest))]
        assert track_names == sorted(track_names, key=os.fsencode)
        listed |= dict(zip(track_names, manifest.num_samples.tolist(), strict=True))
    assert set(listed) == set(sources)
    for name, source in sources.items():
        copy = audio.probe(tmp_path / "16k" / name)
        assert (copy.num_samples, copy.sample_rate, copy.channels) == (listed[name], 16_000, 1)
        error = audio.read(tmp_path / "16k" / name) - audio.read(music / source)
        # Half a step of 16 bits, or a whole one where clipping met the largest value.
        assert np.abs(error).max() <= 0.51 / 32768


def test_the_split_is_that_of_the_originals(music, tmp_path):
    run(str(music), str(tmp_path / "a"), group_by="file", valid_share=0.4)
    run(str(music), str(tmp_path / "b"), group_by="file", valid_share=0.4, convert=tmp_path / "16k")
    for split in ("train", "valid"):
        a, b = (Manifest(tmp_path / out / f"{split}.tsv") for out in "ab")
        assert sorted(a.num_samples) == sorted(b.num_samples)


def test_16_bit_audio_of_16_khz_stays_bit_for_bit(tmp_path):
    samples = np.random.default_rng(0).integers(-32768, 32768, (20_000, 1), np.int16)
    for length, name in ((20_000, "a"), (19_000, "b")):
        (tmp_path / "music" / name).mkdir(parents=True)
        part = samples[:length]
        soundfile.write(tmp_path / "music" / name / "x.wav", part, 16_000, "PCM_16")
    run(str(tmp_path / "music"), str(tmp_path / "out"), convert=str(tmp_path / "16k"))
    copy, _ = soundfile.read(tmp_path / "16k" / "a" / "x.flac", dtype="int16")
    np.testing.assert_array_equal(copy, samples[:, 0])


def test_peaks_beyond_full_scale_are_clipped_and_do_not_wrap(tmp_path):
    loud = np.array([0.5, 1.0, 1.5, -1.0, -2.5, 0.0], np.float32)
    write_flac(str(tmp_path / "loud.flac"), iter([loud]))
    copy, _ = soundfile.read(tmp_path / "loud.flac", dtype="int16")
    assert copy.tolist() == [16384, 32767, 32767, -32768, -32768, 0]


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".opus", ".mp3", ".m4a"])
def test_long_files_are_read_in_pieces_that_join(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(examine, "CHUNK_SECONDS", 1)
    rate = 48_000 if suffix == ".opus" else 44_100
    for seed, name in enumerate("ab"):
        write_tone(tmp_path / "music" / name / f"x{suffix}", 4.3, rate, seed=seed)
    longest = []
    read = audio.read
    monkeypatch.setattr(
        audio, "read", lambda *a: longest.append(len(waveform := read(*a))) or waveform
    )
    run(str(tmp_path / "music"), str(tmp_path / "out"), convert=str(tmp_path / "16k"))
    assert max(longest) <= 16_000
    source = read(tmp_path / "music" / "a" / f"x{suffix}")
    copy = read(tmp_path / "16k" / "a" / "x.flac")
    assert len(copy) == len(source)
    # Lossy decoders that start within a file are not exact to the last bit.
    assert np.abs(copy - source).max() <= 1.1 / 32768


def test_a_run_that_was_interrupted_goes_on_where_it_stopped(music, tmp_path, monkeypatch):
    folder, out = str(tmp_path / "16k"), str(tmp_path / "out")
    whole_write, written = convert.write_flac, []

    def write(path, pieces):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(path)
        whole_write(path, pieces)

    monkeypatch.setattr(convert, "write_flac", write)
    with pytest.raises(KeyboardInterrupt):
        run(str(music), out, convert=folder)
    assert not (tmp_path / "out").exists()
    first = {name: path.stat().st_mtime_ns for name, path in copies(tmp_path / "16k").items()}
    assert len(first) == 3
    # What no finished run leaves behind: an empty file, and one of another length.
    broken = next(iter(first))
    del first[broken]
    write_tone(tmp_path / "16k" / broken, 0.3)
    (tmp_path / "16k" / "B").mkdir(exist_ok=True)
    (tmp_path / "16k" / "B" / "e.flac").touch()
    killed = tmp_path / "16k" / "A" / ".0123456789abcdef.99.tmp.flac"
    killed.touch()
    os.utime(killed, (0, 0))
    written.clear()
    monkeypatch.setattr(convert, "write_flac", lambda *a: written.append(a[0]) or whole_write(*a))
    run(str(music), out, convert=folder)
    assert len(written) == 4
    after = copies(tmp_path / "16k")
    assert {name: after[name].stat().st_mtime_ns for name in first} == first
    run(str(music), str(tmp_path / "fresh"), convert=str(tmp_path / "fresh16k"))
    fresh = copies(tmp_path / "fresh16k")
    assert set(after) == set(fresh)
    for name, path in after.items():
        assert path.read_bytes() == fresh[name].read_bytes()


@pytest.mark.parametrize("how", ["cut", "source replaced", "source from elsewhere"])
def test_a_copy_that_is_damaged_or_older_than_its_source_is_made_again(music, tmp_path, how):
    folder, name = tmp_path / "16k", "A/b.flac"
    run(str(music), str(tmp_path / "out"), convert=str(folder))
    whole = {name: path.read_bytes() for name, path in copies(folder).items()}
    copy = folder / name
    others = {n: path.stat().st_mtime_ns for n, path in copies(folder).items() if n != name}
    if how == "cut":
        copy.write_bytes(whole[name][: len(whole[name]) // 2])
    elif how == "source replaced":
        os.utime(music / "A" / "b.ogg", ns=(0, copy.stat().st_mtime_ns + 10**9))
    else:  # of the same length, with an older time
        kept = music / "A" / "b.ogg"
        info = soundfile.info(kept)
        write_tone(kept, info.frames / info.samplerate, info.samplerate, info.channels, seed=99)
        os.utime(kept, (0, 0))
    before = copy.stat().st_ino
    run(str(music), str(tmp_path / "out"), convert=str(folder), force=True)
    after = copies(folder)
    assert {n for n, path in after.items() if path.read_bytes() != whole[n]} == (
        {name} if how == "source from elsewhere" else set()
    )
    assert after[name].stat().st_ino != before
    assert {n: after[n].stat().st_mtime_ns for n in others} == others


def test_an_interrupted_copy_leaves_nothing(tmp_path):
    def pieces():
        yield tone(1.0)[:, 0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_flac(str(tmp_path / "x.flac"), pieces())
    assert list(tmp_path.iterdir()) == []


def test_damage_met_while_converting_leaves_the_track_out(music, tmp_path):
    waveform = tone(3.0)
    waveform[24_000] = np.nan
    soundfile.write(music / "A" / "hole.wav", waveform, 16_000, "FLOAT")
    run(str(music), str(tmp_path / "out"), convert=str(tmp_path / "16k"))
    report = (tmp_path / "out" / "left_out.tsv").read_text()
    assert report == "A/hole.wav\tholds NaN or infinite samples\n"
    assert "A/hole.flac" not in copies(tmp_path / "16k")
    assert b"hole" not in (tmp_path / "out" / "train.tsv").read_bytes()
    assert b"hole" not in (tmp_path / "out" / "valid.tsv").read_bytes()


def test_copies_that_would_have_one_name_keep_their_suffix():
    assert target_names(["a.wav", "b.wav"]) == {"a.wav": "a.flac", "b.wav": "b.flac"}
    assert target_names(["x/a.wav", "x/a.mp3", "y/a.wav", "x/a b.flac"]) == {
        "x/a.wav": "x/a.wav.flac",
        "x/a.mp3": "x/a.mp3.flac",
        "y/a.wav": "y/a.flac",
        "x/a b.flac": "x/a b.flac",
    }
    # Keeping the suffix may meet a third source, which then keeps its own.
    assert target_names(["a.wav", "a.mp3", "a.wav.flac"]) == {
        "a.wav": "a.wav.flac",
        "a.mp3": "a.mp3.flac",
        "a.wav.flac": "a.wav.flac.flac",
    }


@pytest.mark.parametrize("folder", [".", "A", "new/below", ".."])
def test_copies_among_their_sources_are_refused(music, tmp_path, folder):
    before = copies(music)
    with pytest.raises(InputError, match="lie within each other: choose a folder"):
        run(str(music), str(tmp_path / "out"), convert=str(music / folder))
    assert copies(music) == before


def test_a_folder_that_cannot_be_written_is_one_line(music, tmp_path):
    (tmp_path / "16k").mkdir()
    (tmp_path / "16k" / "A").write_text("a file where a folder has to be")
    for workers in (1, 2):
        with pytest.raises(InputError, match=r"16k/A/.*: cannot be written \(File exists\)"):
            run(str(music), str(tmp_path / "out"), convert=str(tmp_path / "16k"), workers=workers)


def test_a_full_disk_is_one_line(music, tmp_path, monkeypatch):
    class Full(soundfile.SoundFile):
        def write(self, data):
            raise soundfile.LibsndfileError(2)

    monkeypatch.setattr(convert.soundfile, "SoundFile", Full)
    with pytest.raises(InputError, match=r"a\.flac: cannot be written \(is the disk full\?"):
        convert._convert_track(
            (examine.ExaminedTrack("A/a.wav", 19_200, 16_000), "a.flac"),
            str(music),
            str(tmp_path / "16k"),
        )
    assert list((tmp_path / "16k").iterdir()) == []


def test_names_as_long_as_names_can_be(tmp_path):
    # 255 bytes: the copy of the first fits exactly, that of the second would be a byte longer.
    fits, too_long = "é" * 125 + ".opus", "é" * 125 + "x.wav"
    write_tone(tmp_path / "music" / "a" / fits, 1.2, 48_000)
    write_tone(tmp_path / "music" / "b" / too_long, 1.2)
    write_tone(tmp_path / "music" / "c" / "x.wav", 1.3)
    run(str(tmp_path / "music"), str(tmp_path / "out"), convert=str(tmp_path / "16k"))
    assert set(copies(tmp_path / "16k")) == {"a/" + "é" * 125 + ".flac", "c/x.flac"}
    report = (tmp_path / "out" / "left_out.tsv").read_text()
    assert report == f"b/{too_long}\tits name is too long for a copy with the suffix .flac\n"


def test_copies_at_other_speeds_are_listed_for_training_alone(music, tmp_path):
    options = {"group_by": "file", "valid_share": 0.4, "convert": str(tmp_path / "16k")}
    run(str(music), str(tmp_path / "plain"), **options)
    run(str(music), str(tmp_path / "out"), speeds=[0.8, 1.25], **options)
    train, valid = (Manifest(tmp_path / "out" / f"{split}.tsv") for split in ("train", "valid"))
    before = Manifest(tmp_path / "plain/train.tsv")
    names = [before.name(i) for i in range(len(before))]
    assert (tmp_path / "out/valid.tsv").read_bytes() == (tmp_path / "plain/valid.tsv").read_bytes()
    assert [train.name(i) for i in range(len(train))] == [
        *names,
        *(f".speed-0.8/{name}" for name in names),
        *(f".speed-1.25/{name}" for name in names),
    ]
    for i in range(len(names)):
        slow, fast = (round(train.num_samples[i] / speed) for speed in (0.8, 1.25))
        assert abs(train.num_samples[i + len(names)] - slow) <= 1
        assert abs(train.num_samples[i + 2 * len(names)] - fast) <= 1
    written = {path: path.stat().st_mtime_ns for path in copies(tmp_path / "16k").values()}
    assert len(written) == len(train) + len(valid)
    run(str(music), str(tmp_path / "again"), speeds=[0.8, 1.25], **options)  # keeps all
    assert written == {path: path.stat().st_mtime_ns for path in written}
    found, _ = find_audio(str(tmp_path / "16k"))  # as `map` and `pretrain` search this folder
    assert len(found) == len(before) + len(valid)


def test_a_faster_copy_is_higher_and_shorter(tmp_path):
    rate, hertz, seconds = 16_000, 440.0, 3
    (tmp_path / "16k").mkdir()
    wave = 0.5 * np.sin(2 * np.pi * hertz * np.arange(seconds * rate) / rate)
    write_flac(str(tmp_path / "16k/a.flac"), iter([wave.astype(np.float32)]))
    ((name, num_samples),) = convert.change_speeds(str(tmp_path / "16k"), ["a.flac"], [1.25], 1)
    assert (name, num_samples) == (".speed-1.25/a.flac", round(seconds * rate / 1.25))
    spectrum = np.abs(np.fft.rfft(audio.read(tmp_path / "16k" / name)))
    assert abs(spectrum.argmax() * rate / num_samples - 1.25 * hertz) < 1


@pytest.mark.parametrize("speeds", ["1", "0.999", "0.9,0.9", "0.9,0.8995", "0.4", "nan", ""])
def test_speeds_that_would_list_equal_tracks_are_refused(speeds, capsys):
    with pytest.raises(SystemExit):
        pretrain.get_parser().parse_args(["--root", "music", f"--speeds={speeds}"])
    assert "argument --speeds" in capsys.readouterr().err


def test_speeds_without_copies_are_refused(music, tmp_path):
    with pytest.raises(InputError, match=r"--speeds .* give --convert DIR as well"):
        run(str(music), str(tmp_path / "out"), speeds=[0.9])
