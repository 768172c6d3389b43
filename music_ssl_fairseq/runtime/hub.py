"""Fetch models from the Hugging Face hub, through its own cache, and push them there."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.runtime.imports import optional
from music_ssl_fairseq.runtime.user_command import usual_model, with_path

PREFIX = "hf:"
"""Beginning of a name on the hub: `hf:USER/NAME`, or `hf:USER/NAME@REVISION`."""

UNITS = "units"
"""Folder of a model's units: centroids.npy, and what they were made from."""

RESULTS = "results.json"
"""The scores of a model, beside it."""

_NAME = re.compile(r"hf:(?P<repository>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")
# Settings and safetensors: no pickle is ever fetched.
_FILES = ("*.json", "*.safetensors", f"{UNITS}/*.npy")
_REACH = "curl -I https://huggingface.co"
_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"


def is_name(path: str | os.PathLike) -> bool:
    """Tell whether a checkpoint's name is one on the hub."""
    return os.fspath(path).startswith(PREFIX)


def snapshot(name: str | os.PathLike) -> Path:
    """Return the local folder of a model; files that the cache lacks are fetched.

    A branch, the default one if none is named, stands for its newest commit, or without a network
    for the one in the cache.

    Raises InputError if this is no name, or there is no such model or revision, no network, or no
    huggingface_hub.
    """
    name = os.fspath(name)
    parts = _NAME.fullmatch(name)
    if parts is None:
        raise _without(name, "expected hf:USER/NAME or hf:USER/NAME@REVISION")
    hub = optional("huggingface_hub", "hub")
    with _one_line_errors(name):
        folder = hub.snapshot_download(
            parts["repository"], revision=parts["revision"], allow_patterns=list(_FILES)
        )
    return Path(folder)


def pinned(name: str | os.PathLike, folder: Path) -> str:
    """Return a name with the commit that its snapshot in `folder` is of."""
    return f"{os.fspath(name).partition('@')[0]}@{folder.name}"


@contextmanager
def _one_line_errors(name: str) -> Iterator[None]:
    """Turn errors of huggingface_hub about the model `name` into one line."""
    errors = optional("huggingface_hub.errors", "hub")
    repository = name.removeprefix(PREFIX).replace("@", " --revision ")
    try:
        yield
        return
    except errors.HFValidationError as error:
        reason = str(error)
    except errors.GatedRepoError:
        reason = "its owner must grant access: ask for it on its page"
    except errors.RevisionNotFoundError:
        reason = "no such revision"
    except errors.RepositoryNotFoundError:
        reason = f"no such model, or a private one: {_LOG_IN}"
    except errors.LocalEntryNotFoundError:
        reason = (
            "not in the local cache, and the hub cannot be reached: bring it from a machine that "
            f"reaches the hub (hf download {repository} --local-dir FOLDER), and give FOLDER"
        )
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        reason = f"the hub refused ({_LOG_IN})" if status in (401, 403) else str(error)
    except OSError as error:
        reason = error.strerror or str(error)
    except Exception as error:
        if not type(error).__module__.startswith("httpx"):
            raise
        reason = f"the hub cannot be reached ({error})"
    raise _without(name, " ".join(reason.split()))


def _without(name: str, reason: str) -> InputError:
    """Return the error about a name, with the command that takes a model of this machine."""
    reach = _REACH if "cannot be reached" in reason else ""
    return InputError(f"{name}: {reason}", with_path(name, usual_model() or name) or reach)


def push(folder: Path, files: list[str], repository: str, message: str) -> str:
    """Make the model USER/NAME if it does not exist, and put files into it as one commit.

    Its name with the new commit is returned, as `load` takes it.
    """
    api = optional("huggingface_hub", "hub").HfApi()
    with _one_line_errors(PREFIX + repository):
        api.create_repo(repository, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository, folder_path=folder, allow_patterns=files, commit_message=message
        )
    return f"{PREFIX}{repository}@{commit.oid}"


def describe(folder: Path, files: list[str], repository: str) -> str:
    """List what `push` would send."""
    sizes = [(folder / name).stat().st_size for name in files]
    width = max(map(len, files))
    lines = [f"  {n:<{width}}  {size / 1000:,.1f} kB" for n, size in zip(files, sizes, strict=True)]
    total = f"{len(files)} files, {sum(sizes) / 1e6:,.1f} MB: nothing was sent"
    return "\n".join([f"{PREFIX}{repository} would get", *lines, total])
