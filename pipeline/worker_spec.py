"""A run's configuration -> what a replica's process must be told."""

from __future__ import annotations

from pipeline.cluster import WorkerSpec
from pipeline.config import RunConfig
from pipeline.generation import GenerationSettings
from pipeline.replica import ReplicaSettings
from pipeline.run_folder import RunFolder


def worker_spec(config: RunConfig, folder: RunFolder) -> WorkerSpec:
    """The worker that answers shards with a LLaVA and commits them to the run's output."""
    arguments = {
        "replica": replica_settings(config, str(config.parsed_reduction)),
        "output": config.output,
        "provenance": folder.provenance,
        "prompt": config.prompt,
        "limits": config.read_limits,
    }
    return WorkerSpec("pipeline.shard_work:ShardWorker", arguments)


def replica_settings(config: RunConfig, reduction: str) -> ReplicaSettings:
    """What a run's replica is made from, under `reduction`."""
    return ReplicaSettings(
        model=config.model,
        reduction=reduction,
        device=config.device,
        dtype=config.dtype,
        batch_size=config.batch_size,
        image_aspect="crop" if config.image_aspect == "crop" else "pad",
        draft_jpegs=config.draft_jpegs,
        system_prompt=config.system_text,
        metric=config.metric,
        text_tower=config.text_tower,
        generation=GenerationSettings(
            max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
            top_p=config.top_p,
            seed=config.seed,
        ),
    )
