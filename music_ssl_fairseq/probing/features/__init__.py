"""Features of a frozen encoder: which part of the audio, computed once, cached on disk."""
