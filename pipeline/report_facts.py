"""What the figures of a report rest on, as names and values."""

from __future__ import annotations

from pathlib import Path

from pipeline.comparison import Comparison
from pipeline.locations import redact


def model_name(model: str) -> str:
    """A hub id as it is; of a folder the end of its path, which says enough on another machine."""
    name = redact(model)
    return Path(*Path(name).parts[-2:]).as_posix() if Path(name).is_absolute() else name


def facts(comparison: Comparison) -> list[tuple[str, str]]:
    """Model, samples, repeats, metric, price, hardware and versions."""
    dense = comparison.results[0]
    found = [
        ("Model", model_name(comparison.model)),
        ("Samples", f"{comparison.samples:,} images, {dense.questions:,} questions, the same for every setting"),
        ("Repeats", f"{comparison.repeats}; settings alternate in time, figures of time are medians"),
        ("Metric", comparison.metric),
    ]
    if comparison.usd_per_hour is not None:
        found.append(("Price", f"{comparison.usd_per_hour:g} USD an hour for each replica"))
    machine = [f"{name.replace('_', ' ')} {value}" for name, value in comparison.hardware.items() if name != "device"]
    found.append(("Machine", ", ".join([*filter(None, [comparison.hardware.get("device")]), *machine])))
    found.append(("Versions", ", ".join(f"{name} {value}" for name, value in comparison.versions.items())))
    return found
