# First, because it imports fairseq and leaves Python's logging as it is.
from music_ssl_fairseq import compat as _compat  # noqa: F401
