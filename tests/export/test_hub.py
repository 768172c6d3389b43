"""Models go to the Hugging Face hub and come back, pinned to a commit."""

import csv
import json
import socket

import numpy as np
import pytest
import torch

import music_ssl_fairseq
from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.export.__main__ import main
from music_ssl_fairseq.extract.__main__ import main as extract
from music_ssl_fairseq.label.__main__ import main as label
from music_ssl_fairseq.probing.features.source import open_source
from music_ssl_fairseq.report.tables import CSV_FIELDS
from tests import checkpoints, fake_hub, tiny
from tests.audio_files import write_tone

constants = pytest.importorskip("huggingface_hub.constants")
NAME = "someone/tiny-v1.0"


@pytest.fixture(scope="module")
def hub():
    with fake_hub.serve() as running:
        yield running


def use(endpoint: str, monkeypatch) -> None:
    """Do what `HF_ENDPOINT` does, which is read on import."""
    files = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)


@pytest.fixture(autouse=True)
def home(hub, tmp_path, monkeypatch):
    """A cache of the test's own, and no hub but that on loopback."""
    hub.commits.clear()
    use(hub.endpoint, monkeypatch)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", "a token")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))


@pytest.fixture
def source(tmp_path):
    torch.manual_seed(0)
    return checkpoints.write(tmp_path / "x.pt", "music_hubert", tiny.music_hubert())


def push(source, *options: str) -> int:
    return main(["--checkpoint", str(source), "--push", NAME, *options])


@pytest.fixture
def pushed(hub, source) -> str:
    """The commit of a model on the hub."""
    assert push(source) == 0
    return hub.commits[NAME][-1][0]


def test_a_model_comes_back_as_it_went(hub, source, pushed):
    assert set(hub.commits[NAME][-1][1]) == {
        *("README.md", "config.json", "model.safetensors", "preprocessor_config.json")
    }
    model, original = music_ssl_fairseq.load(f"hf:{NAME}"), music_ssl_fairseq.load(source)
    assert model.fingerprint == original.fingerprint
    assert model.path == f"hf:{NAME}@{pushed}"
    assert model.name == "tiny-v1.0"


def test_a_dry_run_lists_and_sends_nothing(hub, source, tmp_path, capsys):
    assert push(source, "--dry-run", "--to", str(tmp_path / "out")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"hf:{NAME} would get" in lines
    size = (tmp_path / "out" / "model.safetensors").stat().st_size
    assert any(x.split() == ["model.safetensors", f"{size / 1e3:.1f}", "kB"] for x in lines)
    assert lines[-1].endswith("nothing was sent")
    assert not hub.commits


def test_a_revision_stays_what_it_was(hub, source, pushed):
    first = music_ssl_fairseq.load(f"hf:{NAME}").fingerprint
    torch.manual_seed(1)
    checkpoints.write(source, "music_hubert", tiny.music_hubert())
    assert push(source) == 0
    newest = hub.commits[NAME][-1][0]
    assert music_ssl_fairseq.load(f"hf:{NAME}").path == f"hf:{NAME}@{newest}"
    pinned = music_ssl_fairseq.load(f"hf:{NAME}@{pushed}")
    assert (pinned.fingerprint, pinned.path) == (first, f"hf:{NAME}@{pushed}")


def test_the_cache_serves_without_a_network(hub, pushed, monkeypatch):
    fetched = music_ssl_fairseq.load(f"hf:{NAME}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    use("http://127.0.0.1:1", monkeypatch)
    assert music_ssl_fairseq.load(f"hf:{NAME}").fingerprint == fetched.fingerprint
    with pytest.raises(InputError, match=r"^hf:no/model: not in the local cache"):
        music_ssl_fairseq.load("hf:no/model")


def test_only_safetensors_are_fetched(hub, pushed, tmp_path):
    files = dict(hub.commits[NAME][-1][1])
    hub.commit("someone/pickled", {"config.json": files["config.json"], "pytorch_model.bin": b"x"})
    with pytest.raises(InputError, match="someone/pickled: no config"):
        music_ssl_fairseq.load("hf:someone/pickled")
    assert not list((tmp_path / "cache").rglob("*.bin"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hf:nobody/nothing", "no such model, or a private one: log in with"),
        (f"hf:{NAME}@v9", "no such revision"),
        ("hf:tiny", "expected hf:USER/NAME or hf:USER/NAME@REVISION"),
        ("hf:a/../b", "expected hf:USER/NAME"),
        ("hf:--a/b", "Repo id must"),
    ],
)
def test_what_is_not_there_is_one_line(pushed, name, message):
    with pytest.raises(InputError, match=message) as error:
        music_ssl_fairseq.load(name)
    assert str(error.value).startswith(f"{name}: ")


def test_no_network_and_no_permission_are_one_line(source, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "refused")
    assert push(source) == 1
    assert "the hub refused (log in with `hf auth login`" in capsys.readouterr().err
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    use(f"http://127.0.0.1:{port}", monkeypatch)
    assert push(source) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"error: hf:{NAME}: the hub cannot be reached")
    assert err.splitlines()[1:] == ["curl -I https://huggingface.co"]


def test_records_name_the_commit(pushed, tmp_path, monkeypatch):
    write_tone(tmp_path / "audio" / "a.wav", 1.0)
    manifest = tmp_path / "train.tsv"
    manifest.write_text(f"{tmp_path / 'audio'}\na.wav\t16000\n")
    options = ["--manifest", str(manifest), "--out", str(tmp_path / "out"), "--workers", "0"]
    assert extract(["--checkpoint", f"hf:{NAME}", *options]) == 0
    metadata = json.loads((tmp_path / "out" / "metadata.json").read_text())
    assert metadata["checkpoint"] == f"hf:{NAME}@{pushed}"
    assert open_source(f"hf:{NAME}").path == f"hf:{NAME}@{pushed}"


def report_of(source, folder) -> None:
    folder.mkdir()
    fingerprint = music_ssl_fairseq.load(source).fingerprint
    row = dict.fromkeys(CSV_FIELDS, "")
    row |= {"source": "measured", "task": "key", "metric": "accuracy", "value": "0.5"}
    row |= {"low": "0.4", "high": "0.625", "layer": "7", "window_seconds": "5.0", "files": "20"}
    with (folder / "report.csv").open("w") as file:
        lines = csv.DictWriter(file, CSV_FIELDS)
        lines.writeheader()
        lines.writerow({**row, "fingerprint": "another"})
        lines.writerow({**row, "fingerprint": fingerprint})


def test_scores_go_with_the_model(hub, source, tmp_path, capsys):
    report_of(source, tmp_path / "report")
    assert push(source, "--report", str(tmp_path / "report")) == 0
    files = hub.commits[NAME][-1][1]
    (row,) = json.loads(files["results.json"])["results"]
    assert (row["value"], row["layer"], row["files"]) == (0.5, "7", 20)
    card = files["README.md"].decode()
    assert "| key | accuracy | 50.0 [40.0, 62.5] | 7 | 5 s |" in card
    assert "none was made" not in card
    other = checkpoints.write(tmp_path / "y.pt", "music2vec", tiny.music2vec())
    assert push(other, "--report", str(tmp_path / "report")) == 1
    assert "report.csv: no row is of" in capsys.readouterr().err


def test_labels_are_made_from_the_models_centroids(hub, source, tmp_path, labels_here):
    """From a layer of the model on the hub and the centroids beside it."""
    manifests, labels = tmp_path / "manifests", tmp_path / "labels"
    manifests.mkdir()
    labels.mkdir()
    for split in ("train", "valid"):
        file = write_tone(tmp_path / "audio" / f"{split}.wav", 2.0, seed=len(split))
        (manifests / f"{split}.tsv").write_text(f"{tmp_path / 'audio'}\n{split}.wav\t32000\n")
    model = music_ssl_fairseq.load(source)
    frames = model.features(file, layers=1).numpy()[0]
    np.save(labels / "centroids.npy", frames[::20])
    about = {"features": "deep", "layer": 1, "k": 5, "checkpoint": model.fingerprint}
    (labels / "metadata.json").write_text(json.dumps({**about, "options": "--memory 4G"}))
    assert push(source, "--units", str(labels)) == 0
    (commit, files) = hub.commits[NAME][-1]
    assert json.loads(files["units/metadata.json"]) == about
    name, again = f"hf:{NAME}", tmp_path / "again"
    options = f"--features deep --layer 1 --checkpoint {name} --centroids {name} --labels"
    assert options in files["README.md"].decode().replace(" \\\n ", "")
    command = [*options.split(), str(again), "--manifests", str(manifests), "--workers", "1"]
    assert label(command) == 0
    nearest = np.square(frames[:, None] - frames[None, ::20]).sum(-1).argmin(1)
    np.testing.assert_array_equal(np.load(again / "valid.units.npy"), nearest)
    assert f"{name}@{commit}" in (again / "metadata.json").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "give --to DIR, a folder to write to, or --push USER/NAME"),
        (["--dry-run", "--to", "out"], "--dry-run goes with --push"),
        (["--push", "name"], "--push name: expected USER/NAME"),
        (["--push", NAME, "--format", "onnx"], "--push goes with --format huggingface, not with"),
        (["--push", NAME, "--units", "."], "no centroids.npy in it"),
        (["--push", NAME, "--report", "none"], "none: cannot be read"),
    ],
)
def test_wrong_options_are_one_line(source, options, message, capsys, hub):
    assert main(["--checkpoint", str(source), *options]) == 1
    assert message in capsys.readouterr().err
    assert not hub.commits
