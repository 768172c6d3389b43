"""Push an exported folder to the Hugging Face hub."""

from pathlib import Path

from music_ssl_fairseq.runtime.hub import PREFIX, one_line
from music_ssl_fairseq.runtime.optional import optional


def push(folder: Path, files: list[str], repository: str, message: str) -> str:
    """Make the model USER/NAME if it does not exist, and put files into it as one commit.

    Its name with the new commit is returned, as `load` takes it.
    """
    api = optional("huggingface_hub", "hub").HfApi()
    with one_line(PREFIX + repository):
        api.create_repo(repository, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository, folder_path=folder, allow_patterns=files, commit_message=message
        )
    return f"{PREFIX}{repository}@{commit.oid}"


def describe(folder: Path, files: list[str], repository: str) -> str:
    """List what `push` would send."""
    sizes = [(folder / name).stat().st_size for name in files]
    width = max(map(len, files))
    lines = [f"  {name:<{width}}  {_size(size)}" for name, size in zip(files, sizes, strict=True)]
    total = f"{len(files)} files, {_size(sum(sizes))}: nothing was sent"
    return "\n".join([f"{PREFIX}{repository} would get", *lines, total])


def _size(count: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"
