"""The dataset of both pre-training tasks: crops with masks, and units if there are labels."""

import logging
import math
import shlex
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from fairseq.data import FairseqDataset

from music_ssl_fairseq import audio
from music_ssl_fairseq.data.augmentation import draw_gain, draw_levels, mix
from music_ssl_fairseq.data.crop_config import crop_masks
from music_ssl_fairseq.data.crops import EQUALISER, MASKS, MIXING, REPLACEMENT, CropPlan, generator
from music_ssl_fairseq.data.manifest import Manifest
from music_ssl_fairseq.data.masks import FairseqMask
from music_ssl_fairseq.data.units import LabelSet
from music_ssl_fairseq.data.unreadable import UnreadableTracks
from music_ssl_fairseq.errors import AudioError, InputError
from music_ssl_fairseq.frames import (
    SAMPLE_RATE,
    amount,
    conv_grid,
    counted,
    hours,
    parse_conv_layers,
    samples_in,
)
from music_ssl_fairseq.runtime.user_command import with_setting

logger = logging.getLogger(__name__)

TARGET_PAD = -1
"""Value of `target` where a crop has no frame."""

_START_HOP = 160  # samples; crops start on the grid of MFCC, with or without labels
_REPLACEMENT_DRAWS = 100


class PretrainingDataset(FairseqDataset):
    """Crops of a manifest's tracks; an item depends on (seed, epoch, index) and nothing else.

    Only the crop is decoded, and only its labels are parsed. A file that cannot be read is named
    in one warning, replaced by another crop, and not tried again.

    Attributes:
        contents: the tracks, hours and crops of an epoch, and what is left out, for people.
        training: whether crops and masks differ from epoch to epoch.
        unreadable: tracks that no worker of this process could read so far.
    """

    def __init__(
        self,
        manifest: Manifest,
        cfg: Any,
        *,
        training: bool,
        labels: Sequence[LabelSet] | None = None,
        min_mask_spans: int = 1,
        list_unmasked: bool = False,
    ):
        """Plan the crops.

        Tracks shorter than `min_seconds` or two frames are left out; a track shorter than
        `crop_seconds` gives one crop of its own length.

        Raises InputError if settings do not fit together, or no track is long enough.

        Args:
            cfg: a `CropConfig`, as an OmegaConf node.
            training: crops and masks differ from epoch to epoch, and come in random order.
            labels: label sets of the manifest's tracks; None for crops without targets.
            min_mask_spans: fewest spans of a mask.
            list_unmasked: give batches `unmasked_indices`.
        """
        self._manifest = manifest
        self._grid = conv_grid(parse_conv_layers(cfg.conv_feature_layers))
        self._normalise = cfg.normalize
        self._masks = crop_masks(cfg, min_mask_spans)
        self.training = training
        self._seed = cfg.seed
        self._mix_prob = cfg.mix_prob if training else 0.0
        self._equaliser_db = cfg.equaliser_db if training else 0.0
        self._list_unmasked = list_unmasked
        self._labels = labels
        self._plan = self._crop_plan(cfg)
        if isinstance(self._masks.spans, FairseqMask):
            self._masks.spans.check(self._grid.num_frames(int(self._plan.lengths.min())))
        self.unreadable = UnreadableTracks(
            len(manifest), self._plan.num_tracks, cfg.max_unreadable, manifest.file.parent
        )
        # Shared with workers, which outlive an epoch and hold everything else as copies.
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()

    def _crop_plan(self, cfg: Any) -> CropPlan:
        manifest, least = self._manifest, self._grid.num_samples(2)
        usable, start_hop = manifest.num_samples, _START_HOP
        for labels in self._labels or ():
            usable = np.minimum(usable, labels.num_samples(self._grid))
            start_hop = math.lcm(start_hop, labels.hop)  # on the grid of all labels
        crop_samples = samples_in(cfg.crop_seconds)
        if crop_samples < least:
            raise InputError(
                f"crop_seconds is {cfg.crop_seconds:g}: too short for two frames, which take "
                f"{least / SAMPLE_RATE:.3g} s",
                with_setting("task.crop_seconds=5"),
            )
        min_samples = max(samples_in(cfg.min_seconds), least)
        each = cfg.crops_per_track
        plan = CropPlan(usable, crop_samples, start_hop, min_samples, each, self._seed)
        if not len(plan):
            raise InputError(
                f"{manifest.file}: none of its {len(manifest)} tracks is as long as min_seconds "
                f"({cfg.min_seconds:g} s)",
                with_setting("task.min_seconds=0"),
            )
        self.contents = (
            f"{counted(plan.num_tracks, 'track')}, {amount(hours(plan.num_samples))}, "
            f"{counted(len(plan), 'crop')} of {cfg.crop_seconds:g} s"
        )
        if plan.num_too_short:
            unlabelled = ", or without labels" if self._labels else ""
            self.contents += (
                f"; left out: {counted(plan.num_too_short, 'track')} shorter than "
                f"{min_samples / SAMPLE_RATE:.3g} s{unlabelled}"
            )
        logger.info("%s: %s", manifest.file, self.contents)
        return plan

    def __len__(self) -> int:
        return len(self._plan)

    def __getitem__(self, index: int) -> dict:
        """Decode one crop of the present epoch: see `item`."""
        return self.item(int(index), int(self._epoch))

    def item(self, index: int, epoch: int) -> dict:
        """Decode one crop.

        Raises InputError if too many tracks are unreadable.

        Returns `id`, `source` (`[T]` float32), and as configured `levels` (`draw_levels`), `mask`
        (`[masks, F]` bool; `epoch` for a mask that depends on the batch) and `target` (`[F, sets]`
        int64 classes).
        """
        track, start, length = self._plan.crop(index, epoch)
        waveform = self._read(track, start, length)
        if waveform is None:
            track, start, waveform = self._replacement(index, epoch, length)
        if self._normalise:
            waveform = audio.normalise(waveform)
        item: dict = {"id": index, "source": torch.from_numpy(waveform)}
        if self._equaliser_db > 0:
            rng = generator(self._seed, epoch, index, EQUALISER)
            item["levels"] = draw_levels(self._equaliser_db, rng)
        if self._mix_prob > 0:
            item["gain"] = draw_gain(self._mix_prob, generator(self._seed, epoch, index, MIXING))
        num_frames = self._grid.num_frames(len(waveform))
        spans, growth = self._masks.spans, self._masks.growth
        if isinstance(spans, FairseqMask):
            item["epoch"] = epoch  # the mask depends on the rest of the batch
        else:
            of_span = growth.length(epoch) if growth and self.training else None
            rng = generator(self._seed, epoch, index, MASKS)
            masks = [spans.mask(num_frames, rng, of_span) for _ in range(self._masks.number)]
            item["mask"] = torch.from_numpy(np.stack(masks))
        if self._labels is not None:
            classes = np.empty((num_frames, len(self._labels)), np.int64)
            for number, labels in enumerate(self._labels):
                classes[:, number] = labels.classes(track, start, num_frames, self._grid)
            item["target"] = torch.from_numpy(classes)
        return item

    def _read(self, track: int, start: int, length: int) -> np.ndarray | None:
        """Read a crop's samples; None if the track is unreadable."""
        if track in self.unreadable:
            return None
        path = self._manifest.path(track)
        try:
            waveform = audio.read(path, start, length)
            if len(waveform) < length:
                raise AudioError(
                    path,
                    f"ends at sample {start + len(waveform)}, but {self._manifest.file} says "
                    f"{self._manifest.num_samples[track]}: rebuild the manifest",
                )
        except AudioError as error:
            self.unreadable.add(track, error)
            return None
        return waveform

    def _replacement(self, index: int, epoch: int, length: int) -> tuple[int, int, np.ndarray]:
        """Read another crop, of the same length if there is one: track, start and samples.

        Candidates are drawn in a fixed order, and failing ones are skipped whether they are known
        to fail or not: every worker and run gets the same crop.
        """
        rng = generator(self._seed, epoch, index, REPLACEMENT)
        for draw in range(_REPLACEMENT_DRAWS):
            track, start, available = self._plan.crop(int(rng.integers(len(self))), epoch)
            if available < length and draw < _REPLACEMENT_DRAWS // 2:
                continue
            waveform = self._read(track, start, min(length, available))
            if waveform is not None:
                return track, start, waveform
        raise InputError(
            f"{self._manifest.file}: no readable track found to take the place of an unreadable "
            "one; all are listed by",
            f"python -m manifests_tools check {shlex.quote(str(self._manifest.file.parent))}",
        )

    def describe_crop(self, index: int, epoch: int) -> tuple[str, float]:
        """Return a crop's file and its largest sample, for messages about a batch."""
        self.set_epoch(epoch)
        track, _, _ = self._plan.crop(index, epoch)
        return self._manifest.path(track), float(self[index]["source"].abs().max())

    def collater(self, samples: list[dict]) -> dict:
        """Batch some crops, padded at the end to the longest; none is cut to the shortest.

        Returns:
            A batch. It is empty without samples, as on ranks that have run out of batches.

            - `id`: `[B]`.
            - `nsentences`, `ntokens`: crops, and samples without padding.
            - `target`, with labels: `[B, F, sets]` int64 classes, -1 beyond a crop's frames.
            - `levels`, with filters: for `equalise`.
            - `net_input`: `source` `[B, T]` float32, and `padding_mask` `[B, T]` bool, None if
              there is no padding. `mask` `[views, F]` bool has a crop's masks in succession.
              `masked_indices` and, if asked for, `unmasked_indices` are the masked and the other
              frames that are not padding: ascending indices into `views * F`. `num_visible`, if
              asked for, is the largest number of unmasked frames per view. Without padding, all
              views have this number.
        """
        if not samples:
            return {}
        sources = [sample["source"] for sample in samples]
        if self._mix_prob > 0:
            sources = mix(sources, [sample["gain"] for sample in samples])
        lengths = torch.tensor([len(source) for source in sources])
        longest = int(lengths.max())
        padding_mask = None
        if int(lengths.min()) < longest:
            padding_mask = torch.arange(longest) >= lengths[:, None]
        frames = [self._grid.num_frames(len(source)) for source in sources]
        mask = self._batch_mask(samples, frames)
        net_input: dict = {
            "source": _padded(sources, 0.0),
            "padding_mask": padding_mask,
            "mask": mask,
            # On a GPU, nonzero() would synchronise.
            "masked_indices": mask.flatten().nonzero().squeeze(1),
        }
        views = torch.tensor(frames).repeat_interleave(self._masks.number)
        visible = (torch.arange(max(frames)) < views[:, None]) & ~mask
        if self._masks.count_visible:
            net_input["num_visible"] = int(visible.sum(1).max())
        if self._list_unmasked:
            net_input["unmasked_indices"] = visible.flatten().nonzero().squeeze(1)
        batch = {
            "id": torch.tensor([sample["id"] for sample in samples]),
            "nsentences": len(samples),
            "ntokens": int(lengths.sum()),
            "net_input": net_input,
        }
        if self._labels is not None:
            batch["target"] = _padded([s["target"] for s in samples], TARGET_PAD)
        if self._equaliser_db > 0:
            batch["levels"] = torch.stack([sample["levels"] for sample in samples])
        return batch

    def _batch_mask(self, samples: list[dict], num_frames: list[int]) -> torch.Tensor:
        """Return the masks of a batch, `[views, longest]` bool, False at padding."""
        spans = self._masks.spans
        if not isinstance(spans, FairseqMask):
            return _padded([mask for sample in samples for mask in sample["mask"]], False)
        indices = [sample["id"] for sample in samples]
        drawn = spans.batch(num_frames, self._seed, samples[0]["epoch"], indices)
        return torch.from_numpy(drawn)

    def size(self, index: int) -> int:
        """Return the samples of a crop."""
        return self._plan.length(index)

    num_tokens = size
    """fairseq's name for the length that `max_tokens` limits."""

    def num_tokens_vec(self, indices: np.ndarray) -> np.ndarray:
        return self._plan.lengths[indices]

    def ordered_indices(self) -> np.ndarray:
        return self.order(int(self._epoch))

    def order(self, epoch: int) -> np.ndarray:
        return self._plan.order(epoch, shuffle=self.training)

    def batch_by_size(
        self,
        indices: np.ndarray,
        max_tokens: int | None = None,
        max_sentences: int | None = None,
        required_batch_size_multiple: int = 1,
    ) -> list[np.ndarray]:
        """Batch all crops; fairseq drops a last batch that is no multiple of 8.

        That would change the result of an evaluation, and in training always drop the shortest
        tracks.
        """
        batches = list(
            super().batch_by_size(indices, max_tokens, max_sentences, required_batch_size_multiple)
        )
        rest = indices[sum(map(len, batches)) :]
        return [*batches, rest] if len(rest) else batches

    def set_epoch(self, epoch: int) -> None:
        """Use the crops and masks of this epoch; evaluation stays at epoch 0."""
        if self.training:
            self._epoch.fill_(epoch)


def _padded(tensors: list[torch.Tensor], value: float) -> torch.Tensor:
    """Stack tensors of different lengths as `[B, longest]`."""
    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=value)
