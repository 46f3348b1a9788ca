"""A few pictures of a comparison with what each setting kept of them, for its report."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict

from pipeline.batching import Picture
from pipeline.compare_timing import measured_path
from pipeline.comparison import Example, Flow
from pipeline.device_errors import breaks_device
from pipeline.records import ShardRef
from pipeline.replica import Replica
from pipeline.report_flows import answer_and_flow, make_example
from pipeline.storage import Output

FOLDER = "examples"
MOST = 4
"""Pictures in a report."""


def examples_of(refs: Sequence[ShardRef]) -> dict[str, int]:
    """Shard URL -> how many pictures it gives: `MOST` in all, from shards spread over the corpus."""
    number = min(MOST, len(refs))
    shares = [(index + 1) * MOST // number - index * MOST // number for index in range(number)]
    return {refs[index * len(refs) // number].url: share for index, share in enumerate(shares)}


def trace_example(picture: Picture, replicas: Mapping[str, Replica]) -> Example:
    """Answer a picture's first question under each setting and see where its patches went.

    A setting that cannot be traced has no flow; what its answers are worth is measured elsewhere.
    """
    one, first = picture.asked[0], next(iter(replicas.values()))
    flows: list[Flow] = []
    for setting, replica in replicas.items():
        try:
            flow = answer_and_flow(replica.engine, picture.pixels, one.prompt, replica.tokenizer, one.question.text)
        except (ValueError, RuntimeError) as error:
            if breaks_device(error):
                raise
            continue
        flows.append(Flow(setting, flow.answer, flow.kept, flow.moved))
    question = one.question
    grid = first.engine.shape.vision.grid
    return make_example(picture.pixels, grid, one.sample.key, question.text, question.references, flows)


def write_examples(output: Output, ref: ShardRef, settings: Iterable[str], examples: Sequence[Example]) -> None:
    """Raises StorageError where the output cannot be written."""
    plain = [{**asdict(one), "jpeg": base64.b64encode(one.jpeg).decode()} for one in examples]
    output.put_atomic(measured_path(FOLDER, ref, settings), (json.dumps(plain) + "\n").encode())


def read_examples(output: Output, refs: Sequence[ShardRef], settings: Sequence[str]) -> list[Example]:
    """The pictures of a comparison under `settings`, with the flows of all its measurements; what cannot be read is
    left out."""
    found: dict[tuple[str, str, str], Example] = {}
    flows: dict[tuple[str, str, str], dict[str, Flow]] = {}
    for ref in refs:
        paths = [file.path for file in output.list(measured_path(FOLDER, ref))]
        for _, content in output.read_many(paths):
            for one in _decoded(content):
                place = ref.url, one.key, one.question
                found.setdefault(place, one)
                flows.setdefault(place, {}).update({flow.setting: flow for flow in one.flows})
    return [
        Example(
            one.jpeg,
            one.grid,
            one.key,
            one.question,
            one.references,
            tuple(flows[place][setting] for setting in settings if setting in flows[place]),
        )
        for place, one in found.items()
    ][:MOST]


def _decoded(content: bytes | None) -> list[Example]:
    try:
        return [
            Example(
                base64.b64decode(one["jpeg"]),
                int(one["grid"]),
                one["key"],
                one["question"],
                tuple(one["references"]),
                tuple(_flow(flow) for flow in one["flows"]),
            )
            for one in json.loads(content or b"")
        ]
    except (ValueError, TypeError, KeyError):
        return []


def _flow(plain: Mapping[str, object]) -> Flow:
    values = {**plain, "kept": tuple(plain["kept"]), "moved": tuple(tuple(move) for move in plain["moved"])}  # type: ignore[arg-type,attr-defined]
    return Flow(**values)  # type: ignore[arg-type]
