"""A run of the annotation job as one typed value; every option of the command line and of `--config` is a field."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, Field, asdict, dataclass, fields
from typing import Any, ClassVar, TypeVar

from pipeline.errors import UserError
from pipeline.limits import ReadLimits
from pipeline.options import as_value_error, auto_or, byte_count, count, count_or_share, flag, keep, number, option
from pipeline.prompts import VICUNA_SYSTEM_PROMPT
from pipeline.scoring import METRICS
from reduction.budget import Unit, parse_share, parse_tflops
from reduction.methods import METHODS
from reduction.settings import Reduction

AUTO = "auto"
DTYPES = (AUTO, "float32", "bfloat16", "float16")
DEVICES = (AUTO, "cpu", "cuda")
SETTLED = ("keep_tokens", "split", "budget_tflops", "budget_share")
"""Options that the reduction's full notation stands for."""
_LIMITS = ReadLimits()
Config = TypeVar("Config", bound="RunConfig")


@dataclass(frozen=True)
class RunConfig:
    """The settings of one run. Units are in the help texts; `None` stands for `auto` or for no value."""

    TAKEN: ClassVar[frozenset[str]] = frozenset()
    """The fields that are options; empty for all."""
    INSTEAD: ClassVar[Mapping[str, str]] = {}
    """Options of another job that this one has not -> what serves in their place, for the error."""

    input: tuple[str, ...] = option("shards: a path, brace range, glob, folder or URL; may repeat")
    output: str = option("folder or URL that takes the answers; a rerun continues there")
    model: str = option("Hugging Face hub id, or a local folder of that format")
    reduction: str = option(
        f"{', '.join(METHODS)}; in full, such as ficoco-v:64,epsilon=0.99; or auto, chosen on a few samples", "dense"
    )
    text_tower: str | None = option(
        "CLIP model with the text tower that cdpruner and trim choose by: hub id, or a local folder of that format",
        None,
    )
    keep_tokens: int | str | None = option("visual tokens left: a count (64) or a share (11%%)", None, convert=keep)
    max_accuracy_drop: float | None = option(
        "--reduction auto: points of accuracy that may be lost to dense", None, convert=number(0, 100)
    )
    min_fidelity: float | None = option(
        "--reduction auto: least share of answers that must be dense's own, such as 0.95", None, convert=number(0, 1)
    )
    auto_samples: int = option("--reduction auto: samples that it is chosen on", 500, convert=count(1))
    budget_tflops: float | tuple[float, ...] | None = option(
        "instead: TFLOPs of the prefill, LLM-Viewer's count at 60 text tokens, that the reduction is brought to",
        None,
        convert=as_value_error(parse_tflops),
    )
    budget_share: float | tuple[float, ...] | None = option(
        "instead: share of all that dense costs, such as 28%%", None, convert=as_value_error(parse_share)
    )
    split: float | None = option("ficoco-vl: share of the drop done in the encoder", None, convert=number(0, 1))
    prompt: str | None = option("asked of every image that brings no question", None)
    system_prompt: str | None = option(
        "text before the conversation; `vicuna` stands for the one LLaVA-1.5 was evaluated with", None
    )
    max_new_tokens: int = option("most tokens of an answer", 64, convert=count(1))
    temperature: float = option("0 answers greedily, more samples", 0.0, convert=number(0))
    top_p: float = option("sampling: share of the probability to draw from", 1.0, convert=number(0, 1))
    seed: int = option("sampling: seed", 0, convert=count(0))
    metric: str = option("how answers are scored against references", "none", choices=tuple(METRICS))
    image_aspect: str = option(
        "pad to a square as LLaVA-1.5 was evaluated, or crop as the Hugging Face processor does",
        "pad",
        choices=("pad", "crop"),
    )
    draft_jpegs: bool = option(
        "scale large JPEGs down while they are decoded: faster, pixels off by a few levels", False, convert=flag
    )
    limit: int | None = option("samples to annotate, the first of the corpus", None, convert=count(1))
    replicas: int | None = option(
        "model replicas; auto: one per GPU, else one per 8 CPU cores", None, convert=auto_or(count(1))
    )
    cpus_per_replica: float | None = option("CPU cores of a replica, or auto", None, convert=auto_or(number(0)))
    gpus_per_replica: float | None = option("GPUs of a replica, or auto", None, convert=auto_or(number(0)))
    batch_size: int | None = option("questions in a batch, or auto", None, convert=auto_or(count(1)))
    dtype: str = option("of the weights", "auto", choices=DTYPES)
    device: str = option("where replicas run", "auto", choices=DEVICES)
    max_attempts: int = option("tries per shard before it is given up", 5, convert=count(1))
    lease_timeout: float = option(
        "seconds without progress after which a replica is replaced", 600.0, convert=number(0.1)
    )
    start_timeout: float = option("seconds a replica may take to load the model", 1800.0, convert=number(0.1))
    stop_grace: float = option("seconds that shards under way get to finish when stopped", 2.0, convert=number(0))
    max_quarantined: int | float | None = option(
        "stop when more questions than this count or share (1%%) are quarantined", None, convert=count_or_share
    )
    max_image_bytes: int = option("image files above this are quarantined", _LIMITS.max_image_bytes, convert=byte_count)
    max_pixels: int = option("images of more pixels are quarantined", _LIMITS.max_pixels, convert=count(1))
    max_text_bytes: int = option(
        "JSON and text files above this are quarantined", _LIMITS.max_text_bytes, convert=byte_count
    )
    max_header_bytes: int = option(
        "a tar member's headers above this end its shard", _LIMITS.max_header_bytes, convert=byte_count
    )
    max_questions: int = option("images of more questions are quarantined", _LIMITS.max_questions, convert=count(1))
    max_row_bytes: int = option("rows of a shard above this end it", _LIMITS.max_row_bytes, convert=byte_count)
    read_attempts: int = option("tries per read from remote storage", _LIMITS.attempts, convert=count(1))
    storage_timeout: float = option(
        "seconds that remote storage may not answer before the run ends", _LIMITS.timeout, convert=number(1)
    )
    tracking_uri: str = option("MLflow tracking store", "sqlite:///mlflow.db")
    experiment: str = option("MLflow experiment", "ficoco-annotate")
    run_name: str | None = option("MLflow run name; else the output's name", None)
    parent_run: str | None = option("MLflow run that this one belongs under", None)
    log_every: float = option("seconds between progress lines", 10.0, convert=number(0.1))
    retry_quarantined: bool = option("ask again what stands in quarantine", False, convert=flag)
    overwrite: bool = option("remove the output's earlier run first", False, convert=flag)

    def __post_init__(self) -> None:
        if not self.input:
            raise UserError("no input: give --input at least once")
        self._check_auto()
        self._check_budget()
        if self.retry_quarantined and self.overwrite:
            raise UserError("--overwrite removes what --retry-quarantined would ask again: give one of them")
        parsed = self.parsed_reduction
        if self.split is not None and len(parsed.places) < 2:
            raise UserError(
                f"--split divides the drop of ficoco-vl, and the reduction is {parsed.method}: leave it out"
            )
        if self.device == "cpu" and self.gpus_per_replica:
            raise UserError("--gpus-per-replica asks for GPUs and --device for the CPU: give one of them")
        ReadLimits.from_settings(vars(self))

    @property
    def is_auto(self) -> bool:
        """Whether the reduction is still to be chosen."""
        return self.reduction == AUTO

    def _check_auto(self) -> None:
        bounds = [self.max_accuracy_drop, self.min_fidelity]
        if not self.is_auto:
            if bounds != [None, None]:
                raise UserError("--max-accuracy-drop and --min-fidelity are for --reduction auto: leave them out")
            return
        if bounds.count(None) != 1:
            raise UserError("--reduction auto needs --max-accuracy-drop or --min-fidelity, one of them")
        if self.keep_tokens is not None or self.split is not None:
            raise UserError("--reduction auto chooses the tokens to keep: leave --keep-tokens and --split out")
        if self.max_accuracy_drop is not None and self.metric == "none":
            raise UserError("--max-accuracy-drop needs --metric, by which answers are scored; or give --min-fidelity")

    @property
    def budget(self) -> tuple[float, Unit] | None:
        """What the reduction may cost, where that is given and not the tokens to keep."""
        if isinstance(self.budget_share, float):
            return self.budget_share, "share"
        return (self.budget_tflops, "tflops") if isinstance(self.budget_tflops, float) else None

    def _check_budget(self) -> None:
        if self.budget is None:
            return
        if self.budget_share is not None and self.budget_tflops:
            raise UserError("the budget is given twice: give --budget-tflops or --budget-share")
        if self.keep_tokens is not None:
            raise UserError("the tokens to keep follow from the budget: leave --keep-tokens out, or the budget")
        if self.is_auto:
            raise UserError("--reduction auto chooses the tokens to keep: leave the budget out")

    @property
    def parsed_reduction(self) -> Reduction:
        """`reduction`, `keep_tokens` and `split` as one value; dense while it is still to be chosen.

        Raises:
            ReductionError: unknown or out of range.
            UserError: the number of tokens is given twice, or not at all.
        """
        text = "dense" if self.is_auto else self.reduction
        if self.budget is not None:
            return Reduction.parse(text if self.split is None else f"{text},split={self.split}", sized=False)
        if self.keep_tokens is not None:
            method, comma, rest = text.partition(",")
            if ":" in method:
                raise UserError(f"the tokens to keep are given twice: --reduction {text} and --keep-tokens")
            text = f"{method}:{self.keep_tokens}{comma}{rest}"
        elif text in METHODS and text != "dense":
            raise UserError(
                f"--reduction {text} needs --keep-tokens: a count such as 64, or a share such as 11%; or a budget"
            )
        return Reduction.parse(text if self.split is None else f"{text},split={self.split}")

    @property
    def read_limits(self) -> ReadLimits:
        """What a member, sample or image of the input may cost."""
        return ReadLimits.from_settings(vars(self))

    @property
    def system_text(self) -> str | None:
        """What stands before the conversation."""
        return VICUNA_SYSTEM_PROMPT if self.system_prompt == "vicuna" else self.system_prompt

    def as_dict(self) -> dict[str, Any]:
        """JSON values, with the reduction in its full notation and the system prompt in full."""
        plain = {
            **asdict(self),
            "keep_tokens": None,
            "split": None,
            "input": list(self.input),
            "reduction": str(self.parsed_reduction),
            "system_prompt": self.system_text,
        }
        return {name: value for name, value in plain.items() if value is not None or name not in SETTLED}


def options(kind: type[RunConfig] = RunConfig) -> dict[str, Field[Any]]:
    """Field name -> field, for everything that can be set; a job of its own takes the options in its `TAKEN`."""
    return {one.name: one for one in fields(kind) if not kind.TAKEN or one.name in kind.TAKEN}


def build(given: Mapping[str, Any], kind: type[Config]) -> Config:
    """A configuration from converted values by field name.

    Raises:
        UserError: a value that must be given is not, or values contradict each other.
        ReductionError: the reduction is unknown or out of range.
    """
    absent = [name for name, one in options(kind).items() if one.default is MISSING and name not in given]
    if absent:
        raise UserError(
            f"{', '.join('--' + name for name in absent)} must be given, on the command line or in --config"
        )
    return kind(**given)
