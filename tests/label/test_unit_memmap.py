"""Labels as a memory map: read in place of the text, and only if it is the text's."""

import os
import pickle

import numpy as np
import pytest

from music_ssl_fairseq.data.label_store import LabelStore, open_memmap
from music_ssl_fairseq.jobs.checkpoint_dir import Block, CheckpointDir
from music_ssl_fairseq.label.join import join

LENGTHS = [3, 0, 2000, 5]


@pytest.fixture
def joined(tmp_path):
    """A `.km` with its map, of two blocks, and the units of each track."""
    rng = np.random.default_rng(0)
    tracks = [rng.integers(0, 900, length).astype(np.uint16) for length in LENGTHS]
    work = CheckpointDir(tmp_path / ".work")
    for number, part in enumerate((tracks[:3], tracks[3:])):
        lengths = np.array([len(units) for units in part])
        work.save_block("train", number, Block(np.concatenate(part), lengths, np.zeros(0, int)))
    found = join(work, "train", 2, tmp_path / "train.km", 900)
    assert found.counts.sum() == sum(LENGTHS)
    assert found.unreadable == []
    return tmp_path / "train.km", tracks


def test_the_map_holds_what_the_text_says(joined):
    file, tracks = joined
    store = LabelStore(file)
    assert open_memmap(file) is not None
    assert store.counts.tolist() == LENGTHS
    lines = file.read_text().split("\n")
    assert lines.pop() == ""
    for i, units in enumerate(tracks):
        np.testing.assert_array_equal(store.units(i), units)
        assert lines[i] == " ".join(map(str, units))
        assert store.units(i).dtype == np.int64
    np.testing.assert_array_equal(store.units(2, 500, 700), tracks[2][500:700])
    np.testing.assert_array_equal(store.units(2, 1990, 7000), tracks[2][1990:])
    assert np.load(file.with_suffix(".units.npy")).dtype == np.uint16


def test_a_worker_gets_the_file_not_its_contents(joined):
    file, tracks = joined
    pickled = pickle.dumps(LabelStore(file))
    assert len(pickled) < 2000
    np.testing.assert_array_equal(pickle.loads(pickled).units(2), tracks[2])


def test_text_that_was_changed_counts(joined):
    file, _ = joined
    file.write_text("1 2\n\n3\n4\n")
    later = file.stat().st_mtime_ns + 10**9
    os.utime(file, ns=(later, later))
    store = LabelStore(file)
    assert open_memmap(file) is None
    assert [store.units(i).tolist() for i in range(4)] == [[1, 2], [], [3], [4]]


@pytest.mark.parametrize("content", [b"", b"not an array", None])
def test_a_map_that_is_none_is_left_alone(joined, content):
    file, tracks = joined
    offsets = file.with_suffix(".offsets.npy")
    if content is None:
        np.save(offsets, np.array([0, 1]))
    else:
        offsets.write_bytes(content)
    np.testing.assert_array_equal(LabelStore(file).units(0), tracks[0])
