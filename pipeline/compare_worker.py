"""One shard under every setting: read once, batched once, each batch answered by each setting in turn, committed each.

The weights are there once: an engine holds none of its own. Answers are those of the first repeat; further repeats are
for the time alone. The order of the settings changes with batch and repeat, so that whatever else the machine does
meanwhile favours none of them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pipeline.batching import Picture, plan_batches
from pipeline.checkpoint import load_checkpoint
from pipeline.commit import commit_shard
from pipeline.compare_examples import trace_example, write_examples
from pipeline.compare_timing import PARTS, TOTAL, ShardTiming, write_timing
from pipeline.faults import fault_point
from pipeline.isolation import Isolation
from pipeline.kept_steps import KeptSteps
from pipeline.ledger import Ledger
from pipeline.limits import ReadLimits
from pipeline.machine_speed import hardware
from pipeline.peak_memory import forget_peak, peak_bytes
from pipeline.preparation import Preparation, Window
from pipeline.records import FLOP_PARTS, Answer, Rejection, ShardRef, ShardReport
from pipeline.replica import Replica, ReplicaSettings
from pipeline.shard_work import MOST_PICTURES, WINDOW_BATCHES, Place
from pipeline.storage import Output, open_output
from pipeline.text_towers import text_tower_for
from reduction.settings import Reduction


@dataclass
class _Rows:
    """What one setting gave for the shard so far."""

    replica: Replica
    isolation: Isolation
    answers: dict[Place, Answer] = field(default_factory=dict)
    rejections: list[tuple[Place, Rejection]] = field(default_factory=list)
    flops: dict[str, float] = field(default_factory=lambda: dict.fromkeys(FLOP_PARTS, 0.0))


class CompareWorker:
    """A replica that answers shards under several settings.

    Args:
        replica: of the dense model; the others differ in the reduction alone.
        output: of the comparison, where the timings go.
        settings: reduction -> URL of the output that its answers go to; the first is dense, the yardstick of time.
        provenance: reduction -> metadata for its parts.
        start: names this start of the job in the timings.
        examples: shard URL -> how many of its pictures are traced for the report.
    """

    def __init__(
        self,
        replica: ReplicaSettings,
        output: str,
        settings: Mapping[str, str],
        provenance: Mapping[str, Mapping[str, str]],
        *,
        repeats: int = 1,
        start: str = "",
        examples: Mapping[str, int] | None = None,
        prompt: str | None = None,
        limits: ReadLimits | None = None,
        image_threads: int | None = None,
    ) -> None:
        checkpoint = load_checkpoint(replica.model, replica.device, replica.dtype)
        parsed = [Reduction.parse(setting) for setting in settings]
        tower = text_tower_for(parsed, replica.text_tower, checkpoint.model)
        self.dense, *_ = settings
        kept = KeptSteps()
        first = Replica(replace(replica, reduction=self.dense), checkpoint, kept=kept)
        # Dense needs the most memory for a question, so what fits it fits all, and all get the same batches.
        others = replace(replica, batch_size=first.batch_size)
        self.replicas = {
            setting: first
            if setting == self.dense
            else Replica(replace(others, reduction=setting), checkpoint, tower, kept)
            for setting in settings
        }
        timeout = (limits or ReadLimits()).timeout
        self.output = open_output(output, timeout)
        self.outputs: dict[str, Output] = {setting: open_output(url, timeout) for setting, url in settings.items()}
        self.provenance, self.repeats, self.start = provenance, repeats, start
        self.examples = dict(examples or {})
        self.preparation = Preparation(
            first.transform,
            first.prompts,
            prompt=prompt,
            limits=limits,
            window=min(MOST_PICTURES, WINDOW_BATCHES * first.batch_size),
            threads=image_threads or max(2, (os.cpu_count() or 2) // 2),
        )
        self.batch_size, self.device = first.batch_size, first.engine.device
        self.isolations = {setting: Isolation(each.answer) for setting, each in self.replicas.items()}
        self.batches = 0  # answered, under each setting and in each repeat for itself
        self._warm: set[str] = set()

    def describe(self) -> dict[str, Any]:
        told = self.replicas[self.dense].describe()
        return {
            **{name: value for name, value in told.items() if name != "visual_tokens"},
            "settings": len(self.outputs),
        }

    def pulse(self) -> int:
        """A number that changes as work gets on."""
        return self.batches + self.preparation.members

    def work(self, ref: ShardRef) -> ShardReport:
        """Answer a shard under the settings that lack it and commit each.

        Dense is always measured beside them. Returns a report that sums up the settings that were lacking, for the
        driver's meter; what stands in each setting's ledger is that setting's own.

        Raises:
            StorageError, SourceError: the output cannot be written, or the shard not be read, now.
            ModelFailing: the model fails, whatever it is asked.
        """
        lacking = [setting for setting in self.outputs if not self._done(setting, ref)]
        measured = lacking if self.dense in lacking else [self.dense, *lacking]
        rows = {setting: _Rows(self.replicas[setting], self.isolations[setting]) for setting in measured}
        timing = ShardTiming(
            start=self.start,
            images=0,
            questions=0,
            seconds={
                setting: [dict.fromkeys((*PARTS, TOTAL), 0.0) for _ in range(self.repeats)] for setting in measured
            },
            peak_bytes=dict.fromkeys(measured, 0),
            hardware=self._hardware(),
        )
        report = ShardReport(ref.name, ref.url, ref.fingerprint)
        batches, pictures = 0, list[Picture]()
        for window in self.preparation.windows(ref) if lacking else ():
            pictures += window.pictures[: self.examples.get(ref.url, 0) - len(pictures)]
            batches = self._answer(window, rows, timing, batches)
            for stage, seconds in window.seconds.items():
                report.seconds[stage] += seconds
            if window.end is not None:
                report.samples = window.end.samples
                report.incomplete = None if window.end.complete else window.end.incomplete_reason
        if lacking:
            write_timing(self.output, ref, timing)
        if pictures:
            replicas = {setting: self.replicas[setting] for setting in measured}
            write_examples(self.output, ref, measured, [trace_example(one, replicas) for one in pictures])
        done = [self._commit(setting, rows[setting], report, timing) for setting in lacking]
        return _summed(report, done)

    def _done(self, setting: str, ref: ShardRef) -> bool:
        report = Ledger(self.outputs[setting]).report(ref.name, ref.url)
        return report is not None and (report.fingerprint == ref.fingerprint or ref.missing)

    def _answer(self, window: Window, rows: dict[str, _Rows], timing: ShardTiming, batches: int) -> int:
        """Answer a window's batches; returns how many batches of the shard have been answered."""
        for each in rows.values():
            each.rejections += window.rejections
        timing.images += len(window.pictures)
        timing.questions += sum(len(picture.asked) for picture in window.pictures)
        for batch in plan_batches(window.pictures, self.batch_size):
            for repeat in range(self.repeats):
                for setting in turn(list(rows), batches + repeat):
                    self._answer_batch(batch, setting, rows[setting], timing, repeat)
            batches += 1
        return batches

    def _answer_batch(
        self, batch: Sequence[Picture], setting: str, rows: _Rows, timing: ShardTiming, repeat: int
    ) -> None:
        engine = rows.replica.engine
        if setting not in self._warm:
            # The first batch makes what later ones find made: buffers, kernels, caches of counts.
            list(rows.isolation.rows(batch))
            self._warm.add(setting)
        engine.stopwatch.clear()
        forget_peak(self.device)
        began = time.perf_counter()
        answered = list(rows.isolation.rows(batch))
        seconds = {**engine.stopwatch.seconds(), TOTAL: time.perf_counter() - began}
        # Steps are recorded once for each shape, in whichever batch first has it; long runs see nothing of it.
        recording = seconds.get("recording", 0.0)
        seconds |= {part: seconds[part] - recording for part in ("decode", TOTAL) if part in seconds}
        peak = peak_bytes(self.device) - engine.kept.spare_bytes(engine.decoder)
        timing.peak_bytes[setting] = max(timing.peak_bytes[setting], peak)
        for part in (*PARTS, TOTAL):
            timing.seconds[setting][repeat][part] += seconds.get(part, 0.0)
        self.batches += 1
        if repeat:
            return
        for place, row, flops in answered:
            if isinstance(row, Answer):
                rows.answers[place] = row
            else:
                rows.rejections.append((place, row))
            for part in FLOP_PARTS:
                rows.flops[part] += getattr(flops, part)

    def _commit(self, setting: str, rows: _Rows, shard: ShardReport, timing: ShardTiming) -> ShardReport:
        first = timing.seconds[setting][0]
        report = replace(
            shard,
            seconds={**shard.seconds, **{part: first[part] for part in PARTS}},
            wall_seconds=first[TOTAL],
            flops=rows.flops,
        )
        rows.isolation.check()
        rows.rejections.sort(key=lambda row: row[0])
        fault_point("before-setting")
        return commit_shard(
            self.outputs[setting],
            report,
            [rows.answers[place] for place in sorted(rows.answers)],
            [row for _, row in rows.rejections],
            self.provenance[setting],
        )

    def _hardware(self) -> dict[str, Any]:
        engine = self.replicas[self.dense].engine
        return {
            **hardware(self.device),
            "dtype": str(engine.dtype).removeprefix("torch."),
            "batch_size": self.batch_size,
        }


def turn(settings: Sequence[str], number: int) -> list[str]:
    """The order of the settings in their turn `number`: each begins as often, and follows others each time."""
    start = number % len(settings)
    order = [*settings[start:], *settings[:start]]
    return order[::-1] if number // len(settings) % 2 else order


def _summed(shard: ShardReport, done: Sequence[ShardReport]) -> ShardReport:
    """What a shard gave under all of `done`."""
    total = replace(shard, seconds=dict(shard.seconds))
    for report in done:
        for name in ("questions", "answers", "quarantined", "prompt_tokens", "generated_tokens", "wall_seconds"):
            setattr(total, name, getattr(total, name) + getattr(report, name))
        total.flops = {part: total.flops[part] + report.flops[part] for part in FLOP_PARTS}
        for part in (*PARTS, "write"):
            total.seconds[part] += report.seconds[part]
    return total
