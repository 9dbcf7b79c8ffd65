"""The hyper-parameters of every baseline: keys of a scenario, `--set` of `baseline`. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from megatron_fastmix.config import strict_yaml
from megatron_fastmix.config.require import require, require_at_least, require_positive
from megatron_fastmix.config.tokens import tokens
from megatron_fastmix.errors import ConfigError

TEMPERATURE = 1 / 0.3
"""T of p_k ∝ n_k^(1/T), from XLM-R (Conneau et al., ACL 2020, section 3.1: α = 0.3)."""


@dataclass(frozen=True, kw_only=True)
class TemperatureSettings:
    """Of shares between proportional and uniform."""

    temperature: float = TEMPERATURE
    """T of p_k ∝ n_k^(1/T): 1 is proportional, large is uniform."""

    def __post_init__(self) -> None:
        require(self.temperature > 0, "temperature", self.temperature, "use a number above 0")


@dataclass(frozen=True, kw_only=True)
class RegMixSettings:
    """Of RegMix, and of the mixtures that every method of many proxies draws."""

    runs: int = 64
    """N, proxies of RegMix and of random search; the paper has 512 for 17 sources."""
    min_strength: float = 0.1
    max_strength: float = 5.0
    """Ends of s of the training mixtures, which is drawn log-uniformly."""
    prior_power: float = 0.5
    """Power of the sizes in the prior of the training mixtures; 1 is the token distribution."""
    candidate_strength: float = 1.0
    """s of the simulated mixtures, whose prior is the token distribution itself."""
    max_reads: float = 15.0
    """No mixture gives a source more than this many times its share of all tokens: a run over as
    many tokens as there are would read it that often."""
    candidates: int = 100_000
    """Simulated mixtures."""
    top: int = 128
    """How many of the best are averaged."""

    def __post_init__(self) -> None:
        for name in ("runs", "candidates", "top", "max_reads"):
            found = getattr(self, name)
            require(found >= 1, f"regmix.{name}", found, "use at least 1")
        require(
            0 < self.min_strength <= self.max_strength,
            "regmix.min_strength",
            self.min_strength,
            f"use a number above 0 and at most max_strength {self.max_strength}",
        )
        for name in ("prior_power", "candidate_strength"):
            found = getattr(self, name)
            require(found > 0, f"regmix.{name}", found, "use a number above 0")


@dataclass(frozen=True, kw_only=True)
class ClimbSettings:
    """Of CLIMB; its mixtures are drawn as RegMix's are, by the settings of `regmix`."""

    runs: tuple[int, ...] = (37, 18, 9)
    """Proxies of each round."""
    top: int = 100
    """N, the best ranked of which the next round's are drawn."""

    @property
    def most_drawn(self) -> int:
        """Proxies of the largest round after the first, which are drawn from a ranking."""
        return max(self.runs[1:], default=1)

    def __post_init__(self) -> None:
        require(bool(self.runs), "climb.runs", list(self.runs), "name at least one round")
        require(min(self.runs) >= 1, "climb.runs", list(self.runs), "use at least 1 in each round")
        require(
            self.top >= self.most_drawn,
            "climb.top",
            self.top,
            f"a round draws {self.most_drawn} of them: use at least as many",
        )


@dataclass(frozen=True, kw_only=True)
class MixingLawSettings:
    """Of the log-linear mixing law, olmix's; its mixtures are those of `regmix`."""

    kl: float = 0.1
    """λ of the divergence from the sizes, nats of loss per nat."""
    max_reads: float = 5.0
    """R: how often a run of `token_budget` reads a source at most."""

    def __post_init__(self) -> None:
        require(self.kl >= 0, "mixing_law.kl", self.kl, "use 0 or more")
        require(self.max_reads >= 1, "mixing_law.max_reads", self.max_reads, "use at least 1")


@dataclass(frozen=True, kw_only=True)
class UniMaxSettings:
    """Of UniMax."""

    budget: str | int | float | None = None
    """Tokens of the run that the mixture is for (`300B`); it has no default."""
    max_epochs: float = 1.0
    """N, how often a source may be read at most; the paper tries 1, 5 and 10."""

    def __post_init__(self) -> None:
        budget = tokens(self.budget, "unimax.budget")
        require(budget is None or budget > 0, "unimax.budget", self.budget, "use 1 or more")
        require(self.max_epochs > 0, "unimax.max_epochs", self.max_epochs, "use a number above 0")

    @property
    def tokens(self) -> int:
        """The budget. Raises `ConfigError` where none is set."""
        found = tokens(self.budget, "unimax.budget")
        if found is None:
            raise ConfigError(
                "unimax.budget: UniMax needs the tokens of the run: set it, as in 300B"
            )
        return found


@dataclass(frozen=True, kw_only=True)
class DoReMiSettings:
    """Of DoReMi, the paper's (section 3.1: η = 1, c = 10⁻³)."""

    reference: Literal["uniform", "proportional"] = "proportional"
    """Weights of the reference proxy: the paper's are the sizes of the sources."""
    step_size: float = 1.0
    """η."""
    smoothing: float = 1e-3
    """c."""

    def __post_init__(self) -> None:
        require_at_least(self, "doremi", 0, ["step_size"])
        require(0 <= self.smoothing <= 1, "doremi.smoothing", self.smoothing, "use 0 to 1")


@dataclass(frozen=True, kw_only=True)
class DoGESettings:
    """Of DoGE."""

    temperature: float = 0.05
    """μ, the paper's."""
    target_samples: int = 8
    """Samples of the targets in a step, shared out by their weights."""

    def __post_init__(self) -> None:
        require_positive(self, "doge", ["temperature"])
        require_at_least(self, "doge", 1, ["target_samples"])


@dataclass(frozen=True, kw_only=True)
class ODMSettings:
    """Of online data mixing, the paper's."""

    smoothing: float = 0.9
    """ξ, of the moving average of rewards."""
    warmup: float = 0.01
    """Share of the steps in which all sources are drawn evenly."""
    micro_batches: int = 4
    """Micro-batches of a step, each of one source; as many as the global batch has samples where
    that is fewer."""

    def __post_init__(self) -> None:
        for name in ("smoothing", "warmup"):
            found = getattr(self, name)
            require(0 <= found <= 1, f"odm.{name}", found, "use 0 to 1")
        require_at_least(self, "odm", 1, ["micro_batches"])


@dataclass(frozen=True, kw_only=True)
class BaselineSettings:
    """Those of every method that has some; a section is its method's name."""

    temperature: TemperatureSettings = field(default_factory=TemperatureSettings)
    regmix: RegMixSettings = field(default_factory=RegMixSettings)
    """Also of `regmix_linear`, and the mixtures of every method of many proxies."""
    climb: ClimbSettings = field(default_factory=ClimbSettings)
    mixing_law: MixingLawSettings = field(default_factory=MixingLawSettings)
    unimax: UniMaxSettings = field(default_factory=UniMaxSettings)
    doremi: DoReMiSettings = field(default_factory=DoReMiSettings)
    doge: DoGESettings = field(default_factory=DoGESettings)
    odm: ODMSettings = field(default_factory=ODMSettings)


def load_settings(overrides: Sequence[str]) -> BaselineSettings:
    """The defaults with `section.key=value` set. Raises `ConfigError`."""
    for override in overrides:
        require("=" in override, "--set", override, "write SECTION.KEY=VALUE: regmix.runs=512")
    flags = [f"--{override}" for override in overrides]
    values = strict_yaml.apply_overrides(BaselineSettings, {}, flags)
    found: BaselineSettings = strict_yaml.from_dict(BaselineSettings, values)
    return found
