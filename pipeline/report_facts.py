"""What the figures of a report rest on, as names and values."""

from __future__ import annotations

from pipeline.comparison import Comparison
from pipeline.locations import redact


def facts(comparison: Comparison) -> list[tuple[str, str]]:
    """Model, samples, repeats, metric, price, hardware and versions."""
    dense = comparison.results[0]
    found = [
        ("Model", redact(comparison.model)),
        ("Samples", f"{comparison.samples:,} images, {dense.questions:,} questions, the same for every setting"),
        ("Repeats", f"{comparison.repeats}; settings alternate in time, figures of time are medians"),
        ("Metric", comparison.metric),
    ]
    if comparison.usd_per_hour is not None:
        found.append(("Price", f"{comparison.usd_per_hour:g} USD an hour for each replica"))
    named = {**comparison.hardware, **comparison.versions}
    return found + [(name.replace("_", " ").capitalize(), str(value)) for name, value in named.items()]
