"""Install with `pip install -e .`; extras: plot, quickstart, probing, export, test."""

from pathlib import Path

from setuptools import find_namespace_packages, find_packages, setup
from setuptools.command.build_py import build_py

# Lets fairseq find `--user-dir music_ssl_fairseq` from any folder: see hydra_plugins.
STARTUP = "music_ssl_fairseq.pth"


class BuildWithStartup(build_py):
    """Puts the .pth file beside the packages; setuptools has no other way for editable installs."""

    def run(self) -> None:
        super().run()
        folder = self.build_lib
        if self.editable_mode:
            folder = self.get_finalized_command("install").install_lib
        self.copy_file(STARTUP, folder)


# One import name, three distributions. No single one installs on every Python and platform:
# ve-fairseq has wheels for Python 3.11 and 3.12 on 64-bit Linux, fairseq-fixed compiles anywhere
# from 3.11 on, and the official release cannot be imported by Python 3.11 or newer.
WHEELS = (
    "python_version >= '3.11' and python_version < '3.13' "
    "and platform_system == 'Linux' and platform_machine == 'x86_64'"
)
SOURCE = (
    "python_version >= '3.13' or python_version >= '3.11' "
    "and (platform_system != 'Linux' or platform_machine != 'x86_64')"
)

PLOT = ["matplotlib>=3.7"]
QUICKSTART = [*PLOT, "music21>=9", "pretty_midi>=0.2.10", "midirenderer>=0.1"]
PROBING = ["mir_eval>=0.8", *PLOT]
EXPORT = [
    "transformers>=4.57",
    "safetensors>=0.4",
    "onnx>=1.18",
    "onnxruntime>=1.22",
    "onnxscript>=0.5",
]
TEST = [
    "pytest>=8",
    "pytest-xdist>=3",
    "ruff>=0.8",
    "mypy>=1.13",
    "soxr>=0.3.2",
    "scikit-learn>=1.3",
    *PROBING,
    *EXPORT,
]

setup(
    name="music_ssl_fairseq",
    version="0.1.0",
    description="music2vec and musicHuBERT: self-supervised pre-training on music, with fairseq",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.10",
    packages=[
        *find_packages(include=["music_ssl_fairseq*", "manifests_tools*"]),
        # No __init__.py: hydra finds plugins of several distributions in this one namespace.
        *find_namespace_packages(include=["hydra_plugins*"]),
    ],
    install_requires=[
        f"ve-fairseq==0.12.3; {WHEELS}",
        f"fairseq-fixed==0.12.3.1; {SOURCE}",
        "fairseq==0.12.2; python_version < '3.11'",
        # torch's safe unpickler had holes before 2.10 (CVE-2025-32434, CVE-2026-24747). torchaudio
        # must be of torch's minor version; it ended with 2.11.
        "torch>=2.10,<2.12",
        "torchaudio>=2.10,<2.12",
        "numpy>=1.26",
        "scipy>=1.11",
        "faiss-cpu>=1.12",
        "soundfile>=0.13",
        "av>=14",
        "librosa>=0.10.2",
        "threadpoolctl>=3.5",
        "tensorboard>=2.14",
        "tqdm>=4.65",
    ],
    extras_require={
        "plot": PLOT,
        "quickstart": QUICKSTART,
        "probing": PROBING,
        "export": EXPORT,
        "test": TEST,
    },
    cmdclass={"build_py": BuildWithStartup},
    package_data={"manifests_tools": ["data/*.txt"]},
    zip_safe=False,
)
