"""Manifests: fairseq's format, any name, no track held."""

import os
import pickle

import numpy as np
import pytest

from music_ssl_fairseq.data.manifest import Manifest, write_manifest
from music_ssl_fairseq.errors import InputError

TRACKS = [("a.wav", 16_000), ("album 1/b c.flac", 123_456_789_012), ("d.mp3", 0)]


def test_round_trip(tmp_path):
    write_manifest(tmp_path / "train.tsv", "/music", TRACKS)
    manifest = Manifest(tmp_path / "train.tsv")
    assert len(manifest) == 3
    assert manifest.root == "/music"
    assert [manifest.name(i) for i in range(3)] == [name for name, _ in TRACKS]
    assert manifest.path(1) == "/music/album 1/b c.flac"
    assert manifest.num_samples.tolist() == [length for _, length in TRACKS]
    assert manifest.num_samples.dtype == np.int64


def test_fairseq_reads_the_same(tmp_path):
    from fairseq.data.audio.hubert_dataset import load_audio

    write_manifest(tmp_path / "train.tsv", "/music", TRACKS)
    root, names, _, total, sizes = load_audio(tmp_path / "train.tsv", None, None)
    manifest = Manifest(tmp_path / "train.tsv")
    assert (root, total, sizes) == ("/music", 3, manifest.num_samples.tolist())
    assert names == [manifest.name(i) for i in range(3)]


def test_names_beyond_utf_8(tmp_path):
    name = os.fsdecode(b"caf\xe9 \xff/x.wav")
    write_manifest(tmp_path / "train.tsv", "/music", [(name, 5)])
    assert Manifest(tmp_path / "train.tsv").name(0) == name


@pytest.mark.parametrize("text", [b"/m\na.wav\t12\nb\t3", b"/m\r\na.wav\t12\r\nb\t3\r\n"])
def test_line_ends(tmp_path, text):
    (tmp_path / "x.tsv").write_bytes(text)
    manifest = Manifest(tmp_path / "x.tsv")
    assert manifest.root == "/m"
    assert manifest.path(1) == "/m/b"
    assert manifest.num_samples.tolist() == [12, 3]


@pytest.mark.parametrize(
    ("line", "number"),
    [
        (b"b.wav 5", 3),
        (b"b.wav\t", 3),
        (b"b.wav\tfive", 3),
        (b"b.wav\t-5", 3),
        (b"b.wav\t5.0", 3),
        (b"b\t.wav\t5", 3),
        (b"b.wav\t5\n\nc.wav\t7", 4),
        (b"b.wav\t9999999999999999999", 3),
    ],
)
def test_bad_lines(tmp_path, line, number):
    (tmp_path / "x.tsv").write_bytes(b"/m\na.wav\t12\n" + line + b"\nz.wav\t1\n")
    with pytest.raises(InputError, match=rf"x.tsv, line {number}: expected `name<TAB>samples`"):
        Manifest(tmp_path / "x.tsv")


@pytest.mark.parametrize("text", ["", "/music\n"])
def test_no_track(tmp_path, text):
    (tmp_path / "x.tsv").write_text(text)
    with pytest.raises(InputError, match="lists no track"):
        Manifest(tmp_path / "x.tsv")


def test_missing(tmp_path):
    with pytest.raises(InputError, match="python -m manifests_tools pretrain"):
        Manifest(tmp_path / "x.tsv")


def test_pickling_opens_the_file_again(tmp_path):
    tracks = [(f"{i:0100d}.wav", i) for i in range(1_000)]
    write_manifest(tmp_path / "x.tsv", "/music", tracks)
    pickled = pickle.dumps(Manifest(tmp_path / "x.tsv"))
    assert len(pickled) < 60_000
    assert pickle.loads(pickled).name(999) == tracks[999][0]
