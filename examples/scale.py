"""Compute what a pre-training takes, before it is started: time, bytes, memory.

    python examples/scale.py                     # 100,000 hours on 8 x 8 H100s
    python examples/scale.py --hours 5000 --nodes 1 --gpus-per-node 4 --network 0
    python examples/scale.py --models            # of the paper, on 1 to 64 GPUs

All figures are options, with what was measured as default: docs/scale.md says where. The formulas
are the functions below; each is a line or two.
"""

from argparse import ArgumentParser, Namespace

from music_ssl_fairseq.cli import Parser, real_number, whole_number

# Name, kind, seconds of audio per update, seconds of a crop, updates.
MODELS = (
    ("music2vec, 30 s crops (six models)", "music2vec", 3840, 30, 400_000),
    ("music2vec, 800k updates", "music2vec", 3840, 30, 800_000),
    ("music2vec, 5 s crops", "music2vec", 3840, 5, 400_000),
    ("musicHuBERT (four models, each)", "music_hubert", 960, 5, 400_000),
)

# Milliseconds per update and per 5 s crop on one GPU, without other processes.
STEP = {"music_hubert": (3.3, 0.453), "music2vec": (3.3, 0.649)}
MILLION_PARAMETERS = {"music_hubert": 94.4, "music2vec": 93.8}
MAY_BE_ZERO = ("network", "label-rate")
BYTES_PER_PARAMETER = {"music_hubert": 12, "music2vec": 16}  # weights, two moments, teacher


def get_parser() -> ArgumentParser:
    about_all = __doc__.splitlines()[0]
    program = "python examples/scale.py"
    parser = Parser(prog=program, description=about_all, allow_abbrev=False)

    def add(name: str, default: float, about: str) -> None:
        least = 0 if name in MAY_BE_ZERO else 0.001
        kind = whole_number(1) if isinstance(default, int) else real_number(least)
        parser.add_argument(
            f"--{name}",
            type=kind,
            default=default,
            metavar="N",
            help=f"{about} (default: %(default)g)",
        )

    add("hours", 100_000.0, "hours of music")
    add("track-seconds", 240.0, "seconds per track, a row of the manifest")
    add("nodes", 8, "machines")
    add("gpus-per-node", 8, "GPUs per machine")
    add("crops", 100, "crops of 5 s per GPU and update")
    add("updates", 400_000, "updates of the run")
    add("nvlink", 350.0, "GB/s of an all-reduce between GPUs of a machine")
    add("network", 50.0, "GB/s between a machine and others: 50 is 400 Gbit/s; 0 counts no time")
    add("gpu-speed", 1.0, "speed of a GPU as a share of an H100's")
    add("long-crops", 1.3, "time per second of audio of 30 s crops, as a multiple of 5 s crops")
    add("flac", 19.4, "kB per second of music as 16 kHz FLAC")
    add("label-rate", 100.0, "labels per second of music, of 2 bytes each; 0 for music2vec")
    add("disk", 1.0, "GB/s of the disk that checkpoints are written to")
    add("index", 4.6, "seconds per million rows to index the manifest")
    add("epoch", 19.0, "seconds per million rows of 240 s to order and batch an epoch")
    add("memory", 530.0, "MB per million rows of 240 s, shared by a process and its workers")
    add("digest", 0.93, "GB/s at which label text is hashed at the start")
    add("mfcc", 1370.0, "hours of music labelled with MFCC per hour and core")
    add("deep", 13_000.0, "hours of music labelled with a layer per hour and GPU")
    add("cores", 64, "CPU cores per machine")
    parser.add_argument(
        "--model", choices=STEP, default="music_hubert", help="default: %(default)s"
    )
    parser.add_argument(
        "--models", action="store_true", help="print the table of the paper's models instead"
    )
    return parser


def compute_ms(args: Namespace, model: str, crops: float, crop_seconds: float = 5) -> float:
    """Return the time of an update's arithmetic on one GPU, of crops of 5 s or as much audio."""
    fixed, per_crop = STEP[model]
    longer = args.long_crops if crop_seconds > 5 else 1
    return (fixed + per_crop * crops * longer) / args.gpu_speed


def exchange_ms(args: Namespace, model: str, bytes_each: int, nodes: int, per_node: int) -> float:
    """Return the time of the gradients' all-reduce: within nodes, then between them.

    A ring of n sends 2 (n - 1) / n of the bytes. GB/s are MB/ms.
    """
    megabytes = MILLION_PARAMETERS[model] * bytes_each
    within = 2 * (per_node - 1) / per_node * megabytes / args.nvlink
    between = 2 * (nodes - 1) / nodes * megabytes / args.network if args.network else 0
    return within + between


def one_run(args: Namespace) -> list[tuple[str, str]]:
    """Return what a run of the options takes, in words."""
    gpus = args.nodes * args.gpus_per_node
    alone = compute_ms(args, args.model, args.crops)
    fp32, bf16 = (
        exchange_ms(args, args.model, size, args.nodes, args.gpus_per_node) for size in (4, 2)
    )
    audio_per_update = 5 * args.crops * gpus
    rate = 1000 * audio_per_update / (alone + fp32)
    epoch = 3600 * args.hours / rate
    million_rows = 3600 * args.hours / args.track_seconds / 1e6
    million_of_240 = 3600 * args.hours / 240 / 1e6
    label_text = 3600 * args.hours * args.label_rate * 3.9 / 1e9
    read = (args.flac + 2e-3 * args.label_rate) * rate / gpus / 1000
    per_second = args.flac * 1e3 + 2 * args.label_rate
    checkpoint = MILLION_PARAMETERS[args.model] * BYTES_PER_PARAMETER[args.model] / 1e3
    run_hours = args.updates * audio_per_update / rate / 3600
    epochs = args.updates * audio_per_update / 3600 / args.hours
    return [
        ("on disk", f"{3600 * args.hours * per_second / 1e12:.1f} TB of FLAC and labels"),
        ("manifest", f"{million_rows:.2f} million rows, {args.memory * million_of_240:.0f} MB"),
        (
            "start",
            f"{args.index * million_rows:.0f} s for the index, {args.epoch * million_of_240:.0f} s "
            f"for an epoch's batches, {label_text / args.digest:.0f} s for the digest of "
            f"{label_text:.0f} GB of label text",
        ),
        (
            "MFCC labels",
            f"{args.hours / args.mfcc / args.cores:.1f} h on a node of {args.cores} cores",
        ),
        ("deep labels", f"{args.hours / args.deep / args.gpus_per_node:.1f} h on a node's GPUs"),
        ("update alone", f"{alone:.1f} ms of {args.crops} crops per GPU"),
        ("gradients", f"{4 * MILLION_PARAMETERS[args.model]:.0f} MB in fp32"),
        (
            "exchange, fp32",
            f"{fp32:.1f} ms, {fp32 / (alone + fp32):.0%} of the update, if not hidden",
        ),
        ("exchange, bf16", f"{bf16:.1f} ms, {bf16 / (alone + bf16):.0%}"),
        ("rate", f"{rate:,.0f} audio-s/s on {gpus} GPUs, {rate / gpus:,.0f} each"),
        ("read", f"{read:.0f} MB/s per GPU, {read * gpus / 1e3:.1f} GB/s in all"),
        ("epoch", f"{epoch / 60:.1f} min"),
        (
            "checkpoint",
            f"{checkpoint:.1f} GB, {checkpoint / args.disk:.1f} s to write, meanwhile training",
        ),
        (
            "run",
            f"{run_hours:.1f} h, {run_hours * gpus:,.0f} GPU-hours: {args.updates} updates of "
            f"{audio_per_update} s, {epochs:.1f} epochs",
        ),
    ]


def paper_models(args: Namespace) -> list[str]:
    """Return a Markdown table of the paper's models on 1, 8 and 64 GPUs."""
    lines = ["| model | GPUs | ms per update | GPU-hours | days |", "|---|---|---|---|---|"]
    for name, model, audio, crop_seconds, updates in MODELS:
        for gpus in (1, 8, 64):
            nodes = -(-gpus // args.gpus_per_node)
            alone = compute_ms(args, model, audio / 5 / gpus, crop_seconds)
            milliseconds = alone + exchange_ms(args, model, 4, nodes, gpus // nodes)
            hours = updates * milliseconds / 3.6e6
            cells = (name, gpus, f"{milliseconds:.1f}", f"{hours * gpus:.0f}", f"{hours / 24:.2f}")
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines


def main() -> None:
    args = get_parser().parse_args()
    if args.models:
        print("\n".join(paper_models(args)))
        return
    for name, value in one_run(args):
        print(f"{name:15} {value}")


if __name__ == "__main__":
    main()
