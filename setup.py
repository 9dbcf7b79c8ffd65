"""Packaging of megatron_fastmix; every dependency of the package and of its tests is named here."""

import re
from pathlib import Path

from setuptools import Extension, find_packages, setup

# transformers 4.48, the lowest here, wants tokenizers 0.21.
CORPUS = ["pyarrow>=15", "zstandard>=0.22", "tokenizers>=0.21", "tiktoken>=0.7"]
HUGGINGFACE = ["transformers>=4.48", "peft>=0.13"]
TENSORBOARD = ["tensorboard>=2.14"]
BASELINES = ["lightgbm>=4", "scipy>=1.10"]
TEST = [
    *BASELINES,
    *CORPUS,
    *HUGGINGFACE,
    *TENSORBOARD,
    # Two of the tools that exports are for read them in the tests.
    "datasets>=3",
    "megatron-energon>=7",
    "pytest>=8",
    "hypothesis>=6",
    "ruff>=0.6",
    "mypy>=1.10",
    "types-PyYAML",
    "types-tqdm",
]

HERE = Path(__file__).parent
VERSION = re.search(
    r'__version__ = "(.+)"', (HERE / "megatron_fastmix/__init__.py").read_text(encoding="utf-8")
)
assert VERSION is not None

setup(
    name="megatron-fastmix",
    version=VERSION[1],
    description="Learn the blend weights of a Megatron data pipeline by gradient descent",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    keywords=["data mixture", "pretraining", "fine-tuning", "megatron", "deepspeed"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: GPU :: NVIDIA CUDA",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    python_requires=">=3.11",
    packages=find_packages(include=["megatron_fastmix", "megatron_fastmix.*"]),
    package_data={
        "megatron_fastmix": [
            "py.typed",
            "blend/order/_draws.pyi",
            "configurations/*.yaml",
            "corpus/tokenizers/_parts.pyi",
            "report/page.css",
            "report/page.js",
            "report/templates/*.html",
        ]
    },
    ext_modules=[
        # The Python that it stands for stays in use where it cannot be compiled.
        Extension(
            f"megatron_fastmix.{name}",
            [f"megatron_fastmix/{name.replace('.', '/')}.c"],
            py_limited_api=True,
            optional=True,
        )
        for name in ("blend.order._draws", "corpus.tokenizers._parts")
    ],
    install_requires=[
        "torch>=2.6",
        "deepspeed>=0.19.8,<0.20",
        # 0.16 is the last for Python 3.11; the patch layer refuses a version it does not know.
        "megatron-core>=0.16,<0.21",
        "sentencepiece>=0.2",
        "numpy>=1.26",
        "pyyaml>=6",
        "tqdm>=4.66",
        "matplotlib>=3.8",
        "jinja2>=3.1",
    ],
    extras_require={
        "baselines": BASELINES,
        "corpus": CORPUS,
        "huggingface": HUGGINGFACE,
        "tensorboard": TENSORBOARD,
        "wandb": ["wandb>=0.17"],
        "test": TEST,
    },
    entry_points={"console_scripts": ["megatron-fastmix = megatron_fastmix.cli.entry:main"]},
)
