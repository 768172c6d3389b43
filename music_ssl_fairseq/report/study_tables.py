"""Write the tables of a study: scores, differences by question, layers, costs."""

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from music_ssl_fairseq.report.study import (
    CLAIMS,
    QUESTIONS,
    Rows,
    Run,
    other_judges,
    tasks_of,
    unknown_judge,
    value,
)
from music_ssl_fairseq.report.study_pairs import LEVEL, Difference, differences, unequal_audio
from music_ssl_fairseq.report.tables import document, table
from music_ssl_fairseq.runtime.files import write_text


def markdown(rows: Rows, found: Sequence[Difference]) -> str:
    """Format the tables: scores, differences by question, layers, costs."""
    return document([*_scores(rows), *_questions(rows, found), *_layers(rows), *_costs(rows)])


def _scores(rows: Rows) -> list[str]:
    tasks = tasks_of(rows)
    runs = [run.about for runs in rows.values() for run in runs]
    small = any(about.get("made_of", {}).get("miniature") for about in runs)
    scores = [
        [name, str(len(runs)), *(_cell(runs, task) for task in tasks)]
        for name, runs in rows.items()
    ]
    return [
        "# The study's results",
        "**A miniature: the program runs. Its figures say nothing.**" if small else "",
        "Percent on the test split, mean over seeds. Brackets: the 95 % interval of a bootstrap "
        "over what clips are parts of, averaged over seeds, without their spread. Differences "
        "below hold both. Parentheses: the layer that validation chose, per seed.",
        table(["row", "seeds", *tasks], scores),
        *_judges(rows),
    ]


def _judges(rows: Rows) -> list[str]:
    """Name the results whose judge is unknown, or had other sound, lists or settings."""
    unknown = [
        f"{name}-s{run.about['seed']}"
        for name, runs in rows.items()
        for run in runs
        if unknown_judge(run.about)
    ]
    alike: dict[str, list[str]] = {}
    for name, keys in other_judges(rows).items():
        sounds = [key.split(".")[1] for key in keys if key.endswith(".sound")]
        rest = [key for key in keys if not key.endswith(".sound")]
        what = [f"clips that sound otherwise: {', '.join(sounds)}"] * bool(sounds) + rest
        alike.setdefault("; ".join(what), []).append(name)
    others = [f"{', '.join(names)} ({keys})" for keys, names in alike.items()]
    return [
        f"**Judged otherwise than most rows: {'; '.join(others)}.**" if others else "",
        f"These results do not say what their clips sounded like: {', '.join(unknown)}. Clips of "
        "other sound behind the same lists would go unnoticed."
        if unknown
        else "",
    ]


def _questions(rows: Rows, found: Sequence[Difference]) -> list[str]:
    blocks: list[str] = []
    for question in dict.fromkeys(d.question for d in found):
        of_question = [d for d in found if d.question == question]
        pairs: dict[str, dict[str, Difference]] = {}
        for d in of_question:
            pairs.setdefault(f"{d.one} minus {d.other}", {})[d.task] = d
        tasks = [task for task in tasks_of(rows) if any(task in of for of in pairs.values())]
        lines = [
            [name, *(_difference(of.get(task)) for task in tasks)] for name, of in pairs.items()
        ]
        verdicts = (f"- {name}: {_verdict(list(of.values()))}" for name, of in pairs.items())
        blocks += [f"## {question}", table(["", *tasks], lines), "\n".join(verdicts)]
    unequal = [f"{x} and {y}" for _, x, y in QUESTIONS if unequal_audio(rows, x, y)]
    if unequal:
        blocks.append(f"Not compared, because of unequal audio: {', '.join(unequal)}.")
    if found and not any(run.trained and len(runs) > 1 for runs in rows.values() for run in runs):
        blocks.append(
            "**No row has two seeds: the errors above hold the clips' variance alone, and another "
            "seed moves scores by points.**"
        )
    if found:
        blocks.append(
            "Points, ± 1.96 standard errors of clips and seeds. Bold: p < 0.05 after Holm's "
            f'correction over all {len(found)} comparisons of this page. "Too small to tell" '
            "names the least difference that would be clear with these clips and seeds, and the "
            "seeds per row with which the one found would be."
        )
    return blocks


def _verdict(found: Sequence[Difference]) -> str:
    above = [d.task for d in found if d.clear and d.value > 0]
    below = [d.task for d in found if d.clear and d.value < 0]
    small = []
    for d in [d for d in found if not d.clear]:
        least = f"{100 * d.detectable:.1f}" if d.detectable < 1 else "over 100"
        needed = f"{d.seeds:.0f} seeds" if math.isfinite(d.seeds) else "more clips"
        small.append(f"{d.task} ({least}; {needed})")
    named = (("above", above), ("below", below), ("too small to tell", small))
    text = "; ".join(f"{word} on {', '.join(tasks)}" for word, tasks in named if tasks) + "."
    return text + _beside_the_paper(found)


def _beside_the_paper(found: Sequence[Difference]) -> str:
    """Say whether a pair's differences agree with what the paper finds of the question."""
    claim: dict[str, Any] = CLAIMS.get(found[0].question, {})
    about = [d for d in found if claim and d.task in claim.get("tasks", [d.task])]
    if not about:
        return ""
    signs = [math.copysign(1, d.value) * claim["signs"][d.one] for d in about if d.clear]
    agree, contrary = signs.count(1), signs.count(-1)
    word = "Too small to tell" if 2 * len(signs) <= len(about) else "Agrees in part"
    word = "Agrees" if 2 * agree > len(about) else word
    word = "Disagrees" if 2 * contrary > len(about) else word
    return (
        f" The paper finds that {claim['text']}. **{word}**: {agree} of {len(about)} tasks are "
        f"clearly so, {contrary} clearly the contrary."
    )


def _layers(rows: Rows) -> list[str]:
    """Format validation scores at four depths, of each family's trained rows and random weights."""
    kinds: dict[str, list[Run]] = {}
    for run in itertools.chain.from_iterable(rows.values()):
        family = run.about.get("family")
        if family:
            kinds.setdefault(family if run.trained else f"random {family}", []).append(run)
    tasks, lines = tasks_of(rows), []
    for kind, runs in kinds.items():
        curves = {task: mean_layer_curve(runs, task) for task in tasks}
        deepest = max((max(curve) for curve in curves.values() if curve), default=0)
        for layer in dict.fromkeys(round(deepest * third / 3) for third in range(4)):
            cells = [curves[task].get(layer) for task in tasks]
            shown = ["" if cell is None else f"{100 * cell:.1f}" for cell in cells]
            lines.append([f"{kind}, {len(runs)} run{'s' * (len(runs) > 1)}", str(layer), *shown])
    if not lines:
        return []
    about = "Validation score in percent, mean over runs; 0 is the extractor's output."
    layers = table(["", "layer", *tasks], lines)
    return ["## Layers and depth", about, layers, _beats_by_depth(rows)]


def _beats_by_depth(rows: Rows) -> str:
    """Say whether trained models track beats worse in their last layer than in their third."""
    from scipy.stats import binomtest

    curves = [
        mean_layer_curve([run], "beat") for runs in rows.values() for run in runs if run.trained
    ]
    ends = [(c[round(max(c) / 3)], c[max(c)]) for c in curves if c and round(max(c) / 3) in c]
    worse, better = (sum(sign * (a - b) > 0 for a, b in ends) for sign in (1, -1))
    if not worse + better:
        return ""
    clear = binomtest(worse, worse + better).pvalue < LEVEL
    word = ("Agrees" if worse > better else "Disagrees") if clear else "Too small to tell"
    return (
        f"The paper finds that beat tracking degrades with depth. **{word}**: in {worse} of "
        f"{len(ends)} trained models the last layer is below the one a third of the way up (sign "
        "test over models)."
    )


def mean_layer_curve(runs: Sequence[Run], task: str) -> dict[int, float]:
    """Return a task's validation score of each layer, mean over runs."""
    curves = [run.about["tasks"][task]["layers"] for run in runs if task in run.about["tasks"]]
    numbers = sorted({int(layer) for curve in curves for layer in curve if layer.isdigit()})
    found = {n: [c[str(n)] for c in curves if c.get(str(n)) is not None] for n in numbers}
    return {n: float(np.mean(values)) for n, values in found.items() if values}


def _cell(runs: Sequence[Run], task: str) -> str:
    scored = [run.about["tasks"][task] for run in runs if task in run.about["tasks"]]
    if not scored or math.isnan(value(runs, task)):
        return ""
    ends = [
        np.mean([x[end] for x in scored])
        if all(x.get(end) is not None for x in scored)
        else math.nan
        for end in ("low", "high")
    ]
    layers = "/".join(dict.fromkeys(str(x["layer"]) for x in scored))
    interval = f" [{100 * ends[0]:.1f}, {100 * ends[1]:.1f}]" if np.isfinite(ends).all() else ""
    return f"{100 * value(runs, task):.1f}{interval} ({layers})"


def _difference(found: Difference | None) -> str:
    if found is None:
        return ""
    text = f"{100 * found.value:+.1f} ± {196 * found.error:.1f}"
    return f"**{text}**" if found.clear else text


COSTS = {
    "seed": "seed",
    "audio-seconds": "audio_seconds",
    "updates": "updates",
    "GPU-seconds": "gpu_seconds",
    "seconds": "wall_seconds",
    "judge, seconds": "judge_seconds",
    "device": "device",
}


def _costs(rows: Rows) -> list[str]:
    trained = [
        (name, run.about | ({"gpu_seconds": ""} if run.about.get("device") == "cpu" else {}))
        for name, runs in rows.items()
        for run in runs
        if run.trained
    ]
    lines = [
        [name, *(str(about.get(key, "")) for key in COSTS.values()), _held_out(about)]
        for name, about in trained
    ]
    spent = sum(about.get("gpu_seconds") or 0 for _, about in trained)
    total = f"All trainings: {spent / 3600:.1f} GPU-hours." if spent else ""
    return ["## Cost", table(["row", *COSTS, "held out"], lines), total] if lines else []


def _held_out(about: Mapping[str, Any]) -> str:
    last = (about.get("valid") or [{}])[-1]
    names = [n for n in last if n.startswith(("loss_m", "accuracy_m", "pred_music")) or n == "loss"]
    return ", ".join(f"{name} {last[name]:.4g}" for name in names)


def write(rows: Rows, out: Path) -> str:
    """Write study.md and differences.csv to `out`; return the Markdown."""
    found = differences(rows)
    text = markdown(rows, found)
    lines = ["question,one,other,task,value,error,p,corrected,detectable,seeds"]
    lines += [
        f'"{d.question}",{d.one},{d.other},{d.task},{d.value:.5f},{d.error:.5f},{d.p:.3g},'
        f"{d.corrected:.3g},{d.detectable:.5f},{d.seeds:.0f}"
        for d in found
    ]
    for name, contents in (("study.md", text), ("differences.csv", "\n".join(lines) + "\n")):
        write_text(out / name, contents)
    return text
