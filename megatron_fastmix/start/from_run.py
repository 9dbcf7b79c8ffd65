"""`search --from RUN`: a search that starts from another's result, whose sources changed since.

The sources that RUN knew and that are unchanged become one group: their relative weights are those
of RUN and stay, and the group has one logit. Every new source has its own, and so has one that was
rebuilt, since what RUN learned is of its old content. A new source starts at 1/K; the others share
what is left as RUN's weights have it. All of it ends in the configuration (`mixture.learn: groups`,
`sources[].group`, `mixture.initial_weights`), so that a resume needs RUN no longer and every check
of groups applies.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from megatron_fastmix.checkpoint.identity import Identity, fingerprint_of, sample_bytes_for
from megatron_fastmix.checkpoint.store import last_identity
from megatron_fastmix.config import SearchConfig, strict_yaml
from megatron_fastmix.config.data import TokenizerConfig
from megatron_fastmix.corpus.indexed.indexed_files import inspect_indexed_dataset
from megatron_fastmix.corpus.tokenizers import load_tokenizer
from megatron_fastmix.errors import ConfigError
from megatron_fastmix.result.learned_mixture import LearnedMixture
from megatron_fastmix.result.mixture_file import read_mixture
from megatron_fastmix.run.folder import RunFolder
from megatron_fastmix.text_list import listed

KNOWN = "known"
"""The group of the sources whose relative weights stay."""


@dataclass(frozen=True, kw_only=True)
class FromRun:
    """A configuration that starts from a run, and what became of that run's sources."""

    config: SearchConfig
    known: tuple[str, ...]
    rebuilt: tuple[str, ...]
    new: tuple[str, ...]
    dropped: tuple[str, ...]

    @property
    def text(self) -> str:
        """One line for the user."""
        kept = f"one logit for {listed(self.known)}, whose relative weights stay"
        learned = f"one each for {listed(self.rebuilt + self.new)}"
        parts = [kept, learned]
        if self.rebuilt:
            parts.append(f"rebuilt since: {listed(self.rebuilt)}")
        if self.dropped:
            parts.append(f"dropped: {listed(self.dropped)}")
        return "; ".join(parts)


def start_from(config: SearchConfig, run: str | Path) -> FromRun:
    """`config` with the start and the groups that follow from the finished run in folder `run`.

    Whether a source was rebuilt is told by the fingerprint in the run's last checkpoint, or where
    there is none by its tokens and documents. Raises `ConfigError` for a run that is not finished
    or has another tokenizer, for settings that `--from` makes itself, and where nothing is known or
    nothing is new; `DataError` for files that cannot be read.
    """
    folder = RunFolder(Path(run))
    if folder.path.resolve() == Path(config.run_dir).resolve():
        raise ConfigError(
            f"--from: {run} is this search's own run_dir; choose another run_dir for the search "
            "that starts from it"
        )
    _check_settings(config)
    before = read_mixture(folder.path)
    if not before.complete:
        raise ConfigError(
            f"--from: the search in {run} is not finished ({before.steps} steps are done); finish "
            "it first: the same command that began it resumes it"
        )
    identity = next(filter(None, map(last_identity, (folder, *folder.seeds()))), None)
    _check_tokenizer(config, before, identity, run)
    weights = before.weights
    rebuilt = _rebuilt(config, before, identity)
    names = config.source_names
    new = tuple(name for name in names if name not in weights)
    known = tuple(name for name in names if name in weights and name not in rebuilt)
    if not known:
        raise ConfigError(
            f"--from: no source of {run} ({listed(tuple(weights))}) is unchanged among "
            f"{listed(tuple(names))}; search without --from"
        )
    if len(known) == len(names):
        raise ConfigError(
            f"--from: all of {listed(known)} are known to {run} and unchanged, so that nothing is "
            "left to learn; add a source, or take that run's mixture: megatron-fastmix export "
            f"{run}"
        )
    left = 1 - len(new) / len(names)
    old = sum(weights[name] for name in names if name in weights)
    # A weight that fell to 0 has no logarithm, and stays as good as 0.
    shares = {
        name: max(left * weights[name] / old, 1e-12) if name in weights else 1 / len(names)
        for name in names
    }
    group = KNOWN
    while group in names:
        group += "_"
    return FromRun(
        config=dataclasses.replace(
            config,
            sources=tuple(
                dataclasses.replace(s, group=group if s.name in known else None)
                for s in config.sources
            ),
            mixture=dataclasses.replace(
                config.mixture,
                learn="groups",
                initial_weights=tuple(shares[name] for name in names),
            ),
        ),
        known=known,
        rebuilt=tuple(name for name in names if name in rebuilt),
        new=new,
        dropped=tuple(name for name in weights if name not in names),
    )


def _check_settings(config: SearchConfig) -> None:
    own = {
        "mixture.initial_weights": config.mixture.initial_weights is not None,
        "mixture.learn": config.mixture.learn != "sources",
        "sources[].group": any(source.group is not None for source in config.sources),
        "groups": bool(config.groups),
    }
    found = [key for key, given in own.items() if given]
    if found:
        raise ConfigError(
            f"{', '.join(found)}: found beside --from, which makes the start and the groups "
            "itself: leave it out, or search without --from (the configuration in a run folder "
            "that --from began resumes without it)"
        )


def _check_tokenizer(
    config: SearchConfig, before: LearnedMixture, identity: Identity | None, run: str | Path
) -> None:
    mine = load_tokenizer(**vars(config.tokenizer)).sha256
    if identity is not None:
        theirs = identity["tokenizer"]
    else:
        section = before.config.get("tokenizer")
        if not section:
            raise ConfigError(
                f"--from: neither a checkpoint nor the configuration in {run} tells its "
                "tokenizer; give a run folder that a search wrote"
            )
        known: TokenizerConfig = strict_yaml.from_dict(TokenizerConfig, section)
        theirs = load_tokenizer(**vars(known)).sha256
    if mine != theirs:
        raise ConfigError(
            f"tokenizer: found {config.tokenizer.tokenizer_type} (sha256 {mine[:12]}...), and "
            f"{run} was searched with another ({str(theirs)[:12]}...): weights are shares of its "
            "tokens and mean something else to this one; use that tokenizer, or search without "
            "--from"
        )


def _rebuilt(config: SearchConfig, before: LearnedMixture, identity: Identity | None) -> set[str]:
    """Sources of the same name and other content."""
    old = {source.name: source for source in before.sources}
    kept = [source for source in config.sources if source.name in old]
    if identity is None:
        found = set()
        for source in kept:
            each = [inspect_indexed_dataset(prefix) for prefix in source.prefixes()]
            size = (sum(s.tokens for s in each), sum(s.documents for s in each))
            if size != (old[source.name].size.tokens, old[source.name].documents):
                found.add(source.name)
        return found
    recorded = dict(identity["sources"])
    datasets = sum(len(source.shards) for source in before.sources)
    datasets += sum(max(1, len(target.shards)) for target in before.targets)
    size_read = sample_bytes_for(datasets)
    return {
        source.name
        for source in kept
        if fingerprint_of(source.prefixes(), size_read) != recorded.get(source.name)
    }
