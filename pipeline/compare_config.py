"""A comparison of reduction settings as one typed value: the annotation job's options that it shares, and its own."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import yaml

from pipeline.config import AUTO, RunConfig
from pipeline.errors import UserError, nearest
from pipeline.options import as_value_error, count, number, option
from reduction.budget import Unit, parse_share
from reduction.notation import check_method

DENSE = "dense"
SHARED = (
    *("input", "output", "model", "text_tower", "prompt", "system_prompt", "max_new_tokens", "metric", "image_aspect"),
    "draft_jpegs",
    *("replicas", "cpus_per_replica", "gpus_per_replica", "batch_size", "dtype", "device"),
    *("max_image_bytes", "max_pixels", "max_text_bytes", "max_header_bytes", "max_questions"),
    *("max_row_bytes", "read_attempts", "storage_timeout"),
    *("max_attempts", "lease_timeout", "start_timeout", "stop_grace"),
    *("tracking_uri", "experiment", "run_name", "parent_run", "log_every", "overwrite"),
)
"""Answers are greedy: of sampled ones nobody could say whether they differ by the setting or by chance."""
OWN = ("settings", "settings_file", "budget_tflops", "budget_share", "samples", "repeats", "gpu_hour_usd")
FILE_KEYS = ("settings", "budget_tflops", "budget_share")
_GREEDY = "a comparison answers greedily, so that answers differ by the setting alone; leave it out"
_FOR_AUTO = "it is for --reduction auto of caption_corpus.py; a comparison reports what every setting loses"
INSTEAD = {
    "reduction": "a comparison takes several, as --settings ficoco-v:64,random:64",
    "keep_tokens": "a comparison takes the tokens to keep with each setting, as --settings ficoco-v:64",
    "split": "a comparison takes it with a setting, as --settings ficoco-vl:64,split=0.7",
    "max_accuracy_drop": _FOR_AUTO,
    "min_fidelity": _FOR_AUTO,
    "auto_samples": "a comparison takes --samples",
    "limit": "a comparison takes --samples, which it spreads over the corpus",
    **dict.fromkeys(("temperature", "top_p", "seed"), _GREEDY),
    "max_quarantined": "a comparison goes on whatever is quarantined, and reports it; leave it out",
    "retry_quarantined": "a comparison does not ask again what is quarantined; leave it out",
}
"""Options of the annotation job that a comparison has not; who knows them from there is told what serves here."""

Budget = tuple[float, Unit]
"""An amount of TFLOPs, or a share of dense between 0 and 1; and which of the two."""


def numbers(value: Any) -> tuple[float, ...]:
    """Numbers above 0 from a number, a list, or text with commas between."""
    parts = value if isinstance(value, list) else [part for part in str(value).split(",") if part.strip()]
    found = tuple(number(0)(part) for part in parts)
    if not found or not all(found):
        raise ValueError("give numbers above 0 with commas between, such as 3.3,2.4,1.5")
    return found


def shares(value: Any) -> tuple[float, ...]:
    """Shares of dense, between 0 and 1, from a list or text with commas between, such as 50%,28%."""
    parts = value if isinstance(value, list) else [part for part in str(value).split(",") if part.strip()]
    found = tuple(as_value_error(parse_share)(part) for part in parts)
    if not found:
        raise ValueError("give shares of dense's cost with commas between, such as 50%,28%")
    return found


@dataclass(frozen=True)
class CompareConfig(RunConfig):
    """The settings of one comparison. `None` stands for `auto` or for no value."""

    TAKEN: ClassVar[frozenset[str]] = frozenset((*SHARED, *OWN))
    INSTEAD: ClassVar[Mapping[str, str]] = INSTEAD

    settings: tuple[str, ...] = option(
        "what to compare, with commas between: ficoco-v:64,random:64; dense always is", ()
    )
    settings_file: str | None = option(
        "YAML file with `settings: [...]` and, if wanted, `budget_tflops: [...]` or `budget_share: [...]`", None
    )
    budget_tflops: tuple[float, ...] = option(
        "prefill TFLOPs (LLM-Viewer's count) that every setting given without tokens is brought to: 3.3,2.4,1.5",
        (),
        convert=numbers,
    )
    budget_share: tuple[float, ...] = option(
        "the same, as shares of all that dense costs: 50%%,28%%", (), convert=shares
    )
    samples: int = option("samples to compare on, spread over the corpus", 2000, convert=count(1))
    repeats: int = option("how often every batch is timed", 3, convert=count(1))
    gpu_hour_usd: float | None = option("price of an hour of one replica's GPU, or machine", None, convert=number(0))

    @property
    def wanted(self) -> tuple[tuple[str, ...], tuple[Budget, ...]]:
        """What the options and the file ask for: settings as written, and budgets; those of the options go before.

        Raises:
            UserError: the file cannot be used, or no setting is given.
            ReductionError: a setting names no known method.
        """
        listed, budgets = read_settings(Path(self.settings_file)) if self.settings_file else ((), ())
        written = (*(one for text in self.settings for one in split_settings(text)), *listed)
        if not written:
            raise UserError("nothing to compare: give --settings, such as ficoco-v:64,random:64, or --settings-file")
        for setting in written:
            _check_method(setting)
        return written, _budgets(self.budget_tflops, self.budget_share) or budgets

    def of_setting(self, setting: str) -> dict[str, Any]:
        """The settings of the run that this comparison does under one reduction, as JSON values."""
        plain = {name: value for name, value in self.as_dict().items() if name not in OWN}
        return {**plain, "reduction": setting, "limit": self.samples}


def split_settings(text: str) -> Iterator[str]:
    """The settings in a list such as `fastv,filter=random,keep=128,dense`: an option belongs to the one before it."""
    setting = ""
    for part in (part.strip() for part in re.split(r"[,;\s]+", text)):
        if setting and "=" in part:
            setting += f",{part}"
            continue
        if setting:
            yield setting
        setting = part
    if setting:
        yield setting


def _check_method(setting: str) -> None:
    """Before anything else is asked of a setting: a wrong name must not be answered by what the right one lacks."""
    method = setting.partition(",")[0].partition(":")[0].strip()
    if method == AUTO:
        raise UserError(
            f"{setting} is no setting to compare: --reduction auto is an option of caption_corpus.py, which then "
            "compares settings and takes one; name methods here, such as ficoco-v:64"
        )
    check_method(method)


def _budgets(tflops: Sequence[float], of_dense: Sequence[float]) -> tuple[Budget, ...]:
    return (*((one, "tflops") for one in tflops), *((one, "share") for one in of_dense))


def read_settings(path: Path) -> tuple[tuple[str, ...], tuple[Budget, ...]]:
    """Settings and budgets of a YAML file.

    Raises:
        UserError: unreadable, an unknown key, or a value that cannot be used.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"cannot read --settings-file {path}: {' '.join(str(error).split())}") from error
    if not isinstance(content, Mapping) or not isinstance(content.get("settings"), list):
        raise UserError(f"--settings-file {path} must hold a list `settings:`, one reduction a line")
    for key in content:
        if key not in FILE_KEYS:
            near = nearest(str(key), FILE_KEYS)
            hint = f"did you mean {near!r}?" if near else f"known are {', '.join(FILE_KEYS)}"
            raise UserError(f"unknown key {key!r} in {path}: {hint}")
    if wrong := [one for one in content["settings"] if not isinstance(one, str)]:
        raise UserError(f"{path}: the setting {wrong[0]!r} is not text; write it in quotes")
    found: dict[str, tuple[float, ...]] = {}
    for name, convert in (("budget_tflops", numbers), ("budget_share", shares)):
        try:
            found[name] = convert(content[name]) if content.get(name) else ()
        except ValueError as error:
            raise UserError(f"{path}: {name} is {content[name]!r}: {error}") from error
    return tuple(content["settings"]), _budgets(found["budget_tflops"], found["budget_share"])


def slug(setting: str) -> str:
    """A setting as the name of a folder: `ficoco-v:64,lam=0.5` becomes `ficoco-v_64+lam~0.5`."""
    plain = setting.replace("%", "pct").translate(str.maketrans(":,=", "_+~"))
    return re.sub(r"[^\w.+~-]", "_", plain)


def duplicates_dropped(settings: Sequence[str]) -> list[str]:
    """Each setting once, dense first."""
    return list(dict.fromkeys((DENSE, *settings)))
