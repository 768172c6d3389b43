"""Text and JSON that people write, damaged in every way: one short line that names the file."""

import json
import os
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from manifests_tools.beat_files import read_beat_file
from manifests_tools.tables import read_named, read_table
from music_ssl_fairseq.data.label_metadata import read_label_rate, read_metadata, split_record
from music_ssl_fairseq.data.label_store import LabelStore, open_memmap
from music_ssl_fairseq.data.manifest import Manifest
from music_ssl_fairseq.data.units import UnitDictionary
from music_ssl_fairseq.errors import AudioError, InputError, one_line
from music_ssl_fairseq.probing.spec import read_spec
from music_ssl_fairseq.runtime.texts import read_json
from music_ssl_fairseq.upstream import hugging_face, torchaudio

READERS: dict[str, Callable[[Path], object]] = {
    "task.json": lambda file: read_spec(file.parent),
    "metadata.json": lambda file: read_label_rate(file.parent),
    "config.json": lambda file: hugging_face.read(file.parent),
    "wav2vec2_model.json": torchaudio._stored,
    "model.safetensors.index.json": lambda file: hugging_face.read_weights(file.parent),
    "a.jams": read_beat_file,
    "a.beats": read_beat_file,
    "dict.km.txt": UnitDictionary,
    "train.tsv": Manifest,
    "a.csv": lambda file: read_table(file, ["path", "label"], ","),
}
JSON = [name for name in READERS if name.endswith(("json", "jams"))]
DAMAGE = {
    "NUL bytes": b"\0" * 50,
    "a NUL byte": b"1\0\n2",
    "UTF-16": "{1 2}".encode("utf-16"),
    "no UTF-8": b"\xff\xfe\xff\x80",
    "nothing": b"",
}


def refused(read: Callable[[], object], file: Path) -> str:
    with pytest.raises(InputError) as error:
        read()
    message = str(error.value)
    assert message.isprintable()
    assert str(file.parent) in message
    assert len(message) < 1000 + len(str(file))
    return message


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_text(tmp_path, name, damage):
    (tmp_path / name).write_bytes(DAMAGE[damage])
    refused(lambda: READERS[name](tmp_path / name), tmp_path / name)


@pytest.mark.parametrize("name", JSON)
@pytest.mark.parametrize(
    "text",
    [
        *(
            "[" * 100_000,
            '{"a":' * 100_000,
            "null",
            "3",
            '"x"',
            "[]",
            "[{}]",
            "{",
            '{"name": 1, "label_rate": "x"}',
        ),
        *("9" * 10_000, '{"label_rate": [], "model_type": [], "annotations": 3}'),
        '{"name": "\\ud800", "label_rate": "' + "x" * 100_000 + '"}',
    ],
)
def test_json_that_is_something_else(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    refused(lambda: READERS[name](tmp_path / name), tmp_path / name)


def test_json_with_a_name_twice(tmp_path):
    file = tmp_path / "a.json"
    file.write_text('{"a": {"b": 1, "c": 2, "b": 3}}')
    assert "not JSON ('b' is twice in one object)" in refused(lambda: read_json(file), file)


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    file = tmp_path / "a.json"
    with file.open("wb") as handle:
        handle.truncate(1 << 40)
    assert "larger than 64 MB" in refused(lambda: read_json(file), file)


@pytest.mark.parametrize("rate", [0, -1, True, "100", 10**400, float("nan"), float("inf"), [], {}])
def test_label_rates_that_are_none(tmp_path, rate):
    (tmp_path / "metadata.json").write_text(json.dumps({"label_rate": rate}))
    file = tmp_path / "metadata.json"
    assert "rate" in refused(lambda: read_label_rate(tmp_path), file)


@pytest.mark.parametrize("splits", [3, [], {"train": 3}, {"train": {"unreadable": ["0"]}}])
def test_metadata_of_splits_that_are_none(tmp_path, splits):
    (tmp_path / "metadata.json").write_text(json.dumps({"splits": splits}))
    found = read_metadata(tmp_path)
    refused(lambda: split_record(found, tmp_path, "train"), tmp_path / "metadata.json")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"a.wav\t999999999999999", "line 3: more samples than any file has"),
        (b"a.wav\t99999999999999999999999", "line 3: expected `name<TAB>samples`"),
        (b"\t5", "line 3: no name before the tab"),
        (b"x" * 5000 + b"\t5", "line 3: a name of more than 4096 bytes"),
        (b"x" * 10**7, "line 3: expected `name<TAB>samples`"),
        (b"a\0b.wav\t5", "line 3: holds NUL bytes"),
        (b"a.wav\t\xd9\xa1\xd9\xa2", "line 3: expected `name<TAB>samples`"),
    ],
)
def test_manifests(tmp_path, line, expected):
    file = tmp_path / "x.tsv"
    file.write_bytes(b"/music\nb.wav\t9\n" + line + b"\nc.wav\t9\n")
    assert expected in refused(lambda: Manifest(file), file)


def test_a_byte_order_mark_is_no_part_of_what_follows(tmp_path):
    (tmp_path / "x.tsv").write_bytes(b"\xef\xbb\xbf/music\na.wav\t9\n")
    assert Manifest(tmp_path / "x.tsv").root == "/music"
    (tmp_path / "a.beats").write_bytes(b"\xef\xbb\xbf0.5 1\r\n1.0 2\r\n")
    assert read_beat_file(tmp_path / "a.beats") == ("0.5/1", "1/2")


def test_labels_with_holes_are_refused(tmp_path):
    file = tmp_path / "train.km"
    file.write_bytes(b"1 2 3\n4 \0\0\0\0 5\n")
    assert "line 2" in refused(lambda: LabelStore(file), file)


@pytest.mark.parametrize("place", [None, 0, -1])
def test_labels_that_came_with_an_older_time_are_read(tmp_path, place):
    km, units = tmp_path / "train.km", np.arange(60_000) % 500
    np.save(tmp_path / "train.units.npy", units.astype(np.uint16))
    np.save(tmp_path / "train.offsets.npy", np.array([0, len(units)]))
    if place is not None:
        units[place] = 400
    km.write_text(" ".join(map(str, units)) + "\n")
    os.utime(km, (0, 0))
    assert (open_memmap(km) is None) == (place is not None)
    np.testing.assert_array_equal(LabelStore(km).units(0), units)


@pytest.mark.parametrize("part", ["units", "offsets"])
@pytest.mark.parametrize("damage", ["cut", "header", "shape", "decreasing", "text", "type"])
def test_a_damaged_unit_memmap_leaves_the_text(tmp_path, part, damage):
    km = tmp_path / "train.km"
    km.write_text("1 2 3\n4 5\n")
    arrays = {"units": np.array([1, 2, 3, 4, 5], np.int32), "offsets": np.array([0, 3, 5])}
    if damage == "decreasing":
        arrays = {
            "units": arrays["units"][:0] if part == "units" else arrays["units"],
            "offsets": np.array([0, 7, 5]),
        }
    if damage == "type":
        arrays[part] = arrays[part].astype(str)
    for name, array in arrays.items():
        np.save(tmp_path / f"train.{name}.npy", array)
    file = tmp_path / f"train.{part}.npy"
    content = file.read_bytes()
    shape = content.replace(b"(5,)", b"(9**9,)").replace(b"(3,)", b"(9999999999999,)")
    changed = {"cut": content[:-3], "header": content[:30], "shape": shape, "text": b"no"}
    file.write_bytes(changed.get(damage, content))
    assert open_memmap(km) is None
    assert LabelStore(km).units(1).tolist() == [4, 5]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.5 1\n0.5 2\n", "line 2: beats are not ascending: 0.5 is repeated"),
        ("0.5 1\n1.5 2\n1 3\n", "line 3: beats are not ascending: 1 is after 1.5"),
        ("-0.5 1\n", "line 1: a beat at -0.5, before the file begins"),
        ("0.5 inf\n", "line 1: 'inf' is not"),
        ("0.5 -1\n", "is not a position in the bar"),
        ("0.5 1 2\n", "line 1: 3 cells"),
        ("1e999\n", "line 1: not a finite number: '1e999'"),
        ("1_0\n", "line 1: not a finite number: '1_0'"),
        ("0.5 1.1\n1.0 x\n", "line 2: "),
        ("\n \n", "holds no beat"),
    ],
)
def test_beats_that_are_refused(tmp_path, text, expected):
    file = tmp_path / "a.beats"
    file.write_text(text)
    assert expected in refused(lambda: read_beat_file(file), file)


@pytest.mark.parametrize(
    ("text", "cells"),
    [
        ("0.5\n1\n", ("0.5", "1")),
        ("0.5\t1\n\n1\t2\n", ("0.5/1", "1/2")),
        ("0.5 3.0\n1 4.0\n", ("0.5/3", "1/4")),
        ("0.5 3.9\n1 3.10\n1.5 4.1\n", ("0.5/9", "1/10", "1.5/1")),
    ],
)
def test_positions_of_beats(tmp_path, text, cells):
    (tmp_path / "a.beats").write_text(text)
    assert read_beat_file(tmp_path / "a.beats") == cells


def jams(file: Path, *annotations: list) -> Path:
    listed = [{"namespace": "beat", "data": [{"time": t} for t in times]} for times in annotations]
    file.write_text(json.dumps({"annotations": listed}))
    return file


def test_an_empty_annotation_is_passed_over(tmp_path):
    assert read_beat_file(jams(tmp_path / "a.jams", [], [1, 0.5])) == ("0.5", "1")
    for times, expected in (([], "without beats"), ([1, 1], "repeated"), ([-1, 2], "before the")):
        file = jams(tmp_path / "a.jams", times)
        assert expected in refused(lambda file=file: read_beat_file(file), file)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("path,label\na,b\nc,3,5\n", "line 3: '5' is beyond the 2 columns"),
        ("path,label\n\na,R&B, soul\n", "line 3: 'soul' is beyond the 2 columns"),
        ("path,label,label\na,b,c\n", "line 1: two columns are named 'label'"),
        ('path,label\na,"b\nc,d\n', "line 2: a line break within the cell"),
        ("path,label\na," + "x" * 200_000 + "\n", "line 2: not a table"),
    ],
)
def test_tables_that_are_refused(tmp_path, text, expected):
    file = tmp_path / "a.csv"
    file.write_text(text)
    assert expected in refused(lambda: read_named(file, ",", quotes=True), file)


def test_empty_cells_beyond_the_header_are_nothing(tmp_path):
    (tmp_path / "a.csv").write_text('path,label,,\na,"R&B, soul",,,\n,,\nb,c\n')
    header, lines, _ = read_named(tmp_path / "a.csv", ",", quotes=True)
    assert header == ["path", "label"]
    assert [(number, cells[:2]) for number, cells in lines] == [
        (2, ["a", "R&B, soul"]),
        (4, ["b", "c"]),
    ]


def test_messages_are_one_printable_line_of_bounded_length():
    assert one_line("a\n\0\udce9é\u2028b") == "a\\n\\x00\\udce9é\\u2028b"
    message = str(InputError("file: " + "x" * 10**7 + "; do this"))
    assert len(message) < 5000
    assert message.startswith("file: ")
    assert message.endswith("; do this")
    error = AudioError("a\n.wav", "broken\nheader")
    assert str(error) == "a\\n.wav: broken\\nheader"
    assert (error.path, error.reason) == ("a\n.wav", "broken\\nheader")


@pytest.mark.parametrize("name", ["plain", "it's two", "caf\udce9", "\udcc3\udce9", "a\tb\nc", "é"])
def test_a_suggested_command_names_the_file_that_is_meant(tmp_path, name):
    (tmp_path / name).touch()
    command = InputError("wrong", f"ls -d {shlex.quote(name)}").lines.split("\n")[1]
    assert command.isprintable()
    shown = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, check=True)
    assert os.fsdecode(shown.stdout) == f"{name}\n"
