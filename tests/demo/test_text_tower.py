"""The demo's text tower: its training writes what transformers loads, and the shipped one says what its card says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch.nn.functional import cosine_similarity
from transformers import (
    AutoTokenizer,
    CLIPConfig,
    CLIPTextModelWithProjection,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from infra.demo.descriptions import describe, named_in, needs, objects_named, shows
from infra.demo.questions import CAPTION_PROMPT, ask
from infra.demo.scenes import EVALUATION, TRAINING, sample_scene
from infra.demo.text_tower_files import BOS_ID, EOS_ID, LONGEST, PROJECTION
from infra.demo.train_text_tower import TextTower, loss_of, main
from infra.demo.train_tower import normalise
from infra.demo.training_data import patch_objects, picture

DEMO = Path("infra/demo/model")
SHIPPED = Path("infra/demo/text_tower")
VISUAL = {"visual_projection.weight", "vision_model.post_layernorm.weight", "vision_model.post_layernorm.bias"}
indices = st.integers(0, 50_000)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text_tower")
    main(["--output", str(folder), "--scenes", "10", "--held-out", "2", "--steps", "2", "--batch", "8"])
    return folder


@given(indices, st.integers(0, 1000), indices)
def test_a_text_fits_its_scene_and_another_by_what_it_names(index: int, seed: int, other: int) -> None:
    scene, elsewhere = sample_scene(TRAINING, index), sample_scene(TRAINING, other)
    text = describe(scene, np.random.default_rng(seed))
    assert text.fits(scene)
    assert bool((needs(text) & ~shows(elsewhere)).any()) != text.fits(elsewhere)
    for colour, shape in text.named:
        assert (colour or "") in text.text
        assert (shape or "") in text.text


@given(indices, st.integers(0, 1000))
def test_what_is_asked_about_is_found_in_the_question(index: int, seed: int) -> None:
    scene = sample_scene(EVALUATION, index)
    for one in ask(scene, np.random.default_rng(seed), per_kind=2):
        named = named_in(one.question)
        if one.question in (CAPTION_PROMPT, "How many shapes are there?"):
            assert named is None
            continue
        assert named is not None
        found = [scene.objects[number - 1] for number in objects_named(named, scene)]
        if one.kind == "count":
            assert len(found) == int(one.answer)
        elif one.kind == "presence":
            assert bool(found) == (one.answer == "yes")
        else:
            assert [str({"colour": o.colour, "shape": o.shape, "digit": o.digit}[one.kind]) for o in found] == [
                one.answer
            ]


@pytest.mark.parametrize("folder", ["trained", "shipped"])
def test_transformers_loads_it_and_pools_at_the_end(folder: str, trained: Path) -> None:
    path = trained if folder == "trained" else SHIPPED
    loaded: Any = CLIPTextModelWithProjection.from_pretrained(path, dtype=torch.float32, output_loading_info=True)
    model, info = loaded
    assert not info["missing_keys"]
    assert set(info["unexpected_keys"]) == VISUAL
    assert set(load_file(path / "model.safetensors")) == set(model.state_dict()) | VISUAL
    tokenizer: Any = AutoTokenizer.from_pretrained(path)
    texts = ["What color is the STAR?", "Is there a red circle? " * 30, "猫 über 1234"]
    tokens = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    assert tokens["input_ids"].shape == (3, LONGEST)
    assert (tokens["input_ids"][:, 0] == BOS_ID).all()
    with torch.no_grad():
        out = model(**{name: tokens[name] for name in ("input_ids", "attention_mask")})
        for row, text in enumerate(texts):
            ids = tokenizer(text, truncation=True, return_tensors="pt")["input_ids"]
            assert (ids == EOS_ID).nonzero()[:, 1].tolist() == [ids.shape[1] - 1]
            last = model.text_model(input_ids=ids).last_hidden_state[0, -1]
            expected = model.text_projection(last)
            torch.testing.assert_close(out.text_embeds[row], expected, atol=1e-4, rtol=1e-4)


def test_training_is_reproducible_and_moves_both_sides(trained: Path, tmp_path: Path) -> None:
    short = ["--scenes", "10", "--held-out", "2", "--batch", "8"]
    main(["--output", str(tmp_path / "again"), "--steps", "2", *short])
    main(["--output", str(tmp_path / "less"), "--steps", "1", *short])
    one, again, less = (
        load_file(path / "model.safetensors") for path in (trained, tmp_path / "again", tmp_path / "less")
    )
    assert all(torch.equal(one[name], again[name]) for name in one)
    # The norm starts at one, where the first step of a warm-up is less than float16 can tell.
    moved = ("visual_projection.weight", "text_projection.weight", "text_model.embeddings.token_embedding.weight")
    assert all(not torch.equal(one[name], less[name]) for name in moved)


def test_scenes_that_a_text_fits_too_are_not_held_against_it(trained: Path) -> None:
    torch.manual_seed(0)
    tokenizer: Any = AutoTokenizer.from_pretrained(trained)
    tower = TextTower(tokenizer)
    scenes = [sample_scene(TRAINING, index) for index in range(12)]
    rng = np.random.default_rng(1)
    texts, cls = [describe(scene, rng) for scene in scenes], torch.randn(12, 192)
    with torch.no_grad():
        loss, _ = loss_of(tower, cls, texts, torch.stack([shows(scene) for scene in scenes]))
        embedded, seen = tower.embed_texts([one.text for one in texts]), tower.embed_states(cls)
    expected = 0.0
    for i in range(12):
        for pairs in (
            [(i, j) for j in range(12) if j == i or not texts[i].fits(scenes[j])],
            [(j, i) for j in range(12) if j == i or not texts[j].fits(scenes[i])],
        ):
            scores = {pair: float(embedded[pair[0]] @ seen[pair[1]]) / 0.07 for pair in pairs}
            expected += (np.log(sum(np.exp(v) for v in scores.values())) - scores[i, i]) / 24
    assert float(loss) == pytest.approx(expected, rel=1e-4)


def test_the_shipped_one_belongs_to_the_demo_model_and_is_small() -> None:
    config: Any = CLIPConfig.from_pretrained(SHIPPED)
    llava: Any = LlavaConfig.from_pretrained(DEMO)
    assert config.vision_config.to_dict() == llava.vision_config.to_dict()
    assert config.projection_dim == config.text_config.projection_dim == PROJECTION
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) < 1.5e6


def test_what_is_asked_about_stands_out_as_the_card_says() -> None:
    """By transformers alone: LLaVA's own hidden states, the text model, and the visual weights by name."""
    text: Any = CLIPTextModelWithProjection.from_pretrained(SHIPPED, dtype=torch.float32)
    weights = {name: value.float() for name, value in load_file(SHIPPED / "model.safetensors").items()}
    tokenizer: Any = AutoTokenizer.from_pretrained(SHIPPED)
    llava: Any = LlavaForConditionalGeneration.from_pretrained(DEMO, dtype=torch.float32)
    scenes = [sample_scene(EVALUATION, 30_000 + index) for index in range(12)]
    with torch.no_grad():
        pixels = normalise(np.stack([picture(scene) for scene in scenes]))
        states = llava.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
        norm = torch.nn.LayerNorm(192, eps=1e-5)
        norm.load_state_dict({name: weights[f"vision_model.post_layernorm.{name}"] for name in ("weight", "bias")})
        patches = norm(states) @ weights["visual_projection.weight"].T
        top, bottom, above = [], [], []
        for number, scene in enumerate(scenes):
            under = torch.from_numpy(patch_objects(scene))
            for one in ask(scene, np.random.default_rng(number)):
                numbers = objects_named(named_in(one.question) or ("none", None), scene)
                mine = torch.isin(under, torch.tensor(numbers, dtype=under.dtype))
                if not mine.any():
                    continue
                tokens = tokenizer(one.question, return_tensors="pt")
                embedded = text(input_ids=tokens["input_ids"]).text_embeds
                cosines = cosine_similarity(embedded, patches[number], dim=-1)
                top.append(float((cosines[mine, None] <= cosines).sum(1).le(64).float().mean()))
                bottom.append(float((cosines[mine, None] >= cosines).sum(1).le(64).float().mean()))
                others = (under > 0) & ~mine
                above += [float(cosines[mine].mean() > cosines[others].mean())] if others.any() else []
    assert len(top) > 20
    assert np.mean(top) > 0.5
    assert np.mean(bottom) < 0.35
    assert np.mean(above) > 0.65
