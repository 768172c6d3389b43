"""The encoder that music2vec and musicHuBERT share: from waveforms to encoded frames."""

import contextlib
from collections.abc import Iterator

import torch
from fairseq.models import BaseFairseqModel
from torch import Tensor, nn

from music_ssl_fairseq.bands import MelBands, PitchFilters
from music_ssl_fairseq.fast.dispatch import Execution
from music_ssl_fairseq.frames import conv_grid, frames_within, parse_conv_layers
from music_ssl_fairseq.modules.conv_extractor import ConvExtractor
from music_ssl_fairseq.modules.decoder import Decoder
from music_ssl_fairseq.modules.dropout import Drop, drop
from music_ssl_fairseq.modules.encoder_config import AudioEncoderConfig
from music_ssl_fairseq.modules.transformer import TransformerEncoder
from music_ssl_fairseq.modules.views import packing_of, repeat_crops


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
        self.mel_bands: MelBands | None = None
        self.mel_proj: nn.Linear | None = None
        if cfg.mel_bands:
            self.mel_bands = MelBands(cfg.mel_bands, self.grid)
            self.mel_proj = nn.Linear(cfg.mel_bands, dim)
        self.dropout_input = nn.Dropout(cfg.dropout_input)
        self.mask_emb = nn.Parameter(torch.empty(dim).uniform_())
        self.encoder = TransformerEncoder(cfg)
        visible = str(cfg.encode) == "visible"
        self.decoder = Decoder(cfg) if visible else None
        self.head_width = cfg.decoder_dim if visible else dim

    def _projection(self, channels: int, dim: int) -> nn.Linear | None:
        """Return the map from the extractor's width to the encoder's; musicHuBERT may need none."""
        return nn.Linear(channels, dim)

    def precision_on(self, device: torch.device) -> str:
        """Return the precision of forward passes on `device`: "fp32" or "bf16"."""
        precision = str(self.cfg.precision)
        if precision != "auto":
            return precision
        has_bf16 = device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 8
        return "bf16" if has_bf16 and self.mask_emb.dtype == torch.float32 else "fp32"

    @contextlib.contextmanager
    def autocast(self, device: torch.device) -> Iterator[None]:
        """Compute on `device` in this precision. With bf16, TF32 is on from here, for good."""
        if self.precision_on(device) == "fp32":
            yield
            return
        if device.type == "cuda":
            # For what stays fp32, such as the scores of units: TF32 is finer than bf16 around it.
            torch.backends.cuda.matmul.allow_tf32 = True
        with torch.autocast(device.type, torch.bfloat16):
            yield

    def extract(self, waveform: Tensor, execution: Execution | None = None) -> list[Tensor]:
        """Compute the encoder's inputs from waveforms `[B, T]`.

        Returns:
            The extractor's features `[B, frames, channels]`, with scaled gradient; then, of those
            that the settings ask for, pitch bands and mel bands `[B, frames, bands]`.
        """
        execution = execution or self.execution
        scale = self.cfg.feature_grad_mult
        with torch.set_grad_enabled(torch.is_grad_enabled() and scale > 0):
            features = self.feature_extractor(waveform, execution)
        if scale not in (0.0, 1.0) and features.requires_grad:
            features.register_hook(lambda gradient: gradient * scale)
        inputs = [features]
        if self.pitch_filters is not None:
            inputs.append(execution.run(_filter, self.pitch_filters, waveform).to(features.dtype))
        if self.mel_bands is not None:
            inputs.append(self.mel_bands.levels(waveform).to(features.dtype))
        return inputs

    def project(self, inputs: list[Tensor]) -> Tensor:
        """Normalise the features of `extract`, and sum the projections of its outputs."""
        features, *bands = inputs
        x = self.layer_norm(features)
        if self.post_extract_proj is not None:
            x = self.post_extract_proj(x)
        projections = [each for each in (self.pitch_proj, self.mel_proj) if each is not None]
        for projection, levels in zip(projections, bands, strict=True):
            x = x + projection(levels)
        return x

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
        masked_indices: Tensor | None = None,
        num_visible: int | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """Encode views, and with `encode=visible` decode their masked frames.

        Args:
            x: `[views, frames, D]`, from `mask_views` with the same mask.
            mask: `[views, frames]` bool, True for masked frames.
            padding: `[views, frames]` bool, True for padding, or None.
            execution: how operations run.
            masked_indices: `[N]` ascending indices into `views * frames`: return these frames
                alone. None for all.
            num_visible: most frames of a view that are neither masked nor padding, and the number
                of each if there is no padding. By default found here, which synchronises with the
                GPU.

        Returns:
            `[views, frames, head_width]`, or `[N, head_width]`; and each Transformer layer's
            output, of the frames that it had.
        """
        if self.decoder is None:
            x, layer_outputs, _ = self.encoder(x, padding, execution, masked_indices)
            return x, layer_outputs
        visible = ~mask if padding is None else ~(mask | padding)
        if num_visible is None:
            counts = visible.sum(1)
            num_visible = int(counts.max())
            if padding is None and int(counts.min()) < num_visible:
                padding = torch.zeros_like(mask)
        packing = packing_of(visible, num_visible)
        x, layer_outputs, _ = self.encoder(x, padding, execution, packing=packing)
        x = execution.decode(
            self.decoder,
            x,
            packing=packing,
            mask=mask,
            mask_token=self.mask_emb,
            padding=padding,
            masked_indices=masked_indices,
        )
        return x, layer_outputs

    @torch.no_grad()
    def layers(
        self,
        waveform: Tensor,
        padding_mask: Tensor | None = None,
        execution: Execution | None = None,
    ) -> list[Tensor]:
        """Compute layers 0 to `encoder_layers` in evaluation mode: see `trained_layers`."""
        was_training = self.training
        self.eval()
        try:
            return self.trained_layers(waveform, padding_mask, execution)
        finally:
            self.train(was_training)

    def trained_layers(
        self,
        waveform: Tensor,
        padding_mask: Tensor | None = None,
        execution: Execution | None = None,
    ) -> list[Tensor]:
        """Compute layers without masking, in the model's mode and with gradients.

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
            _, layer_outputs, _ = self.encoder(projected, padding, execution)
        return [projected, *layer_outputs]


def _filter(filters: PitchFilters, waveform: Tensor) -> Tensor:
    return filters(waveform)
