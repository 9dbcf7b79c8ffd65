"""Every format that a mixture can be exported to, by name. A format is one function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from megatron_fastmix.errors import ConfigError
from megatron_fastmix.export import (
    energon,
    gpt_neox,
    hf_datasets,
    llama_factory,
    megatron,
    nanotron,
    nemo,
    nemotron,
    olmo_core,
    streaming,
)
from megatron_fastmix.export.blend import Blend
from megatron_fastmix.result.sizes import Unit

Rows = Literal["documents", "sequences"]
"""What one row of the tool's dataset holds: a whole document, or tokens cut to one length."""


@dataclass(frozen=True, kw_only=True)
class Format:
    """One format and what is to be known about it."""

    render: Callable[[Blend], str]
    """The whole text of the export."""
    tool: str
    """Who reads it, and how."""
    counts: Unit = "samples"
    """What the tool's weights are shares of."""
    any_rows: bool = False
    """Whether the tool draws rows, which may be documents or sequences (`--rows`)."""
    note: str = ""
    """What the user still has to do; printed with the export."""

    def unit(self, rows: Rows | None) -> Unit:
        """What the weights are to be shares of; `rows` is the user's `--rows`. Raises `ConfigError`
        for a tool that draws no rows."""
        if rows is None:
            return self.counts
        if not self.any_rows:
            raise ConfigError(
                f"--rows {rows}: this format's weights are shares of {self.counts}, whatever a row "
                "holds; leave it out"
            )
        return "rows" if rows == "documents" else "tokens"


_NOT_INDEXED = "this tool reads no .bin/.idx; put in each path's place the dataset in its own form"

FORMATS: dict[str, Format] = {
    "megatron-cli": Format(
        render=megatron.command_line,
        tool="Megatron-LM and Megatron-DeepSpeed, on the command line: --data-path ...",
    ),
    "megatron-data-args": Format(
        render=megatron.data_args,
        tool="Megatron-LM: --data-args-path FILE",
    ),
    "megatron-per-split": Format(
        render=megatron.per_split,
        tool="Megatron-LM: --per-split-data-args-path FILE; valid are the search's targets",
    ),
    "megatron-bridge": Format(
        render=nemo.megatron_bridge,
        tool="Megatron-Bridge: the section `dataset` of a YAML override",
    ),
    "megatron-bridge-sources": Format(
        render=nemo.megatron_bridge_sources,
        counts="loss_tokens",
        tool="Megatron-Bridge after 0.6, fine-tuning: `source` and `source_weights` of a "
        "DirectHFSFTDatasetConfig, for --token-budget",
        note=f"{_NOT_INDEXED}: a dataset of Hugging Face or its files; weights are epochs. A blend "
        "has no split of its own: set validation_source and test_source, or do_validation and "
        "do_test to false",
    ),
    "megatron-bridge-manifest": Format(
        render=nemo.manifest,
        counts="rows",
        any_rows=True,
        tool="Megatron-Bridge after 0.6, fine-tuning: the file of "
        "per_split_data_source_manifest_path of a GPTSFTDatasetConfig",
        note=f"{_NOT_INDEXED}: its JSONL file; weights count rows",
    ),
    "model-optimizer": Format(
        render=megatron.data_args,
        tool="NVIDIA Model-Optimizer: data_blend.txt, whose words are distill.py's --data_paths",
    ),
    "nemotron": Format(
        render=nemotron.data_blend,
        tool="NVIDIA Nemotron: a DataBlend JSON; valid are the search's targets",
        note="its data preparation tokenizes what a path names; put in each path's place the raw "
        "text (hf://..., a folder), or pass the .bin/.idx on to training as they are",
    ),
    "nemo-2": Format(
        render=nemo.nemo_2,
        tool="NeMo 2: the argument paths=[...] of PreTrainingDataModule",
    ),
    "nemo-1": Format(
        render=nemo.nemo_1,
        tool="NeMo 1: the YAML list model.data.data_prefix",
    ),
    "gpt-neox": Format(
        render=gpt_neox.data_paths,
        counts="tokens",
        any_rows=True,
        tool="GPT-NeoX: a configuration file; valid and test are the search's targets",
        note="weights count tokens, as samples do that are packed, GPT-NeoX's default; --rows "
        "documents where pack_impl is unpacked",
    ),
    "olmo-core": Format(
        render=olmo_core.source_mixture,
        counts="tokens",
        tool="OLMo-core: the YAML of a SourceMixtureList over the .bin files",
        note="OLMo-core must be told the type of the .bin files (uint16, or uint32 where the "
        "vocabulary has 65,500 or more) and the end-of-document token",
    ),
    "nanotron": Format(
        render=nanotron.nanoset,
        counts="tokens",
        tool="nanotron: `dataset` of a data stage (Nanoset)",
        note=f"{_NOT_INDEXED}: a folder of datatrove's tokenized files",
    ),
    "energon": Format(
        render=energon.metadataset,
        counts="rows",
        any_rows=True,
        tool="Megatron-Energon: a MetadatasetV2",
        note=f"{_NOT_INDEXED}: a folder prepared by `energon prepare`, relative to this YAML file; "
        "weights count its samples, taken to be documents (--rows sequences where they are packed)",
    ),
    "energon-epochized": Format(
        render=energon.epochized_metadataset,
        counts="loss_tokens",
        tool="Megatron-Energon: a MetadatasetV2 by repetitions, for --token-budget",
        note=f"{_NOT_INDEXED}: a folder prepared by `energon prepare`, relative to this YAML file",
    ),
    "mosaicml-streaming": Format(
        render=streaming.streams,
        any_rows=True,
        tool="MosaicML streaming and LLM Foundry: `streams` of a dataset",
        note=f"{_NOT_INDEXED}: a folder of MDS shards; weights count its samples, taken to be "
        "of one length where they are text (--concat_tokens; --rows documents where they are whole "
        "documents)",
    ),
    "mosaicml-streaming-repeat": Format(
        render=streaming.repeated_streams,
        counts="loss_tokens",
        tool="MosaicML streaming: `streams` by `repeat`, for --token-budget",
        note=f"{_NOT_INDEXED}: a folder of MDS shards; one epoch is the token budget",
    ),
    "hf-datasets": Format(
        render=hf_datasets.interleave,
        counts="rows",
        any_rows=True,
        tool="Hugging Face datasets: a Python file that calls interleave_datasets",
        note="give its function `blend` the datasets by name; probabilities count rows, taken to "
        "be documents (--rows sequences where they are packed)",
    ),
    "llama-factory": Format(
        render=llama_factory.interleaved,
        counts="rows",
        any_rows=True,
        tool="LLaMA-Factory: the data section of a training YAML, by rows",
        note="register each dataset under its source's name in dataset_info.json",
    ),
}


def find_format(name: str) -> Format:
    """The format called `name`; `ConfigError` with the valid names for an unknown one."""
    if name not in FORMATS:
        raise ConfigError(f"--format: found {name!r}; choose one of {', '.join(FORMATS)}")
    return FORMATS[name]
