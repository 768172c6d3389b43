"""Read the first bytes of an audio file: the decoder that it needs, and the length that it states.

Decoders accept a wrong length in a header, and silently cut or guess. Here it is compared with the
size of the file.
"""

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

from music_ssl_fairseq.errors import AudioError

_HEAD_BYTES = 4096  # read at once; most headers are shorter
_SLACK_BYTES = 1024  # of samples that may be missing, or of tags that may follow
_MIN_SND_HEAD_BYTES = 24
_MAX_CHUNKS = 1000
_WRAP_BYTES = 1 << 32
_NO_LENGTH = "its header states no length"

# First bytes of the files that libsndfile recognises.
_SOUNDFILE = (b"RIFF", b"RIFX", b"RF64", b"riff", b"fLaC", b"OggS", b"FORM", b"caff", b".snd")

# Sizes that recorders and pipes write while they do not know them.
_UNKNOWN = (range(1), range(0x7FFF_F000, 0x8000_0001), range(0xFFFF_F000, _WRAP_BYTES))


# Code of a WAV file and bits of a sample, for libsndfile.
_SUBTYPES = {(1, 8): "PCM_U8", (1, 16): "PCM_16", (1, 24): "PCM_24", (1, 32): "PCM_32"}
_SUBTYPES |= {(3, 32): "FLOAT", (3, 64): "DOUBLE"}


class Pcm(NamedTuple):
    """Uncompressed samples, little-endian: bytes `[offset, offset + size)` of a file."""

    offset: int
    size: int
    sample_rate: int
    channels: int
    subtype: str


@dataclass(frozen=True)
class AudioHeader:
    """The way to read a file."""

    # Whether to try libsndfile first. It guesses the length of MPEG audio, and refuses good files
    # of Opus.
    soundfile: bool
    # The samples of a WAV file that states a wrong number, if the right one is known
    pcm: Pcm | None = None
    stated_samples: int | None = None  # per channel, of MPEG audio with a Xing or Info frame
    frame_samples: int = 0  # per channel and frame of such MPEG audio


def read_header(name: str) -> AudioHeader:
    """Look at a file's first bytes.

    Raises:
        OSError: if it cannot be opened.
        AudioError: if it states a length that it does not have.
    """
    with open(name, "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(_HEAD_BYTES)
        while head[:3] == b"ID3" and len(head) >= 10:
            a, b, c, d = head[6:10]  # seven bits each
            footer = 10 if head[5] & 0x10 else 0
            file.seek(file.tell() - len(head) + 10 + (a << 21 | b << 14 | c << 7 | d) + footer)
            head = file.read(_HEAD_BYTES)
        magic = head[:4]
        if magic in _CHUNKED and head[8:12] in (b"WAVE", b"AIFF", b"AIFC"):
            chunks = _Chunks(file, size, *_CHUNKED[magic])
            length = _right_size(name, chunks, magic == b"RIFF")
            return AudioHeader(True, None if length is None else chunks.pcm(name, length))
    if magic == b"OggS":
        return AudioHeader(soundfile=b"OpusHead" not in head[:80])
    if magic == b".snd" and len(head) >= 12:
        offset, stated = struct.unpack(">2I", head[4:12])
        if offset < _MIN_SND_HEAD_BYTES:
            raise AudioError(name, f"its header is damaged: it states samples at byte {offset}")
        if stated != _WRAP_BYTES - 1:
            _refuse_truncated(name, stated, size - offset)
    if magic in _SOUNDFILE:
        return AudioHeader(soundfile=True)
    return AudioHeader(False, None, *_xing_samples(head))


# Container -> struct of a chunk's head (letters, size), letters of the samples.
_CHUNKED = {b"RIFF": ("<4sI", b"data"), b"RF64": ("<4sI", b"data")}
_CHUNKED |= {b"RIFX": (">4sI", b"data"), b"FORM": (">4sI", b"SSND")}


class _Chunks:
    """The chunks of a WAV or AIFF file.

    Attributes:
        stated: bytes of samples that the header states; None without a chunk of samples.
        available: bytes from its start to the end of the file.
    """

    stated: int | None = None
    available = 0
    _format = b""

    def __init__(self, file: BinaryIO, size: int, head: str, data: bytes):
        self._file = file
        self._size = size
        self._head = head
        large = 0
        for letters, length, start in self._walk(12):
            if letters == b"ds64":
                file.seek(start + 8)
                large = int.from_bytes(file.read(8), "little")
            if letters == b"fmt ":
                file.seek(start)
                self._format = file.read(min(length, 40))
            if letters == data:
                self._start = start
                self.stated = large if large and length == _WRAP_BYTES - 1 else length
                self.available = size - start
                return

    def _walk(self, position: int) -> Iterator[tuple[bytes, int, int]]:
        """Iterate over letters, size and start of the contents of chunks from `position` on."""
        for _ in range(_MAX_CHUNKS):
            self._file.seek(position)
            head = self._file.read(8)
            if len(head) < 8:
                return
            letters, length = struct.unpack(self._head, head)
            yield letters, length, position + 8
            position += 8 + length + length % 2

    def pcm(self, name: str, size: int) -> Pcm:
        """Return the first `size` bytes of the samples; compressed ones are an AudioError."""
        code = channels = bits = align = rate = 0
        if len(self._format) >= 16:
            code, channels, rate, _, align, bits = struct.unpack("<HHIIHH", self._format[:16])
            if code == 0xFFFE and len(self._format) >= 26:  # extensible: the code stands behind
                code = int.from_bytes(self._format[24:26], "little")
        subtype = _SUBTYPES.get((code, bits))
        if not channels or subtype is None or align != channels * bits // 8:
            raise AudioError(name, f"{_NO_LENGTH}: encode it again")
        return Pcm(self._start, size // align * align, rate, channels, subtype)

    def end_well(self) -> bool:
        """Tell whether only chunks, or a few bytes, follow the samples."""
        assert self.stated is not None
        end = self._start + self.stated
        # Some programs omit the byte that makes an odd size even.
        return any(self._chunk_follows(start) for start in {end + end % 2, end})

    def _chunk_follows(self, position: int) -> bool:
        """Tell whether chunks with possible names and lengths follow, to the end or to a tag."""
        for letters, length, start in self._walk(position):
            if self._size - start < _SLACK_BYTES or letters[:3] in (b"TAG", b"ID3", b"APE"):
                break
            if not all(32 <= letter < 127 for letter in letters):
                return False
            if length > self._size - start + _SLACK_BYTES:
                return False
        return True


def _right_size(name: str, chunks: _Chunks, is_riff: bool) -> int | None:
    """Return the bytes of samples in a WAV or AIFF file that states a wrong number of them."""
    stated, available = chunks.stated, chunks.available
    if stated is None or available <= 0:
        return None
    if stated == 0 and chunks.end_well():
        return None
    if any(stated in sizes for sizes in _UNKNOWN) and not 0 < stated <= available:
        if not is_riff:
            raise AudioError(name, f"{_NO_LENGTH}: encode it again")
        return available
    _refuse_truncated(name, stated, available)
    if available - stated < _SLACK_BYTES or chunks.end_well():
        return None
    more = available - stated
    if is_riff and more >= _WRAP_BYTES:
        # The size overflowed 32 bits.
        return stated + more // _WRAP_BYTES * _WRAP_BYTES
    raise AudioError(
        name,
        f"its header states a wrong length: {stated} bytes of samples, but {more} more follow; "
        "encode it again",
    )


def _refuse_truncated(name: str, stated: int, available: int) -> None:
    if stated > available + _SLACK_BYTES:
        raise AudioError(
            name,
            f"truncated: its header says {stated} bytes of samples, but the file ends after "
            f"{max(0, available)}",
        )


def _xing_samples(head: bytes) -> tuple[int | None, int]:
    """Return the samples that the first frame of layer III states, and samples per frame."""
    start = next((i for i in range(len(head) - 3) if _is_layer_3(head[i : i + 4])), None)
    if start is None:
        return None, 0
    is_mpeg_1, is_mono = head[start + 1] >> 3 & 3 == 3, head[start + 3] >> 6 == 3
    frame_samples = 1152 if is_mpeg_1 else 576
    side_info = (17 if is_mono else 32) if is_mpeg_1 else (9 if is_mono else 17)
    tag = head[start + 4 + side_info :][:200]
    if tag[:4] not in (b"Xing", b"Info") or len(tag) < 12 or not tag[7] & 1:
        return None, frame_samples
    num_frames = int.from_bytes(tag[8:12], "big")
    # LAME's part of the tag has the samples of delay before the music and of padding behind it,
    # twelve bits each.
    flags = tag[7]
    lame = 12 + (4 if flags & 2 else 0) + (100 if flags & 4 else 0) + (4 if flags & 8 else 0)
    numbers = tag[lame + 21 : lame + 24]
    delay, padding = (
        divmod(int.from_bytes(numbers, "big"), 1 << 12) if len(numbers) == 3 else (0, 0)
    )
    return num_frames * frame_samples - delay - padding, frame_samples


def _is_layer_3(head: bytes) -> bool:
    """Tell whether these four bytes begin a frame of MPEG audio, layer III."""
    return (
        head[0] == 0xFF
        and head[1] & 0xE6 == 0xE2
        and head[1] >> 3 & 3 != 1
        and head[2] >> 4 != 15
        and head[2] >> 2 & 3 != 3
    )
