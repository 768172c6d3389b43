"""The report on a set of labels, and what its figures mean."""

import json

import numpy as np
import pytest
from sklearn.metrics import mutual_info_score

from music_ssl_fairseq.data.label_store import LabelStore
from music_ssl_fairseq.data.manifest import Manifest, write_manifest
from music_ssl_fairseq.label.__main__ import main
from music_ssl_fairseq.label.information import mutual_information, quantiles
from music_ssl_fairseq.label.report_samples import draw_samples
from tests.audio_files import write_tone


def sine(path, frequency: float, seconds: float, level: float) -> None:
    import soundfile

    time = np.arange(round(seconds * 16_000)) / 16_000
    path.parent.mkdir(exist_ok=True)
    soundfile.write(path, level * np.sin(2 * np.pi * frequency * time), 16_000)


def test_information_is_scikit_learns_but_for_the_correction():
    rng = np.random.default_rng(0)
    units = rng.integers(0, 10, 100_000)
    others = np.where(rng.random(100_000) < 0.5, units % 4, rng.integers(0, 4, 100_000))
    found = mutual_information(units, others)
    assert found.bits == pytest.approx(mutual_info_score(units, others) / np.log(2), abs=1e-3)
    assert found.entropy == pytest.approx(2, abs=0.01)


def test_information_by_chance_is_taken_off():
    rng = np.random.default_rng(0)
    units, others = rng.integers(0, 200, 10_000), rng.integers(0, 12, 10_000)
    assert mutual_info_score(units, others) / np.log(2) > 0.1
    assert mutual_information(units, others).bits < 0.03
    assert mutual_information(units[:0], others[:0]).share == 0
    assert mutual_information(units, units).share == pytest.approx(1, abs=1e-6)


def test_quantiles_are_equally_full():
    steps = quantiles(np.random.default_rng(0).normal(size=1200), 12)
    assert np.bincount(steps).tolist() == [100] * 12
    assert quantiles(np.zeros(5), 12).max() <= 1


@pytest.mark.parametrize("hop", [160, 320])
def test_evidence_is_heard_where_the_label_is(tmp_path, hop):
    """A unit for each of two notes: units tell all about pitch and loudness."""
    for name, frequency, level in (("a.wav", 440, 0.5), ("c.wav", 523.25, 0.05)):
        sine(tmp_path / "music" / name, frequency, 4, level)
    tracks = [("a.wav", 64_000), ("c.wav", 64_000)]
    write_manifest(tmp_path / "train.tsv", tmp_path / "music", tracks)
    count = 64_000 // hop - 2
    lines = [" ".join(["9"] * count), " ".join(["0"] * count)]
    (tmp_path / "train.km").write_text("\n".join(lines) + "\n")
    store = LabelStore(tmp_path / "train.km")
    found = draw_samples(Manifest(tmp_path / "train.tsv"), store, hop, seed=0, workers=1)
    assert len(found.units) == len(found.log_mel) == len(found.excerpt)
    of_pitch = {9: found.pitch_class[found.units == 9], 0: found.pitch_class[found.units == 0]}
    assert (of_pitch[9] == 9).all()
    assert (of_pitch[0] == 0).all()
    loudness = np.median(found.loudness[found.units == 9])
    assert loudness == pytest.approx(20 * np.log10(0.5 / np.sqrt(2)), abs=0.1)


def test_the_page(tmp_path, capsys):
    for i in range(3):
        write_tone(tmp_path / "music" / f"{i}.wav", 4, seed=i)
    lines = [(f"{i}.wav", 64_000) for i in range(3)]
    write_manifest(tmp_path / "train.tsv", tmp_path / "music", lines)
    write_manifest(tmp_path / "valid.tsv", tmp_path / "music", lines[:1])
    labels = tmp_path / "labels"
    arguments = [
        *("--manifests", str(tmp_path), "--labels", str(labels), "--k", "9", "--workers", "1")
    ]
    assert main([*arguments, "--stage", "report"]) == 1
    assert "run --stage" in capsys.readouterr().err
    assert main([*arguments, "--report"]) == 0
    folder = labels / "report"
    assert sorted(path.name for path in folder.iterdir()) == [
        *("inertia.png", "report.md", "units.png", "usage.png")
    ]
    page = (folder / "report.md").read_text()
    record = json.loads((labels / "metadata.json").read_text())["splits"]["train"]
    assert f"| perplexity | {record['perplexity']:.1f} |" in page
    assert f"| dead clusters | {9 - record['used_clusters']} |" in page
    assert f"| mean run length | {record['mean_run_length']:.2f} frames" in page
    for name in ("inertia.png", "units.png", "usage.png"):
        assert f"({name})" in page
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert main([*arguments, "--stage", "report"]) == 0
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_without_matplotlib(tmp_path, monkeypatch, capsys):
    import sys

    write_tone(tmp_path / "music" / "a.wav", 2)
    write_manifest(tmp_path / "train.tsv", tmp_path / "music", [("a.wav", 32_000)])
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    labels = tmp_path / "labels"
    arguments = ["--manifests", str(tmp_path), "--labels", str(labels), "--k", "4"]
    assert main([*arguments, "--workers", "1", "--report"]) == 1
    assert "pip install -e '.[plot]'" in capsys.readouterr().err
    assert not labels.exists()
