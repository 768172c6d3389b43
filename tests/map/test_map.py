"""The map of a folder of songs: neighbours, cache, what is left out, and the page in a browser."""

import json
import os
import re

import numpy as np
import pytest
import torch

import music_ssl_fairseq
from music_ssl_fairseq.__main__ import main
from music_ssl_fairseq.map.embedding import Embedder
from music_ssl_fairseq.map.song_page import standardised
from music_ssl_fairseq.pages.flat import flat_map, nearest
from tests import checkpoints, tiny
from tests.audio_files import write_tone


@pytest.fixture(scope="module")
def mapped(tmp_path_factory):
    """Songs with their page: two are the same music, one is no audio; and the exit status."""
    folder = tmp_path_factory.mktemp("map")
    for number, name in enumerate(("a/one.flac", "a/two.wav", "b/three.mp3", "b/<four>.wav")):
        write_tone(folder / "music" / name, 3 + number, seed=number)
    write_tone(folder / "music/b/again E\u0301.wav", 3, seed=0)  # as macOS writes accents
    (folder / "music/no.mp3").write_bytes(b"ID3" + bytes(200))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        status = main(["map", "music", "--upstream", "mfcc", "--workers", "0"])
    return folder, status


def songs_of(page) -> list[dict]:
    return json.loads(re.search('id="songs">(.*?)</script>', page.read_text())[1])


def test_songs_and_their_neighbours(mapped):
    folder, status = mapped
    assert status == 0
    page = (folder / "song_map.html").read_text()
    assert "no.mp3" in page
    assert "Left out: 1" in page
    songs = songs_of(folder / "song_map.html")
    names = [song["name"] for song in songs]
    assert names == [
        "a/one.flac",
        "a/two.wav",
        "b/<four>.wav",
        "b/again E\u0301.wav",
        "b/three.mp3",
    ]
    assert [song["group"] for song in songs] == ["a", "a", "b", "b", "b"]
    assert songs[0]["near"][0] == names.index("b/again E\u0301.wav")
    assert songs[0]["similarity"][0] > 0.99 > songs[0]["similarity"][1]
    assert songs[2]["seconds"] == 6
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_what_is_known_is_not_computed_again(mapped, monkeypatch, capsys):
    folder, _ = mapped
    monkeypatch.chdir(folder)
    command = ["map", "music", "--upstream", "mfcc", "--workers", "0"]
    computed = []
    vector = Embedder._vector
    monkeypatch.setattr(
        Embedder, "_vector", lambda self, song: computed.append(song.path) or vector(self, song)
    )
    page = (folder / "song_map.html").read_bytes()
    main(command)
    assert computed == []
    assert (folder / "song_map.html").read_bytes() == page
    os.utime(folder / "music/a/two.wav", (1, 1))
    main(command)
    assert computed == ["music/a/two.wav"]
    computed.clear()
    main([*command, "--seconds", "1"])
    assert len(computed) == 5
    assert "left out: music/no.mp3: " in capsys.readouterr().err


def test_an_interrupted_run_resumes(mapped, tmp_path, monkeypatch):
    folder, _ = mapped
    monkeypatch.chdir(folder)
    vector, computed = Embedder._vector, []

    def interrupted(self, song):
        if len(computed) == 2:
            raise KeyboardInterrupt
        computed.append(song.path)
        return vector(self, song)

    command = ["map", "music", "--upstream", "mfcc", "--workers", "0", "--cache", str(tmp_path)]
    monkeypatch.setattr(Embedder, "_vector", interrupted)
    assert main([*command, "--out", str(tmp_path / "map.html")]) == 130
    assert not (tmp_path / "map.html").exists()
    monkeypatch.setattr(
        Embedder, "_vector", lambda self, song: computed.append(song.path) or vector(self, song)
    )
    assert main([*command, "--out", str(tmp_path / "map.html"), "--clip-seconds", "0"]) == 0
    assert len(computed) == len(set(computed)) == 5
    assert songs_of(tmp_path / "map.html") != []
    assert 'id="sounds"' not in (tmp_path / "map.html").read_text()


def test_an_encoder_and_its_layers(mapped, tmp_path, capsys):
    folder, _ = mapped
    path = tmp_path / "checkpoint_best.pt"
    torch.manual_seed(5)  # other weights than random: draws
    checkpoints.write(path, "music_hubert", tiny.music_hubert())
    embedder = Embedder(str(path), 2, 0, "cpu")
    found, left_out = embedder.embed(folder / "music", ["a/two.wav", "no.mp3"], tmp_path / "cache")
    expected = music_ssl_fairseq.load(path).embed(folder / "music/a/two.wav", layers=2)[0]
    np.testing.assert_array_equal(found["a/two.wav"], expected)
    assert [item.name for item in left_out] == ["no.mp3"]
    random, _ = Embedder(f"random:{path}", 2, 0, "cpu").embed(
        folder / "music", ["a/two.wav"], tmp_path / "cache"
    )
    assert np.abs(random["a/two.wav"] - expected).max() > 0.01
    for layer, checkpoint in (("9", str(path)), ("1", "chroma")):
        command = ["map", str(folder / "music"), "--upstream", checkpoint, "--layer", layer]
        assert main(command) == 1
        lines = capsys.readouterr().err.splitlines()
        error = next(line for line in lines if line.startswith("error: "))
        assert layer in error


def test_standardised_vectors_have_length_one_and_no_common_part(rng):
    vectors = 100 + rng.standard_normal((50, 8)) * np.arange(8)
    found = standardised(vectors)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1)
    assert np.abs((found @ found.T - np.eye(50)).mean()) < 0.02
    assert np.isfinite(standardised(np.ones((1, 3)))).all()


@pytest.mark.parametrize("count", [1, 2, 12])
def test_any_number_of_vectors_has_a_place_and_neighbours(rng, count):
    for vectors in (rng.standard_normal((count, 4)), np.ones((count, 4))):
        places = flat_map(vectors)
        assert places.shape == (count, 2)
        assert places.min() >= -1e-6
        assert places.max() <= 1 + 1e-6
        distances, others = nearest(vectors, 5)
        assert distances.shape == others.shape == (count, min(5, count - 1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("none",), "none: no such folder; FOLDER takes the folder that holds the audio"),
        (("music", "--checkpoint", "none.pt"), "none.pt: no such checkpoint"),
    ],
)
def test_wrong_calls_are_named(mapped, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(mapped[0])
    assert main(["map", "--upstream", "mfcc", *arguments]) == 1
    lines = capsys.readouterr().err.splitlines()
    (error,) = [line for line in lines if line.startswith("error: ")]
    assert error.startswith(f"error: {message}")


def test_the_page_in_a_browser(mapped, browser):
    """It loads without a complaint; a click on a point plays; search finds; the table sorts."""
    browser.open(mapped[0] / "song_map.html")
    found = browser.run("""(async () => {
        find('#map circle[data-index="2"]').dispatchEvent(new MouseEvent('click', {bubbles: true}));
        const loudest = (await player.buffer(2)).getChannelData(0).reduce((a, b) => Math.max(a, b));
        await new Promise(go => setTimeout(go, 150));
        const button = find('#detail button.play');
        const pressed = button.getAttribute('aria-pressed');
        button.click();
        return [find('#detail h3').textContent.trim(), pressed, button.ariaPressed, loudest > 0.01];
    })()""")
    assert found == ["<four>.wav", "true", "false", True]
    assert browser.run("document.querySelectorAll('#detail ol li button.play').length") == 4
    assert browser.run("document.querySelectorAll('#map circle.near').length") == 4
    browser.run("find('#table thead th:nth-child(3) button').click()")
    names = "[...find('#table').tBodies[0].rows].map(row => row.cells[0].textContent)"
    assert browser.run(names)[0] == "b/<four>.wav"
    browser.run(
        "find('#search').value = 'again é'; find('#search').dispatchEvent(new Event('input'))"
    )
    assert browser.run(names) == ["b/again E\u0301.wav"]
    assert browser.run("find('#detail h3').textContent.trim()") == "again E\u0301.wav"
    assert browser.run("document.querySelectorAll('#map circle.faded').length") == 4
    assert browser.complaints == []


def test_a_long_name_leaves_room_for_its_clip_on_a_phone(mapped, browser, tmp_path):
    page = (mapped[0] / "song_map.html").read_text()
    (tmp_path / "page.html").write_text(page.replace("a/one.flac", "a/" + "long name " * 30))
    browser.call(
        "Emulation.setDeviceMetricsOverride",
        **{"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": True},
    )
    browser.open(tmp_path / "page.html")
    right = "find('#table tbody button.play').getBoundingClientRect().right"
    assert browser.run("find('#table tbody td').textContent").startswith("a/long name")
    assert browser.run(right) < 360
    below = browser.run("""(() => {
        const dot = find('#map circle[data-index="0"]'), place = (it) => it.getBoundingClientRect();
        dot.dispatchEvent(new PointerEvent('pointerover', {bubbles: true}));
        return place(dot).top - place(find('.tip')).bottom;
    })()""")
    assert below > 0  # the name, in several lines, does not hide its point
    browser.call("Emulation.clearDeviceMetricsOverride")
