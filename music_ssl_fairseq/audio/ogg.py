"""Look at the pages at the end of an Ogg file."""

from typing import BinaryIO

_PAGE = b"OggS\0"
_HEAD_BYTES = 27
_MOST_PAGE_BYTES = 27 + 255 + 255 * 255


def last_page_samples(file: BinaryIO) -> int | None:
    """Count the samples per channel of the last page that ends any.

    None if they are not known: in a file of one page, or of several streams in succession.
    """
    serial = file.read(_HEAD_BYTES)[14:18]
    size = file.seek(0, 2)
    file.seek(max(0, size - 2 * _MOST_PAGE_BYTES))
    tail = file.read()
    ends = []
    place = tail.find(_PAGE)
    while place >= 0:
        head = tail[place : place + _HEAD_BYTES]
        if len(head) < _HEAD_BYTES or head[14:18] != serial:
            return None
        ends.append(int.from_bytes(head[6:14], "little", signed=True))  # -1 where no packet ends
        place = tail.find(_PAGE, place + _HEAD_BYTES)
    earlier = [end for end in ends if 0 <= end < max(ends)]
    return max(ends) - max(earlier) if earlier else None
