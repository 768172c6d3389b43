"""An epoch continues where its crops ended, whatever the batches are then."""

import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from fairseq.data import iterators

from music_ssl_fairseq.data.crops import CropPlan
from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.training.epoch import GroupedBatches, ResumableEpochs, note_batching
from tests.fairseq_commands import SHALLOW, logged, train

OFF = ("dropout", "attention_dropout", "dropout_input", "encoder_layerdrop")


class Crops(torch.utils.data.Dataset):
    """37 crops of which 7 are short, batched as the pre-training dataset does."""

    def __init__(self, num_full: int = 30):
        lengths = np.array([*(10 for _ in range(num_full)), 9, 8, 8, 7, 6, 6, 5])
        self._plan = CropPlan(lengths, 10, hop=1, min_samples=1, seed=4)
        self.read_ahead = []  # epochs of the crops read, where it is given

    def __len__(self):
        return len(self._plan)

    def __getitem__(self, index):
        return int(index)

    def item(self, index, epoch):
        self.read_ahead.append(epoch)
        return index

    def set_epoch(self, epoch):
        self.epoch = epoch

    def ordered_indices(self):
        return self._plan.order(self.epoch)

    def order(self, epoch):
        return self._plan.order(epoch)

    def batch_by_size(self, indices, max_tokens, max_sentences, required_batch_size_multiple):
        batches, batch = [], []
        for index in indices.tolist():
            longest = max(map(self._plan.length, [*batch, index]))
            tokens = max_tokens and longest * (len(batch) + 1) > max_tokens
            if batch and (tokens or len(batch) == (max_sentences or 99)):
                batches.append(batch)
                batch = []
            batch.append(index)
        return [*batches, batch]


def iterators_of(settings, epoch=1, data=None, ahead=True, **more):
    """One per process; `ahead`: reading ahead across the ends of epochs."""
    sizes, shards = settings

    def cut(indices):
        whole = {"max_tokens": None, "max_sentences": None, "required_batch_size_multiple": 1}
        return Crops().batch_by_size(indices, **{**whole, **sizes})

    def batches(data, epoch):
        data.set_epoch(epoch)
        return cut(data.ordered_indices())

    found = []
    for shard in range(shards):
        crops = data or Crops()
        iterator = ResumableEpochs(
            dataset=crops,
            collate_fn=list,
            batch_sampler=batches,
            seed=7,
            num_shards=shards,
            shard_id=shard,
            epoch=epoch,
            reuse_dataloader=ahead,  # if fairseq reuses it, a curriculum never ends
            **more,
        )
        order = (lambda epoch, crops=crops: cut(crops.order(epoch))) if ahead else None
        found.append(note_batching(iterator, {**sizes, "num_shards": shards}, order))
    return found


def go_on(processes, steps):
    """The crops of some updates, and the checkpoint then."""
    running = [p.next_epoch_itr() for p in processes]
    crops = []
    for _ in range(steps):
        for batches in running:
            crops += next(batches)
    return crops, processes[0].state_dict(), running


def the_rest(processes):
    running = [p.next_epoch_itr() for p in processes]
    crops = []
    while running[0].has_next():
        for batches in running:
            crops += next(batches)
    assert not any(batches.has_next() for batches in running)
    return crops


def crops_of_an_epoch(settings):
    return the_rest(iterators_of(settings))


def resumed(settings, state):
    processes = iterators_of(settings, state["epoch"])
    for process in processes:
        process.load_state_dict(state)
    return processes


ONE, TWO, THREE = ({"max_sentences": n} for n in (1, 2, 3))
SIX, TOKENS = {"max_sentences": 6}, {"max_tokens": 35}


@pytest.mark.parametrize("before", [(SIX, 1), (TWO, 3), (TOKENS, 2)])
@pytest.mark.parametrize(
    "after",
    [(SIX, 1), (THREE, 1), (ONE, 4), (SIX, 2), (TWO, 3), (TWO, 1), ({"max_sentences": 40}, 1)],
)
def test_crops_go_on_where_they_ended(before, after):
    first, state, _ = go_on(iterators_of(before), 3)
    processes = resumed(after, state)
    order = crops_of_an_epoch(before)
    assert first + the_rest(processes) == order
    assert sorted(order) == list(range(len(Crops())))
    # And the next epoch is that of a run that was never stopped.
    assert [p.next_epoch_idx for p in processes] == [2] * after[1]
    undisturbed = iterators_of(after)
    the_rest(undisturbed)
    assert the_rest(processes) == the_rest(undisturbed)


def epochs_of(iterator, update_freq, curriculum=0):
    """The batches of five epochs, as fairseq's loop asks for them."""
    for _ in range(5):
        epoch = iterator.next_epoch_itr(shuffle=iterator.next_epoch_idx > curriculum)
        skip = iterator.skip_remainder_batch
        yield [list(update) for update in GroupedBatches(epoch, update_freq, skip)]


@pytest.mark.parametrize("buffer_size", [0, 3])
@pytest.mark.parametrize("settings", [(SIX, 1), (TWO, 3), ({"max_sentences": 40}, 1)])
@pytest.mark.parametrize(
    "options",
    [{}, {"grouped_shuffling": True}, {"skip_remainder_batch": True}, {"disable_shuffling": True}],
    ids=lambda options: next(iter(options), "none"),
)
def test_reading_ahead_changes_no_batch(buffer_size, settings, options):
    if options.get("skip_remainder_batch") and settings[0] == {"max_sentences": 40}:
        settings = (ONE, 1)  # of one batch, nothing would be left
    options = {**options, "buffer_size": buffer_size}
    for update_freq, curriculum in ((1, 0), (2, 2)):
        both = (iterators_of(settings, ahead=ahead, **options) for ahead in (False, True))
        for plain, ahead in zip(*both, strict=True):
            before = np.random.get_state()[1].tolist()  # noqa: NPY002 (fairseq's generator)
            found = list(epochs_of(ahead, update_freq, curriculum))
            assert np.random.get_state()[1].tolist() == before  # noqa: NPY002
            assert found == list(epochs_of(plain, update_freq, curriculum))
            ahead.stop()


def test_the_next_epochs_are_read_before_this_one_has_ended():
    [process] = iterators_of((SIX, 1), buffer_size=20)
    epoch = process.next_epoch_itr()
    next(epoch)
    deadline = time.monotonic() + 10
    while 3 not in process.dataset.read_ahead and time.monotonic() < deadline:
        time.sleep(0.01)
    assert 3 in process.dataset.read_ahead
    assert process.state_dict()["epoch"] == 1
    assert process.state_dict()["iterations_in_epoch"] == 1
    process.stop()
    assert not process.dataset.read_ahead[200:]  # 20 batches, and those in hand


@pytest.mark.parametrize("steps", [0, 3])
def test_reading_begins_before_training_with_the_same_batches(steps):
    settings = (SIX, 1)
    expected = crops_of_an_epoch(settings)
    begun, state, _ = go_on(iterators_of(settings), steps)
    [process] = resumed(settings, state) if steps else iterators_of(settings, buffer_size=5)
    process.buffer_size = 5
    process.begin(True, False)
    stream = process._stream
    if not steps:
        deadline = time.monotonic() + 10
        while not process.dataset.read_ahead and time.monotonic() < deadline:
            time.sleep(0.01)
        assert process.dataset.read_ahead
    assert begun + the_rest([process]) == expected
    assert process._stream is stream
    process.stop()


def test_an_epoch_cut_short_leaves_no_thread():
    """dataset.max_valid_steps cuts validations short: each would keep its batches for ever."""
    (iterator,) = iterators_of(({"max_sentences": 3}, 1), ahead=False, buffer_size=2)
    before = threading.active_count()
    for _ in range(3):
        next(iterator.next_epoch_itr(shuffle=False))
        assert threading.active_count() == before + 1
    iterator.stop()
    assert threading.active_count() == before


def test_workers_are_forked_in_the_thread_that_begins():
    """In another thread they might be born while this one holds a library's lock."""
    [process] = iterators_of((SIX, 1), num_workers=1, buffer_size=5)
    process.begin(True, False)
    assert process.dataloader._iterator is not None
    assert the_rest([process]) == crops_of_an_epoch((SIX, 1))
    process.stop()


def test_as_often_as_settings_change():
    order = crops_of_an_epoch((SIX, 1))
    crops, state, _ = go_on(iterators_of((SIX, 1)), 1)
    for settings, steps in (((TWO, 2), 2), ((TWO, 2), 1), ((TWO, 1), 3), ((THREE, 3), 1)):
        more, state, _ = go_on(resumed(settings, state), steps)
        crops += more
    assert crops + the_rest(resumed((ONE, 1), state)) == order


def test_batches_stay_as_they_are_for_another_number_of_processes():
    def batches(processes, steps=None):
        running = [p.next_epoch_itr() for p in processes]
        found = []
        while running[0].has_next() and (steps is None or len(found) < steps * len(running)):
            found += [next(r) for r in running]
        return [batch for batch in found if batch]

    whole = batches(iterators_of((SIX, 1)))
    first = iterators_of((SIX, 1))
    begun = batches(first, 2)
    assert begun + batches(resumed((SIX, 2), first[0].state_dict())) == whole


@pytest.mark.parametrize("update_freq", [1, 2, 3, 4])
@pytest.mark.parametrize("trained", [1, 2, 3, 5])
def test_no_batch_is_lost_to_another_update_freq(update_freq, trained):
    whole = iterators.CountingIterator(range(10))
    rest = iterators.CountingIterator(list(range(trained, 10)), start=trained, total=10)
    updates = GroupedBatches(rest, update_freq)
    assert [batch for update in updates for batch in update] == list(range(trained, 10))
    assert not updates.has_next()
    assert not rest.has_next()
    assert len(list(GroupedBatches(whole, update_freq))) == -(-10 // update_freq)


def test_an_epoch_that_is_over_is_not_cut_anew():
    processes = iterators_of((SIX, 1))
    the_rest(processes)
    state = processes[0].state_dict()
    assert (state["epoch"], state["iterations_in_epoch"]) == (2, 0)
    assert sorted(the_rest(resumed((TWO, 2), state))) == list(range(37))


def test_other_data_is_one_line():
    _, state, _ = go_on(iterators_of((SIX, 1)), 2)
    [process] = iterators_of((TWO, 1), data=Crops(num_full=31))
    with pytest.raises(InputError, match="an epoch of 37 crops, and this one has 38"):
        process.load_state_dict(state)


def test_half_the_batch_and_twice_the_update_freq_is_the_same_update(here):
    same = [
        *SHALLOW["music_hubert"],
        *(f"model.{name}=0" for name in OFF),
        "dataset.disable_validation=true",
    ]
    same += ["task.crops_per_track=4", "optimization.max_update=5"]  # of six updates an epoch
    whole = [*same, "dataset.batch_size=4"]
    save = ["checkpoint.save_interval_updates=2", "checkpoint.keep_interval_updates=-1"]
    train("music_hubert", *whole, *save, "hydra.run.dir=run")
    expected = logged(Path("run"), "train_inner")[2:]
    Path("run/checkpoints/checkpoint_1_2.pt").replace("run/checkpoints/checkpoint_last.pt")
    Path("run/hydra_train.log").unlink()
    half = ["dataset.batch_size=2", "optimization.update_freq=[2]", "hydra.run.dir=run"]
    train("music_hubert", *same, *half)
    found = logged(Path("run"), "train_inner")
    assert [step["num_updates"] for step in found] == [3, 4, 5]
    for key in ("loss", "gnorm", "accuracy_m", "bsz", "epoch"):
        assert [s[key] for s in found] == pytest.approx([s[key] for s in expected], rel=2e-3), key
