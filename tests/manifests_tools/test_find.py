"""Finding audio: what is listed, by which name, and what is not followed."""

import os
import subprocess
from pathlib import Path

import pytest

from manifests_tools.find import find_audio, is_within
from music_ssl_fairseq.audio import EXTENSIONS
from music_ssl_fairseq.errors import InputError


def touch(root: Path, *names: str | bytes) -> None:
    for name in names:
        path = Path(os.fsdecode(os.path.join(os.fsencode(root), os.fsencode(name))))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.fsencode(name))


def reasons(root: Path) -> dict[str, str]:
    return {item.name: item.reason for item in find_audio(root)[1]}


def test_files_that_look_like_audio_in_any_case_are_found_and_nothing_else(tmp_path):
    names = ["a.wav", "b/c.FLAC", "b/d.Ogg", "e/f/g.opus", "h.MP3", "i.m4a"]
    names += [f"j{suffix}" for suffix in sorted(EXTENSIONS)]
    touch(tmp_path, *names, "cover.jpg", "wav", "playlist.m3u", "notes.mp3.txt")
    assert find_audio(tmp_path) == (names, [])


def test_hidden_files_are_named_and_hidden_folders_passed_over(tmp_path):
    touch(tmp_path, "a.wav", "._a.wav", "c/.b.M4A", ".cover.jpg", ".cache/b.wav", "c/.d/e.wav")
    (tmp_path / ".folder.wav").mkdir()
    assert find_audio(tmp_path)[0] == ["a.wav"]
    assert reasons(tmp_path) == {
        "._a.wav": "what macOS keeps beside a file, no audio: its name begins with ._",
        "c/.b.M4A": "hidden: its name begins with a dot",
    }


def test_names_are_sorted_by_their_bytes(tmp_path):
    # In code points the emoji comes last; the undecodable byte is a surrogate, and before it.
    names = [
        b"B.wav",
        b"a b.wav",
        b"a.wav",
        "é.wav".encode(),
        "\U0001f3b5.wav".encode(),
        b"\xff.wav",
    ]
    touch(tmp_path, *names)
    assert [os.fsencode(name) for name in find_audio(tmp_path)[0]] == sorted(names)
    assert find_audio(tmp_path)[0] != sorted(find_audio(tmp_path)[0])


def test_linked_folders_and_files_are_followed(tmp_path):
    touch(tmp_path / "store", "one/a.wav", "b.wav")
    root = tmp_path / "root"
    root.mkdir()
    (root / "album").symlink_to(tmp_path / "store" / "one")
    (root / "song.wav").symlink_to(tmp_path / "store" / "b.wav")
    assert find_audio(root) == (["album/a.wav", "song.wav"], [])


def test_of_several_links_the_first_by_name_counts(tmp_path):
    touch(tmp_path / "store", "inner/a.wav")
    root = tmp_path / "root"
    root.mkdir()
    for name in ("n", "b", "c", "é", "a"):
        (root / name).symlink_to(tmp_path / "store" / ("" if name == "c" else "inner"))
    assert find_audio(root) == (["a/a.wav"], [])


def test_links_that_lead_back_end(tmp_path):
    touch(tmp_path, "x/a.wav")
    (tmp_path / "x" / "up").symlink_to("..")
    (tmp_path / "self.wav").symlink_to("self.wav")
    (tmp_path / "self").symlink_to("self")
    names, left_out = find_audio(tmp_path)
    assert names == ["x/a.wav"]
    assert [item.name for item in left_out] == ["self.wav"]


def test_a_file_with_several_names_is_listed_by_the_one_outside_of_links(tmp_path):
    touch(tmp_path, "z/a.wav")
    (tmp_path / "a").symlink_to("z")
    (tmp_path / "b.wav").symlink_to("z/a.wav")
    os.link(tmp_path / "z" / "a.wav", tmp_path / "z" / "c.wav")
    assert find_audio(tmp_path)[0] == ["z/a.wav"]
    assert reasons(tmp_path) == {
        "b.wav": "the same file as another: z/a.wav",
        "z/c.wav": "the same file as another: z/a.wav",
    }


def test_names_a_manifest_cannot_hold_and_things_that_are_no_files(tmp_path):
    touch(tmp_path, "good.wav", "tab\t.wav", "line\n.wav", "return\r.wav")
    (tmp_path / "gone.flac").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe.mp3")
    (tmp_path / "folder.wav").mkdir()
    touch(tmp_path, "folder.wav/inside.ogg")
    assert find_audio(tmp_path)[0] == ["folder.wav/inside.ogg", "good.wav"]
    rename = "a tab or line break in its name: rename it"
    assert reasons(tmp_path) == {
        "tab\t.wav": rename,
        "line\n.wav": rename,
        "return\r.wav": rename,
        "gone.flac": "cannot be opened: No such file or directory",
        "pipe.mp3": "not a regular file",
    }


@pytest.fixture
def deep(tmp_path):
    """A tree of 1200 levels, and one whose paths are longer than the system takes."""
    root = tmp_path / "deep"
    before = os.getcwd()
    for letters, levels in (("d", 1200), ("x" * 200, 25)):
        root.mkdir(exist_ok=True)
        os.chdir(root)
        for _ in range(levels):
            os.mkdir(letters)
            os.chdir(letters)
        Path("deep.wav").touch()
    os.chdir(before)
    yield root
    # Python's own removal of trees is recursive, and pytest would stumble over it days later.
    subprocess.run(["rm", "-rf", root], check=True)


def test_trees_deeper_than_python_recurses_and_than_paths_may_be(deep):
    touch(deep, "a.wav")
    names, left_out = find_audio(deep)
    assert names == ["a.wav", "d/" * 1200 + "deep.wav"]
    assert [item.reason for item in left_out] == ["cannot be opened: File name too long"]


def test_roots_that_cannot_be_searched_are_one_clear_line(tmp_path):
    touch(tmp_path, "a.wav", "none/readme.txt")
    (tmp_path / "two\nlines").mkdir()
    for root, message in {
        "missing": "no such folder; --root takes the folder",
        "a.wav": "is a file; --root takes the folder",
        "none": r"no audio file below this folder \(looked for wav, flac, ogg, opus, mp3, m4a",
        "two\nlines": "a line break in its name",
    }.items():
        with pytest.raises(InputError, match=message) as caught:
            find_audio(tmp_path / root)
        assert "\n" not in str(caught.value)


def test_is_within_resolves_links(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "link").symlink_to("a")
    assert is_within(tmp_path / "link" / "b", tmp_path / "a")
    assert is_within(tmp_path / "a", tmp_path / "link")
    assert not is_within(tmp_path / "a", tmp_path / "a" / "b")
    assert not is_within(tmp_path / "ab", tmp_path / "a")
