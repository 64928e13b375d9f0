"""Packaging: distribution `s3prl-saat`, import name `saat`.

The top-level folders `upstream`, `downstream`, `pretrain`, `analysis` and `configs` are installed inside `saat`
(S3PRL itself imports modules called `pretrain.runner` and `upstream.…`, so those names must stay free).
"""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
ROOMS = ("upstream", "pretrain", "downstream", "analysis", "configs")


def packages() -> list[str]:
    """Every package under its installed name."""
    names = ["saat"] + [f"saat.{name}" for name in find_packages("saat")]
    for room in ROOMS:
        names += [f"saat.{room}"] + [f"saat.{room}.{name}" for name in find_packages(room)]
    return names


def version() -> str:
    for line in (HERE / "saat" / "__init__.py").read_text(encoding="utf-8").splitlines():
        if line.startswith("__version__"):
            return line.split('"')[1]
    raise RuntimeError("saat/__init__.py has no __version__")


ANALYSIS = ["scikit-learn>=1.3"]  # PCA and t-SNE
DEMO = ["espeakng-loader>=0.2.4", "scipy>=1.10"]

setup(
    name="s3prl-saat",
    version=version(),
    description="S3PRL upstreams with 13 attention variants in an Audio ALBERT (arXiv 2006.05174)",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    package_dir={"saat": "saat", **{f"saat.{room}": room for room in ROOMS}},
    packages=packages(),
    package_data={"": ["*.yaml", "*/*.yaml"]},
    install_requires=[
        "s3prl>=0.4.18",
        "torch>=2.8",
        "torchaudio>=2.8",
        "tensorboardX>=2.6",  # S3PRL's runner imports it without requiring it
        "tensorboard>=2.12",
        "omegaconf>=2.3",
        "pyyaml>=6",
        "soundfile>=0.12",
        "pytorch-optimizer>=3.5",
        "matplotlib>=3.7",
        "praatio>=6.0",
        "platformdirs>=3",
        "safetensors>=0.4.3",
        "huggingface_hub>=0.23",
        "tqdm>=4.66",
        "filelock>=3.12",
        "numpy>=1.24",
    ],
    extras_require={
        "analysis": ANALYSIS,
        "demo": DEMO,
        "superb": ["editdistance>=0.8", "pandas>=1.5", "catalyst>=22.4", "librosa>=0.10"],  # S3PRL's tasks import them
        "onnx": ["onnx>=1.16", "onnxscript>=0.4", "onnxruntime>=1.20"],  # saat export --format onnx
        "test": [*ANALYSIS, *DEMO, "pytest>=7.4", "ruff>=0.6", "setuptools>=77"],
    },
    entry_points={"console_scripts": ["saat=saat.cli:main"]},
)
