"""Decode with PyAV (FFmpeg) the files that libsndfile cannot read or measure.

A seek must give the samples of decoding from the start. It does where packets have exact times and
a decoder does not depend on skipped packets; there it goes to the packet. Elsewhere (AAC's noise,
times in milliseconds) the file is decoded from its start, and stays open for the next part.

FFmpeg opens local files only, and only as `_FORMATS`: a playlist called music.mp3 must not make it
open other files or addresses.
"""

import os
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from itertools import chain
from typing import Any

import av
import numpy as np

from music_ssl_fairseq.audio.headers import AudioHeader
from music_ssl_fairseq.errors import AudioError

_FORMATS = (
    "mp3,aac,mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,asf,asf_o,ape,wv,ogg,flac,wav,w64,aiff,caf,au,"
    "tta,tak,mpc,mpc8,ac3,eac3,dts,dsf,amr,rm,oma,xwma,avi,voc,g722"
)
_EXACT_TIMES = {"mp3", "mov", "ogg", "flac", "wv", "tta", "wav"}
_STATED_LENGTH = {"mov", "ape", "wv", "tta", "tak", "flac", "aiff", "caf", "dsf"}  # by the header
_LOSSLESS = ("alac", "flac", "wavpack", "tta", "pcm_")

# Tags that are not UTF-8 are no reason to refuse a file. PyAV 19 takes them without being asked.
_ANY_TAGS: dict[str, Any] = {}
if int(av.__version__.partition(".")[0]) < 19:
    _ANY_TAGS["metadata_errors"] = "replace"

_MPEG_PREROLL_FRAMES = 32  # the bit reservoir reaches back 24 at most
_OPUS_PREROLL_SECONDS = 3  # 1 s gave equal samples in all files tried
_KEPT_SECONDS = 4  # of the last samples, for a next part that overlaps
_MAX_PLANES = 8  # from so many on, PyAV 18 reads beyond them, and crashes
_MAX_RECENT_BLOCKS = 256  # of a frame each, after which only those seconds are kept
_MAX_TAG_BYTES = 1024  # behind the last frame, which no decoder understands
_MAX_SAMPLES = 1 << 40
_MAX_LOST_SECONDS = 0.1  # encoders may state this much more, and _MAX_LOST_SAMPLES of delay
_MAX_LOST_SAMPLES = 4096

_NOTHING = np.empty(0, np.float32)

av.logging.set_level(None)


class PyAVDecoder:
    """An open file, decoded to mono from any sample on."""

    num_samples: int | None = None  # known once the end was reached
    sample_rate: int = 0  # Hz, of the decoded samples
    channels: int  # of the file
    seeks: bool  # whether a seek goes to the packet; otherwise reading in order is faster
    _kept: np.ndarray  # the last decoded samples, up to `_position`
    _blocks: Iterator[np.ndarray]  # the next samples

    def __init__(self, name: str, header: AudioHeader):
        """Open the file; AudioError if FFmpeg does not know it, or it holds no audio."""
        self._name = name
        self._header = header
        self._container: Any = None
        # Format and layout of frames -> what converts them to float32, channels side by side
        self._packers: Any = defaultdict(lambda: av.AudioResampler(format="flt"))
        self._start_over()
        self._preroll = self._find_preroll()
        self.seeks = self._preroll is not None and self._origin().denominator == 1
        if not self.seeks:  # AAC may have twice the rate that its container states
            for packet in self._packets():
                with suppress(av.FFmpegError, ValueError):
                    if frames := packet.decode():
                        self.sample_rate = frames[0].sample_rate
                        break
            self._start_over()

    def close(self) -> None:
        if self._container is not None:
            self._container.close()

    def read(self, start: int, stop: int | None) -> np.ndarray:
        """Return the samples `[start, stop)`, or to the end: `[T]` float32, fewer only there.

        Raises AudioError if the file is damaged there, or ends before its header says.
        """
        distance = start - self._position
        saves_time = self.seeks and distance > (self._preroll or 0) + self.sample_rate
        if distance < -len(self._kept) or saves_time:
            self._go_to(start)
        wanted = []
        if start < self._position:
            wanted.append(self._kept[start - self._position + len(self._kept) :])
        recent = [self._kept]
        while stop is None or self._position < stop:
            block = next(self._blocks, _NOTHING)
            if not len(block):
                self.num_samples = self._position
                self._check_end(self._position)
                break
            self._position += len(block)
            if self._position > start:
                wanted.append(block[max(0, start - self._position + len(block)) :])
            if not self.seeks:
                recent.append(block)
                if len(recent) == _MAX_RECENT_BLOCKS:
                    recent = [np.concatenate(recent)[-_KEPT_SECONDS * self.sample_rate :]]
        self._kept = _NOTHING if self.seeks else np.concatenate(recent)
        whole = np.concatenate([_NOTHING, *wanted])
        return whole if stop is None else whole[: max(0, stop - start)]

    def measure(self) -> int:
        """Count the samples from start to end, by decoding them."""
        if self.num_samples is None:
            self.read(_MAX_SAMPLES, _MAX_SAMPLES + 1)
        assert self.num_samples is not None
        return self.num_samples

    def _start_over(self) -> None:
        self.close()
        options = {"format_whitelist": _FORMATS, "protocol_whitelist": "file"}
        try:
            # After `file:`, a colon in a name does not end a protocol.
            self._container = av.open(f"file:{self._name}", options=options, **_ANY_TAGS)
        except (av.FFmpegError, ValueError) as error:
            raise AudioError(self._name, f"FFmpeg: {reason(error)}") from None
        streams = self._container.streams.audio
        if not streams:
            raise AudioError(self._name, "FFmpeg: no audio in it")
        self._stream = streams[0]
        self._format: str = self._container.format.name.partition(",")[0]
        codec = self._stream.codec_context
        if codec is None or not codec.sample_rate:
            raise AudioError(self._name, "FFmpeg: an unknown codec")
        codec.thread_count = 1
        if codec.name == "flac":
            codec.options = {"err_detect": "crccheck+explode"}
        self.sample_rate = self.sample_rate or codec.sample_rate
        self.channels = codec.layout.nb_channels
        self._first_time = 0
        self._position = 0
        self._kept = _NOTHING
        self._blocks = self._decode()

    def _find_preroll(self) -> int | None:
        """Return the samples to decode and drop after a seek; None if no number is enough."""
        codec = self._stream.codec_context.name
        if self._format not in _EXACT_TIMES:
            return None
        if codec.startswith("mp3"):
            return _MPEG_PREROLL_FRAMES * (576 if self.sample_rate < 32_000 else 1152)
        if codec in ("opus", "libopus"):
            return _OPUS_PREROLL_SECONDS * self.sample_rate
        if self._format == "ogg":  # FFmpeg misses by a frame near the end of FLAC in Ogg
            return None
        return 0 if codec.startswith(_LOSSLESS) else None

    def _origin(self) -> Fraction:
        """Return the time of the first sample, in samples."""
        return self._in_samples(self._stream.start_time or 0)

    def _in_samples(self, time: int) -> Fraction:
        return time * self._stream.time_base * self.sample_rate

    def _go_to(self, start: int) -> None:
        """Seek to a packet from which the samples from `start` on are exact."""
        first = start - (self._preroll or 0)
        if self._header.stated_samples is not None:
            # FFmpeg cuts off padding there, also in the middle of a file that states too little.
            first = min(first, self._header.stated_samples - 2 * self._header.frame_samples)
        if not self.seeks or first <= 0:
            self._start_over()
            return
        time = (first + self._origin()) / self.sample_rate / self._stream.time_base
        try:
            self._container.seek(int(time), stream=self._stream)
            blocks = self._decode()
            block = next(blocks, _NOTHING)
        except (av.FFmpegError, AudioError):
            block = _NOTHING
        place = self._in_samples(self._first_time) - self._origin()
        if not len(block) or place.denominator != 1 or place > first:
            self.seeks = False  # not exact: never again in this file
            self._start_over()
            return
        self._position = int(place)
        self._kept = _NOTHING
        self._blocks = chain([block], blocks)

    def _decode(self) -> Iterator[np.ndarray]:
        """Decode from here on, to mono blocks; note the first one's time in `_first_time`.

        Packets that cannot be decoded are skipped before the first frame (of a cut stream) and
        after the last (tags). In lossless formats they are damage.
        """
        broken = ""
        lossless = self._stream.codec_context.name.startswith(_LOSSLESS)
        begun, decoded = False, 0
        for packet in self._packets():
            try:
                frames = packet.decode()
            except (av.FFmpegError, ValueError) as error:
                broken = reason(error)
                if lossless and (not begun or packet.size > _MAX_TAG_BYTES):
                    raise AudioError(self._name, f"damaged (FFmpeg: {broken})") from None
                continue
            for frame in frames:
                if broken and begun:
                    seconds = float((frame.pts or 0) * self._stream.time_base)
                    raise AudioError(
                        self._name, f"damaged: before {seconds:.1f} s (FFmpeg: {broken})"
                    )
                if not begun:
                    self._first_time = frame.pts or 0
                broken, begun = "", True
                if lossless:
                    self._refuse_gap(frame, decoded)
                decoded += frame.samples
                if frame.samples:
                    yield self._mono(frame)

    def _refuse_gap(self, frame: av.AudioFrame, decoded: int) -> None:
        """Compare a frame's time with the samples before it: FFmpeg drops frames silently."""
        if frame.pts is None or self._format not in _EXACT_TIMES:
            return
        missing = self._in_samples(frame.pts - self._first_time) - decoded
        if abs(missing) >= 1:
            seconds = float(frame.pts * self._stream.time_base)
            raise AudioError(
                self._name, f"damaged: before {seconds:.1f} s, {int(missing)} samples are missing"
            )

    def _packets(self) -> Iterator[Any]:
        try:
            yield from self._container.demux(self._stream)
        except av.FFmpegError as error:
            raise AudioError(
                self._name, f"damaged or truncated (FFmpeg: {reason(error)})"
            ) from None

    def _mono(self, frame: av.AudioFrame) -> np.ndarray:
        """Return the mean of the channels: `[T]` float32 in [-1, 1]."""
        if frame.sample_rate != self.sample_rate:
            raise AudioError(
                self._name,
                f"changes its sample rate, from {self.sample_rate} to {frame.sample_rate} Hz",
            )
        channels = frame.layout.nb_channels
        if frame.format.name == "fltp" and channels < _MAX_PLANES:
            planes = [
                np.frombuffer(memoryview(plane), np.float32, frame.samples)
                for plane in frame.planes
            ]
            return planes[0].copy() if channels == 1 else np.mean(planes, axis=0)
        (frame,) = self._packers[frame.format.name, frame.layout.name].resample(frame)
        packed = np.frombuffer(memoryview(frame.planes[0]), np.float32, frame.samples * channels)
        return packed.reshape(-1, channels).mean(axis=1)

    def _check_end(self, end: int) -> None:
        """Compare the end of decoding with the length in the header."""
        stated = self._header.stated_samples
        lost = 2 * self._header.frame_samples
        if stated is None:
            lost = round(_MAX_LOST_SECONDS * self.sample_rate) + _MAX_LOST_SAMPLES
            if self._format in _STATED_LENGTH and self._stream.duration:
                stated = int(self._in_samples(self._stream.duration))
            elif self._format in ("matroska", "asf") and len(self._container.streams) == 1:
                # The duration is in milliseconds, and of the whole container.
                stated = (self._container.duration or 0) * self.sample_rate // av.time_base
                lost += self.sample_rate
        if stated is not None and end < stated - lost:
            raise AudioError(
                self._name, f"truncated: its header says {stated} samples, but it ends at {end}"
            )


def begins_early(name: str) -> bool:
    """Tell whether an Ogg stream holds audio before its first sample, as one cut without encoding.

    Decoders differ on where such a file begins.
    """
    try:
        with av.open(f"file:{name}", options={"protocol_whitelist": "file"}) as container:
            packet = next(container.demux(audio=0))
            return (packet.pts or 0) + (packet.duration or 0) < 0
    except (av.FFmpegError, ValueError, IndexError, StopIteration):
        return True


def reason(error: Exception) -> str:
    """Return FFmpeg's error in words."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    if isinstance(error, av.ArgumentError):
        return "not a format that is read here"  # its error about formats not in _FORMATS
    return text


class _Held(threading.local):
    """The decoder that this thread used last, for the next part of the file."""

    last: tuple[tuple, PyAVDecoder] | None = None  # its key in `opened`, and itself


_held = _Held()


@contextmanager
def opened(name: str, header: AudioHeader, identity: tuple) -> Iterator[PyAVDecoder]:
    """Give a decoder of a file, perhaps one that is in the middle of it.

    `identity` changes when another file takes the name, or the file itself changes.
    """
    # Per process: after a fork, both would share one place in the file.
    key = (os.getpid(), name, *identity)
    before, _held.last = _held.last, None
    if before is not None and before[0] == key:
        decoder = before[1]
    else:
        if before is not None and before[0][0] == os.getpid():
            before[1].close()
        decoder = PyAVDecoder(name, header)
    try:
        yield decoder
    except BaseException:
        decoder.close()
        raise
    if decoder.seeks:
        decoder.close()
    else:
        _held.last = key, decoder
