"""report --study: paired differences, Holm's correction, tables and figures from small files."""

import json

import numpy as np
import pytest

from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.report import __main__ as command
from music_ssl_fairseq.report import study, study_pairs, study_tables

LEVELS = {"hubert-music": 0.6, "hubert-speech": 0.4, "hubert-k100": 0.601, "mfcc": 0.3}


@pytest.fixture
def results(tmp_path, rng):
    """Four rows, three of them trained with two seeds; music is above speech on all draws."""
    folder = tmp_path / "results"
    folder.mkdir()
    clips = 0.02 * rng.standard_normal(1001)
    clips[0] = 0
    for name, level in LEVELS.items():
        for seed in (1,) if name == "mfcc" else (1, 2):
            value = level + 0.01 * (seed - 1)
            scored = {"metric": "accuracy", "content": "c", "layer": "3", "value": value}
            scored |= {"low": value - 0.04, "high": value + 0.04, "layers": {"0": 0.1, "1": value}}
            about = {"name": name, "seed": seed, "tasks": {"key": scored}}
            if name != "mfcc":
                points = [{"update": u, "loss_m": 9 / u} for u in (1, 2, 3)]
                about |= {"family": "music_hubert", "audio_seconds": 1500, "updates": 3}
                about |= {"train": points, "valid": points[-1:], "gpu_seconds": 12.5}
            (folder / f"{name}-s{seed}.json").write_text(json.dumps(about))
            draws = value + clips + 0.002 * rng.standard_normal(1001) * (np.arange(1001) > 0)
            np.savez(folder / f"{name}-s{seed}.npz", key=draws.astype(np.float32))
    return folder


def test_clear_differences_are_told_from_chance(results):
    found = {(d.one, d.other): d for d in study_pairs.differences(study.read(results))}
    clear = found["hubert-music", "hubert-speech"]
    assert clear.value == pytest.approx(0.2, abs=1e-6)
    assert clear.error < 0.015  # the clips' own scatter of 0.02 is in both, and goes
    assert clear.p <= clear.corrected < 0.001
    close = found["hubert-k100", "hubert-music"]
    assert close.corrected > 0.5
    assert clear.seeds == 1  # of each row would have been enough
    assert close.value < close.detectable < clear.value
    assert close.seeds > 100 or np.isinf(close.seeds)


@pytest.mark.parametrize("value", [0.5, 0.1, 0.03])
def test_seeds_needed_are_those_of_a_t_test(value):
    """Without the clips' scatter, a difference is a t-test of two groups of seeds."""
    from scipy.stats import ttest_ind_from_stats

    def p(count):
        return ttest_ind_from_stats(value, 0.02, count, 0, 0.02, count).pvalue

    needed = study_pairs._seeds_needed(value, 0.01 / 2, 0.0, 0.02**2, known=0)
    assert p(needed) < 0.01 <= (p(needed - 1) if needed > 2 else 1)


def test_more_seeds_do_not_help_where_clips_are_too_few():
    assert np.isinf(study_pairs._seeds_needed(0.02, 0.005, 0.01**2, 0.02**2, known=5))


def test_unequal_audio_is_not_compared(results):
    file = results / "hubert-k100-s2.json"
    file.write_text(file.read_text().replace('"audio_seconds": 1500', '"audio_seconds": 900'))
    rows = study.read(results)
    assert "hubert-k100" not in {d.one for d in study_pairs.differences(rows)}
    text = study_tables.markdown(rows, study_pairs.differences(rows))
    assert "Not compared, because of unequal audio: hubert-k100 and hubert-music." in text


def test_seeds_that_scatter_widen_the_interval(results):
    before = study_pairs.differences(study.read(results))[0].error
    file = results / "hubert-k100-s2.npz"
    np.savez(file, key=np.load(file)["key"] + np.float32(0.2))
    assert study_pairs.differences(study.read(results))[0].error > 3 * before


def test_random_weights_scatter_as_trained_ones_do(results):
    def error():
        pairs = [("", "hubert-music", "hubert-speech")]
        return study_pairs.differences(study.read(results), pairs)[0].error

    (results / "hubert-speech-s2.json").unlink()
    trained = error()
    file = results / "hubert-speech-s1.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"random": "hubert-music"}))
    assert error() == pytest.approx(trained)


def test_a_variance_of_few_seeds_is_a_guess(results):
    def clear():
        return {d.one for d in study_pairs.differences(study.read(results)) if d.clear}

    assert clear() == {"hubert-music"}
    for name in ("hubert-speech", "hubert-k100"):  # only two seeds of one row are left
        (results / f"{name}-s2.json").unlink()
    file = results / "hubert-music-s2.npz"
    np.savez(file, key=np.load(file)["key"] + np.float32(0.03))
    assert clear() == set()  # 20 points are 5 standard errors, which one difference of seeds gave


def test_one_seed_per_row_is_said(results):
    for file in results.glob("*-s2.json"):
        file.unlink()
    rows = study.read(results)
    text = study_tables.markdown(rows, study_pairs.differences(rows))
    assert "**No row has two seeds" in text


def test_holm_multiplies_by_what_is_left():
    assert study_pairs.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert study_pairs.holm([0.9, 0.9]) == [1.0, 1.0]
    assert study_pairs.holm([]) == []


def test_the_command_writes_tables_and_figures(results, tmp_path):
    out = tmp_path / "out"
    assert command.main([str(results), "--study", "--out", str(out)]) == 0
    text = (out / "study.md").read_text()
    page = (out / "study.html").read_text()
    assert page.count('<svg role="img"') == 3
    assert '<td data-value="20.0" class="number best">+20.0 ±' in page
    assert page.count("<h2>") == text.count("\n## ") + 4  # scores and three figures
    assert "| hubert-music | 2 | 60.5 [56.5, 64.5] (3) |" in text
    assert "| hubert-music minus hubert-speech | **+20.0 ±" in text
    assert (
        "- hubert-music minus hubert-speech: above on key. The paper finds that music is better "
        "than speech on most tasks. **Agrees**: 1 of 1 tasks are clearly so, 0 clearly the"
    ) in text
    assert "The paper finds that more clusters help. **Too small to tell**: 0 of 1" in text
    assert "beat tracking" not in text
    assert "No row has two seeds" not in text
    assert "- hubert-k100 minus hubert-music: too small to tell on key (" in text
    assert "| music_hubert, 6 runs | 1 | 53.9 |" in text
    assert text.index("| mfcc | 1 |") < text.index("| hubert-music | 2 |")  # floors first
    assert "| hubert-speech | 2 | 1500 | 3 | 12.5 |" in text
    assert "mfcc" not in text.split("## Cost")[1]
    assert {file.name for file in out.iterdir()} == {
        *("study.html", "study.md", "differences.csv", "scores.png", "layers.png", "training.png")
    }


def test_rows_of_other_or_unknown_judges_are_named(results):
    for name, sound in (("hubert-music", "a"), ("hubert-speech", "a"), ("hubert-k100", "b")):
        file = results / f"{name}-s1.json"
        judge = {"tasks": {"key": {"list": "l", "sound": sound}}}
        about = json.loads(file.read_text()) | {"made_of": {"judge": judge}}
        file.write_text(json.dumps(about))
    text = study_tables.markdown(study.read(results), [])
    assert "most rows: hubert-k100-s1 (clips that sound otherwise: key).**" in text
    (unknown,) = [line for line in text.splitlines() if "do not say what" in line]
    for name in ("mfcc-s1", "hubert-music-s2", "hubert-speech-s2", "hubert-k100-s2"):
        assert name in unknown
    assert "hubert-music-s1" not in unknown


@pytest.mark.parametrize(("last", "word"), [(0.1, "Agrees"), (0.9, "Disagrees")])
def test_findings_follow_the_rows(results, last, word):
    for file in results.glob("*.json"):
        about = json.loads(file.read_text())
        scored = about["tasks"]["key"] | {"layers": {"0": 0.2, "4": 0.5, "12": last}}
        file.write_text(json.dumps(about | {"tasks": {"key": scored, "beat": scored}}))
        draws = np.load(file.with_suffix(".npz"))["key"]
        draws = draws if word == "Agrees" else 1 - draws
        np.savez(file.with_suffix(".npz"), key=draws, beat=draws)
    rows = study.read(results)
    text = study_tables.markdown(rows, study_pairs.differences(rows))
    counts = (
        "2 of 2 tasks are clearly so, 0" if word == "Agrees" else "0 of 2 tasks are clearly so, 2"
    )
    assert f"on most tasks. **{word}**: {counts} clearly the contrary." in text
    worse = 6 if word == "Agrees" else 0
    assert f"degrades with depth. **{word}**: in {worse} of 6 trained models" in text


def test_other_clips_and_damage_are_named(results):
    file = results / "mfcc-s1.json"
    whole = file.read_text()
    file.write_text(whole.replace('"c"', '"d"'))
    with pytest.raises(InputError, match="mfcc was scored on other clips of key"):
        study.read(results)
    file.write_text(whole[:40])
    with pytest.raises(InputError, match=r"mfcc-s1.json"):
        study.read(results)
    with pytest.raises(InputError, match="no results"):
        study.read(results / "none")
