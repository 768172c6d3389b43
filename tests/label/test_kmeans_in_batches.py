"""K-means in batches: what they are of, what they are good for, and taken up where it was."""

import json

import numpy as np
import pytest

from music_ssl_fairseq.data.manifest import Manifest, write_manifest
from music_ssl_fairseq.features.mfcc import Mfcc
from music_ssl_fairseq.label import kmeans_in_batches
from music_ssl_fairseq.label.__main__ import main
from music_ssl_fairseq.label.kmeans import Options, choose_lloyd, fit
from music_ssl_fairseq.label.kmeans_in_batches import Batches, begin, fit_batches
from music_ssl_fairseq.label.sample import Sample
from tests.audio_files import tone, write_tone

LLOYD = choose_lloyd("cpu", 1)[0]


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    return np.random.default_rng(0).permutation(Mfcc().features(tone(60.0)[:, 0]))


def inertia(frames, centroids) -> float:
    return np.square(frames[:, None] - centroids).sum(-1).min(1).mean()


def many_tracks(folder, seconds) -> Sample:
    tracks = [(f"{i}.wav", round(16_000 * length)) for i, length in enumerate(seconds)]
    write_manifest(folder / "train.tsv", "/music", tracks)
    manifest = Manifest(folder / "train.tsv")
    return Sample(manifest, Mfcc(), max_frames=60_000, seed=0)


@pytest.mark.parametrize("size", [7, 2500, 10**6])
def test_batches_hold_every_frame_once(tmp_path, size):
    sample = many_tracks(tmp_path, [0.5, 0.01, 30.0, 25.3])
    batches = Batches(sample, size)
    found = [list(batches.parts(batch)) for batch in range(len(batches))]
    assert [sum(len(p.frames) for p in parts) for parts in found] == batches.sizes.tolist()
    assert all(0 < n <= size for n in batches.sizes)
    for index in range(4):
        track, frames = sample.part(index)
        taken = [p.frames for parts in found for p in parts if p.track == track]
        np.testing.assert_array_equal(np.sort(np.concatenate([[], *taken])), frames)


def test_a_batch_is_of_the_whole_corpus(tmp_path):
    batches = Batches(many_tracks(tmp_path, [300.0] * 20), 10_000)
    assert len(batches) == 6
    for batch in range(6):
        parts = list(batches.parts(batch))
        assert len(parts) >= 6  # of 20 tracks, where whole ones would be 3 or 4
        assert all((np.diff(part.frames) > 0).all() for part in parts)


def first_fit(frames, k):
    return begin(fit(frames, Options(k), LLOYD, lambda _: None), frames, "cpu")


def test_batches_make_up_for_a_small_sample(frames):
    whole = fit(frames, Options(20), LLOYD, lambda _: None)
    sample, *rest = np.array_split(frames, 12)
    begun = first_fit(sample, 20)
    found = fit_batches(rest, "cpu", lambda _: None, begun)
    assert (found.batches, found.frames) == (11, len(frames) - len(sample))
    assert found.counts.sum() == len(frames)
    least, most = inertia(frames, whole.centroids), inertia(frames, begun.centroids)
    assert inertia(frames, found.centroids) - least < 0.8 * (most - least)


def test_centroids_are_means_of_the_frames_that_came_to_them(frames):
    sample, batch, *_ = np.array_split(frames, 6)
    begun = first_fit(sample, 20)
    found = fit_batches([batch, np.zeros((0, 39), np.float32)], "cpu", lambda _: None, begun)
    units = np.square(batch[:, None] - begun.centroids).sum(-1).argmin(1)
    sums = begun.centroids * begun.counts[:, None]
    np.add.at(sums, units, batch)
    np.testing.assert_allclose(found.centroids, sums / found.counts[:, None], atol=0.05)
    assert (found.batches, found.frames) == (2, len(batch))


def test_taken_up_it_ends_the_same(frames):
    sample, *rest = np.array_split(frames, 5)
    watched = []
    whole = fit_batches(rest, "cpu", watched.append, first_fit(sample, 10))
    for done in (1, 3):
        again = fit_batches(rest[done:], "cpu", lambda _: None, watched[done - 1])
        assert again.centroids.tobytes() == whole.centroids.tobytes()
        assert again.curve.tolist() == whole.curve.tolist()


def test_the_command_goes_on_where_it_was(tmp_path, monkeypatch):
    for i in range(4):
        write_tone(tmp_path / "music" / f"{i}.wav", 3, seed=i)
    lines = [(f"{i}.wav", 48_000) for i in range(4)]
    write_manifest(tmp_path / "train.tsv", tmp_path / "music", lines)

    def run(labels) -> int:
        options = ["--k", "8", "--workers", "1", "--minibatch", "400"]
        return main(["--manifests", str(tmp_path), "--labels", str(labels), *options])

    assert run(tmp_path / "undisturbed") == 0
    metadata = json.loads((tmp_path / "undisturbed" / "metadata.json").read_text())
    assert metadata["frames_fitted"] == 4 * 298
    assert metadata["minibatch"] == 400
    assert not list((tmp_path / "undisturbed").glob(".work*"))

    moved, calls = kmeans_in_batches._moved, []

    def dies(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise MemoryError
        return moved(*arguments)

    monkeypatch.setattr(kmeans_in_batches, "_moved", dies)
    with pytest.raises(MemoryError):
        run(tmp_path / "labels")
    assert run(tmp_path / "labels") == 0
    assert len(calls) == 5  # of four batches one again
    for name in ("centroids.npy", "train.km"):
        found, expected = (tmp_path / labels / name for labels in ("labels", "undisturbed"))
        assert found.read_bytes() == expected.read_bytes()


def test_an_unreadable_track_in_a_batch(tmp_path, capsys):
    for i in range(3):
        write_tone(tmp_path / f"{i}.wav", 3, seed=i)
    write_manifest(tmp_path / "train.tsv", tmp_path, [(f"{i}.wav", 48_000) for i in range(3)])
    options = ["--manifests", str(tmp_path), "--labels", str(tmp_path / "labels"), "--k", "8"]
    options += ["--workers", "1", "--minibatch", "400", "--stage", "fit"]
    (tmp_path / "2.wav").write_bytes(b"no audio")
    assert main(options) == 1
    assert f"{tmp_path / '2.wav'}: not readable as audio" in capsys.readouterr().err
    assert main([*options, "--skip-unreadable"]) == 0
    metadata = json.loads((tmp_path / "labels" / "metadata.json").read_text())
    assert metadata["frames_fitted"] == 2 * 298
