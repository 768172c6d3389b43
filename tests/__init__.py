"""Tests in folders that mirror the rooms of the package; what several folders share lies here."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
"""The repository."""
EXAMPLES = ROOT / "examples"
