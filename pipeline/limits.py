"""How much of a hostile or broken input is read before it is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.errors import UserError
from pipeline.outage import STORAGE_TIMEOUT

_MEGABYTE = 2**20
PIL_MAX_PIXELS = 2 * 89_478_485
"""Above this Pillow itself refuses an image as a decompression bomb."""

_OPTIONS = {
    "max_image_bytes": "max_image_bytes",
    "max_pixels": "max_pixels",
    "max_text_bytes": "max_text_bytes",
    "max_header_bytes": "max_header_bytes",
    "max_questions": "max_questions",
    "max_row_bytes": "max_row_bytes",
    "read_attempts": "attempts",
    "storage_timeout": "timeout",
}
"""Setting of a run -> its field here."""


@dataclass(frozen=True, slots=True)
class ReadLimits:
    """Bounds on what one member, sample, image or shard may cost, however hostile.

    Reading holds two images, one JSON and one text member at a time; parsed JSON takes up to 50 times its size.
    Decoding an image of more than 24 megapixels takes up to 12 bytes per pixel; such are decoded one at a time.
    """

    max_image_bytes: int = 64 * _MEGABYTE
    max_text_bytes: int = 4 * _MEGABYTE
    max_header_bytes: int = _MEGABYTE
    """Bytes that the headers of one tar member (PAX records, long names, sparse maps) may take."""
    max_pixels: int = PIL_MAX_PIXELS
    max_questions: int = 10_000
    """Asked about one image."""
    max_row_bytes: int = 256 * _MEGABYTE
    """What the rows of one shard may take; they are in memory until the shard is committed. A sample whose rows alone
    take an eighth of it is rejected; a shard of more ends there, as an incomplete one."""
    attempts: int = 5
    """How often a read from remote storage is tried before the shard is given back."""
    retry_seconds: float = 0.5
    """Wait before the second attempt; doubled before each one after it."""
    timeout: float = STORAGE_TIMEOUT
    """Seconds without success after which there is no further attempt."""

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> ReadLimits:
        """The limits among a run's settings; where one is not recorded, its default.

        Raises:
            UserError: a limit that cannot be used.
        """
        given = {name: settings[name] for name in _OPTIONS if name in settings}
        return cls(**{_OPTIONS[name]: value for name, value in given.items()})

    def __post_init__(self) -> None:
        for name in _OPTIONS.values():
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}: give at least 1")
        if self.max_pixels > PIL_MAX_PIXELS:
            raise UserError(f"max_pixels is {self.max_pixels}: Pillow decodes at most {PIL_MAX_PIXELS}")
        if self.retry_seconds < 0:
            raise UserError(f"retry_seconds is {self.retry_seconds}: give 0 or more")
