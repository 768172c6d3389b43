"""The export command, and what it writes for fairseq, onnxruntime and torch.export."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from music_ssl_fairseq.export import check
from music_ssl_fairseq.export.__main__ import FORMATS, main
from music_ssl_fairseq.export.source import read
from music_ssl_fairseq.upstream import load
from tests import checkpoints, tiny
from tests.checkpoints import Attack
from tests.export import exported
from tests.full_disk import full_disk

# Tracing a graph takes seconds, and longer the more there is to trace.
SMALL = {"encoder_layers": 2, "conv_feature_layers": "[(24,16,8)] + [(24,5,4)] * 2"}

STOCK = """
import sys
import torch
from fairseq import checkpoint_utils
import fairseq.examples.data2vec.models.data2vec_audio

for name in sys.argv[1:]:
    models, cfg, task = checkpoint_utils.load_model_ensemble_and_task([name + "/checkpoint.pt"])
    model = models[0].eval()
    source = torch.load(name + "/source.pt")
    last = len(model.encoder.layers)
    with torch.no_grad():
        if type(model).__name__ == "HubertModel":
            x, _ = model.extract_features(source, output_layer=last)
        else:
            x = model.extract_features(source, None, layer=last - 1)["x"]
    found = {"x": x, "class": type(model).__name__, "normalize": cfg.task.normalize}
    torch.save({**found, "state": model.state_dict()}, name + "/found.pt")
assert not any(module.startswith("music_ssl_fairseq") for module in sys.modules)
"""


def test_stock_fairseq_loads_it_without_this_package(tmp_path):
    """In a process of its own: nothing registered, and nothing added to what torch may unpickle."""
    models = {
        "hubert": ("music_hubert", exported.MODELS["music_hubert, layer_norm_first"][1]),
        "data2vec": ("music2vec", {}),
        "data2vec, layer_norm_first": ("music2vec", {"layer_norm_first": True}),
    }
    source = torch.randn(2, 8_000)
    checkpoints = {}
    for name, (family, fields) in models.items():
        checkpoints[name] = exported.checkpoint(tmp_path / f"{name}.pt", family, **fields)
        folder = exported.export(checkpoints[name], tmp_path / name, "--format", "fairseq")
        torch.save(source, folder / "source.pt")
    folders = [str(tmp_path / name) for name in models]
    subprocess.run([sys.executable, "-W", "ignore", "-c", STOCK, *folders], check=True)
    for name, (family, _) in models.items():
        found = torch.load(tmp_path / name / "found.pt")
        hubert = family == "music_hubert"
        assert found["class"] == ("HubertModel" if hubert else "Data2VecAudioModel")
        ours = load(checkpoints[name])
        assert found["normalize"] is ours.normalise
        wanted = ours.model.layers(source)[-1]
        torch.testing.assert_close(found["x"], wanted, rtol=0, atol=1e-4)
        original = torch.load(checkpoints[name])["model"]
        state = found["state"]
        if not hubert:
            teacher, expected = state.pop("_ema"), original.pop("_ema")
            assert teacher.keys() == expected.keys()
            assert all(torch.equal(teacher[key], expected[key]) for key in teacher)
        assert state.keys() == original.keys()
        assert all(torch.equal(state[key], original[key]) for key in state)


@pytest.mark.parametrize(
    ("units", "fields", "head"),
    [
        ((20, 7), {}, False),
        ((), {"projection_targets": "logmel", "projection_size": 9}, False),
        ((20,), {"label_layers": [2]}, False),
        ((20,), {"cqt_bands": 12, "pitch_taps": 1024}, True),
    ],
)
def test_fairseq_gets_the_encoder_and_a_head_that_it_has(tmp_path, units, fields, head):
    model = tiny.music_hubert_of(units, **fields)
    source = checkpoints.write(tmp_path / "x.pt", "music_hubert", model)
    folder = exported.export(source, tmp_path / "out", "--format", "fairseq")
    back = read(folder / "checkpoint.pt")
    assert ("label_embs_concat" in back.heads) == head
    assert back.heads.keys() - {"label_embs_concat"} == {"final_proj.weight", "final_proj.bias"}
    assert load(folder / "checkpoint.pt").fingerprint == load(source).fingerprint


@pytest.mark.parametrize(
    ("units", "fields", "says"),
    [
        ((20,), {}, "20"),
        ((20, 7), {}, "27 in 2 sets"),
        (
            (20,),
            {"projection_targets": "logmel", "projection_size": 9, "projection_sets": 2},
            "38 in 3 sets",
        ),
    ],
)
def test_the_card_counts_the_units_of_all_sets(tmp_path, units, fields, says):
    model = tiny.music_hubert_of(units, **fields)
    source = checkpoints.write(tmp_path / "x.pt", "music_hubert", model)
    folder = exported.export(source, tmp_path / "out")
    assert f"| units predicted | {says} |" in (folder / "README.md").read_text()


@pytest.mark.parametrize(
    ("units", "says"), [((), "none"), ((20,), "20"), ((20, 7), "27 in 2 sets")]
)
def test_the_card_of_music2vec_counts_units_as_well(tmp_path, units, says):
    model = tiny.music2vec(*units)
    source = checkpoints.write(tmp_path / "x.pt", "music2vec", model, normalize=True)
    folder = exported.export(source, tmp_path / "out")
    assert f"| units predicted | {says} |" in (folder / "README.md").read_text()


@pytest.mark.parametrize("family", ["music_hubert", "music2vec"])
def test_ours_to_fairseq_and_back(tmp_path, family):
    source = exported.checkpoint(tmp_path / "x.pt", family)
    folder = exported.export(source, tmp_path / "out", "--format", "fairseq")
    back, original = read(folder / "checkpoint.pt"), read(source)
    assert back.contents.config == original.contents.config
    assert back.contents.normalise == original.contents.normalise
    for part in ("heads", "teacher"):
        found, expected = getattr(back, part), getattr(original, part)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in found)
    state = back.contents.state
    assert state.keys() == original.contents.state.keys()
    assert all(torch.equal(state[key], original.contents.state[key]) for key in state)
    assert load(folder / "checkpoint.pt").fingerprint == load(source).fingerprint
    assert back.num_updates == 1500


@pytest.mark.parametrize("family", ["music_hubert", "music2vec"])
def test_a_hugging_face_folder_becomes_a_fairseq_checkpoint(tmp_path, family):
    source = exported.checkpoint(tmp_path / "x.pt", family)
    folder = exported.export(source, tmp_path / "huggingface")
    again = exported.export(folder, tmp_path / "fairseq", "--format", "fairseq")
    found = load(again / "checkpoint.pt")
    assert found.fingerprint == load(source).fingerprint


@pytest.mark.parametrize("family", ["hubert", "data2vec_audio", "wav2vec2"])
def test_an_old_stock_checkpoint_becomes_a_hugging_face_folder(tmp_path, family):
    model = checkpoints.MODELS[family]()
    source = checkpoints.write(tmp_path / "x.pt", family, model, form="namespace")
    folder = exported.export(source, tmp_path / "out")
    assert load(folder).fingerprint == load(source).fingerprint
    assert load(folder).family == family
    assert (folder / "README.md").read_text().count("encoder_embed_dim") == 1


def test_onnx_computes_the_layers_at_any_length(tmp_path):
    import onnxruntime

    fields = {"layer_norm_first": True, **SMALL}
    source = exported.checkpoint(tmp_path / "x.pt", "music2vec", **fields)
    folder = exported.export(source, tmp_path / "out", "--format", "onnx")
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    ours = load(source)
    for batch, samples in ((1, 500), (3, 12_345), (2, 48_000)):
        waveform = 0.2 * torch.randn(batch, samples) + 0.5
        found = session.run(None, {"waveform": waveform.numpy()})
        for layer, wanted in zip(found, ours.layers(waveform), strict=True):
            np.testing.assert_allclose(layer, wanted, rtol=0, atol=1e-4)
    (only,) = session.run(["layer_2"], {"waveform": waveform.numpy()})
    np.testing.assert_allclose(only, ours.layers(waveform)[2], rtol=0, atol=1e-4)


def test_torch_export_computes_the_layers_at_any_length(tmp_path, capsys):
    fields = {**SMALL, "encoder_layers": 1}
    source = exported.checkpoint(tmp_path / "x.pt", "music_hubert", **fields)
    with full_disk(10_000):
        to = ("--to", str(tmp_path / "full"), "--format", "torch")
        assert main(["--checkpoint", str(source), *to]) == 1
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'full'}")
    assert [path.name for path in tmp_path.iterdir()] == ["x.pt"]
    folder = exported.export(source, tmp_path / "out", "--format", "torch")
    module = torch.export.load(folder / "model.pt2").module()
    ours = load(source)
    for batch, samples in ((1, 500), (3, 12_345)):
        waveform = torch.randn(batch, samples)
        for layer, wanted in zip(module(waveform), ours.layers(waveform), strict=True):
            torch.testing.assert_close(layer, wanted, rtol=0, atol=1e-4)


def test_overwrites_only_if_told_and_touches_nothing_else(tmp_path, capsys):
    first = exported.checkpoint(tmp_path / "first.pt", "music_hubert")
    second = exported.checkpoint(tmp_path / "second.pt", "music_hubert", encoder_layers=2)
    folder = exported.export(first, tmp_path / "new" / "model", "--format", "fairseq")
    (folder / "notes.txt").write_text("mine")
    exported.export(first, folder)
    assert main(["--checkpoint", str(second), "--to", str(folder)]) == 1
    assert "config.json, model.safetensors, " in capsys.readouterr().err
    assert load(folder).num_layers == 3
    (folder / "results.json").write_text("of the first")
    exported.export(second, folder, "--force")
    assert load(folder).num_layers == 2
    assert (folder / "notes.txt").read_text() == "mine"
    names = {name for format in ("huggingface", "fairseq") for name in FORMATS[format][2]}
    assert {path.name for path in folder.iterdir()} == names | {"notes.txt"}
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


@pytest.mark.parametrize("format", ["huggingface", "fairseq", "torchaudio"])
def test_a_wrong_result_is_not_written(tmp_path, monkeypatch, capsys, format):
    source = exported.checkpoint(tmp_path / "x.pt", "music_hubert")
    monkeypatch.setattr(check, "TOLERANCE", -1.0)
    to = tmp_path / "out"
    assert main(["--checkpoint", str(source), "--to", str(to), "--format", format]) == 1
    assert "not written, because its layer 0 differs" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["x.pt"]


@pytest.mark.parametrize(
    ("format", "earlier"),  # not onnx, whose graph takes seconds to trace
    [("huggingface", False), ("huggingface", True), ("fairseq", True), ("torchaudio", True)],
)
def test_a_full_disk_is_one_line_and_an_earlier_export_stays(tmp_path, capsys, format, earlier):
    source = exported.checkpoint(tmp_path / "x.pt", "music_hubert")
    to = tmp_path / "out"
    if earlier:
        to.mkdir()
        for name in (*FORMATS[format][2], "notes.txt"):
            (to / name).write_text("earlier")
    before = {path: path.read_text() for path in to.glob("*")}
    capsys.readouterr()
    options = ("--to", str(to), "--format", format, "--force")
    with full_disk(10_000):
        assert main(["--checkpoint", str(source), *options]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {to}")
    assert error.splitlines()[1:] == [f"df -h {tmp_path}"]
    assert {path: path.read_text() for path in to.glob("*")} == before
    assert sorted(path.name for path in tmp_path.iterdir() if path != to) == ["x.pt"]


@pytest.mark.parametrize(
    ("format", "package", "module"),
    [
        ("onnx", "onnx", "onnx"),
        ("onnx", "onnxscript", "onnxscript"),
        ("onnx", "onnxruntime", "onnxruntime"),
    ],
)
def test_a_missing_package_is_named(tmp_path, monkeypatch, capsys, format, package, module):
    source = exported.checkpoint(tmp_path / "x.pt", "music_hubert")
    monkeypatch.setitem(sys.modules, module, None)
    to = str(tmp_path / "out")
    assert main(["--checkpoint", str(source), "--to", to, "--format", format]) == 1
    message, command = capsys.readouterr().err.splitlines()
    assert message.startswith(f"error: the package {package} is not installed")
    assert command.endswith("[export]'")


def bad(path, how: str):
    """Write a file or folder that cannot be exported."""
    if how == "text":
        path.write_text("This is no checkpoint.\n")
    elif how == "truncated":
        exported.checkpoint(path, "music_hubert")
        path.write_bytes(path.read_bytes()[:-2_000])
    elif how == "attack":
        torch.save({"model": {}, "cfg": Attack(f"touch {path.parent / 'trace'}")}, path)
    elif how == "folder":
        path.mkdir()
    elif how == "history":
        exported.checkpoint(path, "music_hubert")
        torch.save({**torch.load(path), "optimizer_history": "x"}, path)
    elif how == "another":
        torch.save({"model": {}, "cfg": {"model": {"_name": "bart"}}}, path)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", "no such checkpoint"),
        ("text", "it is text that begins with 'This is no checkpoint.'"),
        ("truncated", "truncated or damaged"),
        ("attack", "refused, because unpickling it could run code"),
        ("folder", "no config.json in it"),
        ("another", "'bart', another architecture"),
        ("history", "its settings are damaged"),
    ],
)
def test_a_bad_checkpoint_is_one_line(tmp_path, capsys, how, message):
    path = tmp_path / "x.pt"
    bad(path, how)
    before = sorted(tmp_path.iterdir())
    assert main(["--checkpoint", str(path), "--to", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {path}")
    assert message in error
    assert error.count("\n") <= 2  # a command may follow
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("option", ["--to", "--name"])
def test_names_that_are_no_text_are_one_line(tmp_path, capsys, option):
    given = {"--to": str(tmp_path / "out"), "--checkpoint": str(tmp_path / "x.pt")}
    given[option] = str(tmp_path / os.fsdecode(b"\xe9"))
    assert main([word for pair in given.items() for word in pair]) == 1
    assert capsys.readouterr().err.endswith(
        "\\udce9: is not UTF-8, and other software refuses it\n"
    )


def test_a_stock_checkpoint_needs_no_export_to_fairseq(tmp_path, capsys):
    source = exported.checkpoint(tmp_path / "x.pt", "hubert")
    to = str(tmp_path / "out")
    assert main(["--checkpoint", str(source), "--to", to, "--format", "fairseq"]) == 1
    assert "is a checkpoint of stock fairseq's already" in capsys.readouterr().err
