"""The share of frames that each setting masks, here and in fairseq, as a table.

    python -m tests.benchmarks.mask_ratios

fairseq's share falls with the number of crops in a batch. They are those of its recipes, 1.4
million samples for HuBERT and 3.8 million for data2vec, and two larger batches.
"""

import numpy as np

from music_ssl_fairseq.data.masks import FairseqMask, SpanMask

BATCHES = 300
HUBERT, DATA2VEC = 2, 1  # spans at least

# mask_prob, mask_length, least spans, frames of a crop, crops of a batch
SETTINGS = (
    (0.80, 10, HUBERT, 249, 17),
    (0.80, 10, HUBERT, 249, 24),
    (0.80, 10, HUBERT, 249, 100),
    (0.65, 10, DATA2VEC, 1499, 7),
    (0.65, 10, DATA2VEC, 249, 47),
    (0.50, 10, DATA2VEC, 1499, 7),
    (0.80, 10, DATA2VEC, 1499, 7),
    (0.65, 5, DATA2VEC, 1499, 7),
    (0.65, 15, DATA2VEC, 1499, 7),
)


def ratios(
    prob: float, length: int, min_spans: int, frames: int, crops: int, batches: int = BATCHES
) -> tuple[float, float]:
    """Percent of the frames that are masked with `model.mask_mode` fixed, and fairseq."""
    fixed = SpanMask(prob, length, min_spans).count(frames) / frames
    mask = FairseqMask(prob, length, min_spans)
    drawn = [mask.batch([frames] * crops, 0, epoch, range(crops)) for epoch in range(batches)]
    return 100 * fixed, 100 * float(np.mean(drawn))


if __name__ == "__main__":
    print("| mask_prob | mask_length | frames | crops | fixed | fairseq |")
    print("|---|---|---|---|---|---|")
    for setting in SETTINGS:
        prob, length, _, frames, crops = setting
        fixed, fairseq = ratios(*setting)
        print(f"| {prob} | {length} | {frames} | {crops} | {fixed:.1f} | {fairseq:.1f} |")
