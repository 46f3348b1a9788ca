"""A comparison's output: `comparison.json` says what is compared on which samples, `settings/` holds a run for each."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.compare_config import CompareConfig, slug
from pipeline.errors import UserError
from pipeline.fingerprint import difference, row_settings
from pipeline.ledger import Ledger
from pipeline.model_check import text_tower_digest
from pipeline.part_names import shard_id
from pipeline.records import ShardRef
from pipeline.run_folder import COMPARISON_PATH, PROGRAM, RunFolder, prepare, read_run, redacted, remove_run
from pipeline.storage import Output, open_output
from pipeline.totals import Totals
from reduction.settings import Reduction

SETTINGS = "settings"


@dataclass
class CompareFolder:
    """An output that this comparison may write to."""

    output: Output
    runs: dict[str, RunFolder]
    """Setting -> the folder of its run."""
    record: dict[str, Any] = field(default_factory=dict)
    """The content of comparison.json."""

    @property
    def mlflow_run_id(self) -> str | None:
        return self.record.get("mlflow_run_id")

    @property
    def start(self) -> str:
        """Names this start of the job; later ones sort behind earlier ones."""
        starts = self.record["starts"]
        return f"{len(starts):04d} {starts[-1]}"

    def remember(self, **values: Any) -> None:
        self.record.update(values)
        self.output.put_atomic(COMPARISON_PATH, (json.dumps(self.record, indent=2) + "\n").encode())

    def pending(self, refs: Sequence[ShardRef]) -> list[ShardRef]:
        """The shards that a setting lacks. A report whose parts are not in order is taken away, so that the replica
        that gets the shard, which looks at the reports, does it again."""
        lacking: set[str] = set()
        for run in self.runs.values():
            ledger = Ledger(run.output)
            for ref in ledger.scan().pending(refs):
                lacking.add(ref.url)
                ledger.retract(ref.name, ref.url)
        for run in self.runs.values() if lacking else ():
            run.reopen()
        return [ref for ref in refs if ref.url in lacking]

    def totals(self, setting: str, refs: Sequence[ShardRef]) -> Totals:
        """Sums over the reports of one setting's shards."""
        ledger, totals = Ledger(self.runs[setting].output), Totals()
        for ref in refs:
            report = ledger.report(ref.name, ref.url)
            if report is not None:
                totals.add(report)
        return totals


def setting_url(output: str, setting: str) -> str:
    return f"{output.rstrip('/')}/{SETTINGS}/{slug(setting)}"


def known_names(output: str, dense: str) -> dict[str, str]:
    """Shard URL -> the name that it has in the rows already written."""
    return Ledger(open_output(setting_url(output, dense))).scan().known_names


def prepare_comparison(
    config: CompareConfig, settings: Sequence[str], digest: str, refs: Sequence[ShardRef]
) -> CompareFolder:
    """Begin a comparison, or continue the one that is there, with more settings if more are asked for. Call it holding
    the `DriverLock`.

    Raises:
        UserError: the output holds a comparison of another model, prompt or choice of samples (named), or files that
            no comparison accounts for.
        StorageError: the output cannot be written.
    """
    output = open_output(config.output, config.storage_timeout)
    output.check_writable()
    earlier = read_run(output, COMPARISON_PATH)
    if config.overwrite and earlier is not None:
        _remove(output, config.output)
        earlier = None
    if read_run(output) is not None:
        raise UserError(f"{output.url} holds the output of an annotation run; choose another --output")
    whole = {setting: {**config.of_setting(setting), **_digests(config, setting, digest)} for setting in settings}
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    depends = redacted(row_settings({**whole[settings[0]], "reduction": None}))
    manifest = [[ref.name, shard_id(ref.url), ref.take, ref.fingerprint] for ref in refs]
    if earlier is not None:
        _refuse_other(output, earlier, depends, manifest)
    runs = {
        setting: prepare(open_output(setting_url(config.output, setting), config.storage_timeout), values)
        for setting, values in whole.items()
    }
    folder = CompareFolder(output, runs, dict(earlier or {"program": PROGRAM, "created": now}))
    sample = {"digest": hashlib.sha256(json.dumps(manifest).encode()).hexdigest()[:16], "shards": manifest}
    folder.remember(
        config=redacted({**config.as_dict(), "reductions": list(settings)}),
        rows_depend_on=depends,
        sample=sample,
        starts=[*folder.record.get("starts", []), now],
    )
    return folder


def _digests(config: CompareConfig, setting: str, model: str) -> dict[str, str | None]:
    text_tower = text_tower_digest(config.text_tower, Reduction.parse(setting))
    return {"model_digest": model, "text_tower_digest": text_tower}


def _remove(output: Output, url: str) -> None:
    """Remove the files of all settings by their names, then the comparison's own."""
    names = {file.path.split("/")[1] for file in output.list(SETTINGS)}

    for name in sorted(names):
        remove_run(open_output(f"{url.rstrip('/')}/{SETTINGS}/{name}"))
    for file in (*output.list("timings"), *output.list("examples")):
        output.delete(file.path)
    for path in ("comparison.parquet", "comparison.csv", "report.html", "report.md", "metrics.jsonl", COMPARISON_PATH):
        output.delete(path)


def _refuse_other(
    output: Output, earlier: Mapping[str, Any], depends: Mapping[str, Any], manifest: Sequence[Sequence[Any]]
) -> None:
    clauses = difference(earlier.get("rows_depend_on") or {}, depends)
    before = (earlier.get("sample") or {}).get("shards") or []
    if not clauses and before != [list(one) for one in manifest]:
        clauses = [_other_samples(before, manifest)]
    if clauses:
        raise UserError(
            f"{output.url} holds a comparison with other settings: {'; '.join(clauses)}. "
            "Choose another --output, or give --overwrite to remove the earlier one"
        )


def _other_samples(before: Sequence[Sequence[Any]], now: Sequence[Sequence[Any]]) -> str:
    old, new = ({one[1]: one for one in manifest} for manifest in (before, now))
    odd = next((url for url in (*old, *new) if old.get(url) != new.get(url)), "")
    what = "is no longer among the shards" if odd not in new else "is new among the shards"
    if odd in old and odd in new:
        what = "has changed" if old[odd][3] != new[odd][3] else f"gave {old[odd][2]} samples, would give {new[odd][2]}"
    return f"the samples are others: {odd} {what}"
