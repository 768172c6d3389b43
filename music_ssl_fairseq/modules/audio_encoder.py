"""The encoder that music2vec and musicHuBERT share: from waveforms to encoded frames."""

import contextlib
from dataclasses import dataclass
from typing import Any, Optional

import torch
from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from fairseq.models import BaseFairseqModel
from torch import Tensor, nn

from music_ssl_fairseq.fast.dispatch import Execution, packing_of, repeat_crops
from music_ssl_fairseq.frames import (
    DEFAULT_CONV_LAYERS,
    conv_grid,
    frames_within,
    parse_conv_layers,
)
from music_ssl_fairseq.modules.conv_extractor import ConvExtractor, ScaleGradient
from music_ssl_fairseq.modules.decoder import Decoder
from music_ssl_fairseq.modules.dropout import Drop, drop
from music_ssl_fairseq.modules.pitch_filters import PitchFilters
from music_ssl_fairseq.modules.positional_conv import PositionalConv
from music_ssl_fairseq.modules.transformer import TransformerEncoder, TransformerLayer
from music_ssl_fairseq.runtime.settings import setting


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
    encoder_layers: int = setting(12, "Transformer layers")
    encoder_embed_dim: int = setting(768, "width of the Transformer")
    encoder_ffn_embed_dim: int = setting(3072, "inner width of the feed-forward networks")
    encoder_attention_heads: int = setting(12, "attention heads")
    layer_norm_first: bool = setting(
        False, "normalise before attention and feed-forward, not after"
    )
    conv_pos: int = setting(128, "frames seen by the positional convolution")
    conv_pos_groups: int = setting(16, "groups of the positional convolution")
    pos_conv_depth: int = setting(
        1, "positional convolutions; more than 1 share conv_pos frames (data2vec)"
    )
    dropout: float = setting(0.1, "dropout in the Transformer")
    attention_dropout: float = setting(0.1, "dropout of attention weights")
    activation_dropout: float = setting(0.0, "dropout after the feed-forward activation")
    encoder_layerdrop: float = setting(0.0, "probability of leaving out a Transformer layer")
    dropout_input: float = setting(0.0, "dropout of the projected extractor output")
    feature_grad_mult: float = setting(1.0, "factor on the extractor's gradients; 0 freezes it")
    mask_prob: float = setting(
        0.65,
        "share of frames covered by mask spans if spans did not overlap. Spans do, so fewer "
        "frames are masked: see mask_mode",
    )
    mask_length: int = setting(10, "frames in a mask span")
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
        1, "masks per crop, which share a pass of extractor and teacher (data2vec 2.0's field)"
    )
    decoder_dim: int = setting(384, "encode=visible: width of the decoder")
    decoder_layers: int = setting(4, "its convolutions")
    decoder_kernel: int = setting(7, "frames seen by each")
    decoder_groups: int = setting(16, "groups of each")
    decoder_input_dropout: float = setting(0.1, "dropout of the decoder's input")
    residual_init: float = setting(
        1.0,
        "factor on the initial weights of what each Transformer layer adds to its input: value, "
        "output and feed-forward projections (as DeepNet, arXiv 2203.00555, equation 6). With 1, "
        "fairseq's, short schedules collapse at rates above 1e-4; with 0.1 they learn faster at "
        "up to 6e-4. Trained weights load anywhere either way",
    )
    pitch_bands: int = setting(
        0,
        "bands per octave of a second first layer with long filters, beside the extractor "
        "(modules/pitch_filters.py): 24 for quarter tones; 0 for none. Not in fairseq: such a "
        "checkpoint loads in this package alone",
    )
    pitch_taps: int = setting(4096, "samples of a pitch filter: 4096 are 256 ms")
    init_from: Optional[str] = setting(
        None,
        "checkpoint whose encoder training starts from, under new heads: of this package, "
        "fairseq's HuBERT, data2vec_audio or wav2vec 2.0, a Hugging Face folder of these, or "
        "torchaudio's HuBERT. Not in fairseq, whose checkpoint.finetune_from_model wants the same "
        "model",
    )
    precision: ChoiceEnum(["auto", "fp32", "bf16"]) = setting(  # type: ignore[valid-type]
        "auto",
        "arithmetic of the forward and backward pass; weights stay fp32. auto: bf16 on GPUs that "
        "have it, else fp32. Not in fairseq, whose common.fp16 still works",
    )
    fast: ChoiceEnum(["auto", "on", "off"]) = setting(  # type: ignore[valid-type]
        "auto",
        "layouts and algorithms for GPUs, and kernels compiled at the start (once, about a "
        "minute): the same results, several times faster. auto: on GPUs. Not in fairseq",
    )


class AudioEncoder(BaseFairseqModel):
    """Convolutional extractor, projection and Transformer, under fairseq's parameter names.

    Attributes:
        head_width: width of the frames from which heads predict: see `contextualise`.
    """

    def __init__(self, cfg: AudioEncoderConfig):
        super().__init__()
        self.cfg = cfg
        conv_layers = parse_conv_layers(cfg.conv_feature_layers)
        self.grid = conv_grid(conv_layers)
        self.execution = Execution(cfg.fast)
        channels = conv_layers[-1][0]
        dim = cfg.encoder_embed_dim
        self.feature_extractor = ConvExtractor(conv_layers, cfg.extractor_mode, cfg.conv_bias)
        self.layer_norm = nn.LayerNorm(channels)
        self.post_extract_proj = self._projection(channels, dim)
        self.pitch_filters: PitchFilters | None = None
        self.pitch_proj: nn.Linear | None = None
        if cfg.pitch_bands:
            self.pitch_filters = PitchFilters(cfg.pitch_bands, cfg.pitch_taps, self.grid)
            self.pitch_proj = nn.Linear(self.pitch_filters.bands, dim)
        self.dropout_input = nn.Dropout(cfg.dropout_input)
        self.mask_emb = nn.Parameter(torch.empty(dim).uniform_())
        sizes = dim, cfg.encoder_ffn_embed_dim, cfg.encoder_attention_heads
        dropouts = cfg.dropout, cfg.attention_dropout, cfg.activation_dropout
        self.encoder = TransformerEncoder(
            [
                TransformerLayer(*sizes, *dropouts, cfg.layer_norm_first)
                for _ in range(cfg.encoder_layers)
            ],
            PositionalConv(
                dim, cfg.conv_pos, cfg.conv_pos_groups, cfg.pos_conv_depth, self.execution
            ),
            dim,
            cfg.dropout,
            cfg.encoder_layerdrop,
            cfg.layer_norm_first,
            cfg.residual_init,
        )
        self.decoder: Decoder | None = None
        self.head_width = dim
        if str(cfg.encode) == "visible":
            convolutions = cfg.decoder_layers, cfg.decoder_kernel, cfg.decoder_groups
            self.decoder = Decoder(
                *(dim, cfg.decoder_dim, *convolutions, cfg.decoder_input_dropout), self.execution
            )
            self.head_width = cfg.decoder_dim

    def _projection(self, channels: int, dim: int) -> nn.Linear | None:
        return nn.Linear(channels, dim)

    def autocast(self, device: torch.device) -> contextlib.AbstractContextManager[Any]:
        """Return a context for forward passes on `device` in the configured precision."""
        precision = str(self.cfg.precision)
        if precision == "auto":
            has_bf16 = device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 8
            precision = "bf16" if has_bf16 and self.mask_emb.dtype == torch.float32 else "fp32"
        if precision == "fp32":
            return contextlib.nullcontext()
        if device.type == "cuda":
            # For what stays fp32, such as the unit head: TF32 is finer than bf16 around it.
            torch.backends.cuda.matmul.allow_tf32 = True
        return torch.autocast(device.type, torch.bfloat16)

    def extract(self, waveform: Tensor, execution: Execution | None = None) -> Tensor:
        """Map `[B, T]` to the extractor's features, gradient scaled, and the pitch filters' bands.

        Returns:
            `[B, frames, channels + bands]`, without bands if `pitch_bands` is 0.
        """
        execution = execution or self.execution
        scale = self.cfg.feature_grad_mult
        with torch.set_grad_enabled(torch.is_grad_enabled() and scale > 0):
            features = self.feature_extractor(waveform, execution)
        if scale not in (0.0, 1.0) and features.requires_grad:
            features = ScaleGradient.apply(features, scale)
        if self.pitch_filters is None:
            return features
        bands = execution.run(_filter, self.pitch_filters, waveform)
        return torch.cat([features, bands.to(features.dtype)], dim=-1)

    def project(self, features: Tensor) -> Tensor:
        """Normalise the output of `extract` and project it to the encoder's width."""
        bands = features[..., self.layer_norm.normalized_shape[0] :]
        x = self.layer_norm(features[..., : self.layer_norm.normalized_shape[0]])
        if self.post_extract_proj is not None:
            x = self.post_extract_proj(x)
        return x if self.pitch_proj is None else x + self.pitch_proj(bands)

    def feature_penalty(self, features: Tensor) -> Tensor:
        """Return the mean square of the extractor's features in the output of `extract`."""
        return features[..., : self.layer_norm.normalized_shape[0]].float().square().mean()

    def frame_padding(self, padding_mask: Tensor | None, num_frames: int) -> Tensor | None:
        """Map padded samples `[B, T]` to padded frames `[B, frames]`, both True for padding.

        A frame is real if the convolutions computed it from real samples alone, as in data2vec and
        Hugging Face. (fairseq's HuBERT keeps the one frame that is partly padding.)
        """
        if padding_mask is None:
            return None
        real_samples = (~padding_mask).sum(-1, keepdim=True)
        real_frames = frames_within(real_samples, self.grid.window, self.grid.hop)
        return torch.arange(num_frames, device=padding_mask.device) >= real_frames

    def mask_views(self, x: Tensor, mask: Tensor, drop: Drop = drop) -> Tensor:
        """Make the encoder's input: crops `[B, frames, D]` under masks `[views, frames]`.

        Masked frames are the learned mask embedding. If the encoder does not see them, they are
        zeros for the positional convolution of the others, and the decoder has the embedding.
        """
        x = drop(self.dropout_input, repeat_crops(x, len(mask)))
        blank = 0 if self.decoder is not None else self.mask_emb.to(x.dtype)
        return torch.where(mask.unsqueeze(-1), blank, x)

    def contextualise(
        self,
        x: Tensor,
        mask: Tensor,
        padding: Tensor | None,
        execution: Execution,
        needed: Tensor | None = None,
        num_visible: int | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """Encode views, and with `encode=visible` decode their masked frames.

        Args:
            x: `[views, frames, D]`, from `mask_views` with the same mask.
            mask: `[views, frames]` bool, True for masked frames.
            padding: `[views, frames]` bool, True for padding, or None.
            execution: how operations run.
            needed: `[N]` ascending indices into `views * frames` of the frames to return; None for
                all.
            num_visible: most frames of a view that are neither masked nor padding, and the number
                of each if there is no padding. By default found here, which synchronises with the
                GPU.

        Returns:
            `[views, frames, head_width]`, or `[N, head_width]`; and each Transformer layer's
            output, of the frames that it had.
        """
        if self.decoder is None:
            x, hidden_states, _ = self.encoder(x, padding, execution, needed)
            return x, hidden_states
        visible = ~mask if padding is None else ~(mask | padding)
        if num_visible is None:
            counts = visible.sum(1)
            num_visible = int(counts.max())
            if padding is None and int(counts.min()) < num_visible:
                padding = torch.zeros_like(mask)
        packing = packing_of(visible, num_visible)
        x, hidden_states, _ = self.encoder(x, padding, execution, packing=packing)
        args = packing, mask, self.mask_emb, padding, needed
        return execution.decode(self.decoder, x, *args), hidden_states

    @torch.no_grad()
    def layers(
        self,
        waveform: Tensor,
        padding_mask: Tensor | None = None,
        execution: Execution | None = None,
    ) -> list[Tensor]:
        """Compute `hidden_states` in evaluation mode, without gradients."""
        was_training = self.training
        self.eval()
        try:
            return self.hidden_states(waveform, padding_mask, execution)
        finally:
            self.train(was_training)

    def hidden_states(
        self,
        waveform: Tensor,
        padding_mask: Tensor | None = None,
        execution: Execution | None = None,
    ) -> list[Tensor]:
        """Compute hidden states without masking, in the model's mode.

        Args:
            waveform: `[B, T]` float, normalised as in training.
            padding_mask: `[B, T]` bool, True for padding, or None.
            execution: how operations run; by default as the model's settings say.

        Returns:
            `encoder_layers + 1` tensors `[B, frames, D]`, in the precision in which they were
            computed: layer 0, the projected output of the extractor before the positional
            convolution, then the output of each Transformer layer.
        """
        execution = execution or self.execution
        with self.autocast(waveform.device):
            projected = self.project(self.extract(waveform, execution))
            padding = self.frame_padding(padding_mask, projected.size(1))
            _, hidden_states, _ = self.encoder(projected, padding, execution)
        return [projected, *hidden_states]


def _filter(filters: PitchFilters, waveform: Tensor) -> Tensor:
    return filters(waveform)
