"""The pre-training dataset: right samples, labels and masks, the same for any number of workers."""

import copy
import logging
import pickle

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from music_ssl_fairseq import audio
from music_ssl_fairseq.data.crop_config import CropConfig
from music_ssl_fairseq.data.label_store import LabelStore
from music_ssl_fairseq.data.manifest import Manifest, write_manifest
from music_ssl_fairseq.data.masks import FairseqMask, SpanMask
from music_ssl_fairseq.data.pretraining_dataset import PretrainingDataset
from music_ssl_fairseq.data.units import LabelSet, UnitDictionary
from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.frames import DEFAULT_CONV_LAYERS, FrameGrid
from music_ssl_fairseq.tasks.pretraining import (
    Music2VecPretrainingTask,
    PretrainingConfig,
)
from tests.audio_files import write_tone

GRID = FrameGrid(window=400, hop=320)
K = 40
# Two tracks of several crops, three of one, one that is too short; 1.5 s crops.
SECONDS = {
    "long.flac": 9.03,
    "b/44k stereo.wav": 5.0,
    "c.ogg": 1.6,
    "d.wav": 0.9,
    "e.flac": 0.71,
    "f.flac": 0.3,
}


@pytest.fixture
def folder(tmp_path):
    """Files, manifest, 100 Hz labels that count up from 3 in every track, and the dictionary."""
    tracks = []
    for i, (name, seconds) in enumerate(SECONDS.items()):
        rate, channels = (44_100, 2) if "44k" in name else (16_000, 1)
        write_tone(tmp_path / "music" / name, seconds, rate, channels, seed=i)
        tracks.append((name, audio.probe(tmp_path / "music" / name).length_at()))
    write_manifest(tmp_path / "train.tsv", tmp_path / "music", tracks)
    write_labels(tmp_path, [1 + (length - 400) // 160 for _, length in tracks])
    (tmp_path / "dict.km.txt").write_text("".join(f"{K - 1 - i} 1\n" for i in range(K)))
    return tmp_path


def write_labels(folder, counts):
    lines = [" ".join(str((3 + i) % K) for i in range(count)) for count in counts]
    (folder / "train.km").write_text("\n".join(lines) + "\n")


def dataset(folder, labels=True, **options):
    if labels:
        units = UnitDictionary(folder / "dict.km.txt")
        rates = options.pop("label_rates", (100.0,))
        options["labels"] = [LabelSet(LabelStore(folder / "train.km"), units, r) for r in rates]
    own = {
        name: options.pop(name)
        for name in ("training", "labels", "list_unmasked")
        if name in options
    }
    cfg = {"crop_seconds": 1.5, "min_seconds": 0.5, "max_unreadable": 0.5, "seed": 0}
    cfg |= {"mask_prob": 0.65, "mask_length": 10, "conv_feature_layers": DEFAULT_CONV_LAYERS}
    cfg = OmegaConf.structured(CropConfig(**{**cfg, **options}))
    own = {"training": True, "min_mask_spans": 2, "list_unmasked": True, **own}
    return PretrainingDataset(Manifest(folder / "train.tsv"), cfg, **own)


def where(data, index):
    """Track, start and length of an item as planned."""
    return data._plan.crop(index, int(data._epoch))


def batches(data, workers=0, **loader):
    order = data.ordered_indices()
    sampler = data.batch_by_size(order, max_sentences=3)
    return list(
        torch.utils.data.DataLoader(
            data,
            batch_sampler=sampler,
            collate_fn=data.collater,
            num_workers=workers,
            **loader,
        )
    )


def assert_equal(first, second):
    torch.testing.assert_close(first, second, rtol=0, atol=0, equal_nan=True)


def test_items_are_the_samples_of_their_crop(folder):
    data = dataset(folder)
    manifest = Manifest(folder / "train.tsv")
    assert len(data) == 6 + 3 + 1 + 1 + 1
    assert data.contents == (
        "5 tracks, 17.2 s, 12 crops of 1.5 s; "
        "left out: 1 track shorter than 0.5 s, or without labels"
    )
    for index in range(len(data)):
        track, start, length = where(data, index)
        whole = audio.read(manifest.path(track))
        item = data[index]
        assert item["id"] == index
        assert start % 160 == 0
        assert data.size(index) == data.num_tokens(index) == length == len(item["source"])
        np.testing.assert_allclose(item["source"], whole[start : start + length], atol=1e-6)


@pytest.mark.parametrize(("label_rate", "step"), [(100.0, 2), (50.0, 1)])
def test_targets_are_the_labels_under_their_frames(folder, label_rate, step):
    data = dataset(folder, label_rates=[label_rate], crop_seconds=0.6)
    classes = data._labels[0].units
    for index in range(len(data)):
        _, start, length = where(data, index)
        hop = 160 * 2 // step
        assert start % hop == 0
        first = start // hop
        units = (3 + first + step * np.arange(GRID.num_frames(length))) % K
        target = data[index]["target"][:, 0]
        assert target.dtype == torch.int64
        np.testing.assert_array_equal(target, classes.encode(units))
        # The dictionary lists the units backwards, after four special symbols.
        np.testing.assert_array_equal(target, 4 + K - 1 - units)


def test_each_label_set_has_targets_at_its_own_rate(folder):
    both = dataset(folder, label_rates=[100.0, 50.0], crop_seconds=0.6)
    assert both[3]["target"].shape == (GRID.num_frames(9600), 2)
    for index in range(len(both)):
        _, start, length = where(both, index)
        frames = np.arange(GRID.num_frames(length))
        for column, step in enumerate((2, 1)):
            units = (3 + start // (320 // step) + step * frames) % K
            np.testing.assert_array_equal(both[index]["target"][:, column], 4 + K - 1 - units)


def test_normalised_over_the_crop(folder):
    data, plain = dataset(folder, normalize=True), dataset(folder)
    for index in (0, len(data) - 1):
        source = plain[index]["source"]
        expected = torch.nn.functional.layer_norm(source, source.shape)
        np.testing.assert_allclose(data[index]["source"], expected, atol=1e-5)


def test_labels_that_end_early_shorten_the_last_crops(folder):
    """By 9 of 100 Hz labels, which `check_labels` lets pass."""
    manifest = Manifest(folder / "train.tsv")
    counts = 1 + (manifest.num_samples - 400) // 160 - 9
    write_labels(folder, counts)
    data = dataset(folder)
    for epoch in range(20):
        data.set_epoch(epoch)
        for index in range(len(data)):
            track, start, length = where(data, index)
            frames = GRID.num_frames(length)
            assert start // 160 + 2 * (frames - 1) < counts[track]
            assert data[index]["target"].shape == (frames, 1)
            if manifest.num_samples[track] > 30_000:
                assert length == 24_000


def test_epochs_differ_in_training_only(folder):
    data = dataset(folder)
    data.set_epoch(1)
    first = [data[i] for i in range(len(data))]
    order = data.ordered_indices()
    assert_equal(first, [data[i] for i in range(len(data))])
    data.set_epoch(2)
    assert (data.ordered_indices() != order).any()
    assert not torch.equal(data[0]["source"], first[0]["source"])
    assert not torch.equal(data[0]["mask"], first[0]["mask"])
    assert data.can_reuse_epoch_itr_across_epochs  # the same workers: the epoch is shared

    valid = dataset(folder, training=False)
    before = [valid[i] for i in range(len(valid))]
    valid.set_epoch(7)
    assert_equal(before, [valid[i] for i in range(len(valid))])
    assert (np.diff(valid.ordered_indices()[:9]) > 0).all()


def test_seeds_differ(folder):
    one, two = (dataset(folder, seed=seed) for seed in (1, 2))
    for key in ("source", "mask"):
        assert sum(torch.equal(one[i][key], two[i][key]) for i in range(6)) < 2


@pytest.mark.parametrize("broken", [False, True])
def test_the_same_for_any_number_of_workers(folder, broken):
    if broken:
        (folder / "music" / "b/44k stereo.wav").unlink()
        (folder / "music" / "d.wav").write_bytes(b"")
    expected = None
    for workers in (0, 1, 2):
        data = dataset(folder)
        data.set_epoch(3)
        found = batches(data, workers)
        expected = expected or found
        assert_equal(found, expected)


def test_workers_that_live_on_follow_the_epoch(folder):
    data = dataset(folder)
    loader = torch.utils.data.DataLoader(
        data,
        batch_sampler=data.batch_by_size(np.arange(len(data)), max_sentences=3),
        collate_fn=data.collater,
        num_workers=1,
        persistent_workers=True,
    )
    for epoch in (1, 2):
        data.set_epoch(epoch)
        fresh = dataset(folder)
        fresh.set_epoch(epoch)
        for batch in loader:
            assert_equal(batch, fresh.collater([fresh[i] for i in batch["id"].tolist()]))


def test_pickles_and_copies(folder):
    data = dataset(folder)
    data.set_epoch(4)
    for other in (pickle.loads(pickle.dumps(data)), copy.deepcopy(data)):
        assert_equal(other[5], data[5])


def test_collated(folder):
    data = dataset(folder, normalize=True)
    items = [data[index] for index in (0, 10, 11)]
    batch = data.collater(items)
    lengths = [24_000, 14_400, 11_360]
    assert [len(item["source"]) for item in items] == lengths
    source, padding = batch["net_input"]["source"], batch["net_input"]["padding_mask"]
    mask, target = batch["net_input"]["mask"], batch["target"]
    assert batch["id"].tolist() == [0, 10, 11]
    assert batch["nsentences"] == 3
    assert batch["ntokens"] == sum(lengths)
    assert source.shape == padding.shape == (3, 24_000)
    assert mask.shape == (3, GRID.num_frames(24_000))
    assert target.shape == (*mask.shape, 1)
    assert (source.dtype, padding.dtype, mask.dtype) == (torch.float32, torch.bool, torch.bool)
    for row, length in enumerate(lengths):
        frames = GRID.num_frames(length)
        assert torch.equal(source[row, :length], items[row]["source"])
        assert not source[row, length:].any()
        assert padding[row].tolist() == [False] * length + [True] * (24_000 - length)
        assert torch.equal(target[row, :frames], items[row]["target"])
        assert (target[row, frames:] == -1).all()
        assert mask[row].sum() == SpanMask(0.65, 10).count(frames)
        assert not mask[row, frames:].any()


def test_fairseqs_masks_are_drawn_for_a_batch(folder):
    mask = FairseqMask(0.65, 10)
    data = dataset(folder, mask_mode="fairseq", seed=3, min_seconds=0.8)
    data.set_epoch(2)
    batch = data.collater([data[index] for index in (0, 10, 4)])
    frames = [GRID.num_frames(24_000), GRID.num_frames(14_400), GRID.num_frames(24_000)]
    masked = batch["net_input"]["mask"]
    assert (masked.numpy() == mask.batch(frames, 3, 2, [0, 10, 4])).all()
    assert (
        batch["net_input"]["masked_indices"].tolist() == masked.flatten().nonzero()[:, 0].tolist()
    )
    assert len(batch["net_input"]["unmasked_indices"]) == sum(frames) - masked.sum()
    assert_equal(batches(data, 2), batches(data))
    with pytest.raises(InputError, match=r"raise task\.min_seconds"):
        dataset(folder, mask_mode="fairseq", mask_prob=0.8, mask_length=40)


def test_several_masks_of_a_crop(folder):
    """The first is that of a single one; views of a crop follow each other in a batch."""
    single = dataset(folder, list_unmasked=False)
    data = dataset(folder, clone_batch=3, encode="visible")
    items = [data[index] for index in (0, 10)]  # the second crop is shorter
    for index, item in zip((0, 10), items, strict=True):
        masks = item["mask"]
        assert len(masks) == 3
        assert torch.equal(masks[0], single[index]["mask"][0])
        assert not torch.equal(masks[0], masks[1])
        assert set(masks.sum(1).tolist()) == {SpanMask(0.65, 10).count(masks.size(1))}
    net_input = data.collater(items)["net_input"]
    mask = net_input["mask"]
    frames = [item["mask"].size(1) for item in items for _ in range(3)]
    assert torch.equal(mask[1], items[0]["mask"][1])
    assert torch.equal(mask[5, : frames[5]], items[1]["mask"][2])
    visible = [int((~mask[row, :count]).sum()) for row, count in enumerate(frames)]
    assert net_input["num_visible"] == max(visible)
    assert len(net_input["unmasked_indices"]) == sum(visible)
    assert net_input["masked_indices"].tolist() == mask.flatten().nonzero()[:, 0].tolist()
    unasked = {"num_visible", "unmasked_indices"}
    assert unasked.isdisjoint(single.collater([single[0]])["net_input"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"encode": "visible"}, r"encode=visible does not go with model\.mask_mode=fairseq"),
        ({"clone_batch": 2}, r"clone_batch=2 does not go with model\.mask_mode=fairseq"),
    ],
)
def test_masks_that_a_crop_cannot_have_are_one_line(folder, settings, message):
    cfg = PretrainingConfig(
        data=str(folder),
        **{"mask_prob": 0.5, "mask_length": 8, "conv_feature_layers": DEFAULT_CONV_LAYERS},
        **{"mask_mode": "fairseq", "encode": "all", "clone_batch": 1, **settings},
    )
    task = Music2VecPretrainingTask(OmegaConf.structured(cfg))
    with pytest.raises(InputError, match=message):
        task.load_dataset("train")


@pytest.mark.parametrize(("mode", "kind"), [("fairseq", FairseqMask), (None, SpanMask)])
def test_the_model_says_whose_masks(folder, mode, kind):
    """`model.mask_mode`, which a checkpoint of an older version does not have."""
    model = {"mask_prob": 0.5, "mask_length": 8, "conv_feature_layers": DEFAULT_CONV_LAYERS}
    cfg = OmegaConf.create({"common": {"seed": 1}, "model": model, "task": None})
    cfg.task = OmegaConf.structured(PretrainingConfig(data=str(folder)))
    if mode:
        cfg.model.mask_mode = mode
    task = Music2VecPretrainingTask.setup_task(cfg.task)
    task.load_dataset("train")
    assert task.datasets["train"]._masks.spans == kind(0.5, 8, 1)


def test_new_workers_per_epoch_have_the_same_batches_also_when_resumed(folder):
    def found(rebuild: bool, *epochs: int) -> list:
        cfg = PretrainingConfig(data=str(folder), seed=1, rebuild_batches=rebuild)
        cfg.mask_prob, cfg.mask_length, cfg.crop_seconds, cfg.min_seconds = 0.5, 8, 1.5, 0.5
        cfg.conv_feature_layers, cfg.mask_mode = DEFAULT_CONV_LAYERS, "fairseq"
        cfg.encode, cfg.clone_batch = "all", 1
        task = Music2VecPretrainingTask(OmegaConf.structured(cfg))
        task.load_dataset("train")
        batches = []
        for epoch in epochs:
            sizes = {"max_sentences": 3, "seed": 1, "epoch": epoch}
            iterator = task.get_batch_iterator(task.datasets["train"], **sizes)
            batches = [batch["id"].tolist() for batch in iterator.next_epoch_itr()]
        task.datasets["train"].set_epoch(1)
        return batches

    assert found(True, 1, 2) == found(False, 1, 2) == found(False, 2) != found(False, 1)


def test_mixing_changes_training_crops_alone(folder):
    plain = dataset(folder)
    for training in (True, False):
        data = dataset(folder, mix_prob=1.0, training=training)
        items = [0, 1, 2]
        batch = data.collater([data[index] for index in items])["net_input"]["source"]
        whole = dataset(folder, training=training)
        expected = whole.collater([whole[index] for index in items])["net_input"]["source"]
        assert torch.equal(batch, expected) is not training
    assert "gain" not in plain[0]


def test_crops_of_one_length_need_no_padding(folder):
    data = dataset(folder, labels=False)
    batch = data.collater([data[0], data[1]])
    assert batch["net_input"]["padding_mask"] is None
    assert set(batch) == {"id", "nsentences", "ntokens", "net_input"}
    own = {"mask", "masked_indices", "unmasked_indices"}
    assert set(batch["net_input"]) == {"source", "padding_mask", *own}
    assert data.collater([]) == {}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("limit", [{"max_sentences": 5}, {"max_tokens": 100_000}])
@pytest.mark.parametrize("multiple", [1, 4, 8])
def test_no_crop_is_dropped(folder, training, limit, multiple):
    data = dataset(folder, training=training)
    data.set_epoch(1)
    indices = data.ordered_indices()
    made = data.batch_by_size(indices, **limit, required_batch_size_multiple=multiple)
    assert sorted(np.concatenate(made)) == list(range(len(data)))
    lengths = data.num_tokens_vec(np.arange(len(data)))
    for batch in made:
        if "max_sentences" in limit:
            assert len(batch) <= 5
        else:
            assert len(batch) * lengths[batch].max() <= 100_000


def test_full_crops_come_first(folder):
    data = dataset(folder)
    data.set_epoch(1)
    lengths = data.num_tokens_vec(data.ordered_indices())
    assert lengths.tolist() == [24_000] * 10 + [14_400, 11_360]


def test_unreadable_tracks_are_replaced_and_named_once(folder, caplog):
    data = dataset(folder)
    expected = [data[i] for i in range(len(data))]
    (folder / "music" / "b/44k stereo.wav").write_text("lyrics")
    data = dataset(folder)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        items = [data[i] for i in range(len(data))]
        items += [data[i] for i in range(len(data))]
    assert len(caplog.messages) == 1
    assert "44k stereo.wav: not readable as audio" in caplog.messages[0]
    assert "1 of 5 tracks" in caplog.messages[0]
    assert len(data.unreadable) == 1
    for index in range(len(data)):
        lost = where(data, index)[0] == 1
        assert torch.equal(items[index]["source"], expected[index]["source"]) != lost
        assert len(items[index]["source"]) == len(expected[index]["source"])
        assert len(items[index]["target"]) == len(expected[index]["target"])
        assert_equal(items[index], items[index + len(data)])


def test_replacements_are_as_long_if_there_is_one(folder):
    (folder / "music" / "b/44k stereo.wav").unlink()
    data = dataset(folder, crops_per_track=1)
    for epoch in range(10):
        data.set_epoch(epoch)
        assert len(data[1]["source"]) == 24_000


def test_an_unreadable_track_is_not_opened_again(folder, monkeypatch):
    path = folder / "music" / "long.flac"
    path.write_bytes(path.read_bytes()[:5_000])
    data = dataset(folder)
    opened = []
    read = audio.read
    monkeypatch.setattr(audio, "read", lambda name, *a: opened.append(name) or read(name, *a))
    for index in range(len(data)):
        data[index]
    # Its beginning is intact: crops that lie there are used until one fails.
    assert opened.count(str(path)) <= 2
    assert len(data.unreadable) == 1


def test_workers_share_what_is_unreadable(folder):
    (folder / "music" / "d.wav").unlink()
    data = dataset(folder)
    batches(data, workers=1)
    assert len(data.unreadable) == 1


def test_a_file_shorter_than_the_manifest_says(folder, caplog):
    write_tone(folder / "music" / "long.flac", 3.0)
    data = dataset(folder)
    caplog.clear()
    for index in range(len(data)):
        data[index]
    (message,) = caplog.messages
    assert "long.flac: ends at sample 48000" in message
    assert "train.tsv says 144480: rebuild the manifest" in message


def test_too_many_unreadable(folder):
    for name in ("long.flac", "b/44k stereo.wav"):
        (folder / "music" / name).unlink()
    with pytest.raises(InputError, match=r"2 of 5 tracks cannot be read") as raised:
        batches(dataset(folder, max_unreadable=0.3))
    assert "python -m manifests_tools check" in str(raised.value)
    assert "no such file" in str(raised.value)
    assert "\n" not in str(raised.value)
    batches(dataset(folder, max_unreadable=0.4))


def test_nothing_left_to_read(folder):
    for path in (folder / "music").rglob("*.*"):
        path.unlink()
    with pytest.raises(InputError, match="no readable track"):
        dataset(folder, max_unreadable=1.0)[0]


def test_no_track_is_long_enough(folder):
    with pytest.raises(
        InputError, match=r"none of its 6 tracks is as long as min_seconds \(60 s\)"
    ):
        dataset(folder, min_seconds=60)
    with pytest.raises(InputError, match="too short for two frames"):
        dataset(folder, crop_seconds=0.03)


def test_crops_per_track(folder):
    assert len(dataset(folder, crops_per_track=2)) == 10


def test_spans_grow_with_the_epoch_in_training_alone(folder):
    growth = {"mask_length_start": 1, "mask_growth_epochs": 3}
    data, plain = dataset(folder, **growth), dataset(folder)
    for epoch, same in ((1, False), (2, False), (3, True)):
        data.set_epoch(epoch)
        plain.set_epoch(epoch)
        grown, usual = data[0]["mask"], plain[0]["mask"]
        assert grown.sum() == usual.sum()
        assert torch.equal(grown, usual) == same
    valid = dataset(folder, **growth, training=False)
    assert torch.equal(valid[0]["mask"], dataset(folder, training=False)[0]["mask"])


def test_no_label_sets_are_targets_without_classes(folder):
    data = dataset(folder, labels=False)
    assert "target" not in data.collater([data[0]])
    data = dataset(folder, label_rates=())
    batch = data.collater([data[0], data[1]])
    assert batch["target"].shape == (*batch["net_input"]["mask"].shape, 0)
    assert len(batch["net_input"]["unmasked_indices"])
