"""Time a training step of our models and of stock fairseq's, on the same device in one process.

    python -m tests.benchmarks.train_step                     # both families
    python -m tests.benchmarks.train_step --model music_hubert --k 2000 --crops 100
    python -m tests.benchmarks.train_step --baseline minimal-hubert
    python -m tests.benchmarks.train_step --no-stock --encode visible --masks 8 --crops 16

A step is forward, backward, gradient scaling, clipping and the optimiser's update, on synthetic
crops that already lie on the device. On a GPU the models are those of the paper (base, 95M); on a
CPU they are tiny, and the figures only show that the command works. The arithmetic ceiling counts
three forward passes' worth of floating-point operations a step (plus the teacher's), at the rate at
which this device multiplies large bf16 matrices, measured here. With several masks per crop, a
second of audio counts once; views (crops under one mask) per second are printed beside it.
"""

import argparse
import gc
import logging
import os
import time
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from music_ssl_fairseq import frames
from music_ssl_fairseq.criterions.music2vec import Music2VecCriterion, Music2VecCriterionConfig
from music_ssl_fairseq.criterions.music_hubert import (
    MusicHubertCriterion,
    MusicHubertCriterionConfig,
)
from music_ssl_fairseq.data.masks import SpanMask
from music_ssl_fairseq.frames import parse_conv_layers
from music_ssl_fairseq.modules.audio_encoder import AudioEncoderConfig
from tests import tiny
from tests.benchmarks.models import (
    DEVICE,
    GPU,
    HUBERT,
    SIZES,
    TOP_K,
    our_optimiser,
    stock_optimiser,
    update_step,
)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=["music_hubert", "music2vec"], action="append")
    parser.add_argument("--k", type=int, nargs="+", default=[500, 2000], help="units")
    parser.add_argument("--crops", type=int, default=100 if GPU else 4, help="crops per batch")
    parser.add_argument("--seconds", type=float, default=5.0 if GPU else 1.0, help="of a crop")
    parser.add_argument(
        "--stock-crops",
        type=int,
        nargs="+",
        default=[100, 50, 25] if GPU else [4],
        help="crops per batch for fairseq, the first that fits its memory",
    )
    parser.add_argument("--layerdrop", type=float, default=0.05, help="for ours and fairseq's")
    parser.add_argument("--encode", choices=["all", "visible"], default="all", help="model.encode")
    parser.add_argument("--masks", type=int, default=1, help="masks per crop (model.clone_batch)")
    parser.add_argument("--fast", choices=["auto", "off"], default="auto", help="model.fast")
    parser.add_argument("--no-stock", action="store_true", help="time ours alone")
    parser.add_argument("--baseline", choices=["minimal-hubert"], help="one more, if installed")
    parser.add_argument("--steps", type=int, default=20 if GPU else 2, help="timed")
    parser.add_argument("--profile", metavar="FILE", help="write where our step's time goes")
    args = parser.parse_args()
    if args.baseline:
        try:
            import minimal_hubert.model  # noqa: F401
        except ImportError as error:
            parser.error(f"--baseline {args.baseline}: {error}; pip install {args.baseline}")
    return args


def batch(
    crops: int, seconds: float, k: int, mask_prob: float, masks_per_crop: int = 1
) -> dict[str, Any]:
    """Crops of noise with masks and units; frames at 50 Hz."""
    rng = np.random.default_rng(0)
    samples = round(seconds * 16000)
    grid = frames.conv_grid(parse_conv_layers(SIZES["conv_feature_layers"]))
    span = SpanMask(mask_prob, 10)
    frames_ = grid.num_frames(samples)
    masks = np.stack([span.mask(frames_, rng) for _ in range(crops * masks_per_crop)])
    mask = torch.from_numpy(masks)
    return {
        "source": torch.randn(crops, samples, device=DEVICE),
        "mask": mask.to(DEVICE),
        "masked_indices": mask.flatten().nonzero().squeeze(1).to(DEVICE),
        "unmasked_indices": (~mask).flatten().nonzero().squeeze(1).to(DEVICE),
        "target": torch.randint(4, k + 4, (crops, frames_, 1), device=DEVICE),
        "num_visible": frames_ - span.count(frames_),
    }


def our_step(model_name: str, data: dict[str, Any], k: int, args: Any) -> Callable[[], None]:
    """A closure that trains one of our models for one update."""
    fields = SIZES | {"encoder_layerdrop": args.layerdrop, "fast": args.fast}
    fields |= {"encode": args.encode}
    net_input = {key: data[key] for key in ("source", "mask", "masked_indices", "num_visible")}
    sample = {"ntokens": data["source"].numel(), "nsentences": len(data["source"])}
    if model_name == "music_hubert":
        model: Any = tiny.music_hubert(k, **(tiny.NO_DROPOUT | fields | HUBERT))
        criterion: Any = MusicHubertCriterion(MusicHubertCriterionConfig(), None)
        net_input["unmasked_indices"] = data["unmasked_indices"]
        sample["target"] = data["target"]
    else:
        model = tiny.music2vec(**(tiny.NO_DROPOUT | fields | TOP_K))
        criterion = Music2VecCriterion(Music2VecCriterionConfig(), None)
    model.to(DEVICE).train()
    return update_step(
        model, our_optimiser(model), lambda: criterion(model, sample | {"net_input": net_input})[:2]
    )


def stock_step(model_name: str, data: dict[str, Any], k: int, args: Any) -> Callable[[], None]:
    """The same for stock fairseq: its model, criterion, fp16 and adam (fp32 on a CPU)."""
    from fairseq.criterions.hubert_criterion import HubertCriterion

    fields = SIZES | {"encoder_layerdrop": args.layerdrop}
    source = data["source"].half() if GPU else data["source"]
    padding = torch.zeros(source.shape, dtype=torch.bool, device=DEVICE)
    if model_name == "music_hubert":
        model: Any = tiny.fairseq_hubert(
            k, **(tiny.NO_DROPOUT | fields | HUBERT | {"dropout_features": 0.1})
        )
        criterion = HubertCriterion(None, 1.0, 0.0, [10.0])
        sample = {
            "id": torch.arange(len(source)),
            "net_input": {"source": source, "padding_mask": padding},
            "target_list": list(data["target"].unbind(-1)),
        }

        def loss_and_size() -> tuple[Any, Any]:
            loss, size, _ = criterion(model, sample)
            return loss, size
    else:
        model = tiny.fairseq_data2vec(
            **(tiny.NO_DROPOUT | fields | TOP_K | {"require_same_masks": True})
        )

        def loss_and_size() -> tuple[Any, Any]:
            result = model(source)
            return result["losses"]["regression"], result["sample_size"]

    model = (model.half() if GPU else model).to(DEVICE).train()
    return update_step(model, stock_optimiser(model), loss_and_size)


def minimal_hubert_step(data: dict[str, Any], k: int, args: Any) -> Callable[[], None]:
    """The same for the separate package minimal-hubert, in bf16 autocast as its training does."""
    from minimal_hubert.model import HuBERTPretrain

    model = HuBERTPretrain(num_classes=k).to(DEVICE).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4)
    labels = data["target"][..., 0] - 4

    def step() -> None:
        optimiser.zero_grad()
        with torch.autocast(DEVICE.type, torch.bfloat16):
            loss, _ = model(data["source"], labels, mask=data["mask"], attention_mask=None)
        loss.mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimiser.step()

    return step


def timed(step: Callable[[], None], steps: int) -> SimpleNamespace:
    """Seconds of the first two steps, then of one of `steps`, and the peak of memory in GB.

    Steps are timed in a row, as a training loop runs them: the GPU need not wait for Python between
    them, unless the step itself does.
    """
    first = time.perf_counter()
    for _ in range(2):  # the second compiles
        step()
    synchronise()
    first = time.perf_counter() - first
    for _ in range(3 if GPU else 1):
        step()
    if GPU:
        torch.cuda.reset_peak_memory_stats()
    synchronise()
    began = time.perf_counter()
    for _ in range(steps):
        step()
    synchronise()
    seconds = (time.perf_counter() - began) / steps
    memory = torch.cuda.max_memory_allocated() / 1e9 if GPU else 0.0
    return SimpleNamespace(start=first, seconds=seconds, memory=memory)


def synchronise() -> None:
    if GPU:
        torch.cuda.synchronize()


def attempt(make: Callable[[], Callable[[], None]], steps: int) -> SimpleNamespace | None:
    """`timed`, or None if the device's memory does not suffice."""
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 (fairseq masks with the global generator)
    try:
        return timed(make(), steps)
    except torch.OutOfMemoryError:
        return None
    finally:
        gc.collect()
        if GPU:
            torch.cuda.empty_cache()


def matrix_rate() -> float:
    """Floating-point operations a second of a large bf16 product on this device."""
    size = 8192 if GPU else 512
    a, b = torch.randn(2, size, size, device=DEVICE, dtype=torch.bfloat16)
    for _ in range(3):
        a @ b
    synchronise()
    began = time.perf_counter()
    for _ in range(10):
        a @ b
    synchronise()
    return 10 * 2 * size**3 / (time.perf_counter() - began)


MASK_PROB = {"music_hubert": 0.8, "music2vec": 0.65}


def operations(
    model_name: str,
    seconds: float,
    k: int,
    layerdrop: float = 0.05,
    encode: str = "all",
    masks: int = 1,
) -> float:
    """Multiplications and additions that a second of audio needs in one update.

    Forward once and backward twice that; LayerDrop leaves out layers, and of the last nothing but
    keys and values is needed of frames that are not masked; music2vec's teacher runs the encoder
    forward once more, whole. With `encode="visible"` layers have the visible frames alone, and a
    decoder has all; per mask come all but the extractor, the projection and the teacher.
    """
    length = round(seconds * 16000)
    extractor, channels = 0.0, 1
    for dim, kernel, stride in parse_conv_layers(SIZES["conv_feature_layers"]):
        length = (length - kernel) // stride + 1
        extractor += 2 * length * dim * kernel * channels
        channels = dim
    dim, layers = SIZES["encoder_embed_dim"], SIZES["encoder_layers"]
    ffn, groups = SIZES["encoder_ffn_embed_dim"], SIZES["conv_pos_groups"]
    positions = 2 * length * dim * dim // groups * (128 if model_name == "music_hubert" else 95)
    others, layer = _layer(length, dim, ffn)
    masked = SpanMask(MASK_PROB[model_name], 10).count(length) / length
    last = others + masked * (layer - others)
    encoder = positions + (1 - layerdrop) * ((layers - 1) * layer + last)
    width = dim
    if encode == "visible":
        width = AudioEncoderConfig.decoder_dim
        _, visible = _layer(round((1 - masked) * length), dim, ffn)
        encoder = positions + (1 - layerdrop) * layers * visible + _decoder(length, dim)
    projection = 2 * length * channels * dim
    head = masked * 2 * length * (width * 256 + 256 * k) if model_name == "music_hubert" else 0.0
    total = 3 * (extractor + projection + masks * (encoder + head))
    if model_name == "music2vec":
        total += positions + layers * layer
    return total / seconds


def _layer(length: int, dim: int, ffn: int) -> tuple[float, float]:
    """Operations of a Transformer layer: for keys and values, and in all."""
    others = 2.0 * length * 2 * dim * dim
    whole = others + 2 * length * (2 * dim * dim + 2 * dim * ffn) + 4 * length * length * dim
    return others, whole


def _decoder(length: int, dim: int) -> float:
    cfg = AudioEncoderConfig
    per_frame = 2 * cfg.decoder_kernel * cfg.decoder_dim // cfg.decoder_groups
    return length * per_frame * (dim + (cfg.decoder_layers - 1) * cfg.decoder_dim)


def report(name: str, crops: int, seconds: float, result: Any, ceiling: float) -> float:
    """Print a row; return seconds of audio a second."""
    if result is None:
        print(f"| {name} | {crops} | out of memory | | | |")
        return 0.0
    speed = crops * seconds / result.seconds
    print(
        f"| {name} | {crops} | {result.seconds * 1e3:.1f} | {speed:,.0f} | {result.memory:.1f} "
        f"| {speed / ceiling:.0%} |",
        flush=True,
    )
    return speed


def profile(step: Callable[[], None], file: str) -> None:
    """Write a table of the kernels that take longest."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    for _ in range(4):
        step()
    with profiler(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as run:
        for _ in range(3):
            step()
        synchronise()
    with open(file, "a") as handle:
        order = "self_cuda_time_total" if GPU else "self_cpu_time_total"
        averages = run.key_averages()
        handle.write(averages.table(sort_by=order, row_limit=150, max_name_column_width=100))


def main() -> None:
    logging.disable(logging.INFO)  # fairseq prints every configuration
    args = parse()
    rate = matrix_rate()
    device = torch.cuda.get_device_name() if GPU else "CPU (tiny models)"
    print(f"{device}, torch {torch.__version__}, bf16 products at {rate / 1e12:.1f} TFLOP/s")
    runs = [(name, k) for name in args.model or ["music_hubert", "music2vec"] for k in args.k]
    runs = [run for run in runs if run[0] == "music_hubert" or run[1] == args.k[0]]
    for name, k in runs:
        work = operations(name, args.seconds, k, args.layerdrop, args.encode, args.masks)
        ceiling = rate / work
        what = f"{name}, k = {k}" if name == "music_hubert" else name
        print(f"\n{what}: {args.seconds:g} s crops, ceiling {ceiling:,.0f} audio-s/s")
        print("| | crops | ms a step | audio-s/s | GB | of the ceiling |")
        print("|---|---|---|---|---|---|")
        data = batch(args.crops, args.seconds, k, MASK_PROB[name], args.masks)
        result = attempt(partial(our_step, name, data, k, args), args.steps)
        ours = report("ours", args.crops, args.seconds, result, ceiling)
        if args.masks > 1:
            print(f"{ours / args.seconds * args.masks:,.0f} views per second")
        if args.profile:
            profile(our_step(name, data, k, args), args.profile)
        if args.baseline and name == "music_hubert":
            compare(args, minimal_hubert_step, args.baseline, ours, k, ceiling)
        if not args.no_stock:
            compare(args, partial(stock_step, name), "fairseq", ours, k, ceiling)
        if result is not None:
            print(f"ours: the first two steps, with compilation, took {result.start:.1f} s")


def compare(args: Any, make: Any, name: str, ours: float, k: int, ceiling: float) -> None:
    """Time another implementation at the largest batch that fits, and print the ratio."""
    for crops in args.stock_crops:
        data = batch(crops, args.seconds, k, 0.8)
        result = attempt(partial(make, data, k, args), max(2, args.steps // 2))
        theirs = report(name, crops, args.seconds, result, ceiling)
        if theirs:
            print(f"ratio to {name}: {ours / theirs:.1f}")
            return


if __name__ == "__main__":
    main()
