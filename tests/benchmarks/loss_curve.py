"""Train our model and fairseq's from the same weights on the same batches; compare the losses.

    python -m tests.benchmarks.loss_curve --manifests manifests --labels labels --out curve.png

musicHuBERT on a GPU: ours with everything that makes it fast (bf16, compiled), fairseq's
HubertModel in its own fp16, as users of either train. Crops, masks, labels, learning rates and
initial weights are the same; dropout is drawn by each for itself, so the curves are those of two
runs that differ in rounding and in chance. On a CPU the models are tiny and both run in fp32.
"""

import argparse
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf

from music_ssl_fairseq.criterions.music_hubert import (
    MusicHubertCriterion,
    MusicHubertCriterionConfig,
)
from music_ssl_fairseq.data.crop_config import CropConfig
from music_ssl_fairseq.data.label_metadata import choose_label_rate
from music_ssl_fairseq.data.label_store import LabelStore
from music_ssl_fairseq.data.manifest import Manifest
from music_ssl_fairseq.data.pretraining_dataset import PretrainingDataset
from music_ssl_fairseq.data.units import LabelSet, UnitDictionary
from tests import tiny
from tests.benchmarks.models import (
    DEVICE,
    GPU,
    HUBERT,
    SIZES,
    our_optimiser,
    stock_optimiser,
    update_step,
)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--manifests", type=Path, required=True, help="folder with train.tsv")
    parser.add_argument("--labels", type=Path, required=True, help="folder with train.km")
    parser.add_argument("--updates", type=int, default=300 if GPU else 20)
    parser.add_argument("--crops", type=int, default=48 if GPU else 4, help="a batch")
    parser.add_argument("--seconds", type=float, default=5.0 if GPU else 1.0, help="of a crop")
    parser.add_argument("--lr", type=float, default=3e-4, help="peak, after a third of the updates")
    parser.add_argument("--out", type=Path, help="picture to write")
    return parser.parse_args()


def batches(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Batches of our dataset, on the device, epoch after epoch."""
    manifest = Manifest(args.manifests / "train.tsv")
    of_model = {"mask_prob": HUBERT["mask_prob"], "mask_length": 10}
    of_model["conv_feature_layers"] = SIZES["conv_feature_layers"]
    data = PretrainingDataset(
        manifest,
        OmegaConf.structured(CropConfig(args.seconds, args.seconds, seed=0, **of_model)),
        training=True,
        min_mask_spans=2,
        list_unmasked=True,
        labels=[
            LabelSet(
                LabelStore(args.labels / "train.km"),
                UnitDictionary(args.labels / "dict.km.txt"),
                choose_label_rate(args.labels, None),
            )
        ],
    )
    for epoch in range(1, 1000):
        data.set_epoch(epoch)
        order = data.ordered_indices()
        for first in range(0, len(order) - args.crops + 1, args.crops):
            batch = data.collater([data[i] for i in order[first : first + args.crops]])
            net_input = {
                name: value.to(DEVICE) if isinstance(value, torch.Tensor) else value
                for name, value in batch["net_input"].items()
            }
            yield {**batch, "net_input": net_input, "target": batch["target"].to(DEVICE)}


def models(k: int) -> tuple[Any, Any]:
    """Ours and fairseq's, with the same weights."""
    fields = SIZES | HUBERT | {"encoder_layerdrop": 0.05}
    theirs = tiny.fairseq_hubert(k, **fields)
    ours = tiny.music_hubert(k, **fields)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours.to(DEVICE).train(), (theirs.half() if GPU else theirs).to(DEVICE).train()


def use_our_masks(current: dict[str, Any]) -> None:
    """Have fairseq's model mask what ours masks."""
    from fairseq.models.hubert import hubert

    def masks(*args: Any, **kwargs: Any) -> np.ndarray:
        return current["batch"]["net_input"]["mask"].cpu().numpy()

    hubert.compute_mask_indices = masks


def trainers(args: argparse.Namespace, k: int, current: dict[str, Any]) -> dict[str, Any]:
    """Name -> (closure of one update, its optimiser, list of losses in bits that it adds to)."""
    from fairseq.criterions.hubert_criterion import HubertCriterion

    ours, theirs = models(k)
    losses: dict[str, list] = {"ours": [], "fairseq": []}
    criterion = MusicHubertCriterion(MusicHubertCriterionConfig(features_pen_weight=0.0), None)
    stock = HubertCriterion(None, 1.0, 0.0, [0.0])

    def our_loss() -> tuple[Any, Any]:
        loss, size, _ = criterion(ours, current["batch"])
        losses["ours"].append((loss.detach() / size / np.log(2)).float())
        return loss, size

    def their_loss() -> tuple[Any, Any]:
        batch = current["batch"]
        source = batch["net_input"]["source"]
        padding = torch.zeros(source.shape, dtype=torch.bool, device=DEVICE)
        net_input = {"source": source.half() if GPU else source, "padding_mask": padding}
        sample = {
            "id": batch["id"],
            "net_input": net_input,
            "target_list": list(batch["target"].unbind(-1)),
        }
        loss, size, _ = stock(theirs, sample)
        losses["fairseq"].append((loss.detach() / size / np.log(2)).float())
        return loss, size

    found = {}
    for name, model, make, loss in (
        ("ours", ours, our_optimiser, our_loss),
        ("fairseq", theirs, stock_optimiser, their_loss),
    ):
        optimiser = make(model, args.lr)
        found[name] = (update_step(model, optimiser, loss), optimiser, losses[name])
    return found


def main() -> None:
    logging.disable(logging.WARNING)
    args = parse()
    torch.manual_seed(0)
    current: dict[str, Any] = {}
    use_our_masks(current)
    both = trainers(args, UnitDictionary(args.labels / "dict.km.txt").num_units, current)
    for update, batch in zip(range(args.updates), batches(args), strict=False):
        current["batch"] = batch
        for step, optimiser, _ in both.values():
            optimiser.set_lr(args.lr * min(1.0, 3 * (update + 1) / args.updates))
            step()
    curves = {name: torch.stack(losses).cpu().numpy() for name, (_, _, losses) in both.items()}
    report(curves)
    if args.out:
        draw(curves, args.out)


def smooth(values: np.ndarray, width: int = 10) -> np.ndarray:
    """Means of `width` updates."""
    return values[: len(values) // width * width].reshape(-1, width).mean(1)


def report(curves: dict[str, np.ndarray]) -> None:
    """Print the losses, means of ten updates, and how far apart they are."""
    print("| updates | fairseq, bits | ours, bits | difference |")
    print("|---|---|---|---|")
    ours, theirs = smooth(curves["ours"]), smooth(curves["fairseq"])
    for i in np.unique(np.linspace(0, len(ours) - 1, 12).round().astype(int)):
        difference = ours[i] - theirs[i]
        span = f"{10 * i + 1}-{10 * i + 10}"
        print(f"| {span} | {theirs[i]:.3f} | {ours[i]:.3f} | {difference:+.3f} |")
    steps = np.abs(np.diff(theirs)).mean()
    apart = np.abs(ours - theirs)
    print(
        f"apart by {apart.mean():.4f} bits on average, {apart.max():.4f} at most; fairseq's own "
        f"curve moves by {steps:.4f} from one ten to the next"
    )


def draw(curves: dict[str, np.ndarray], out: Path) -> None:
    """Both curves and their difference."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    names = {"fairseq": "fairseq HubertModel, fp16", "ours": "music_hubert, bf16, compiled"}
    for (name, label), style in zip(names.items(), ("-", "--"), strict=True):
        updates = 10 * np.arange(len(smooth(curves[name]))) + 5
        top.plot(updates, smooth(curves[name]), style, label=label)
    bottom.plot(updates, smooth(curves["ours"]) - smooth(curves["fairseq"]), color="#555555")
    top.set_ylabel("masked loss, bits")
    bottom.set_ylabel("difference")
    bottom.set_xlabel("updates")
    top.legend(frameon=False)
    for axes in (top, bottom):
        axes.grid(alpha=0.3)
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    main()
