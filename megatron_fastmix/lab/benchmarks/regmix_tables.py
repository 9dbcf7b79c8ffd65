"""The tables of github.com/sail-sg/regmix: mixtures of the Pile, and the losses of models on them.

512 mixtures with models of 1M parameters to fit on; 256 others with models of 1M and of 60M, and 64
with models of 1B, to predict. `train_mixture_1m.csv` has a column `train_the_pile_NAME` for each
source, `train_pile_loss_1m.csv` a column `metric/the_pile_NAME_val_loss` for each validation set;
rows of the two belong together by their column `index`.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_fastmix.errors import ConfigError, DataError

SIZES = ("1m", "60m", "1B")
"""Of the models whose losses are predicted, as in the files' names."""
TOKEN_SHARES = {
    "arxiv": 0.113285273,
    "freelaw": 0.079608651,
    "nih_exporter": 0.003913491,
    "pubmed_central": 0.185375901,
    "wikipedia_en": 0.051081359,
    "dm_mathematics": 0.015962925,
    "github": 0.101750772,
    "philpapers": 0.003707518,
    "stackexchange": 0.066529351,
    "enron_emails": 0.001750772,
    "gutenberg_pg_19": 0.027085479,
    "pile_cc": 0.236869207,
    "ubuntu_irc": 0.01184346,
    "europarl": 0.007929969,
    "hackernews": 0.008032956,
    "pubmed_abstracts": 0.038825953,
    "uspto_backgrounds": 0.046446962,
}
"""Each source's share of the tokens, which the tables do not have, as the authors state it
(mixture_config/synthesize_mixture.py)."""


@dataclass(frozen=True, kw_only=True)
class MixtureTable:
    """Mixtures and one loss of each."""

    sources: tuple[str, ...]
    mixtures: np.ndarray
    """(N, K)."""
    losses: np.ndarray
    """(N,), nats per token."""


@dataclass(frozen=True, kw_only=True)
class RegMixTables:
    """What a regression is fitted on and what it is to predict."""

    train: MixtureTable
    tests: dict[str, MixtureTable]
    """By size of the model."""

    @property
    def token_shares(self) -> np.ndarray:
        """Of the sources, (K,); the sum is 1."""
        shares = np.array([TOKEN_SHARES[name] for name in self.train.sources])
        return shares / shares.sum()


def read_tables(folder: str | Path, target: str) -> RegMixTables:
    """The tables in `folder`, a clone of the repository or its folder `data`, with the losses of
    one validation set. Raises `ConfigError` for an unknown one, `DataError` for no table."""
    root = Path(folder) / "data" if (Path(folder) / "data").is_dir() else Path(folder)
    train = _table(root, "train_mixture_1m.csv", "train_pile_loss_1m.csv", target)
    tests = {
        size: _table(root, f"test_mixture_{size}.csv", f"test_pile_loss_{size}.csv", target)
        for size in SIZES
    }
    unknown = [name for name in train.sources if name not in TOKEN_SHARES]
    if unknown:
        raise DataError(f"{root}: source {unknown[0]!r} is none of the Pile's that RegMix has")
    different = [size for size, test in tests.items() if test.sources != train.sources]
    if different:
        raise DataError(f"{root}/test_mixture_{different[0]}.csv: its sources are others")
    return RegMixTables(train=train, tests=tests)


def _table(root: Path, mixtures: str, losses: str, target: str) -> MixtureTable:
    shares, values = _read(root / mixtures), _read(root / losses)
    columns = [name for name in shares[0] if name != "index"]
    wanted = f"metric/the_pile_{target}_val_loss"
    if wanted not in values[0]:
        names = [
            name.removeprefix("metric/the_pile_").removesuffix("_val_loss")
            for name in values[0]
            if name != "index"
        ]
        raise ConfigError(f"--target: found {target!r}; choose among {', '.join(names)}")
    by_index = {row["index"]: row for row in values}
    common = [row for row in shares if row["index"] in by_index]
    if not common:
        raise DataError(f"{root / losses}: no row has an index of {mixtures}")
    return MixtureTable(
        sources=tuple(name.removeprefix("train_the_pile_") for name in columns),
        mixtures=_numbers(common, columns, root / mixtures),
        losses=_numbers([by_index[row["index"]] for row in common], [wanted], root / losses)[:, 0],
    )


def _read(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"{path}: cannot read the table: {error}; give a clone of github.com/sail-sg/regmix"
        ) from None
    if not rows or "index" not in rows[0]:
        raise DataError(f"{path}: no rows with a column `index`; it is no table of RegMix")
    return rows


def _numbers(rows: Sequence[dict[str, str]], columns: Sequence[str], path: Path) -> np.ndarray:
    try:
        found = np.array([[float(row[name]) for name in columns] for row in rows])
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}: a value is no number: {error}") from None
    if not np.isfinite(found).all():
        raise DataError(f"{path}: a value is not finite")
    return found
