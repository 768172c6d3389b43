"""Arrays of unknown origin: mapped if whole, else refused in one line."""

import io

import numpy as np
import pytest

from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.runtime.npy import read_array, whole_array

ARRAYS = {
    "C order": np.arange(12, dtype=np.float32).reshape(3, 4),
    "Fortran order": np.asfortranarray(np.arange(12.0).reshape(3, 4)),
    "no rows": np.zeros((0, 3)),
    "a number": np.array(5),
    "text": np.array([["a"]]),
}


@pytest.mark.parametrize("array", ARRAYS.values(), ids=ARRAYS)
def test_a_whole_file_is_mapped(tmp_path, array):
    np.save(tmp_path / "a.npy", array)
    found = read_array(tmp_path / "a.npy")
    assert isinstance(found, np.memmap)
    np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize("array", ARRAYS.values(), ids=ARRAYS)
def test_readers_that_write_in_place_want_c_order(tmp_path, array):
    np.save(tmp_path / "a.npy", array)
    assert (whole_array(tmp_path / "a.npy") is not None) == array.flags.c_contiguous
    with (tmp_path / "a.npy").open("ab") as file:
        file.write(b"more")
    assert whole_array(tmp_path / "a.npy") is None


def saved(array: object, save=np.save) -> bytes:
    file = io.BytesIO()
    save(file, array)
    return file.getvalue()


WHOLE = saved(ARRAYS["C order"])
DAMAGED = {
    "no file": (None, "No such file"),
    "empty": (b"", "damaged"),
    "text": (b"hello", "damaged"),
    "half a header": (WHOLE[:40], "damaged"),
    "cut": (WHOLE[:-1], "cut"),
    "a negative length": (WHOLE.replace(b"(3, 4)", b"(-3,4)"), "damaged"),
    "an absurd length": (WHOLE.replace(b"(3, 4), ", b"(9**9,4)"), "damaged"),
    "a pickle": (saved(np.array([object()])), "more than one array of numbers"),
    "an archive": (saved(np.zeros(3), np.savez), "more than one array of numbers"),
}


@pytest.mark.parametrize(("content", "says"), DAMAGED.values(), ids=DAMAGED)
def test_another_file_is_one_line(tmp_path, content, says):
    file = tmp_path / "a.npy"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_array(file, "make it again")
    message = str(caught.value)
    assert message.startswith(f"{file}: ")
    assert says in message
    assert "\n" not in message
    assert "pickle" not in message
    assert whole_array(file) is None
