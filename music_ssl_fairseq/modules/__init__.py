"""The models as the papers have them; begin with `audio_encoder`.

It leads from a waveform to encoded frames: `conv_extractor`, `positional_conv`, `transformer`. On
its output, both models score units by `cosine_logits`, and music2vec has an `ema_teacher`;
`decoder` fills in masked frames that the encoder has not seen. An `Execution` (`fast.dispatch`)
says how operations run; `PLAIN` runs each as it is written here. docs/architecture.md has the
meaning of its methods.
"""

# First, because it imports fairseq and leaves Python's logging as it is.
from music_ssl_fairseq import compat as _compat  # noqa: F401
