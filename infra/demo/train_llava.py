"""Stage 2: freeze the tower; train projector and language model on conversations, as LLaVA was trained.

The tower's features are computed once and kept on disk. Nothing here knows of token reduction: the methods are
training-free, and the model must not have seen what they do.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from infra.demo.conversations import Batch, Conversations, texts_for_tokenizer
from infra.demo.model_files import build_tokenizer, llava_config, save_processor
from infra.demo.scenes import EVALUATION, TRAINING
from infra.demo.train_tower import Arrays, Tower
from infra.demo.training_loop import Clock, optimisers, train


def tower_features(tower: Tower, arrays: Arrays, path: Path) -> np.ndarray:
    """Return patch features, bf16 bits as uint16 (scenes, patches, width), from a file made on first use."""
    count, patches = arrays.patches.shape
    if not path.exists():
        made = np.lib.format.open_memmap(path, "w+", np.uint16, (count, patches, tower.norm.normalized_shape[0]))
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            for start in range(0, count, 64):
                rows = np.arange(start, min(start + 64, count))
                hidden = tower.features(arrays.batch(rows)[0])[:, 1:]
                made[rows] = hidden.to(torch.bfloat16).contiguous().view(torch.uint16).numpy()
        made.flush()
    return np.load(path, mmap_mode="r")


def decode(model: LlavaForConditionalGeneration, features: Tensor, batch: Batch) -> Tensor:
    """Return logits (b, suffix, vocabulary) for tower features (b, patches, width)."""
    llama = model.model.language_model
    visual = model.model.multi_modal_projector(features)
    b, patches, _ = visual.shape
    start = len(batch.prefix) + patches
    before = llama.embed_tokens(batch.prefix).expand(b, -1, -1).to(visual.dtype)
    hidden = torch.cat([before, visual, llama.embed_tokens(batch.suffix).to(visual.dtype)], 1)
    positions = torch.cat([torch.arange(start).expand(b, -1), start + batch.offset], 1)
    cos, sin = llama.rotary_emb(hidden, positions)
    m = batch.suffix.shape[1]
    own = (batch.pair[:, :, None] == batch.pair[:, None]) & torch.ones(m, m, dtype=torch.bool).tril()
    mask = torch.cat([torch.ones(b, m, start, dtype=torch.bool), own], 2)[:, None]
    mask = torch.zeros(mask.shape, dtype=torch.bfloat16).masked_fill_(~mask, float("-inf"))
    for layer in llama.layers:
        normed = layer.input_layernorm(hidden)
        q, k, v = (
            p(normed).unflatten(-1, (-1, layer.self_attn.head_dim)).transpose(1, 2)
            for p in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj)
        )
        q, k = apply_rotary_pos_emb(q, k, cos.to(q.dtype), sin.to(q.dtype))
        shared = F.scaled_dot_product_attention(q[:, :, :start], k[:, :, :start], v[:, :, :start], is_causal=True)
        rest = F.scaled_dot_product_attention(q[:, :, start:], k, v, attn_mask=mask.to(q.dtype))
        mixed = torch.cat([shared, rest], 2).transpose(1, 2).flatten(2)
        hidden = hidden + layer.self_attn.o_proj(mixed)
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    return model.lm_head(llama.norm(hidden[:, start:]))


def loss_of(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())


def right_by_kind(logits: Tensor, batch: Batch, counts: dict[str, list[int]]) -> None:
    """Add to `counts` whether each pair's whole answer would be decoded greedily as it should be."""
    wrong = (logits.argmax(-1) != batch.labels) & (batch.labels >= 0)
    for row, kinds in enumerate(batch.kinds):
        for number, kind in enumerate(kinds):
            counts[kind].append(int(not wrong[row][batch.pair[row] == number].any()))


def as_tensor(features: np.ndarray, rows: np.ndarray) -> Tensor:
    return torch.from_numpy(features[rows]).view(torch.bfloat16)


@torch.no_grad()
def evaluate(
    model: LlavaForConditionalGeneration, features: np.ndarray, talk: Conversations, most: int
) -> dict[str, float]:
    """Return the share of right answers by kind, and over all questions, on unseen scenes."""
    counts: dict[str, list[int]] = defaultdict(list)
    rng = np.random.default_rng(5)
    for start in range(0, most, 50):
        rows = np.arange(start, min(start + 50, most))
        batch = talk.batch(rows, EVALUATION, rng, per_kind=1, vary=False)
        with torch.autocast("cpu", torch.bfloat16):
            right_by_kind(decode(model, as_tensor(features, rows), batch), batch, counts)
    scores = {kind: float(np.mean(values)) for kind, values in counts.items()}
    return scores | {"all": float(np.mean([v for values in counts.values() for v in values]))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tower", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--evaluation", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--resume", help="checkpoint of an earlier run to start from")
    parser.add_argument("--minutes", type=float, default=65)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--per-kind", type=int, default=2)
    parser.add_argument("--lr", type=float, default=2e-3)
    args = parser.parse_args()
    torch.manual_seed(0)
    rng = np.random.default_rng(1)
    tower = Tower()
    tower.load_state_dict(torch.load(args.tower, weights_only=True))
    features = tower_features(tower.eval(), Arrays(args.data), args.data / "features.npy")
    held_out = tower_features(tower, Arrays(args.evaluation), args.evaluation / "features.npy")
    tokenizer = (
        PreTrainedTokenizerFast.from_pretrained(args.resume) if args.resume else build_tokenizer(texts_for_tokenizer())
    )
    talk = Conversations(tokenizer)
    model = LlavaForConditionalGeneration(llava_config())
    model.model.vision_tower.load_state_dict(tower.vision.state_dict())
    if args.resume:
        model.load_state_dict(LlavaForConditionalGeneration.from_pretrained(args.resume).float().state_dict())
    trained = nn.ModuleList([model.model.multi_modal_projector, model.model.language_model, model.lm_head])
    clock = Clock(args.minutes, args.steps)

    def step(_: int) -> tuple[Tensor, dict[str, float]]:
        rows = np.sort(rng.choice(len(features), args.batch, replace=False))
        batch = talk.batch(rows, TRAINING, rng, args.per_kind)
        with torch.autocast("cpu", torch.bfloat16):
            logits = decode(model, as_tensor(features, rows), batch)
        counts: dict[str, list[int]] = defaultdict(list)
        right_by_kind(logits.detach(), batch, counts)
        return loss_of(logits, batch.labels), {k: float(np.mean(v)) for k, v in counts.items()}

    def report(number: int) -> None:
        scores = evaluate(model, held_out, talk, len(held_out))
        words = " ".join(f"{k} {v:.3f}" for k, v in scores.items())
        print(f"held out after {number} steps, {clock.elapsed:.1f} min: {words}", flush=True)
        save(model, args.output)
        save_processor(tokenizer, args.output)

    made = optimisers(trained, args.lr, args.lr / 2, 0.02)
    train(clock, made, step, report, list(trained.parameters()))


def save(model: LlavaForConditionalGeneration, folder: Path) -> None:
    """Write the checkpoint in half precision, in Hugging Face's format."""
    weights = {name: tensor.to(torch.float16) for name, tensor in model.state_dict().items()}
    model.config.dtype = torch.float16
    model.save_pretrained(folder, state_dict=weights)


if __name__ == "__main__":
    main()
