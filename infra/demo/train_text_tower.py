"""Train the demo's text tower: CLIP's loss between texts and the CLS state of the demo model's frozen vision tower.

    python -m infra.demo.train_text_tower --output infra/demo/text_tower

Nothing tells it where in a picture anything is: how relevant a patch is to a question comes out as it may, and is
measured at the end, on scenes of the demo corpus.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPTextModelWithProjection, LlavaForConditionalGeneration
from transformers import PreTrainedTokenizerFast as Tokenizer

from infra.demo.descriptions import Description, describe, named_in, needs, objects_named, shows
from infra.demo.make_corpus import FIRST
from infra.demo.questions import ask
from infra.demo.scenes import EVALUATION, TRAINING, Scene, sample_scene
from infra.demo.text_tower_files import PROJECTION, build_text_tokenizer, clip_config, save_text_tower
from infra.demo.train_tower import Tower, normalise
from infra.demo.training_data import patch_objects, picture
from infra.demo.training_loop import Clock, optimisers, train

UNSEEN = 26_000
"""The first scene of the training stream that the vision tower was not trained on."""


class TextTower(nn.Module):
    """CLIP's text side, and what brings the vision tower's states into the same space."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        config: Any = clip_config()
        width = config.vision_config.hidden_size
        self.text = CLIPTextModelWithProjection(config.text_config)
        self.post_layernorm = nn.LayerNorm(width)
        self.visual_projection = nn.Linear(width, PROJECTION, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Return unit vectors (texts, projection)."""
        tokens = self.tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
        embedded = self.text(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]).text_embeds
        return F.normalize(embedded, dim=-1)

    def embed_states(self, states: Tensor) -> Tensor:
        """Return unit vectors (..., projection) for states (..., width) of the layer that LLaVA reads."""
        return F.normalize(self.visual_projection(self.post_layernorm(states)), dim=-1)

    def weights(self) -> dict[str, Tensor]:
        """Return the weights by their names in a CLIP checkpoint."""
        return {
            **self.text.state_dict(),
            "visual_projection.weight": self.visual_projection.weight,
            "vision_model.post_layernorm.weight": self.post_layernorm.weight,
            "vision_model.post_layernorm.bias": self.post_layernorm.bias,
        }


@dataclass(frozen=True)
class Seen:
    """Scenes as the frozen tower sees them: CLS (scenes, width), and patches (scenes, patches, width) where kept."""

    scenes: list[Scene]
    cls: Tensor
    patches: Tensor | None


def see(tower: Tower, stream: int, first: int, count: int, with_patches: bool) -> Seen:
    """Run the tower over scenes first..first+count-1 of a stream, saying how far it is."""
    scenes = [sample_scene(stream, first + index) for index in range(count)]
    states: list[Tensor] = []
    with torch.inference_mode():
        for start in range(0, count, 50):
            pixels = normalise(np.stack([picture(scene) for scene in scenes[start : start + 50]]))
            states.append(tower.features(pixels)[:, : None if with_patches else 1].clone())
            if start % 250 == 0:
                print(f"seen {start} of {count} scenes", flush=True)
    hidden = torch.cat(states)
    return Seen(scenes, hidden[:, 0], hidden[:, 1:] if with_patches else None)


def frozen_tower(model: str) -> Tower:
    """Return the vision tower of a demo checkpoint."""
    tower = Tower().eval()
    llava = LlavaForConditionalGeneration.from_pretrained(model, dtype=torch.float32)
    tower.vision.load_state_dict(llava.model.vision_tower.state_dict())
    return tower


def loss_of(tower: TextTower, cls: Tensor, texts: list[Description], shown: Tensor) -> tuple[Tensor, dict[str, float]]:
    """Return CLIP's loss of a batch of pairs: cls (b, width), a text each, and `shows` of each scene (b, kinds).

    Other scenes that a text fits too are neither right nor wrong, and are left out of its softmax and of theirs.
    """
    logits = tower.embed_texts([one.text for one in texts]) @ tower.embed_states(cls).T * tower.logit_scale.exp()
    missing = torch.stack([needs(one) for one in texts]).float() @ (~shown).float().T
    also = (missing == 0) & ~torch.eye(len(texts), dtype=torch.bool)
    logits, own = logits.masked_fill(also, -torch.inf), torch.arange(len(texts))
    loss = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
    right = float((logits.argmax(1) == own).float().mean())
    return loss, {"right_image": right, "scale": float(tower.logit_scale.detach().exp())}


@torch.no_grad()
def relevance(tower: TextTower, seen: Seen) -> dict[str, float]:
    """Return how the patches of what is asked about stand out, in the mean over questions that name something there.

    `asked`, `other_objects` and `background` are cosines; `top_quarter` and `bottom_quarter` are the shares of the
    asked-about patches among the quarter of highest and of lowest cosine (by chance a quarter).
    """
    assert seen.patches is not None
    rows: list[dict[str, float]] = []
    for number, scene in enumerate(seen.scenes):
        under, states = torch.from_numpy(patch_objects(scene)), tower.embed_states(seen.patches[number])
        for one in ask(scene, np.random.default_rng([EVALUATION, number])):
            named = named_in(one.question)
            mine = torch.isin(under, torch.tensor(objects_named(named, scene) if named else [], dtype=under.dtype))
            if mine.any():
                cosines = states @ tower.embed_texts([one.question])[0]
                rows.append(_row(cosines, mine, (under > 0) & ~mine, under == 0))
    return {name: float(np.nanmean([row[name] for row in rows])) for name in rows[0]} | {"questions": len(rows)}


def _row(cosines: Tensor, mine: Tensor, others: Tensor, background: Tensor) -> dict[str, float]:
    rank = cosines.argsort().argsort()[mine]
    quarter, own = len(cosines) // 4, float(cosines[mine].mean())
    other = float(cosines[others].mean())
    return {
        "asked": own,
        "other_objects": other,
        "background": float(cosines[background].mean()),
        "above_other_objects": math.nan if math.isnan(other) else float(own > other),
        "top_quarter": float((rank >= len(cosines) - quarter).float().mean()),
        "bottom_quarter": float((rank < quarter).float().mean()),
    }


def texts_for_tokenizer(count: int) -> list[str]:
    """Return texts about `count` scenes."""
    rng = np.random.default_rng(0)
    return [describe(sample_scene(TRAINING, index), rng).text for index in range(count)]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(Path(__file__).parent / "model"), help="the demo model's checkpoint")
    parser.add_argument("--output", type=Path, required=True, help="folder of the text tower")
    parser.add_argument("--scenes", type=int, default=1500)
    parser.add_argument("--held-out", type=int, default=200, help="scenes of the demo corpus to measure on")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch", type=int, default=192)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    eyes = frozen_tower(args.model)
    seen = see(eyes, TRAINING, UNSEEN, args.scenes, with_patches=False)
    shown = torch.stack([shows(scene) for scene in seen.scenes])
    tower = TextTower(build_text_tokenizer(texts_for_tokenizer(1000)))

    def step(_: int) -> tuple[Tensor, dict[str, float]]:
        rows = rng.choice(len(seen.scenes), min(args.batch, len(seen.scenes)), replace=False)
        return loss_of(tower, seen.cls[rows], [describe(seen.scenes[row], rng) for row in rows], shown[rows])

    def report(_: int) -> None:
        save_text_tower(args.output, tower.weights(), tower.tokenizer)

    clock = Clock(0, args.steps)
    parameters = list(tower.parameters())
    train(clock, optimisers(tower, args.lr, args.lr, 0.02), step, report, parameters)
    held_out = see(eyes, EVALUATION, FIRST, args.held_out, with_patches=True)
    print(json.dumps({"steps": clock.step, **relevance(tower.eval(), held_out)}))


if __name__ == "__main__":
    main()
