"""Read the samples of a WAV file whose header states a wrong number of them."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Pcm:
    """Uncompressed samples in a file, little-endian; read like a `Decoder`.

    Attributes:
        offset: bytes before the first sample.
        num_samples: per channel.
        bits: of a sample: 8 (unsigned), 16, 24 or 32, or of floats 32 or 64.
    """

    name: str
    offset: int
    num_samples: int
    sample_rate: int
    channels: int
    bits: int
    is_float: bool

    def read(self, start: int, stop: int | None) -> np.ndarray:
        """Return the samples `[start, stop)`, mono: `[T]` float32, fewer only at the end."""
        stop = self.num_samples if stop is None else min(stop, self.num_samples)
        size = self.bits // 8 * self.channels
        with open(self.name, "rb") as file:
            file.seek(self.offset + start * size)
            content = file.read(max(0, stop - start) * size)
        samples = self._floats(content[: len(content) // size * size])
        return samples.reshape(-1, self.channels).mean(axis=1, dtype=np.float32)

    def _floats(self, content: bytes) -> np.ndarray:
        if self.is_float:
            return np.frombuffer(content, f"<f{self.bits // 8}").astype(np.float32)
        if self.bits == 8:
            return (np.frombuffer(content, np.uint8).astype(np.float32) - 128) / 128
        # Widen to the upper bytes of 32 bits.
        size = self.bits // 8
        wide = np.zeros((len(content) // size, 4), np.uint8)
        wide[:, 4 - size :] = np.frombuffer(content, np.uint8).reshape(-1, size)
        return wide.view("<i4")[:, 0].astype(np.float32) / np.float32(2**31)
