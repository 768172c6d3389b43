"""Settings of the encoder that music2vec and musicHuBERT share."""

from dataclasses import dataclass
from typing import Optional

from fairseq.dataclass import ChoiceEnum, FairseqDataclass

from music_ssl_fairseq.frames import DEFAULT_CONV_LAYERS
from music_ssl_fairseq.runtime.settings import BELOW_1, FROM_0, FROM_1, SHARE, changeable, setting


@dataclass
class AudioEncoderConfig(FairseqDataclass):
    """Settings with fairseq's names and defaults, except where a help text says otherwise."""

    extractor_mode: ChoiceEnum(["default", "layer_norm"]) = setting(  # type: ignore[valid-type]
        "default",
        "normalisation in the extractor: default has one group norm after the first convolution; "
        "layer_norm has one after each, and goes with task.normalize=true",
    )
    conv_feature_layers: str = setting(
        DEFAULT_CONV_LAYERS,
        "extractor: list of (channels, kernel, stride). Unlike fairseq's, it is parsed and not "
        "evaluated, because checkpoints carry it",
    )
    conv_bias: bool = setting(False, "biases in the extractor")
    encoder_layers: int = setting(12, "Transformer layers", FROM_1)
    encoder_embed_dim: int = setting(768, "width of the Transformer", FROM_1)
    encoder_ffn_embed_dim: int = setting(3072, "inner width of the feed-forward networks", FROM_1)
    encoder_attention_heads: int = setting(12, "attention heads", FROM_1)
    layer_norm_first: bool = setting(
        False, "normalise before attention and feed-forward, not after"
    )
    conv_pos: int = setting(128, "frames seen by the positional convolution", FROM_1)
    conv_pos_groups: int = setting(16, "groups of the positional convolution", FROM_1)
    pos_conv_depth: int = setting(
        1, "positional convolutions; more than 1 share conv_pos frames (data2vec)", FROM_1
    )
    dropout: float = setting(0.1, "dropout in the Transformer", BELOW_1)
    attention_dropout: float = setting(0.1, "dropout of attention weights", BELOW_1)
    activation_dropout: float = setting(0.0, "dropout after the feed-forward activation", BELOW_1)
    encoder_layerdrop: float = setting(
        0.0, "probability of leaving out a Transformer layer", BELOW_1
    )
    dropout_input: float = setting(0.0, "dropout of the projected extractor output", BELOW_1)
    feature_grad_mult: float = setting(
        1.0, "factor on the extractor's gradients; 0 freezes it", FROM_0
    )
    mask_prob: float = setting(
        0.65,
        "share of frames covered by mask spans if spans did not overlap. Spans do, so fewer "
        "frames are masked: see mask_mode",
        SHARE,
    )
    mask_length: int = setting(10, "frames in a mask span", FROM_1)
    mask_mode: ChoiceEnum(["fixed", "fairseq"]) = setting(  # type: ignore[valid-type]
        "fixed",
        "fixed: every crop has as many masked frames as spans cover on average, whatever its "
        "batch. fairseq: its own masks, of which random frames are unmasked until all crops of "
        "the batch have as few as the least masked. Not in fairseq",
    )
    encode: ChoiceEnum(["all", "visible"]) = setting(  # type: ignore[valid-type]
        "all",
        "frames that the Transformer sees in training. visible: unmasked ones alone, from which a "
        "decoder predicts the masked ones (data2vec 2.0, arXiv 2212.07525); the encoder has the "
        "same tensors. Needs mask_mode=fixed",
    )
    clone_batch: int = setting(
        1,
        "masks per crop, which share a pass of extractor and teacher (data2vec 2.0's field)",
        FROM_1,
    )
    decoder_dim: int = setting(384, "encode=visible: width of the decoder", FROM_1)
    decoder_layers: int = setting(4, "encode=visible: convolutions of the decoder", FROM_1)
    decoder_kernel: int = setting(7, "encode=visible: frames seen by each convolution", FROM_1)
    decoder_groups: int = setting(16, "encode=visible: groups of each convolution", FROM_1)
    decoder_input_dropout: float = setting(0.1, "dropout of the decoder's input", BELOW_1)
    residual_init: float = setting(
        1.0,
        "factor on the initial weights of what each Transformer layer adds to its input: value, "
        "output and feed-forward projections (as DeepNet, arXiv 2203.00555, equation 6). With 1, "
        "fairseq's, short schedules collapse at rates above 1e-4; with 0.1 they learn faster at "
        "up to 6e-4. Trained weights load anywhere either way",
        FROM_0,
    )
    pitch_bands: int = setting(
        0,
        "bands per octave of a second first layer with long filters, beside the extractor "
        "(bands.py): 24 for quarter tones; 0 for none. Not in fairseq: such a "
        "checkpoint loads in this package alone",
        FROM_0,
    )
    pitch_taps: int = setting(4096, "samples of a pitch filter: 4096 are 256 ms")
    mel_bands: int = setting(
        0,
        "bands of a log-mel spectrum as a further input beside the extractor, whose group norm "
        "hides a steady tone's spectral envelope (bands.py): up to 64; 0 for none. Not "
        "in fairseq: such a checkpoint loads in this package alone",
        FROM_0,
    )
    init_from: Optional[str] = changeable(
        None,
        "checkpoint whose encoder training starts from, under new heads: of this package, "
        "fairseq's HuBERT, data2vec_audio or wav2vec 2.0, a Hugging Face folder of these, or "
        "torchaudio's HuBERT. Not in fairseq, whose checkpoint.finetune_from_model wants the same "
        "model",
    )
    precision: ChoiceEnum(["auto", "fp32", "bf16"]) = changeable(  # type: ignore[valid-type]
        "auto",
        "arithmetic of the forward and backward pass; weights stay fp32. auto: bf16 on GPUs that "
        "have it, else fp32. Not in fairseq, whose common.fp16 still works",
    )
    fast: ChoiceEnum(["auto", "on", "off"]) = changeable(  # type: ignore[valid-type]
        "auto",
        "layouts and algorithms for GPUs, and kernels compiled at the start (once, about a "
        "minute): the same results, several times faster. auto: on GPUs. Not in fairseq",
    )
