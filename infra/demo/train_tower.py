"""Stage 1: train the CLIP tower alone, on what each scene gives for free.

Per patch: shape, colour and digit of the object under it, its size, where its middle lies, whether it is the largest,
and how many objects of its shape and colour there are. On CLS: which combinations are there, how many of each shape and
colour, and the largest object, so that CLS attention means something.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPVisionModel

from infra.demo.model_files import GRID, MEAN, STD, llava_config
from infra.demo.scenes import COLOURS, MAX_OBJECTS, SHAPES
from infra.demo.training_loop import Clock, optimisers, train

PATCH_HEADS = {"shape": len(SHAPES) + 1, "colour": len(COLOURS) + 1, "digit": 12, "same_shape": 5, "same_colour": 5}
PATCH_HEADS |= {"largest": 2, "size": 8, "total": 5, "row": 9, "column": 9}
WEIGHTS = {"shape": 2.0, "digit": 2.0}
PAIRS = len(SHAPES) * len(COLOURS)
CLS_HEADS = {"pairs": PAIRS, "shapes": len(SHAPES) * 5, "colours": len(COLOURS) * 5, "total": 5}
CLS_HEADS |= {"largest_shape": len(SHAPES), "largest_colour": len(COLOURS)}


class Tower(nn.Module):
    """The vision model up to the layer that LLaVA reads (the one before the last), with heads for the training."""

    def __init__(self) -> None:
        super().__init__()
        config: Any = llava_config().vision_config
        self.vision = CLIPVisionModel(config)
        start_local(self.vision)
        width = config.hidden_size
        self.norm = nn.LayerNorm(width)
        self.patch_heads = nn.Linear(width, sum(PATCH_HEADS.values()))
        self.cls_heads = nn.Linear(width, sum(CLS_HEADS.values()))

    def features(self, pixels: Tensor) -> Tensor:
        """Return hidden states (b, 1 + patches, width) for normalised pixels (b, 3, size, size)."""
        body: Any = getattr(self.vision, "vision_model", self.vision)
        hidden = body.pre_layrnorm(body.embeddings(pixels))
        for layer in body.encoder.layers[:-1]:
            out = layer(hidden, None)
            hidden = out[0] if isinstance(out, tuple) else out
        return hidden

    def forward(self, pixels: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        hidden = self.norm(self.features(pixels))
        patch = self.patch_heads(hidden[:, 1:]).float().split(list(PATCH_HEADS.values()), -1)
        image = self.cls_heads(hidden[:, 0]).float().split(list(CLS_HEADS.values()), -1)
        return dict(zip(PATCH_HEADS, patch, strict=True)), dict(zip(CLS_HEADS, image, strict=True))


def start_local(vision: CLIPVisionModel) -> None:
    """Initialise so that patches first look at near and similar ones, which a small ViT is slow to find out alone.

    2-D sine and cosine position embeddings, and equal query and key matrices (after the "mimetic initialization" of
    Trockman and Kolter, 2023).
    """
    body: Any = getattr(vision, "vision_model", vision)
    width = body.config.hidden_size
    frequencies = 1 / 60 ** (torch.arange(width // 4) / (width // 4))
    row, column = torch.meshgrid(torch.arange(GRID), torch.arange(GRID), indexing="ij")
    angles = torch.stack([row, column], -1).flatten(0, 1)[..., None] * frequencies
    grid = torch.cat([angles.sin(), angles.cos()], -1).flatten(1)
    with torch.no_grad():
        body.embeddings.position_embedding.weight[1:] = grid
        for layer in body.encoder.layers:
            nn.init.normal_(layer.self_attn.q_proj.weight, std=0.8 * width**-0.5)
            layer.self_attn.k_proj.weight.copy_(layer.self_attn.q_proj.weight)


def normalise(pictures: np.ndarray) -> Tensor:
    """Return uint8 pictures (b, size, size, 3) as CLIP's normalised floats (b, 3, size, size)."""
    pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2).float().div_(255)
    return (pixels - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)


def targets(patches: Tensor, objects: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the labels of the patch heads (b, patches) and the CLS heads from the arrays of `training_data`."""
    b = objects.shape[0]
    real = objects[..., 0] >= 0
    shape, colour, digit, size = objects.unbind(-1)
    same_shape = ((shape[:, :, None] == shape[:, None]) & real[:, None]).sum(-1)
    same_colour = ((colour[:, :, None] == colour[:, None]) & real[:, None]).sum(-1)
    total = real.sum(-1)
    bucket = ((size - 70) // 20).clamp(0, 7)
    first = torch.zeros_like(shape)
    first[:, 0] = 1

    def under(values: Tensor, nothing: int) -> Tensor:
        padded = torch.cat([torch.full((b, 1), nothing), values], 1)
        return padded.gather(1, patches)

    row, column = offsets(patches)
    patch = {
        "row": row,
        "column": column,
        "shape": under(shape, len(SHAPES)),
        "colour": under(colour, len(COLOURS)),
        "digit": under(digit, 11),
        "same_shape": under(same_shape, 0),
        "same_colour": under(same_colour, 0),
        "largest": under(first, 0),
        "size": under(bucket, -100),
        "total": total[:, None].expand_as(patches),
    }
    pairs = (
        torch.zeros(b, PAIRS).scatter_add_(1, (shape * len(COLOURS) + colour).clamp(min=0), real.float()).clamp(max=1)
    )
    image = {
        "pairs": pairs,
        "shapes": torch.stack([((shape == s) & real).sum(-1) for s in range(len(SHAPES))], 1),
        "colours": torch.stack([((colour == c) & real).sum(-1) for c in range(len(COLOURS))], 1),
        "total": total,
        "largest_shape": shape[:, 0],
        "largest_colour": colour[:, 0],
    }
    return patch, image


def offsets(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Return how far the middle of the object under each patch lies, in patches from -4 to 4 as classes 0 to 8."""
    own = F.one_hot(patches, MAX_OBJECTS + 1).float()
    cells = torch.stack(torch.meshgrid(torch.arange(GRID), torch.arange(GRID), indexing="ij"), -1).view(-1, 2).float()
    middle = (own.transpose(1, 2) @ cells) / own.sum(1).clamp(min=1)[..., None]
    away = (own @ middle - cells).round().clamp(-4, 4).long() + 4
    away = torch.where((patches > 0)[..., None], away, -100)
    return away[..., 0], away[..., 1]


def loss_of(tower: Tower, pixels: Tensor, patches: Tensor, objects: Tensor) -> tuple[Tensor, dict[str, float]]:
    """Return the training loss and the accuracy of each patch head on object patches."""
    wanted_patch, wanted_image = targets(patches, objects)
    got_patch, got_image = tower(pixels)
    on = patches > 0
    weight = on / on.sum() + 0.25 * (~on) / (~on).sum()
    loss = torch.zeros(())
    parts: dict[str, float] = {}
    for name, logits in got_patch.items():
        each = F.cross_entropy(logits.flatten(0, 1), wanted_patch[name].flatten(), reduction="none").view_as(weight)
        loss = loss + WEIGHTS.get(name, 1.0) * (each * weight).sum()
        parts[name] = float((logits.argmax(-1) == wanted_patch[name])[on].float().mean())
    loss = loss + 3 * F.binary_cross_entropy_with_logits(got_image["pairs"], wanted_image["pairs"])
    for name in ("shapes", "colours"):
        loss = loss + F.cross_entropy(got_image[name].reshape(-1, 5), wanted_image[name].flatten())
    for name in ("total", "largest_shape", "largest_colour"):
        loss = loss + 0.5 * F.cross_entropy(got_image[name], wanted_image[name])
    parts["cls_pairs"] = float(((got_image["pairs"] > 0) == (wanted_image["pairs"] > 0)).all(-1).float().mean())
    return loss, parts


class Arrays:
    """The arrays of `training_data` in a folder, read by row."""

    def __init__(self, folder: Path) -> None:
        self.pictures, self.patches, self.objects = (
            np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("pictures", "patches", "objects")
        )

    def __len__(self) -> int:
        return len(self.objects)

    def batch(self, rows: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        patches = torch.from_numpy(self.patches[rows]).long()
        return normalise(self.pictures[rows]), patches, torch.from_numpy(self.objects[rows]).long()


def evaluate(tower: Tower, arrays: Arrays, most: int = 256) -> dict[str, float]:
    """Return head accuracies on unseen scenes."""
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        return loss_of(tower, *arrays.batch(np.arange(min(most, len(arrays)))))[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--evaluation", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=25)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--resume", type=Path, help="state of an earlier run to start from")
    args = parser.parse_args()
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    arrays, held_out, tower = Arrays(args.data), Arrays(args.evaluation), Tower()
    if args.resume:
        tower.load_state_dict(torch.load(args.resume, weights_only=True))
    clock = Clock(args.minutes, args.steps)
    parameters = [p for p in tower.parameters() if p.requires_grad]

    def step(_: int) -> tuple[Tensor, dict[str, float]]:
        rows = np.sort(rng.choice(len(arrays), args.batch, replace=False))
        with torch.autocast("cpu", torch.bfloat16):
            return loss_of(tower, *arrays.batch(rows))

    def report(number: int) -> None:
        words = " ".join(f"{k} {v:.3f}" for k, v in evaluate(tower, held_out).items())
        print(f"held out after {number} steps, {clock.elapsed:.1f} min: {words}", flush=True)
        torch.save(tower.state_dict(), args.output)

    train(clock, optimisers(tower, args.lr, args.lr / 2, 0.02), step, report, parameters)


if __name__ == "__main__":
    main()
