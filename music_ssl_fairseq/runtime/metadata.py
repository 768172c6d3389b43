"""metadata.json: the settings that a folder's results were made with."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.runtime.texts import read_object

METADATA = "metadata.json"


def matching_metadata(
    folder: Path,
    settings: Mapping[str, Any],
    results: str,
    outputs: Iterable[Path],
    way_out: str,
    words: Mapping[str, str] | None = None,
    is_complete: Callable[[dict[str, Any]], bool] | None = None,
    command: str = "",
) -> dict[str, Any]:
    """Return a folder's metadata if its results were made with these settings; {} if it has none.

    Raises InputError if the results were made with other settings, or with unknown ones.

    Args:
        settings: that must be equal.
        results: what they are, for the message: `labels`, for example.
        outputs: files of results that exist in the folder; looked at only if metadata.json does
            not exist.
        way_out: what to do instead, for the message.
        words: of settings whose values say nothing to a reader: what each is.
        is_complete: whether metadata have the entries that are not settings.
        command: that makes the results elsewhere, for the message.
    """
    file = folder / METADATA
    if not file.exists():
        if (output := next(iter(outputs), None)) is not None:
            raise InputError(f"{output}: there already, without {METADATA}: {way_out}")
        return {}
    found = read_object(file, way_out)
    if is_complete and not is_complete(found):
        raise InputError(f"{file}: damaged, or not written by this command; {way_out}")
    different = [
        f"another {words[name]}"
        if words and name in words
        else f"{name.replace('_', '-')} {found.get(name)!s:.100} instead of {value!s:.100}"
        for name, value in settings.items()
        if found.get(name) != value
    ]
    if different:
        made = ", ".join(different)
        raise InputError(f"{folder}: holds {results} made with {made}; {way_out}", command)
    return found
