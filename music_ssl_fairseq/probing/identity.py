"""Identity of a probe's data: what its checkpoints carry, and what a later run is compared with."""

import os
from collections.abc import Sequence
from pathlib import Path

from music_ssl_fairseq.data.audio_identity import AUDIO, audio_identity
from music_ssl_fairseq.data.identity import Identity, contents_of, digest_of, manifest_identity
from music_ssl_fairseq.data.manifest import Manifest
from music_ssl_fairseq.probing.spec import ProbingSpec

_MAX_COMPARED_FILES = 1000  # of a split whose audio is compared


def probing_identity(
    folder: str | os.PathLike, spec: ProbingSpec, splits: Sequence[str] = ("train", "valid")
) -> Identity:
    """Identify a task's question (`probing_question`), and audio and labels of these splits."""
    found = probing_question(spec)
    for split in splits:
        manifest = Manifest(Path(folder, f"{split}.tsv"))
        files = [Path(folder, f"{split}.{kind}") for kind in ("labels", "segments", "groups")]
        digest = digest_of(contents_of(*[file for file in files if file.exists()]))
        found |= manifest_identity(manifest) | {f"labels of {split}": f"[{digest}]"}
        if audio := probing_audio(manifest):
            found[f"{AUDIO}{split}"] = f"[{audio}]"
    return found


def probing_audio(manifest: Manifest) -> str | None:
    """Digest a split's audio files; None if one is missing."""
    return audio_identity(manifest, most=_MAX_COMPARED_FILES)


def probing_question(spec: ProbingSpec) -> Identity:
    """Identify a task's question: its name, kind, metric and classes or targets."""
    names = [*spec.classes, *spec.targets]
    digest = digest_of(f"{name}\n".encode() for name in names)
    answers = f"{len(names)} [{digest}]" if names else "beats"
    return {"task": f"{spec.name} ({spec.kind}, {spec.metric})", "classes": answers}
