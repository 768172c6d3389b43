"""Finding audio files below a folder."""

import os
import stat
from heapq import heappop, heappush
from pathlib import Path

from tqdm import tqdm

from manifests_tools.left_out import LeftOut
from music_ssl_fairseq.audio import EXTENSIONS
from music_ssl_fairseq.errors import InputError

FileId = tuple[int, int]
"""Device and inode: the same for two names of one file."""


def find_audio(root: str | os.PathLike) -> tuple[list[str], list[LeftOut]]:
    """Names of all audio files below `root`, relative to it, sorted as bytes.

    Links to folders and files are followed. What can be reached by several names is listed once,
    by its name outside of links if it has one, so that no track is in both splits and a link to a
    parent folder ends. Names that start with a dot are passed over, with all below them.

    Returns:
        The names, and what carries an audio file's name or is a folder but cannot be used.

    Raises:
        InputError: if `root` is not a folder that can be listed, or holds no audio.
    """
    root = os.fspath(root)
    _require_folder(root)
    files, left_out = _walk(root)
    names: dict[FileId, str] = {}
    for _, _, name, identity in sorted(files):
        if identity in names:
            left_out.append(LeftOut(name, f"the same file as another: {names[identity]}"))
        elif any(character in name for character in "\t\n\r"):
            left_out.append(LeftOut(name, "a tab or line break in its name: rename it"))
        else:
            names[identity] = name
    if not names and not left_out:
        kinds = ", ".join(extension[1:] for extension in EXTENSIONS)
        raise InputError(f"{root}: no audio file below this folder (looked for {kinds})")
    return sorted(names.values(), key=os.fsencode), left_out


def _require_folder(root: str) -> None:
    if not os.path.exists(root):
        raise InputError(f"{root}: no such folder; --root takes the folder that holds the audio")
    if not os.path.isdir(root):
        raise InputError(f"{root}: is a file; --root takes the folder that holds the audio")
    if "\n" in root or "\r" in root:
        raise InputError(f"{root!r}: a line break in its name, which no manifest can hold")
    try:
        os.listdir(root)
    except OSError as error:
        raise InputError(f"{root}: cannot be listed ({error.strerror})") from None


def _walk(root: str) -> tuple[list[tuple[bool, bytes, str, FileId]], list[LeftOut]]:
    """Audio files as (is a link, name as bytes, name, identity), in any order."""
    files: list[tuple[bool, bytes, str, FileId]] = []
    left_out: list[LeftOut] = []
    visited: set[FileId] = set()
    folders = [""]
    links: list[tuple[bytes, str]] = []
    with tqdm(desc="looking for audio", unit=" files") as progress:
        while folders or links:
            # Links wait until all real folders are known, and then come in order of their names.
            folder = folders.pop() if folders else heappop(links)[1]
            try:
                identity = identify(os.stat(os.path.join(root, folder)))
                if identity in visited:
                    continue
                visited.add(identity)
                with os.scandir(os.path.join(root, folder)) as entries:
                    listing = [entry for entry in entries if not entry.name.startswith(".")]
            except OSError as error:
                left_out.append(LeftOut(folder, f"folder cannot be read: {error.strerror}"))
                continue
            for entry in listing:
                name = os.path.join(folder, entry.name)
                is_audio = os.path.splitext(entry.name)[1].lower() in EXTENSIONS
                try:
                    status = entry.stat()
                except OSError as error:
                    if is_audio:
                        left_out.append(LeftOut(name, f"cannot be opened: {error.strerror}"))
                    continue
                if stat.S_ISDIR(status.st_mode):
                    if entry.is_symlink():
                        heappush(links, (os.fsencode(name), name))
                    else:
                        folders.append(name)
                elif is_audio and stat.S_ISREG(status.st_mode):
                    key = (entry.is_symlink(), os.fsencode(name), name, identify(status))
                    files.append(key)
                    progress.update()
                elif is_audio:
                    left_out.append(LeftOut(name, "not a regular file"))
    return files, left_out


def identify(status: os.stat_result) -> FileId:
    """Which file or folder `os.stat` looked at."""
    return status.st_dev, status.st_ino


def is_within(path: str | os.PathLike, folder: str | os.PathLike) -> bool:
    """Whether `path` is `folder` or below it, links resolved."""
    real = Path(os.path.realpath(path))
    return real.is_relative_to(os.path.realpath(folder))
