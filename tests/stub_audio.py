"""Trees of stub audio: thousands of names of two small files, laid in a moment."""

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.audio_files import tone


class Stubs:
    """Lays links to a small file, whose format is found by its contents, whatever its name."""

    def __init__(self, folder: Path):
        self.short = folder / "short.wav"
        soundfile.write(self.short, tone(1.0), 16_000)
        self.long = folder / "long.flac"
        waveform = np.full(30 * 8_000, 0.25)
        waveform[:100:2] = 0  # not silent, or each file would be decoded whole
        soundfile.write(self.long, waveform, 8_000)

    def lay(self, folder: Path, names: Iterable[str], long: bool = False) -> None:
        """Lay files of 1 s at 16 kHz, or of 30 s at 8 kHz, below `folder`."""
        source = self.long if long else self.short
        made = set()
        for name in names:
            path = folder / name
            if path.parent not in made:
                path.parent.mkdir(parents=True, exist_ok=True)
                made.add(path.parent)
            os.symlink(source, path)


@pytest.fixture(scope="session")
def stubs(tmp_path_factory: pytest.TempPathFactory) -> Stubs:
    return Stubs(tmp_path_factory.mktemp("stubs"))
