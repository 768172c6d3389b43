"""examples/open_music/render_scores.py: the corpus of the quickstart."""

import importlib
import os
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from tests import EXAMPLES

pytest.importorskip("music21")
pytest.importorskip("pretty_midi")
pytest.importorskip("midirenderer")

FOLDER = EXAMPLES / "open_music"


@pytest.fixture(scope="module")
def scores():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        return importlib.import_module("render_scores")


def test_plan_depends_on_the_seed_alone(scores, tmp_path):
    tracks = scores.plan(tmp_path, 40, seed=1)
    assert scores.plan(tmp_path, 40, seed=1) == tracks
    assert scores.plan(tmp_path, 15, seed=1) == tracks[:15]
    assert scores.plan(tmp_path, 40, seed=2) != tracks


def test_plan_is_a_mixed_collection(scores, tmp_path):
    tracks = scores.plan(tmp_path, 60, seed=0)
    assert len({track.path for track in tracks}) == 60
    assert len({track.score for track in tracks}) == 60
    assert len({track.path.parent for track in tracks}) == len(scores.ENSEMBLES) >= 8
    assert {track.path.suffix for track in tracks} == {".flac", ".ogg", ".mp3", ".wav"}
    assert len({track.sample_rate for track in tracks}) == 4
    assert {track.channels for track in tracks} == {1, 2}


def test_midi_is_the_chorale(scores, tmp_path):
    (track,) = scores.plan(tmp_path, 1, seed=0)
    from music21 import corpus

    score = corpus.parse(track.score)
    midi = scores.midi_of(track, seconds=1000)
    for part, instrument in zip(score.parts, midi.instruments, strict=True):
        notes = part.stripTies().flatten().notes
        expected = [pitch.midi + track.transposition for note in notes for pitch in note.pitches]
        assert [note.pitch for note in instrument.notes] == expected
    quarters = midi.get_end_time() * track.quarters_per_minute / 60
    assert quarters == pytest.approx(float(score.highestTime), rel=0.05)


def test_waveform_sounds_the_notes(scores, tmp_path):
    track = scores.plan(tmp_path, 1, seed=0)[0]  # an organ: steady tones
    waveform = scores.waveform_of(track, seconds=6)
    assert waveform.shape == (6 * track.sample_rate, track.channels)
    assert np.abs(waveform).max() == pytest.approx(track.peak)

    # The strongest partials are those of the notes, at whatever octave the registers sound.
    midi = scores.midi_of(track, seconds=6)
    sounding = np.zeros(12)
    for note in (note for instrument in midi.instruments for note in instrument.notes):
        sounding[note.pitch % 12] += min(note.end, 6) - note.start
    spectrum = np.abs(np.fft.rfft(waveform.mean(axis=1)))
    frequencies = np.arange(1, len(spectrum)) / 6
    pitches = np.round(69 + 12 * np.log2(frequencies / 440)).astype(int)
    audible = (pitches > 40) & (pitches < 84)
    energy = np.bincount(pitches[audible] % 12, spectrum[1:][audible] ** 2, minlength=12)
    assert np.corrcoef(sounding, energy)[0, 1] > 0.6


def test_files_are_what_was_planned(scores, tmp_path):
    by_format = {}
    for track in scores.plan(tmp_path, 60, seed=0):
        by_format.setdefault((track.path.suffix, track.sample_rate), track)
    for track in by_format.values():
        scores.render(track, seconds=1.5)
        info = soundfile.info(track.path)
        assert (info.samplerate, info.channels) == (track.sample_rate, track.channels)
        assert info.frames == pytest.approx(1.5 * track.sample_rate, rel=0.05)
        if track.path.suffix in (".flac", ".wav"):
            assert info.subtype == "PCM_16"
    assert len(by_format) == len(set(scores.DELIVERIES))
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".")]


def test_command_line_renders_only_what_is_missing(tmp_path):
    command = [sys.executable, str(FOLDER / "render_scores.py"), "--out", str(tmp_path)]
    command += ["--tracks", "2", "--seconds", "1", "--workers", "1"]
    subprocess.run(command, check=True, capture_output=True)
    kept, removed = sorted(tmp_path.rglob("*.*"))
    before = os.stat(kept).st_mtime_ns
    audio = soundfile.read(removed)[0]
    removed.unlink()
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "2 tracks in 2 folders" in output
    assert os.stat(kept).st_mtime_ns == before
    np.testing.assert_array_equal(soundfile.read(removed)[0], audio)
