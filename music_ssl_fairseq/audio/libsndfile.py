"""Read audio with libsndfile (soundfile), and encode it."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import RawIOBase
from typing import Any, BinaryIO, cast

import numpy as np
import soundfile

from music_ssl_fairseq.audio.headers import Pcm
from music_ssl_fairseq.audio.pyav import begins_early
from music_ssl_fairseq.errors import AudioError

_PAGE = b"OggS\0"
_HEAD_BYTES = 27
_MAX_PAGE_BYTES = 27 + 255 + 255 * 255


def last_page_samples(file: BinaryIO) -> int | None:
    """Count the samples per channel of the last page that ends any.

    None if they are not known: in a file of one page, or of several streams in succession.
    """
    serial = file.read(_HEAD_BYTES)[14:18]
    size = file.seek(0, 2)
    file.seek(max(0, size - 2 * _MAX_PAGE_BYTES))
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


# Subtypes of libsndfile that seek exactly. In others a sample follows from all before it.
_SEEKING = (
    "PCM_", "FLOAT", "DOUBLE", "ULAW", "ALAW", "IMA_", "MS_", "ALAC",
    "VORBIS", "OPUS", "MPEG",
)  # fmt: skip

_VORBIS_LEAD = 8192  # samples per channel: the longest packet
_MAX_LOST_SECONDS = 0.02  # encoders state up to this much more than can be decoded
_SKIP_BLOCK_SAMPLES = 2**20  # decoded at once
_MAX_SAMPLES = 2**40  # libsndfile gives 2**63 - 1 for a FLAC stream that states no length
_MP3_LEVEL = 0.7  # from 0 to 1, of MP3


class Libsndfile:
    """An open file with the methods of `pyav.PyAVDecoder`."""

    def __init__(self, name: str, file: soundfile.SoundFile, source: RawIOBase | None = None):
        self._name = name
        self._file = file
        self._source = source
        self.num_samples: int = file.frames
        self.sample_rate: int = file.samplerate
        self.channels: int = file.channels

    def read(self, start: int, stop: int | None) -> np.ndarray:
        """Read samples `[start, stop)` at the file's own rate, mono."""
        stop = self.num_samples if stop is None else min(stop, self.num_samples)
        if stop <= start:
            return np.zeros(0, np.float32)
        try:
            # A seek costs a decoder reset in the compressed formats, even to where it already is.
            if start:
                self._go_to(start)
            block = self._file.read(stop - start, dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            raise AudioError(self._name, f"damaged or truncated ({error.error_string})") from None
        if len(block) < stop - start:
            end = start + len(block)
            if self.num_samples - end > _MAX_LOST_SECONDS * self.sample_rate:
                raise AudioError(
                    self._name,
                    f"truncated: its header says {self.num_samples} samples, but it ends at {end}",
                )
            block = np.pad(block, ((0, stop - end), (0, 0)))
        return block[:, 0] if block.shape[1] == 1 else block.mean(axis=1)

    def _go_to(self, start: int) -> None:
        """Go to a sample: `read` is called once per opened file."""
        place = start if self._file.subtype.startswith(_SEEKING) else 0
        if self._file.subtype == "VORBIS":
            place = min(start, max(0, self._last_exact()))
        if place:
            self._file.seek(place)
        skipped = start - place  # decoded, and dropped
        while skipped > 0 and len(self._file.read(min(skipped, _SKIP_BLOCK_SAMPLES))):
            skipped -= _SKIP_BLOCK_SAMPLES

    def _last_exact(self) -> int:
        """Return a sample of Ogg Vorbis up to which seeks are exact.

        libsndfile 1.2.2 misses within the last page, by as much as the encoder has cut off its end:
        some hundred samples.
        """
        if self._source is None:
            if begins_early(self._name):
                return 0
            with open(self._name, "rb", buffering=0) as file:
                last = last_page_samples(cast(BinaryIO, file))
        else:
            place = self._source.tell()
            self._source.seek(0)
            last = last_page_samples(cast(BinaryIO, self._source))
            self._source.seek(place)
        return 0 if last is None else self.num_samples - last - _VORBIS_LEAD


@contextmanager
def opened(
    name: str, source: RawIOBase | None = None, pcm: Pcm | None = None
) -> Iterator[Libsndfile]:
    """Open a file, or a `source` in its place, of the form `pcm` if it has no header.

    Raises AudioError if libsndfile does not know its format or its length.
    """
    raw: tuple = (pcm.sample_rate, pcm.channels, pcm.subtype, "LITTLE", "RAW") if pcm else ()
    try:
        # libsndfile takes bytes, so names that are not UTF-8 open as well.
        file = soundfile.SoundFile(os.fsencode(name) if source is None else source, "r", *raw)
    except soundfile.LibsndfileError as error:
        raise AudioError(name, f"libsndfile: {error.error_string}") from None
    with file:
        # Unasked, libsndfile takes anything whose name ends in .au, .snd, .vox or .gsm for raw.
        if file.format == "RAW" and pcm is None:
            raise AudioError(name, "libsndfile: its first bytes are of no known format")
        if not 0 <= file.frames <= _MAX_SAMPLES:
            raise AudioError(name, "libsndfile: it states no length")
        yield Libsndfile(name, file, source)


def mp3(waveform: np.ndarray, sample_rate: int) -> bytes:
    """Encode `[T]` float32 as an MP3 file, some 4 kB per second at 16 kHz."""
    options: dict[str, Any] = {"format": "MP3", "compression_level": _MP3_LEVEL, "closefd": False}
    # Not into memory: libsndfile would call Python for that, where a signal's exception is lost.
    with tempfile.TemporaryFile() as out:
        soundfile.write(out.fileno(), waveform, sample_rate, "MPEG_LAYER_III", **options)
        out.seek(0)
        return out.read()
