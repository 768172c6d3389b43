"""Find audio files below a folder."""

import os
import shlex
import stat
from heapq import heappop, heappush
from pathlib import Path

from tqdm import tqdm

from music_ssl_fairseq.audio import EXTENSIONS
from music_ssl_fairseq.data.left_out import LeftOut
from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.runtime.user_command import look_around, similar, with_option, with_path

KINDS = ", ".join(extension[1:] for extension in EXTENSIONS)
"""The suffixes that are looked for, in words."""

_ARCHIVES = {".zip": "zipfile", ".tar": "tarfile", ".tgz": "tarfile", ".tar.gz": "tarfile"}
"""Suffix -> the module of Python that unpacks it."""

_VIDEOS = (".mp4", ".mkv", ".mov", ".avi", ".m4v", ".mpg", ".mpeg", ".flv", ".wmv")

SAME = "the same file as another"
"""The reason to leave out further names of a file."""

FileId = tuple[int, int]
"""Device and inode: equal for two names of one file."""


def find_audio(root: str | os.PathLike, option: str = "--root") -> tuple[list[str], list[LeftOut]]:
    """Return the names of all audio files below `root`, relative to it, sorted as bytes.

    Links to folders and files are followed. A file with several names is listed once, outside of
    links if possible: so no track is in both splits, and a link to a parent folder ends. Folders
    whose names start with a dot are skipped; such files count as unusable. `option` names the root
    on the command line, for messages.

    Raises InputError if `root` is not a folder that can be listed, or holds no audio.

    Returns the names, and audio files and folders that cannot be used.
    """
    root = os.fspath(root)
    require_folder(root, option)
    walk = _Walk(root)
    left_out = walk.left_out
    names: dict[FileId, str] = {}
    for _, _, name, identity in sorted(walk.files):
        if identity in names:
            left_out.append(LeftOut(name, f"{SAME}: {names[identity]}"))
        elif any(character in name for character in "\t\n\r"):
            left_out.append(LeftOut(name, "a tab or line break in its name: rename it"))
        else:
            names[identity] = name
    if not names and not left_out:
        raise _no_audio(root)
    return sorted(names.values(), key=os.fsencode), left_out


def _no_audio(root: str) -> InputError:
    """Return the error about a folder without audio: what it holds, and how to make audio of it."""
    message = f"{root}: no audio file below this folder"
    files = [os.path.join(folder, name) for folder, _, names in os.walk(root) for name in names]
    for file in sorted(files):
        path, stem = shlex.quote(file), shlex.quote(os.path.splitext(file)[0])
        if file.lower().endswith(_VIDEOS):
            command = f"ffmpeg -i {path} {stem}.flac"
            return InputError(f"{message}, but {file}, a video; take its sound", command)
        if module := next((m for end, m in _ARCHIVES.items() if file.lower().endswith(end)), ""):
            command = f"python -m {module} -e {path} {shlex.quote(os.path.dirname(file))}"
            return InputError(f"{message}, but {file}, an archive; unpack it", command)
    state = f"it holds other files, such as {files[0]}" if files else "it is empty"
    command = f"find {shlex.quote(root)} -type f" if files else look_around(root)
    return InputError(f"{message} (looked for {KINDS}); {state}", command)


def require_folder(root: str, option: str = "--root") -> None:
    """Refuse a root that cannot be searched or named in a manifest."""
    if not os.path.exists(root):
        near = similar(root)
        near = near if os.path.isdir(near) else ""
        again = with_option(option, near) if option.startswith("--") else with_path(root, near)
        command = again if near else look_around(root)
        raise InputError(
            f"{root}: no such folder; {option} takes the folder that holds the audio", command
        )
    if not os.path.isdir(root):
        above = os.path.dirname(root)
        raise InputError(
            f"{root}: is a file; {option} takes the folder that holds the audio",
            with_option(option, above) if option.startswith("--") else with_path(root, above),
        )
    if "\n" in root or "\r" in root:
        raise InputError(f"{root!r}: a line break in its name, which no manifest can hold")
    try:
        os.listdir(root)
    except OSError as error:
        raise InputError(f"{root}: cannot be listed ({error.strerror})") from None


class _Walk:
    """A walk over a tree of any depth, each folder once."""

    def __init__(self, root: str):
        self.root = root
        # Audio files as (is a link, name as bytes, name, identity), in any order
        self.files: list[tuple[bool, bytes, str, FileId]] = []
        self.left_out: list[LeftOut] = []  # files and folders that cannot be opened
        self._visited: set[FileId] = set()
        self._folders = [""]
        self._links: list[tuple[bytes, str]] = []
        with tqdm(desc="looking for audio", unit=" files") as progress:
            while self._folders or self._links:
                # Links come after all real folders, in the order of their names.
                folder = self._folders.pop() if self._folders else heappop(self._links)[1]
                for entry in self._list(folder):
                    self._sort_in(entry, os.path.join(folder, entry.name))
                progress.update(len(self.files) - progress.n)

    def _list(self, folder: str) -> list[os.DirEntry[str]]:
        path = os.path.join(self.root, folder)
        try:
            identity = identify(os.stat(path))
            if identity in self._visited:
                return []
            self._visited.add(identity)
            with os.scandir(path) as entries:
                return list(entries)
        except OSError as error:
            self.left_out.append(LeftOut(folder, f"folder cannot be read: {error.strerror}"))
            return []

    def _sort_in(self, entry: os.DirEntry[str], name: str) -> None:
        is_audio = os.path.splitext(name)[1].lower() in EXTENSIONS
        if entry.name.startswith("."):
            if is_audio and not entry.is_dir():
                reason = "hidden: its name begins with a dot"
                if entry.name.startswith("._"):
                    reason = "what macOS keeps beside a file, no audio: its name begins with ._"
                self.left_out.append(LeftOut(name, reason))
            return
        try:
            status = entry.stat()
        except OSError as error:
            if is_audio or entry.is_dir(follow_symlinks=False):
                self.left_out.append(LeftOut(name, f"cannot be opened: {error.strerror}"))
            return
        if stat.S_ISDIR(status.st_mode) and entry.is_symlink():
            heappush(self._links, (os.fsencode(name), name))
        elif stat.S_ISDIR(status.st_mode):
            self._folders.append(name)
        elif is_audio and stat.S_ISREG(status.st_mode):
            key = (entry.is_symlink(), os.fsencode(name), name, identify(status))
            self.files.append(key)
        elif is_audio:
            self.left_out.append(LeftOut(name, "not a regular file"))


def identify(status: os.stat_result) -> FileId:
    """Return the identity of a file or folder."""
    return status.st_dev, status.st_ino


def is_within(path: str | os.PathLike, folder: str | os.PathLike) -> bool:
    """Tell whether `path` is `folder` or below it, with links resolved."""
    real = Path(os.path.realpath(path))
    return real.is_relative_to(os.path.realpath(folder))
