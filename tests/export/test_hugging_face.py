"""transformers and this package see the same model in the same folder."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
import transformers
from transformers import AutoFeatureExtractor, AutoModel, AutoModelForAudioClassification

from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.frames import parse_conv_layers
from music_ssl_fairseq.upstream import load, read
from tests.audio_files import tone
from tests.checkpoints import Attack
from tests.export import exported

transformers.utils.logging.disable_progress_bar()

VERSION = tuple(map(int, transformers.__version__.split(".")[:2]))
SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "conv_dim": [24] * 7,
    "num_conv_pos_embedding_groups": 4,
}


@pytest.fixture(scope="module", params=exported.MODELS)
def pair(request, tmp_path_factory):
    """A checkpoint, and the folder exported from it."""
    folder = tmp_path_factory.mktemp("exported")
    family, fields = exported.MODELS[request.param]
    source = exported.checkpoint(folder / "checkpoint.pt", family, **fields)
    return source, exported.export(source, folder / "model")


def first_input(model, source, padding) -> torch.Tensor:
    """What our encoder's first Transformer layer is given."""
    found = []
    hook = model.encoder.layers[0].register_forward_pre_hook(lambda _, args: found.append(args[0]))
    model.layers(source, padding)
    hook.remove()
    return found[0]


@pytest.mark.parametrize("with_padding", [False, True])
def test_hidden_states_equal_ours(pair, with_padding, capfd):
    checkpoint, folder = pair
    theirs, report = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values())
    assert "weights" not in capfd.readouterr().err
    ours = load(checkpoint).model
    source, padding = exported.padded()
    mask = padding if with_padding else None
    with torch.no_grad():
        output = theirs.eval()(
            source,
            attention_mask=(~padding).long() if with_padding else None,
            output_hidden_states=True,
        )
    layers = ours.layers(source, mask)
    first = ours.encoder.layer_norm_first
    last = ours.encoder.layer_norm(layers[-1]) if first else layers[-1]
    expected = [first_input(ours, source, mask), *layers[1:]]
    if VERSION < (5, 16):
        expected[-1] = last  # hidden_states[-1] was the normalised one
    real = torch.ones(expected[0].shape[:2], dtype=torch.bool)
    if with_padding:
        real = ~ours.frame_padding(padding, expected[0].size(1))
        assert real.sum(1).tolist() == [ours.grid.num_frames(n) for n in (9_600, 7_001, 3_333)]
    assert len(output.hidden_states) == len(expected)
    for found, wanted in zip(output.hidden_states, expected, strict=True):
        torch.testing.assert_close(found[real], wanted[real], rtol=0, atol=1e-4)
    torch.testing.assert_close(output.last_hidden_state[real], last[real], rtol=0, atol=1e-4)


def test_round_trip_gives_equal_tensors(pair):
    checkpoint, folder = pair
    expected, found = read(checkpoint), read(folder)
    assert found.state.keys() == expected.state.keys()
    assert all(torch.equal(found.state[name], expected.state[name]) for name in found.state)
    assert (found.config, found.family) == (expected.config, expected.family)
    assert (found.normalise, found.sample_rate) == (expected.normalise, 16_000)
    assert load(folder).fingerprint == load(checkpoint).fingerprint


def test_what_transformers_stores_again_is_read_again(pair, tmp_path):
    checkpoint, folder = pair
    AutoModel.from_pretrained(folder).save_pretrained(tmp_path)
    shutil.copy(folder / "preprocessor_config.json", tmp_path)
    assert load(tmp_path).fingerprint == load(checkpoint).fingerprint
    assert read(tmp_path).family == read(checkpoint).family


def test_the_feature_extractor_makes_our_input(pair):
    checkpoint, folder = pair
    ours = load(checkpoint)
    extractor = AutoFeatureExtractor.from_pretrained(folder)
    assert extractor.do_normalize == ours.normalise
    # Loud, because transformers has another epsilon: 1e-7 instead of 1e-5.
    music = [4 * tone(seconds, seed=seed)[:, 0] + 0.2 for seed, seconds in enumerate((1.0, 0.7))]
    inputs = extractor(music, sampling_rate=16_000, padding=True, return_tensors="pt")
    with torch.no_grad():
        found = AutoModel.from_pretrained(folder).eval()(**inputs, output_hidden_states=True)
    safe = ours.normalise and ours.config["pos_conv_depth"] == 1
    assert extractor.return_attention_mask is safe
    assert ("never a padded batch" in (folder / "README.md").read_text()) is not safe
    for i, waveform in enumerate(music):
        if i and not safe:
            # A group norm, and all but the first of stacked convolutions, see the padding.
            alone = extractor(waveform, sampling_rate=16_000, return_tensors="pt")
            with torch.no_grad():
                found = AutoModel.from_pretrained(folder).eval()(**alone, output_hidden_states=True)
            i = 0
        wanted = ours.layers(torch.from_numpy(waveform)[None])[2][0]
        torch.testing.assert_close(
            found.hidden_states[2][i, : len(wanted)], wanted, rtol=0, atol=3e-3
        )


def test_the_model_card_is_filled_and_its_code_runs(pair, monkeypatch, capsys):
    checkpoint, folder = pair
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert "\n# model\n" in card
    assert "1500 updates" in card
    assert "**Data**: which music" in card
    assert "{" not in card.split("```yaml")[0].replace("dict", "")
    assert str(checkpoint.parent) not in card
    monkeypatch.chdir(folder)
    exec(re.search(r"```python\n(.*?)```", card, re.S)[1], {})
    shown = capsys.readouterr().out.strip()
    assert f"# {shown}\n" in card


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("music_hubert", {"pitch_bands": 24, "mel_bands": 64}),
        ("music2vec", {"mel_bands": 8}),
        ("music2vec", {"layer_norm_first": True}),
    ],
)
def test_what_transformers_lacks_is_written_for_this_package(
    tmp_path, family, fields, monkeypatch, capsys
):
    source = exported.checkpoint(tmp_path / "checkpoint.pt", family, **fields)
    folder = exported.export(source, tmp_path / "model")
    assert "opened by music_ssl_fairseq.load alone" in capsys.readouterr().out
    ours, found = load(source), load(folder)
    assert (found.fingerprint, found.family) == (ours.fingerprint, family)
    assert (found.config, found.normalise) == (ours.config, ours.normalise)
    assert exported.export(folder, tmp_path / "again")
    assert load(tmp_path / "again").fingerprint == ours.fingerprint
    with pytest.raises(ValueError, match="music_ssl_fairseq"):
        AutoModel.from_pretrained(folder)
    card = (folder / "README.md").read_text()
    monkeypatch.chdir(folder)
    capsys.readouterr()
    exec(re.search(r"```python\n(.*?)```", card, re.S)[1], {})
    assert f"# {capsys.readouterr().out.strip()}\n" in card
    (folder / "config.json").write_text('{"model_type": "music_ssl_fairseq"}')
    with pytest.raises(InputError, match="is not an object with a family and a config"):
        load(folder)


@pytest.mark.parametrize("name", ["music_hubert, layer_norm_first", "music2vec"])
def test_transformers_fine_tunes_it(name, tmp_path):
    """Decaying notes against noise, twelve steps."""
    family, fields = exported.MODELS[name]
    fields = {**fields, "mask_length": 2}
    source = exported.checkpoint(tmp_path / "checkpoint.pt", family, **fields)
    folder = exported.export(source, tmp_path / "model")
    model = AutoModelForAudioClassification.from_pretrained(folder, num_labels=2).train()
    rng = np.random.default_rng(0)
    notes = [tone(0.5, seed=seed)[:, 0] for seed in range(4)]
    noise = [0.1 * rng.standard_normal(8_000).astype(np.float32) for _ in range(4)]
    extractor = AutoFeatureExtractor.from_pretrained(folder)
    inputs = extractor(notes + noise, sampling_rate=16_000, return_tensors="pt")
    labels = torch.tensor([0] * 4 + [1] * 4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        loss = model(**inputs, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-3:]) < 0.7 * np.mean(losses[:3])


def theirs(name: str, **config):
    """A random model of transformers, whose norms do something."""
    cls = getattr(transformers, name)
    model = cls(cls.config_class(**{**SHAPE, **config})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    return model


STABLE = {"do_stable_layer_norm": True, "feat_extract_norm": "layer", "conv_bias": True}
WAV2VEC2_HEAD = {"codevector_dim": 8, "num_codevectors_per_group": 4, "proj_codevector_dim": 8}


@pytest.mark.parametrize(
    ("name", "family", "config"),
    [
        ("HubertModel", "hubert", {}),
        ("HubertModel", "hubert", {"hidden_size": 24, **STABLE}),
        ("HubertForCTC", "hubert", STABLE),
        ("Wav2Vec2Model", "wav2vec2", {}),
        ("Wav2Vec2ForPreTraining", "wav2vec2", {**STABLE, **WAV2VEC2_HEAD}),
        ("Data2VecAudioModel", "data2vec_audio", {}),
        ("Data2VecAudioForCTC", "data2vec_audio", {"conv_pos_kernel_size": 7}),
    ],
)
def test_reads_what_transformers_writes(tmp_path, name, family, config):
    model = theirs(name, **config)
    model.save_pretrained(tmp_path)
    ours = load(tmp_path)
    assert ours.family == family
    source, padding = exported.padded()
    with torch.no_grad():
        output = model.base_model(
            source, attention_mask=(~padding).long(), output_hidden_states=True
        )
    found = ours.model.layers(source, padding)
    real = ~ours.model.frame_padding(padding, found[0].size(1))
    assert len(found) == len(output.hidden_states)
    # (Before 5.16 the last one was normalised where do_stable_layer_norm is on.)
    for layer in range(1, len(found) - (VERSION < (5, 16))):
        torch.testing.assert_close(
            found[layer][real], output.hidden_states[layer][real], rtol=0, atol=1e-4
        )


@pytest.mark.parametrize("form", ["shards", "bin", "old bin", "half"])
def test_reads_every_way_of_storing(tmp_path, form):
    model = theirs("HubertModel")
    (tmp_path / "plain").mkdir()
    model.save_pretrained(tmp_path / "plain")
    folder = tmp_path / form
    if form == "shards":
        model.save_pretrained(folder, max_shard_size="40KB")
        assert len(list(folder.glob("*.safetensors"))) > 2
    elif form == "half":
        model.half().save_pretrained(folder)
    else:
        model.config.save_pretrained(folder)
        state = model.state_dict()
        if form == "old bin":
            conv = "encoder.pos_conv_embed.conv."
            for old, new in (("weight_g", "original0"), ("weight_v", "original1")):
                state[conv + old] = state.pop(f"{conv}parametrizations.weight.{new}")
        torch.save(state, folder / "pytorch_model.bin")
    expected, found = read(tmp_path / "plain"), read(folder)
    assert found.state.keys() == expected.state.keys()
    for name, tensor in found.state.items():
        wanted = expected.state[name]
        assert torch.equal(tensor, wanted.half().float() if form == "half" else wanted)


def test_a_file_of_the_folder_means_the_folder(pair):
    _, folder = pair
    assert load(folder / "model.safetensors").fingerprint == load(folder).fingerprint
    assert read(folder / "config.json").family == read(folder).family


TYPE = {"feature_extractor_type": "Wav2Vec2FeatureExtractor"}
OLD, NEW = "preprocessor_config.json", "processor_config.json"


@pytest.fixture(scope="module")
def plain_folders(tmp_path_factory):
    """Models as transformers stores them, without any settings of a feature extractor."""
    folders = {}
    for norm in ("group", "layer"):
        folders[norm] = tmp_path_factory.mktemp(norm)
        theirs("HubertModel", feat_extract_norm=norm).save_pretrained(folders[norm])
    return folders


@pytest.mark.parametrize("norm", ["group", "layer"])
@pytest.mark.parametrize(
    "files",
    [
        {OLD: {"do_normalize": True}},
        {OLD: {"do_normalize": False}},
        {OLD: {"sampling_rate": 16_000}},
        {NEW: {"feature_extractor": {**TYPE, "do_normalize": False}}},
        {NEW: {"feature_extractor": {**TYPE, "do_normalize": True}}},
        {NEW: {"feature_extractor": TYPE, "processor_class": "Wav2Vec2Processor"}},
        {NEW: {"audio_processor": {**TYPE, "do_normalize": False}}},
        {NEW: {"feature_extractor": {**TYPE, "do_normalize": False}}, OLD: {"do_normalize": True}},
        {NEW: {"processor_class": "Wav2Vec2Processor"}, OLD: {"do_normalize": False}},
        {NEW: {"feature_extractor": {**TYPE, "sampling_rate": 24_000}}},
        {OLD: {"sampling_rate": 8_000, "do_normalize": False}},
    ],
)
def test_processor_settings_are_read_as_transformers_reads_them(
    plain_folders, tmp_path, norm, files
):
    shutil.copytree(plain_folders[norm], tmp_path, dirs_exist_ok=True)
    for name, settings in files.items():
        (tmp_path / name).write_text(json.dumps({**TYPE, **settings}))
    expected = transformers.Wav2Vec2FeatureExtractor.from_pretrained(tmp_path)
    contents = read(tmp_path)
    assert contents.normalise is expected.do_normalize
    assert contents.sample_rate == expected.sampling_rate
    if expected.sampling_rate != 16_000:
        with pytest.raises(InputError, match=f"was trained at {expected.sampling_rate} Hz"):
            load(tmp_path)


@pytest.mark.parametrize("norm", ["group", "layer"])
def test_without_processor_settings_the_extractor_decides(plain_folders, norm):
    contents = read(plain_folders[norm])
    assert (contents.normalise, contents.sample_rate) == (norm == "layer", 16_000)


@pytest.mark.parametrize("rate", [16_000, 24_000])
@pytest.mark.parametrize("normalise", [True, False])
def test_a_processor_saved_by_transformers_is_read(plain_folders, tmp_path, normalise, rate):
    shutil.copytree(plain_folders["group"], tmp_path, dirs_exist_ok=True)
    extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=normalise, sampling_rate=rate)
    (tmp_path / "vocab.json").write_text('{"<pad>": 0, "<unk>": 1, "|": 2, "<s>": 3, "</s>": 4}')
    tokenizer = transformers.Wav2Vec2CTCTokenizer(str(tmp_path / "vocab.json"))
    transformers.Wav2Vec2Processor(extractor, tokenizer).save_pretrained(tmp_path)
    contents = read(tmp_path)
    assert (contents.normalise, contents.sample_rate) == (normalise, rate)


@pytest.mark.parametrize("name", [OLD, NEW])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"do_normalize": "no"}, "do_normalize is 'no', not true or false"),
        ({"sampling_rate": "16k"}, "sampling_rate is '16k', not a number of Hz"),
        ({"sampling_rate": -1}, "sampling_rate is -1"),
        ({"feature_extractor_type": "WhisperFeatureExtractor"}, "'WhisperFeatureExtractor', not"),
        (None, "nested too deeply"),
    ],
)
def test_damaged_processor_settings_are_one_line(plain_folders, tmp_path, name, settings, message):
    shutil.copytree(plain_folders["layer"], tmp_path, dirs_exist_ok=True)
    content = settings if name == OLD else {"feature_extractor": settings}
    text = "[" * 100_000 if settings is None else json.dumps(content)
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=f"{name}: .*{re.escape(message)}"):
        read(tmp_path)


def test_config_of_the_real_models():
    """Base models on the hub: none of their config.json names every field."""
    from music_ssl_fairseq.upstream.contents import ARCHITECTURE
    from music_ssl_fairseq.upstream.hugging_face_config import from_config

    family, config = from_config({"model_type": "hubert", "feat_extract_norm": "group"}, "x")
    layers = parse_conv_layers(ARCHITECTURE["conv_feature_layers"])
    assert family == "hubert"
    assert parse_conv_layers(config.pop("conv_feature_layers")) == layers
    assert config == {k: v for k, v in ARCHITECTURE.items() if k != "conv_feature_layers"}
    family, config = from_config({"model_type": "data2vec-audio"}, "x")
    assert (family, config["conv_pos"], config["pos_conv_depth"]) == ("data2vec_audio", 95, 5)
    assert config["extractor_mode"] == "layer_norm"


def damage(folder, how: str) -> None:
    """Turn a good folder into a bad one."""
    weights, config = folder / "model.safetensors", folder / "config.json"
    settings = json.loads(config.read_text())
    if how == "no config":
        config.unlink()
    elif how == "broken config":
        config.write_text("{")
    elif how == "no weights":
        weights.unlink()
    elif how == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif how == "text":
        weights.write_text("This is no model.\n" * 9)
    elif how == "git lfs":
        weights.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    elif how == "attack":
        weights.unlink()
        torch.save({"w": Attack(f"touch {folder / 'trace'}")}, folder / "pytorch_model.bin")
    elif how == "missing shard":
        weights.unlink()
        index = {"weight_map": {"a": "../model-1.safetensors"}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    elif how == "missing tensor":
        settings["num_hidden_layers"] = 3
        config.write_text(json.dumps(settings))
    else:
        name, value = how.split("=")
        config.write_text(json.dumps({**settings, name: json.loads(value)}))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("no config", "no config.json in it"),
        ("broken config", "config.json: not JSON"),
        ("no weights", "neither model.safetensors nor pytorch_model.bin"),
        ("truncated", "model.safetensors: truncated, damaged"),
        ("text", "model.safetensors: truncated, damaged or no safetensors"),
        ("git lfs", "git lfs pull"),
        ("attack", "pytorch_model.bin: refused, because unpickling it could run code"),
        ("missing shard", "model-1.safetensors: missing"),
        ("missing tensor", "another architecture: lacks encoder.layers.2"),
        ('model_type="wavlm"', "model_type 'wavlm' is another architecture"),
        ('hidden_act="relu"', "another architecture: hidden_act is 'relu', not 'gelu'"),
        ("conv_pos_batch_norm=true", "another architecture: conv_pos_batch_norm is True"),
        ('feat_extract_norm="batch"', "config.json: not understood"),
        ("conv_stride=[5, 2]", "config.json: not understood"),
    ],
)
def test_a_bad_folder_is_one_line(tmp_path, how, message):
    theirs("HubertModel").save_pretrained(tmp_path)
    damage(tmp_path, how)
    with pytest.raises(InputError, match=re.escape(message)) as raised:
        load(tmp_path)
    assert "\n" not in str(raised.value)
    assert str(tmp_path) in str(raised.value)
    assert not (tmp_path / "trace").exists()


def test_a_bert_is_refused(tmp_path):
    config = transformers.BertConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
    )
    transformers.BertModel(config).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="model_type 'bert' is another architecture than hubert"):
        load(tmp_path)


def test_what_fairseq_has_no_model_for_is_refused(tmp_path, capsys):
    source = exported.checkpoint(tmp_path / "x.pt", "music2vec", mel_bands=8)
    arguments = ["--checkpoint", str(source), "--to", str(tmp_path / "out")]
    assert exported.main([*arguments, "--format", "fairseq"]) == 1
    assert "has model.mel_bands beside the extractor" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.pt"]
