"""Training scenes as arrays on disk: pictures as the model sees them, and which object lies under each patch."""

from __future__ import annotations

import argparse
import io
from multiprocessing import Pool
from pathlib import Path

import numpy as np
from PIL import Image

from infra.demo.model_files import GRID, IMAGE_SIZE, MEAN, PATCH
from infra.demo.scenes import COLOURS, MAX_OBJECTS, SHAPES, Scene, encode_jpeg, instance_map, sample_scene

PAD_COLOUR = tuple(int(v * 255) for v in MEAN)


def picture(scene: Scene) -> np.ndarray:
    """Return the scene's JPEG as the model sees it: padded to a square with the mean colour, uint8 (size, size, 3)."""
    image = Image.open(io.BytesIO(encode_jpeg(scene))).convert("RGB")
    return np.asarray(_square(image, PAD_COLOUR).resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC))


def coverage(scene: Scene) -> np.ndarray:
    """Return the share of each patch that each object covers: float32 (MAX_OBJECTS, GRID * GRID)."""
    size = (IMAGE_SIZE, IMAGE_SIZE)
    instances = np.asarray(_square(instance_map(scene), 0).resize(size, Image.Resampling.NEAREST))
    cells = instances.reshape(GRID, PATCH, GRID, PATCH)
    return np.stack([(cells == i + 1).mean((1, 3)).ravel() for i in range(MAX_OBJECTS)]).astype(np.float32)


def patch_objects(scene: Scene) -> np.ndarray:
    """Return the object that covers most of each patch, and at least a quarter: uint8 (patches), 0 for none."""
    share = coverage(scene)
    return np.where(share.max(0) >= 0.25, share.argmax(0) + 1, 0).astype(np.uint8)


def object_table(scene: Scene) -> np.ndarray:
    """Return (shape, colour, digit or 10, size in 1/1000 of the square's side) per object: int16, -1 where none."""
    table = np.full((MAX_OBJECTS, 4), -1, np.int16)
    side = max(scene.width, scene.height)
    for row, o in zip(table, scene.objects, strict=False):
        row[:] = (
            SHAPES.index(o.shape),
            COLOURS.index(o.colour),
            10 if o.digit is None else o.digit,
            1000 * o.size / side,
        )
    return table


def _square(image: Image.Image, fill: int | tuple[int, ...]) -> Image.Image:
    side = max(image.size)
    square = Image.new(image.mode, (side, side), fill)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def _row(job: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    scene = sample_scene(*job)
    return picture(scene), patch_objects(scene), object_table(scene)


def build(folder: Path, stream: int, count: int, workers: int = 2) -> None:
    """Write pictures.npy, patches.npy and objects.npy for scenes 0..count-1 of a stream."""
    folder.mkdir(parents=True, exist_ok=True)
    make = np.lib.format.open_memmap
    pictures = make(folder / "pictures.npy", "w+", np.uint8, (count, IMAGE_SIZE, IMAGE_SIZE, 3))
    patches = make(folder / "patches.npy", "w+", np.uint8, (count, GRID * GRID))
    objects = make(folder / "objects.npy", "w+", np.int16, (count, MAX_OBJECTS, 4))
    with Pool(workers) as pool:
        rows = pool.imap(_row, ((stream, i) for i in range(count)), chunksize=64)
        for i, row in enumerate(rows):
            pictures[i], patches[i], objects[i] = row
    for array in (pictures, patches, objects):
        array.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--stream", type=int, default=1, help="1: training scenes, 2: evaluation scenes")
    parser.add_argument("--count", type=int, required=True)
    args = parser.parse_args()
    build(args.output, args.stream, args.count)


if __name__ == "__main__":
    main()
