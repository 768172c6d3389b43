"""Download a probing task's data set: `python -m manifests_tools fetch NAME`.

mirdata knows where GTZAN and a part of GiantSteps are, with checksums of archives and files. Of the
others, and of what mirdata lacks, instructions are printed.
"""

import argparse
import errno
import hashlib
import http.client
import logging
import os
import shlex
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from hydra_plugins._music_ssl_fairseq_command import shell_line
from music_ssl_fairseq.cli import Parser, new_parser
from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.runtime.imports import optional

DESCRIPTION = """\
Download the data set of a probing task into a folder, through mirdata where it has the set: an
interrupted download resumes, and archives and files are compared with their checksums. For other
sets the steps to take by hand are printed, with sizes.
"""
EXAMPLE = "example: python -m manifests_tools fetch gtzan-genre --to ~/data/gtzan"

_WAIT_SECONDS = (1, 5, 15, 60)  # before a server is asked again
_CHUNK_BYTES = 1 << 20
_REFUSALS = {*range(400, 500)} - {408, 425, 429}  # which pass: too slow, too early, too many


@dataclass(frozen=True)
class _Set:
    """Source of a data set."""

    size: str  # of all downloads, in words
    steps: str = ""  # what to do by hand, in the folder: before the builder runs
    mirdata: str = ""  # mirdata's name of the set, if it has it
    parts: tuple[str, ...] = ()  # the archives of it that are needed
    folder: str = ""  # where they go, below the user's folder


_GTZAN = {"mirdata": "gtzan_genre", "size": "1.2 GB"}
_MTG = """\
git clone https://github.com/MTG/mtg-jamendo-dataset
pip install -r mtg-jamendo-dataset/scripts/requirements.txt
python mtg-jamendo-dataset/scripts/download/download.py --dataset {subset} --type {kind} \\
  --unpack --remove ."""
_NSYNTH = """\
for split in train valid test; do
  curl -LC - -O http://download.magenta.tensorflow.org/datasets/nsynth/nsynth-$split.jsonwav.tar.gz
  tar xzf nsynth-$split.jsonwav.tar.gz
done"""
_VOCALSET = """\
curl -LC - -o VocalSet11.zip https://zenodo.org/records/1442513/files/VocalSet11.zip
echo "0c09396242f946e7111ad7d8fc649b81  VocalSet11.zip" | md5sum -c
unzip VocalSet11.zip"""
_MAGNATAGATUNE = """\
for part in mp3.zip.001 mp3.zip.002 mp3.zip.003 annotations_final.csv; do
  curl -LC - -O https://mirg.city.ac.uk/datasets/magnatagatune/$part
done
cat mp3.zip.00? > mp3.zip
unzip mp3.zip"""
_GIANTSTEPS = """\
git clone https://github.com/GiantSteps/giantsteps-key-dataset annotations/giantsteps-key-dataset
git clone https://github.com/GiantSteps/giantsteps-mtg-key-dataset \\
  annotations/giantsteps-mtg-key-dataset
(cd annotations/giantsteps-mtg-key-dataset && bash audio_dl.sh)    # 1,486 previews, some 2 GB
cp -r annotations/giantsteps-mtg-key-dataset ."""
_EMOMUSIC = """\
Ask for the data on https://cvml.unige.ch/databases/emoMusic/ and unpack here:
clips_45seconds.tar.gz, with the audio, and annotations.tar.gz."""

SETS = {
    "gtzan-genre": _Set(parts=("all",), **_GTZAN),
    "gtzan-beat": _Set(parts=("all", "tempo_beat_annotations"), **_GTZAN),
    "giantsteps-key": _Set(
        "some 1 GB, and 2 GB by hand",
        _GIANTSTEPS,
        mirdata="giantsteps_key",
        parts=("audio",),
        folder="giantsteps-key-dataset",
    ),
    "mtt": _Set("some 3 GB", _MAGNATAGATUNE),
    "emomusic": _Set("some 1 GB", _EMOMUSIC),
    **dict.fromkeys(("nsynth-instrument", "nsynth-pitch"), _Set("25 GB", _NSYNTH)),
    **dict.fromkeys(("vocalset-singer", "vocalset-technique"), _Set("2.1 GB", _VOCALSET)),
    "mtg-moodtheme": _Set("152 GB", _MTG.format(subset="autotagging_moodtheme", kind="audio")),
    **dict.fromkeys(
        ("mtg-instrument", "mtg-genre", "mtg-top50"),
        _Set("508 GB", _MTG.format(subset="raw_30s", kind="audio")),
    ),
}
"""Name of a builder -> where its data set comes from."""


def get_parser() -> Parser:
    parser = new_parser("manifests_tools fetch", DESCRIPTION, EXAMPLE)
    parser.option("name NAME", ", ".join(SETS), choices=SETS)
    parser.option("--to DIR", "folder to download to (default: data/NAME)")
    return parser


def run(a: argparse.Namespace) -> None:
    """Download what mirdata has of a set, and print what is to be done by hand.

    Raises InputError if a server does not answer, or a checksum is wrong.
    """
    name, chosen = a.name, SETS[a.name]
    folder = Path(a.to or os.path.join("data", name))
    if chosen.mirdata:
        print(f"{name}: {chosen.size}, to {folder}")
        _fetch_with_mirdata(chosen, folder / chosen.folder)
    if chosen.steps:
        rest = (
            "The rest is"
            if chosen.mirdata
            else f"mirdata does not have {name} ({chosen.size}). It is"
        )
        place = shlex.quote(str(folder))
        print(f"{rest} to be fetched by hand:\n\nmkdir -p {place}; cd {place}\n{chosen.steps}\n")
    where = shlex.quote(str(folder))
    if chosen.steps == _GIANTSTEPS:
        where += f" --metadata {shlex.quote(str(folder / 'annotations'))}"
    print(f"next: python -m manifests_tools {name} --root {shell_line(where)}")


def _fetch_with_mirdata(chosen: _Set, folder: Path) -> None:
    """Download archives, let mirdata unpack them, and compare all files with its index."""
    mirdata = optional("mirdata", "fetch")
    folder.mkdir(parents=True, exist_ok=True)
    dataset = mirdata.initialize(chosen.mirdata, data_home=str(folder))
    index = dataset._index_data.remote
    for remote in (index, *(dataset.remotes[part] for part in chosen.parts)):
        place = folder / (remote.destination_dir or "")
        download(remote.url, place / remote.filename, remote.checksum)
    logging.disable(logging.WARNING)  # that the archives are here already
    try:
        dataset.download(partial_download=list(chosen.parts))  # unpacks them
    finally:
        logging.disable(logging.NOTSET)
    _check(dataset, chosen)


def _check(dataset: Any, chosen: _Set) -> None:
    """Compare the unpacked files with mirdata's index, of the parts that were downloaded."""
    missing, damaged = dataset.validate(verbose=False)
    wrong = {id_: paths for kind in damaged.values() for id_, paths in kind.items() if paths}
    if wrong:
        first = next(iter(wrong.values()))[0]
        raise InputError(
            f"{first}: not as in mirdata's index, and {len(wrong) - 1} tracks more: remove "
            f"{dataset.data_home} and fetch again"
        )
    absent = sum(bool(paths) for kind in missing.values() for paths in kind.values())
    kinds = ", ".join(chosen.parts)
    print(f"checksums are right ({kinds}); {absent} tracks have parts that were not asked for")


def download(url: str, file: Path, md5: str) -> None:
    """Download a file that has this MD5; continue what an interrupted download left.

    Raises InputError if the server does not answer, asked five times, or the file has another MD5.
    """
    if file.exists():
        if _md5(file) != md5:
            raise InputError(f"{file}: another file than {url}, by its MD5: remove or rename it")
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f"{file.name}.part")
    for wait in (*_WAIT_SECONDS, None):
        try:
            _continue(url, part)
            break
        except (OSError, http.client.HTTPException) as error:
            if getattr(error, "errno", None) == errno.ENOSPC:
                raise
            refused = isinstance(error, urllib.error.HTTPError) and error.code in _REFUSALS
            if wait is None or refused:
                kept = f"; {part} has what was downloaded, and the same command continues"
                raise InputError(f"{url}: {error}{kept if part.exists() else ''}") from None
            time.sleep(wait)
    if _md5(part) != md5:
        part.unlink()
        raise InputError(f"{url}: what was downloaded has another MD5 than {md5}, and was removed")
    os.replace(part, file)


def _continue(url: str, part: Path) -> None:
    """Append to `part` what is missing, or begin again if the server gives no ranges."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # there is no more: it is whole
            return
        raise
    with response:
        begins = have if response.status == 206 else 0
        length = int(response.headers.get("Content-Length") or 0)
        bar = tqdm(
            desc=part.stem, total=begins + length or None, initial=begins, unit="B", unit_scale=True
        )
        with part.open("ab" if begins else "wb") as file, bar:
            while data := response.read(_CHUNK_BYTES):
                file.write(data)
                bar.update(len(data))
    if length and part.stat().st_size < begins + length:
        raise ConnectionError("the connection ended early")


def _md5(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "md5").hexdigest()
