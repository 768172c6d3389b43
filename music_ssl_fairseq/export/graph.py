"""Write the encoder as a graph for any batch size and length: ONNX, or torch.export.

Input `waveform` `[batch, samples]` float32 at the model's sample rate, as read; the graph
normalises it if the model was trained so. Outputs `layer_0`, `layer_1`,
... `[batch, frames, D]`, the layers of `AudioEncoder.layers`. There is no padding mask: waveforms
of a batch have the same length.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from music_ssl_fairseq.export import check
from music_ssl_fairseq.export.check import save
from music_ssl_fairseq.export.source import ExportSource
from music_ssl_fairseq.modules.audio_encoder import AudioEncoder
from music_ssl_fairseq.runtime.imports import optional
from music_ssl_fairseq.upstream.contents import Contents
from music_ssl_fairseq.upstream.model import build_encoder

ONNX_FILE = "model.onnx"
TORCH_FILE = "model.pt2"
INPUT = "waveform"


class Layers(nn.Module):
    """An encoder that returns its layers."""

    def __init__(self, encoder: AudioEncoder, normalise: bool):
        super().__init__()
        self.encoder = encoder
        self.normalise = normalise

    def forward(self, waveform: Tensor) -> tuple[Tensor, ...]:
        """Map `[B, T]` to `encoder_layers + 1` tensors `[B, frames, D]`."""
        if self.normalise:
            centred = waveform - waveform.mean(-1, keepdim=True)
            variance = centred.square().mean(-1, keepdim=True)
            waveform = centred * torch.rsqrt(variance + 1e-5)
        projected = self.encoder.project(self.encoder.extract(waveform))
        _, layer_outputs, _ = self.encoder.encoder(projected)
        return (projected, *layer_outputs)


def write_onnx(source: ExportSource, folder: Path, name: str) -> str:
    """Write model.onnx and run it with onnxruntime."""
    for package in ("onnx", "onnxscript"):
        optional(package, "export")
    onnxruntime = optional("onnxruntime", "export")
    original, program = _traced(source.contents)
    outputs = [f"layer_{i}" for i in range(source.contents.config["encoder_layers"] + 1)]
    torch.onnx.export(
        program,
        f=folder / ONNX_FILE,
        dynamo=True,
        input_names=[INPUT],
        output_names=outputs,
        external_data=False,
        verbose=False,
    )
    session = onnxruntime.InferenceSession(
        str(folder / ONNX_FILE), providers=["CPUExecutionProvider"]
    )

    def run(waveform: Tensor) -> list[Tensor]:
        return [torch.from_numpy(x) for x in session.run(outputs, {INPUT: waveform.numpy()})]

    return _check(original, run, name, f"onnxruntime {onnxruntime.__version__}")


def write_torch(source: ExportSource, folder: Path, name: str) -> str:
    """Write model.pt2, for `torch.export.load`, and run it."""
    original, program = _traced(source.contents)
    save(program, folder / TORCH_FILE, torch.export.save)
    loaded = torch.export.load(folder / TORCH_FILE).module()
    return _check(original, loaded, name, f"torch {torch.__version__}")


def _traced(contents: Contents) -> tuple[Layers, torch.export.ExportedProgram]:
    encoder = build_encoder(contents, "fp32", "off").eval().requires_grad_(False)
    layers = Layers(encoder, contents.normalise).eval()
    dynamic = torch.export.Dim.DYNAMIC
    waveform, _ = check.waveforms(encoder.grid)
    program = torch.export.export(
        layers, (waveform,), dynamic_shapes={INPUT: {0: dynamic, 1: dynamic}}
    )
    return layers, program


def _check(original: Layers, run: Any, name: str, runtime: str) -> str:
    """Compare at three lengths and two batch sizes that tracing did not use."""
    grid = original.encoder.grid
    generator = torch.Generator().manual_seed(1)
    largest = 0.0
    for batch, frames in ((1, 2), (2, 23), (1, 150)):
        # With an offset, so that a missing normalisation shows.
        waveform = 0.3 * torch.randn(batch, grid.num_samples(frames) + 3, generator=generator) + 0.1
        with torch.no_grad():
            expected = original(waveform)
        largest = max(largest, check.compare(expected, run(waveform), name))
    return (
        f"checked with {runtime}: {len(expected)} layers at three lengths differ by "
        f"{largest:.1e} at most"
    )
