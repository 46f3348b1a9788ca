"""Which weights these are: a digest that is quick for any size and changes when a tensor does."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

from pipeline.errors import UserError

SAMPLED = 65_536
"""Bytes hashed at the start of every tensor. Training or merging changes a tensor everywhere, so a prefix of each is
enough to tell two checkpoints apart; of a 7B model tens of megabytes are read instead of 14 GB."""
LONGEST_HEADER = 100_000_000
"""Bytes; the limit that safetensors itself sets."""


def model_digest(model: str, revision: str | None = None) -> str:
    """The identity of a model's weights, configuration, tokenizer and processor.

    A local folder gives ``sha256:...`` over its JSON, tokenizer and chat-template files in full and over the header and
    the first 64 KiB of every tensor of its safetensors files. A hub id gives ``<id>@<commit>``: a commit there is
    immutable.

    Raises:
        UserError: not a model folder, no safetensors weights in it, or a hub id that cannot be resolved.
    """
    folder = Path(model).expanduser()
    return _folder_digest(folder) if folder.is_dir() else _hub_commit(model, revision)


def _folder_digest(folder: Path) -> str:
    weights = sorted(folder.glob("*.safetensors"))
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} is not a model folder: it has no config.json; give one in Hugging Face's format")
    if not weights:
        raise UserError(f"{folder} has no *.safetensors weights; convert the checkpoint, other formats are not loaded")
    digest = hashlib.sha256()
    small = [path for pattern in ("*.json", "*.model", "*.jinja", "*.txt") for path in folder.glob(pattern)]
    for path in sorted(small):
        _add(digest, path.name.encode(), path.read_bytes())
    for path in weights:
        _add(digest, path.name.encode(), str(path.stat().st_size).encode())
        _add_tensors(digest, path)
    return f"sha256:{digest.hexdigest()}"


def _add_tensors(digest: Any, path: Path) -> None:
    with path.open("rb") as file:
        length = struct.unpack("<Q", file.read(8).ljust(8, b"\xff"))[0]
        if length > LONGEST_HEADER:
            raise UserError(f"{path} is not a safetensors file, or is cut short; copy it again")
        header = file.read(length)
        _add(digest, header)
        try:
            tensors = {name: about for name, about in json.loads(header).items() if name != "__metadata__"}
            offsets = [about["data_offsets"] for about in tensors.values()]
        except (ValueError, AttributeError, KeyError, TypeError) as error:
            raise UserError(f"{path} is not a safetensors file, or is damaged ({error}); copy it again") from error
        for start, end in sorted(offsets):
            file.seek(8 + length + start)
            _add(digest, file.read(min(end - start, SAMPLED)))


def _add(digest: Any, *chunks: bytes) -> None:
    """Lengths go in with the bytes, so that no two lists of chunks hash alike."""
    for chunk in chunks:
        digest.update(struct.pack("<Q", len(chunk)))
        digest.update(chunk)


def _hub_commit(model: str, revision: str | None) -> str:
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        commit = HfApi().model_info(model, revision=revision, timeout=20).sha
        return f"{model}@{commit}"
    except HFValidationError as error:
        raise UserError(f"the model {model!r} is neither a folder here nor a hub id such as owner/name") from error
    except Exception as error:
        # Offline, gated or unknown: a copy in the local cache settles it, otherwise the user must.
        cached = try_to_load_from_cache(model, "config.json", revision=revision)
        if isinstance(cached, str):
            return f"{model}@{Path(cached).parent.name}"
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"the model {model!r} is no folder here and the hub did not resolve it ({reason}); check --model"
        ) from error
