"""Distribution `rewarm`: the packages `trainer` and `tokenization`, and the command `rewarm`."""

import re
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
version = re.search(r'__version__ = "(.+)"', (here / "trainer" / "__init__.py").read_text())
assert version, "trainer/__init__.py names the version"

setup(
    name="rewarm",
    version=version[1],
    description="Continued pretraining of LLaMA-style models that does not forget",
    long_description=(here / "README.md").read_text(encoding="utf-8")
    if (here / "README.md").exists()
    else "",
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.11",
    data_files=[
        (f"share/rewarm/{folder}", [f"{folder}/{file.name}" for file in sorted((here / folder).iterdir())])
        for folder in ("ds_configs", "launch/recipes")
    ],
    packages=find_packages(include=["trainer", "trainer.*", "tokenization", "tokenization.*"]),
    install_requires=[
        "torch>=2.6",
        "deepspeed>=0.19",
        "transformers>=5.17",
        "datasets>=4.0",
        "accelerate>=1.10",
        "sentencepiece>=0.2.1",
        "gigatoken>=0.10",
        "orjson>=3.10",
        "pydantic>=2.10",
        "pyyaml>=6.0",
        "xxhash>=3.4",
        "zstandard>=0.22",
        "protobuf>=5",
        "pyarrow>=17",
        "tokenizers>=0.22",
        "tensorboard>=2.15",
        "tqdm>=4.66",
        "fsspec>=2024.6",
        "psutil>=5.9",
        "scipy>=1.13",
        "packaging>=23",
    ],
    extras_require={
        "liger": ["liger-kernel>=0.8"],
        "eval": ["lm-eval[hf]>=0.4.9"],
        "mlflow": ["mlflow>=2.20"],
        "wandb": ["wandb>=0.19"],
        "completion": ["shtab>=1.7"],
    },
    entry_points={"console_scripts": ["rewarm = trainer.cli.main:main"]},
)
