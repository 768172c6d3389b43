"""`python -m manifests_tools check`: each thing that can be wrong, one at a time."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from manifests_tools import pretrain as pretrain_command
from manifests_tools.__main__ import main
from manifests_tools.check import Findings
from music_ssl_fairseq.data.label_metadata import label_again
from music_ssl_fairseq.data.manifest import Manifest
from music_ssl_fairseq.runtime.files import checksum
from tests.audio_files import tone, write_tone
from tests.options import with_defaults

pretrain = with_defaults(pretrain_command)

K = 10


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    """music/, manifests/ and labels/ that agree: two folders of two songs, MFCC labels."""
    tmp_path = tmp_path_factory.mktemp("original")
    for i, name in enumerate(["A/a.wav", "A/b.flac", "B/c.ogg", "B/d d.wav"]):
        write_tone(tmp_path / "music" / name, 1.5 + 0.1 * i, 22_050 if i == 1 else 16_000, seed=i)
    pretrain(str(tmp_path / "music"), str(tmp_path / "manifests"), valid_share=0.4)
    labels = tmp_path / "labels"
    labels.mkdir()
    rng = np.random.default_rng(0)
    for split in ("train", "valid"):
        lengths = Manifest(tmp_path / "manifests" / f"{split}.tsv").num_samples
        lines = [rng.integers(0, K, 1 + (length - 400) // 160) for length in lengths]
        text = "".join(" ".join(map(str, line)) + "\n" for line in lines)
        (labels / f"{split}.km").write_text(text)
    (labels / "dict.km.txt").write_text("".join(f"{unit} 1\n" for unit in range(K)))
    splits = {"train": {"manifest": "manifests/train.tsv", "manifest_sha256": "?"}}
    metadata = {"label_rate": 100, "k": K, "splits": splits, "options": f"--k {K} --seed 3"}
    (labels / "metadata.json").write_text(json.dumps(metadata))
    return tmp_path


@pytest.fixture
def corpus(original: Path, tmp_path: Path) -> Path:
    """A copy of them, which a test may damage."""
    shutil.copytree(original, tmp_path, dirs_exist_ok=True)
    for split in ("train", "valid"):
        replace(tmp_path / "manifests" / f"{split}.tsv", str(original), str(tmp_path))
    return tmp_path


@pytest.fixture
def check(corpus, capsys):
    """Run the command on the corpus; returns its exit status and the lines of its output."""

    def run(*arguments: str) -> tuple[int, list[str]]:
        status = main(["check", str(corpus / "manifests"), "--workers", "2", *arguments])
        return status, capsys.readouterr().out.splitlines()

    return run


def split_of(corpus: Path, name: str) -> str:
    return "train" if name in (corpus / "manifests" / "train.tsv").read_text() else "valid"


def replace(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


def test_all_is_well(corpus, check):
    status, lines = check()
    assert status == 0
    sizes = (("train", "3.5 s"), ("valid", "3.1 s"))
    for (split, size), line in zip(sizes, lines, strict=True):
        labels = len((corpus / "labels" / f"{split}.km").read_text().split())
        assert line == f"{split}: 2 tracks, {size}, {labels} labels: all well"


def test_without_labels_the_audio_alone_is_checked(corpus, check):
    (corpus / "labels").rename(corpus / "elsewhere")
    status, lines = check()
    assert status == 0
    assert lines[0] == "train: 2 tracks, 3.5 s: all well"
    assert check("--labels", str(corpus / "elsewhere"))[1][0].endswith("labels: all well")


@pytest.mark.parametrize("name", ["A/a.wav", "B/d d.wav"])
def test_a_deleted_file(corpus, check, name):
    (corpus / "music" / name).unlink()
    problem = f"{split_of(corpus, name)}: {name}: cannot be opened: No such file or directory"
    assert check() == (1, [problem, "1 problem found"])


def test_several_problems_are_all_named(corpus, check):
    (corpus / "music" / "A" / "a.wav").unlink()
    (corpus / "music" / "B" / "c.ogg").write_bytes(b"not audio any more")
    status, lines = check()
    assert status == 1
    assert len(lines) == 3
    assert any("A/a.wav: cannot be opened" in line for line in lines)
    assert any("B/c.ogg: not readable as audio (" in line for line in lines)
    assert lines[-1] == "2 problems found"


def test_a_truncated_flac(corpus, check):
    path = corpus / "music" / "A" / "b.flac"
    path.write_bytes(path.read_bytes()[:-8000])
    status, lines = check()
    assert status == 1
    assert "A/b.flac: damaged or truncated" in lines[0]


def test_another_length(corpus, check):
    split = split_of(corpus, "A/a.wav")
    write_tone(corpus / "music" / "A" / "a.wav", 1.6)
    problem = f"{split}: A/a.wav: wrong length: 24000 samples stated, at 16000 Hz it has 25600"
    assert check() == (1, [problem, "1 problem found"])


@pytest.mark.parametrize(("difference", "status"), [(-2, 1), (-1, 0), (1, 0), (2, 1)])
def test_one_sample_more_or_less_is_rounding(corpus, check, difference, status):
    file = corpus / "manifests" / f"{split_of(corpus, 'A/a.wav')}.tsv"
    replace(file, "A/a.wav\t24000", f"A/a.wav\t{24000 + difference}")
    assert check()[0] == status


def test_a_manifest_that_counts_samples_of_the_files_own_rate(corpus, check):
    file = corpus / "manifests" / f"{split_of(corpus, 'A/b.flac')}.tsv"
    replace(file, "A/b.flac\t25600", "A/b.flac\t35280")
    status, lines = check()
    assert status == 1
    assert "stated at its own rate, 22050 Hz: make the manifest again" in lines[0]


def test_nan_in_the_middle_is_found_by_thorough(corpus, check):
    waveform = tone(1.5)
    waveform[12_000] = np.nan
    soundfile.write(corpus / "music" / "A" / "a.wav", waveform, 16_000, "FLOAT")
    assert check()[0] == 0
    status, lines = check("--thorough")
    assert status == 1
    assert lines[0].endswith("A/a.wav: holds NaN or infinite samples")


@pytest.mark.parametrize("how", ["same name", "link", "hard link"])
def test_a_file_in_both_splits(corpus, check, how):
    (corpus / "labels").rename(corpus / "elsewhere")
    valid = corpus / "manifests" / "valid.tsv"
    name = Manifest(corpus / "manifests" / "train.tsv").name(0)
    again = name
    if how != "same name":
        again = f"again{Path(name).suffix}"
        make = Path.symlink_to if how == "link" else Path.hardlink_to
        make(corpus / "music" / again, corpus / "music" / name)
    length = int(Manifest(corpus / "manifests" / "train.tsv").num_samples[0])
    valid.write_text(valid.read_text() + f"{again}\t{length}\n")
    assert check() == (1, [f"train: {name}: also in valid", "1 problem found"])


def test_music_that_was_moved_is_one_problem(corpus, check):
    (corpus / "music").rename(corpus / "moved")
    status, lines = check()
    assert status == 1
    assert len(lines) == 3
    assert all("its root" in line and "was the music moved?" in line for line in lines[:2])


def test_a_missing_or_broken_manifest(corpus, check):
    (corpus / "manifests" / "valid.tsv").unlink()
    replace(corpus / "manifests" / "train.tsv", "\t", " ")
    status, lines = check()
    assert status == 1
    assert "valid.tsv: no such manifest" in lines[0]
    assert "train.tsv, line 2: expected `name<TAB>samples`" in lines[1]


def test_a_test_split_is_checked_if_there(corpus, check):
    write_tone(corpus / "music" / "C" / "e.wav", 1.5)
    (corpus / "manifests" / "test.tsv").write_text(f"{corpus / 'music'}\nC/e.wav\t24000\n")
    (corpus / "labels" / "test.km").write_text(" ".join(["1"] * 148) + "\n")
    assert check()[1][1] == "test: 1 track, 1.5 s, 148 labels: all well"
    (corpus / "music" / "C" / "e.wav").unlink()
    assert check()[1][0].startswith("test: C/e.wav: cannot be opened")


def test_one_label_line_too_few(corpus, check):
    file = corpus / "labels" / "train.km"
    file.write_text(file.read_text().split("\n")[0] + "\n")
    status, lines = check()
    assert status == 1
    assert len(lines) == 2
    assert "train.km: 1 lines of labels, but" in lines[0]
    assert "lists 2 tracks" in lines[0]
    # Of these labels, into this folder: no others are overwritten by obeying.
    paths = f"--manifests {corpus / 'manifests'} --labels {corpus / 'labels'}"
    command = f"python -m music_ssl_fairseq label --k {K} --seed 3 {paths} --force"
    assert lines[0].endswith(f"label again with their own options: `{command}`")
    # Labels of other manifests stay.
    options = {"options": "--k 10", "manifests": str(corpus / "manifests")}
    (corpus / "labels" / "metadata.json").write_text(json.dumps(options))
    other = label_again(corpus / "labels", corpus / "others")
    assert other.endswith(f"--manifests {corpus / 'others'} --labels {corpus / 'labels'}-2")
    (corpus / "labels" / "metadata.json").write_text(json.dumps({"label_rate": 100}))
    lines = check("--labels", str(corpus / "labels"))[1]
    assert lines[0].endswith("label again with their own options")


def test_a_track_with_too_few_labels(corpus, check):
    file = corpus / "labels" / "train.km"
    first, second = file.read_text().splitlines()
    file.write_text(f"{first}\n{second.rsplit(' ', 30)[0]}\n")
    manifest = Manifest(corpus / "manifests" / "train.tsv")
    count, seconds = len(second.split()) - 30, manifest.num_samples[1] / 16_000
    status, lines = check()
    assert status == 1
    assert lines[1] == (
        f"train: {manifest.name(1)}: {count} labels, {count / 100:.2f} s at 100 Hz, "
        f"but {seconds:.2f} s of audio"
    )


def test_the_label_rate_of_other_features(corpus, check):
    status, lines = check("--label-rate", "50")
    assert status == 1
    assert any("label_rate is 50 but the labels fit 100" in line for line in lines)
    assert sum("at 50 Hz" in line for line in lines) == 4


def test_the_dict_of_another_k(corpus, check):
    labels = corpus / "labels"
    replace(labels / "metadata.json", f'"k": {K}', f'"k": {K - 1}')
    replace(labels / "dict.km.txt", f"{K - 1} 1\n", "")
    status, lines = check()
    assert status == 1
    for split in ("train", "valid"):
        text = (labels / f"{split}.km").read_text()
        for i, line in enumerate(text.splitlines()):
            name = Manifest(corpus / "manifests" / f"{split}.tsv").name(i)
            unknown = line.split().count(str(K - 1))
            count = len(line.split())
            assert (
                f"{split}: {name}: {unknown} of its {count} labels are not in "
                f"{labels / 'dict.km.txt'}, the first is {K - 1}"
            ) in lines


@pytest.mark.parametrize("name", ["dict.km.txt", "train.km"])
def test_a_missing_part_of_the_labels(corpus, check, name):
    (corpus / "labels" / name).unlink()
    status, lines = check()
    assert status == 1
    assert f"labels/{name}: no such" in lines[0]


def test_labels_that_are_not_numbers(corpus, check):
    replace(corpus / "labels" / "train.km", " ", " x")
    status, lines = check()
    assert status == 1
    assert "train.km, line 1: expected cluster numbers" in lines[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing"], "missing: no such folder; give the one that holds train.tsv"),
        (["manifests", "--labels", "missing"], "missing: no such folder; --labels takes the one"),
        (["manifests", "--label-rate", "70"], "label_rate 70 does not divide the sample rate"),
    ],
)
def test_wrong_arguments_are_one_line(corpus, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(corpus)
    assert main(["check", *arguments]) == 1
    shown = capsys.readouterr()
    assert shown.err.startswith(f"error: {message}")
    assert shown.err.splitlines()[1:] == (["ls ."] if "missing" in message else [])


def test_no_word_of_the_label_rate(corpus, capsys, monkeypatch):
    monkeypatch.chdir(corpus)
    (corpus / "labels" / "metadata.json").unlink()
    assert main(["check", "manifests", "--labels", "labels"]) == 1
    assert capsys.readouterr().err.startswith("error: labels: no metadata.json that tells")
    assert main(["check", "manifests", "--label-rate", "100"]) == 0


@pytest.mark.parametrize("noted", ["path", "contents", "neither", "nothing"])
def test_labels_of_other_manifests_are_not_checked(corpus, capsys, monkeypatch, noted):
    monkeypatch.chdir(corpus)
    other = {"manifest": "jazz/train.tsv", "manifest_sha256": "?"}
    other |= {"path": {"manifest": str(corpus / "manifests" / "train.tsv")}}.get(noted, {})
    if noted == "contents":
        other["manifest_sha256"] = checksum(corpus / "manifests" / "train.tsv")
    metadata = {"label_rate": 100, "splits": {} if noted == "nothing" else {"train": other}}
    (corpus / "labels" / "metadata.json").write_text(json.dumps(metadata))
    (corpus / "labels" / "train.km").write_text("1\n")
    related = noted in ("path", "contents")
    assert main(["check", "manifests"]) == related
    shown = capsys.readouterr()
    assert ("train.km: 1 lines" in shown.out) == related
    assert ("labels: not checked, because" in shown.err) != related
    assert main(["check", "manifests", "--labels", "labels"]) == 1


def test_of_each_kind_twenty_are_printed_and_the_others_counted(capsys):
    findings = Findings()
    for i in range(50):
        findings.add("gone", f"{i}: gone")
    findings.add("bent", "bent \udce9")
    findings.finish()
    lines = capsys.readouterr().out.splitlines()
    assert lines[:20] == [f"{i}: gone" for i in range(20)]
    assert lines[20:] == ["bent \\udce9", "... and 30 more: gone", "51 problems found"]
