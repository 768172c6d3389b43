"""The report on a set of labels, and what its figures mean."""

import json
import re

import numpy as np
import pytest
from sklearn.metrics import mutual_info_score

from music_ssl_fairseq.data.label_store import LabelStore
from music_ssl_fairseq.data.manifest import Manifest, write_manifest
from music_ssl_fairseq.label.__main__ import main
from music_ssl_fairseq.label_report.profiles import mutual_information, quantiles
from music_ssl_fairseq.label_report.samples import draw_samples
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
    bits, entropy = mutual_information(units, others)
    assert bits == pytest.approx(mutual_info_score(units, others) / np.log(2), abs=1e-3)
    assert entropy == pytest.approx(2, abs=0.01)


def test_information_by_chance_is_taken_off():
    rng = np.random.default_rng(0)
    units, others = rng.integers(0, 200, 10_000), rng.integers(0, 12, 10_000)
    assert mutual_info_score(units, others) / np.log(2) > 0.1
    assert mutual_information(units, others)[0] < 0.03
    assert mutual_information(units[:0], others[:0]) == (0, 0)
    bits, entropy = mutual_information(units, units)
    assert bits / entropy == pytest.approx(1, abs=1e-6)


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
    counts = np.bincount(np.concatenate([store.units(0), store.units(1)]))
    found = draw_samples(Manifest(tmp_path / "train.tsv"), store, counts, hop, seed=0, workers=0)
    assert len(found.units) == len(found.log_mel) == len(found.excerpt)
    of_pitch = {9: found.pitch_class[found.units == 9], 0: found.pitch_class[found.units == 0]}
    assert (of_pitch[9] == 9).all()
    assert (of_pitch[0] == 0).all()
    loudness = np.median(found.loudness[found.units == 9])
    assert loudness == pytest.approx(20 * np.log10(0.5 / np.sqrt(2)), abs=0.1)


def test_a_rare_unit_is_found_outside_of_the_drawn_excerpts(tmp_path):
    """One long track: the excerpts drawn are short, and unit 1 is once at its end."""
    sine(tmp_path / "music/a.wav", 440, 90, 0.1)
    write_manifest(tmp_path / "train.tsv", tmp_path / "music", [("a.wav", 90 * 16_000)])
    units = np.zeros(8998, int)
    units[8950:8957] = 1
    (tmp_path / "train.km").write_text(" ".join(map(str, units)) + "\n")
    store = LabelStore(tmp_path / "train.km")
    counts = np.array([8991, 7, 0])
    found = draw_samples(Manifest(tmp_path / "train.tsv"), store, counts, 160, seed=0, workers=0)
    assert found.drawn[found.units == 0].any()
    assert not found.drawn[found.units == 1].any()
    assert len(found.sounds) == len(found.tracks) == found.excerpt[-1] + 1
    assert found.seconds[found.units == 1][3] == pytest.approx(0.7, abs=0.01)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """Labels of three short tracks with their page, and the command that made them."""
    folder = tmp_path_factory.mktemp("labelled")
    for i in range(3):
        write_tone(folder / "music" / f"{i}.wav", 4, seed=i)
    lines = [(f"{i}.wav", 64_000) for i in range(3)]
    write_manifest(folder / "train.tsv", folder / "music", lines)
    write_manifest(folder / "valid.tsv", folder / "music", lines[:1])
    command = [
        *("--manifests", str(folder), "--labels", str(folder / "labels"), "--k", "60"),
        *("--workers", "1"),
    ]
    assert main([*command, "--stage", "report"]) == 1
    assert main([*command, "--report"]) == 0
    return folder / "labels", command


def test_the_page(labelled):
    labels, command = labelled
    page = (labels / "report.html").read_text()
    record = json.loads((labels / "metadata.json").read_text())["splits"]["train"]
    assert f'<td data-value="{record["perplexity"]:.1f}">{record["perplexity"]:.1f}</td>' in page
    assert f"{record['mean_run_length']:.2f} frames" in page
    assert page.count('<svg role="img" aria-label=') == 2
    assert "http://" not in page.replace("http://www.w3.org", "")
    about = json.loads(re.search('id="about">(.*?)</script>', page)[1])
    assert sum(unit["share"]["train"] for unit in about["units"]) == pytest.approx(100, abs=0.1)
    for number, unit in enumerate(about["units"]):
        assert number not in unit["near"]
        assert len(set(unit["near"])) == 5
        assert sum(unit["pitch"]) == pytest.approx(100, abs=6)
        assert 1 <= len(unit["clips"]) <= 5
        for sound, start, stop, begin, end in unit["clips"]:
            assert 0 <= start <= begin < end < stop
            assert about["tracks"][sound].endswith(".wav")
    assert sum(len(unit["clips"]) == 5 for unit in about["units"]) > 40
    assert main([*command, "--stage", "report"]) == 0
    assert (labels / "report.html").read_text() == page


def test_the_page_in_a_browser(labelled, browser):
    """It loads without a complaint, sorts, pages, finds, chooses and plays."""
    browser.open(labelled[0] / "report.html")
    first = "find('#units tbody tr').cells"
    classes = browser.run("read('about').pitchClasses")
    legend = browser.run(
        "[...document.querySelectorAll('#map .legend > span')].map(s => s.textContent)"
    )
    shown = [name for name in legend if name in classes]
    assert shown == sorted(shown, key=classes.index) != sorted(shown)  # C before A
    shares = browser.run("read('about').units.map(u => u.share.train)")
    assert browser.run("document.querySelectorAll('#units tbody tr').length") == 50
    assert float(browser.run(f"{first}[1].textContent")) == pytest.approx(max(shares), rel=5e-3)
    browser.run("find('#units thead th button').click()")
    assert browser.run(f"{first}[0].textContent") == "59"
    browser.run("find('#units thead th button').click()")
    assert browser.run(f"{first}[0].textContent") == "0"
    browser.run("find('#units').parentNode.nextSibling.lastChild.click()")
    assert browser.run(f"{first}[0].textContent") == "50"
    browser.run("find('#search').value = '7'; find('#search').dispatchEvent(new Event('input'))")
    assert browser.run(f"{first}[0].textContent") == "7"
    assert browser.run("document.querySelectorAll('#map circle.faded').length") == 59
    played = browser.run("""(async () => {
        find('#map circle[data-index="7"]').dispatchEvent(new MouseEvent('click', {bubbles: true}));
        const button = find("#detail button.play");
        const pressed = () => button.getAttribute("aria-pressed");
        const clip = read('about').units[7].clips[0], sounds = await player.buffer(clip[0]);
        const loudest = sounds.getChannelData(0).reduce((a, b) => Math.max(a, b));
        button.click();
        await new Promise(go => setTimeout(go, 150));
        const during = pressed(), time = player.context.currentTime;
        while (pressed() === 'true') await new Promise(go => setTimeout(go, 50));
        return [find('#detail h3').textContent, during, time > 0, loudest > 0.01, sounds.duration];
    })()""")
    assert played[:4] == ["Unit 7", "true", True, True]
    assert played[4] == pytest.approx(4, abs=0.1)
    assert browser.complaints == []


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
