"""The learned mixture with its sizes and its token budget, which every artefact renders.

Shares of rows, epochs for a budget and rounding are worked out here alone.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Literal

from megatron_fastmix.result.learned_group import LearnedGroup
from megatron_fastmix.result.rounding import round_weights
from megatron_fastmix.result.sizes import Shard, Size, Unit, shares_in, total_size

MANY_EPOCHS = 4
"""Up to so many, repeated text is about as good as fresh (Muennighoff et al., NeurIPS 2023)."""


@dataclass(frozen=True, kw_only=True)
class LearnedSource:
    """One source of the mixture."""

    name: str
    shards: tuple[Shard, ...]
    """Its datasets; one epoch of the source is one epoch of each."""
    documents: int
    """Documents of all shards, those without anything to learn included."""
    initial_weight: float
    final_weight: float
    """Weight after the last outer step."""
    weight: float
    """The learned weight, a share of loss tokens: the average of the iterates of the averaged
    part of the run."""
    weight_std: float
    """Standard deviation of the weight over the averaged part of the run, 0 where that is one
    iterate. Where several seeds ran, that of the learned weight over the seeds (n − 1)."""
    logit: float
    """z after the last outer step."""
    advantage: float | None = None
    """A_k = ⟨v, ∇L_k⟩ − Σ α_i⟨v, ∇L_i⟩ over the sources i inside their bounds, its mean over the
    averaged part of the run; None where it is not known, and in a group whose shares inside are
    fixed. Where several seeds ran, that which is the most standard errors from 0."""
    advantage_standard_error: float | None = None
    """Of that mean."""

    @property
    def size(self) -> Size:
        """Of all shards together."""
        return total_size(self.shards)

    @property
    def prefixes(self) -> tuple[str, ...]:
        """Those of its datasets."""
        return tuple(shard.path for shard in self.shards)


@dataclass(frozen=True, kw_only=True)
class OptimalityResult:
    """Whether the search was done: `mixture.optimality`."""

    status: str
    """`settled`, `too_short`, `moving` or `not_optimal`."""
    text: str
    """The same in a sentence, with the source and the remedy."""


@dataclass(frozen=True, kw_only=True)
class TargetResult:
    """One held-out target."""

    name: str
    path: str
    """Prefix of its first dataset."""
    tokens: int
    size: Size | None
    """None in files of older releases, which give the tokens alone."""
    shards: tuple[Shard, ...] = ()
    """Its datasets where it has several."""
    weight: float
    """ω, the target's share in the target loss: as configured, or where `worst_case` left it.
    `least_gain` weighs anew at every outer step, which metrics.jsonl has."""
    initial_loss: float | None
    """Nats per loss token at the first outer step; None where none was measured."""
    final_loss: float | None
    """The same at the last outer step."""

    @property
    def prefixes(self) -> tuple[str, ...]:
        """Those of its datasets."""
        return tuple(shard.path for shard in self.shards) or (self.path,)


@dataclass(frozen=True, kw_only=True)
class LearnedMixture:
    """The learned mixture and what it rests on."""

    seq_length: int
    complete: bool
    """False where the run has not reached its last step."""
    steps: int
    """Optimizer steps done."""
    outer_steps: int
    """Steps of the mixture done."""
    averaging_fraction: float
    """The learned weights average the iterates of this last part of the run."""
    averaged_outer_steps: int
    """How many iterates that is."""
    token_budget: int
    """Loss tokens of the run to come, for which `epochs` are given."""
    seed: int
    """Seed of the search; the first of several."""
    seeds: tuple[int, ...] = ()
    """Seeds of the searches that the weights average; empty for a single search."""
    estimator: str
    """Name of the hypergradient estimator, or of another method that found the mixture."""
    optimality: OptimalityResult | None = None
    """The verdict on the averaged part, of several seeds the worst; None for other methods."""
    sources: tuple[LearnedSource, ...]
    groups: tuple[LearnedGroup, ...] = ()
    """Where the configuration names any."""
    targets: tuple[TargetResult, ...]
    cost: dict[str, float]
    """`training_flops`, `wall_seconds` and `tokens` of the search."""
    versions: dict[str, str]
    """Versions of the packages that the search ran with."""
    config: dict[str, Any] = field(default_factory=dict)
    """The resolved configuration."""

    @property
    def weights(self) -> dict[str, float]:
        """The learned weights by source: shares of loss tokens."""
        return {source.name: source.weight for source in self.sources}

    @property
    def sizes(self) -> dict[str, Size]:
        """By source."""
        return {source.name: source.size for source in self.sources}

    @property
    def answer_only(self) -> bool:
        """Whether sources are answer-only rows, all of them or some."""
        return any(source.size.answer_only for source in self.sources)

    @property
    def mixed(self) -> bool:
        """Whether some sources are answer-only rows and others text."""
        return len({source.size.answer_only for source in self.sources}) > 1

    @property
    def loss_tokens_are(self) -> str:
        """What loss tokens are called before a user: "tokens" of text, "answer tokens" of rows, and
        "loss tokens" where there are both."""
        if self.mixed:
            return "loss tokens"
        return "answer tokens" if self.answer_only else "tokens"

    @property
    def weights_are(self) -> str:
        """What a weight is, such as "shares of answer tokens"."""
        if self.mixed:
            return "shares of loss tokens: all tokens of text, answer tokens of answer-only rows"
        if self.answer_only:
            return "shares of answer tokens"
        return f"shares of samples of {self.seq_length} tokens"

    @property
    def shares_drawn_are(self) -> str:
        """What blends for tools that draw rows or samples have of these weights, as a sentence."""
        if self.mixed:
            return (
                f"Blends have the shares of what a tool draws: samples of {self.seq_length} tokens "
                "of text, and rows of answer-only sources."
            )
        return "Blends for Megatron and tools that draw rows have the shares of rows."

    @property
    def share_drawn(self) -> str:
        """Heading of a column of these shares, those of "samples"."""
        return "share of draws" if self.mixed else "share of rows"

    @property
    def has_spread(self) -> bool:
        """Whether anything has moved the weights: outer steps, or one seed after another."""
        return self.outer_steps > 0 or bool(self.seeds)

    @property
    def spread_is(self) -> str:
        """What `weight_std` is: over seeds, or no more than over the averaged part of one run."""
        if self.seeds:
            return f"the standard deviation over {len(self.seeds)} seeds, which the weight averages"
        if not self.has_spread:
            return "not known: no outer step moved the weights"
        return (
            f"the spread over the last {self.averaged_outer_steps} of {self.outer_steps} outer "
            "steps, which the learned weight averages"
        )

    def standard_error(self, source: LearnedSource) -> float | None:
        """Of the weight of one of the sources, over the seeds; None for a single run, whose
        iterates follow each other closely and say nothing of another run's."""
        if len(self.seeds) < 2:
            return None
        return source.weight_std / math.sqrt(len(self.seeds))

    def from_uniform(self) -> tuple[float, float]:
        """The weights' distance from uniform, and their spread: root mean squares over the
        sources."""
        count = len(self.sources)
        distances = math.fsum((s.weight - 1 / count) ** 2 for s in self.sources)
        spreads = math.fsum(s.weight_std**2 for s in self.sources)
        return math.sqrt(distances / count), math.sqrt(spreads / count)

    def shares(self, unit: Unit) -> dict[str, float]:
        """By source the share of `unit` that gives `weight` as the share of loss tokens."""
        return shares_in(unit, self.weights, self.sizes, self.seq_length)

    def rounded(self, unit: Unit) -> dict[str, str]:
        """`shares` as decimal texts whose sum is exactly 1; see `round_weights`."""
        return round_weights(self.shares(unit))

    def weights_of(self, unit: Unit, shares: Mapping[str, float]) -> dict[str, float]:
        """Shares of loss tokens that drawing `unit` by `shares`, which sum to 1, gives: the way
        back from `shares`."""
        scaled = {
            name: shares[name] * float(size.loss_tokens / size.count(unit, self.seq_length))
            for name, size in self.sizes.items()
        }
        total = math.fsum(scaled.values())
        return {name: value / total for name, value in scaled.items()}

    @property
    def uniform(self) -> dict[str, float]:
        """The same share of loss tokens for each source."""
        return dict.fromkeys(self.weights, 1 / len(self.sources))

    @property
    def proportional(self) -> dict[str, float]:
        """Shares by size: every source is read equally often."""
        total = sum(size.loss_tokens for size in self.sizes.values())
        return {name: size.loss_tokens / total for name, size in self.sizes.items()}

    @property
    def initial(self) -> dict[str, float]:
        """The weights at the start by source."""
        return {source.name: source.initial_weight for source in self.sources}

    @property
    def members(self) -> dict[str, tuple[str, ...]]:
        """The sources of each group."""
        return {group.name: group.sources for group in self.groups}

    def group_weights(
        self,
        groups: Mapping[str, Sequence[str]],
        key: Literal["initial_weight", "final_weight", "weight"] = "weight",
    ) -> dict[str, float]:
        """The sum of the weights `key` of each group's sources."""
        weights = {source.name: getattr(source, key) for source in self.sources}
        return {group: math.fsum(weights[n] for n in names) for group, names in groups.items()}

    def target_shares(self, unit: Unit) -> dict[str, float]:
        """By target the share of `unit` that gives ω as the share of loss tokens; ω where sizes
        are not known."""
        weights = {target.name: target.weight for target in self.targets}
        sizes = {target.name: target.size for target in self.targets}
        known = {name: size for name, size in sizes.items() if size is not None}
        if len(known) < len(sizes):
            return weights
        return shares_in(unit, weights, known, self.seq_length)

    def budget(self, unit: Unit) -> Fraction:
        """What is read, in `unit`, while `token_budget` loss tokens are trained on."""
        if unit == "loss_tokens":
            return Fraction(self.token_budget)
        budget = Fraction(0)
        for source in self.sources:
            epochs = Fraction(source.weight) * self.token_budget / source.size.loss_tokens
            budget += epochs * source.size.count(unit, self.seq_length)
        return budget

    @property
    def epochs(self) -> dict[str, float]:
        """How often each source is read while `token_budget` loss tokens are trained on."""
        return {
            source.name: source.weight * self.token_budget / source.size.loss_tokens
            for source in self.sources
        }

    def epochs_at(self, unit: Unit, shares: Mapping[str, float]) -> dict[str, float]:
        """The same where `unit` is drawn by `shares`, such as rounded ones."""
        budget = self.budget(unit)
        return {
            name: float(Fraction(shares[name]) * budget / size.count(unit, self.seq_length))
            for name, size in self.sizes.items()
        }

    def ceilings(self, unit: Unit, max_epochs: float) -> dict[str, float]:
        """The share of `unit` at which each source is read `max_epochs` times in the budget."""
        budget = self.budget(unit)
        if math.isinf(max_epochs):
            return dict.fromkeys(self.sizes, math.inf)
        return {
            name: max_epochs * float(size.count(unit, self.seq_length) / budget)
            for name, size in self.sizes.items()
        }

    def corrected(self, weights: Mapping[str, float]) -> LearnedMixture:
        """The same with other weights, shares of loss tokens."""
        sources = tuple(dataclasses.replace(s, weight=weights[s.name]) for s in self.sources)
        return dataclasses.replace(self, sources=sources)

    @property
    def repetition_is(self) -> str:
        """A sentence: whether the search saw what reading sources so often costs."""
        searched = self.config.get("data", {}).get("token_budget")
        if searched and self.token_budget <= searched:
            return "The search repeated sources as often (data.token_budget) and weighed that."
        return "The search does not see what repetition costs."

    def for_budget(self, token_budget: int | None) -> LearnedMixture:
        """The same for a run of so many loss tokens; None keeps the budget."""
        return dataclasses.replace(self, token_budget=token_budget or self.token_budget)
