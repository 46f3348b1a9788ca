"""The training code: packed conversations are trained as they will be asked, and the labels fit the pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoProcessor, LlavaForConditionalGeneration

from infra.demo.conversations import IGNORED, Conversations, texts_for_tokenizer
from infra.demo.model_files import GRID, PATCH, build_tokenizer, llava_config, save_processor
from infra.demo.scenes import EVALUATION, SHAPES, sample_scene
from infra.demo.train_llava import decode, save
from infra.demo.train_tower import Tower, offsets, targets
from infra.demo.training_data import coverage, object_table, patch_objects, picture
from pipeline.checkpoint import load_checkpoint
from pipeline.images import ImageTransform, decode_image


@pytest.fixture(scope="module")
def talk() -> Conversations:
    return Conversations(build_tokenizer(texts_for_tokenizer()))


@pytest.fixture(scope="module")
def model() -> LlavaForConditionalGeneration:
    torch.manual_seed(0)
    return LlavaForConditionalGeneration(llava_config()).eval()


def test_a_pair_in_a_packed_row_sees_what_it_sees_alone(
    talk: Conversations, model: LlavaForConditionalGeneration
) -> None:
    torch.manual_seed(1)
    batch = talk.batch(np.arange(2), EVALUATION, np.random.default_rng(0), per_kind=1)
    features = torch.randn(2, GRID * GRID, 192)
    with torch.no_grad():
        packed = decode(model, features, batch)
        visual = model.model.multi_modal_projector(features)
        embed = model.model.language_model.embed_tokens
        for row in range(2):
            for pair in range(len(batch.kinds[row])):
                mine = batch.pair[row] == pair
                sequence = torch.cat([embed(batch.prefix), visual[row], embed(batch.suffix[row][mine])])[None]
                alone = model.lm_head(model.model.language_model(inputs_embeds=sequence).last_hidden_state)
                torch.testing.assert_close(packed[row][mine], alone[0, -int(mine.sum()) :], atol=1e-4, rtol=1e-4)


def test_only_answers_are_learned(talk: Conversations) -> None:
    batch = talk.batch(np.arange(4), EVALUATION, np.random.default_rng(3), per_kind=2)
    for row in range(4):
        learned = batch.labels[row] != IGNORED
        texts = str(talk.tokenizer.decode(batch.labels[row][learned])).split("</s>")[:-1]
        assert len(texts) == len(batch.kinds[row])
        assert all("ASSISTANT" not in text and "?" not in text for text in texts)
        assert not learned[batch.pair[row] < 0].any()


def test_words_are_one_token_and_any_text_comes_back(talk: Conversations) -> None:
    assert len(talk.ids(" triangle")) == len(talk.ids(" purple")) == len(talk.ids(" ASSISTANT")) == 1
    for text in ("Où est le chat? 猫", "<weird> \t text 1234"):
        assert talk.tokenizer.decode(talk.ids(text)) == text


def test_patch_labels_lie_where_the_objects_are() -> None:
    for index in range(20):
        scene = sample_scene(EVALUATION, index)
        patches, side = patch_objects(scene).reshape(GRID, GRID), max(scene.width, scene.height)
        left, top = (side - scene.width) / 2, (side - scene.height) / 2
        for number, o in enumerate(scene.objects, 1):
            row, column = int((o.y + top) / side * GRID), int((o.x + left) / side * GRID)
            assert patches[row, column] == number
        assert coverage(scene).sum() * (side / GRID) ** 2 == pytest.approx(
            sum(np.pi * o.size**2 for o in scene.objects), rel=0.06
        )
        assert [SHAPES[row[0]] for row in object_table(scene) if row[0] >= 0] == [o.shape for o in scene.objects]


def test_tower_targets_count_and_point() -> None:
    scenes = [sample_scene(EVALUATION, i) for i in range(12)]
    patches = torch.from_numpy(np.stack([patch_objects(s) for s in scenes])).long()
    objects = torch.from_numpy(np.stack([object_table(s) for s in scenes])).long()
    patch, image = targets(patches, objects)
    for i, scene in enumerate(scenes):
        assert int(image["total"][i]) == len(scene.objects)
        for cell in range(GRID * GRID):
            number = int(patches[i, cell])
            if number:
                o = scene.objects[number - 1]
                assert int(patch["same_shape"][i, cell]) == sum(p.shape == o.shape for p in scene.objects)
                assert int(patch["shape"][i, cell]) == SHAPES.index(o.shape)
    lone = torch.zeros(1, GRID * GRID, dtype=torch.long)
    lone[0, [0, 2]] = 1
    row, column = offsets(lone)
    assert [int(row[0, 0]), int(column[0, 0]), int(row[0, 2]), int(column[0, 2])] == [4, 5, 4, 3]
    assert row[0, 1] == -100


def test_training_pictures_are_the_jobs_pictures(tmp_path: Path, talk: Conversations) -> None:
    from infra.demo.scenes import encode_jpeg

    save_processor(talk.tokenizer, tmp_path)
    transform = ImageTransform.from_folder(str(tmp_path))
    scene = sample_scene(EVALUATION, 5)
    assert np.array_equal(picture(scene), decode_image(encode_jpeg(scene), transform))


def test_a_saved_checkpoint_loads_and_generates(
    tmp_path: Path, talk: Conversations, model: LlavaForConditionalGeneration
) -> None:
    save(model, tmp_path)
    save_processor(talk.tokenizer, tmp_path)
    loaded = load_checkpoint(str(tmp_path), "cpu", "float32")
    processor = AutoProcessor.from_pretrained(tmp_path)
    inputs = processor(
        images=[np.zeros((90, 120, 3), np.uint8)], text=["USER: <image>\nWhy? ASSISTANT:"], return_tensors="pt"
    )
    assert int((inputs["input_ids"] == loaded.model.config.image_token_id).sum()) == GRID * GRID
    assert inputs["pixel_values"].shape[-1] == GRID * PATCH
    out = loaded.model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert out.shape[1] <= inputs["input_ids"].shape[1] + 3
    size = sum(path.stat().st_size for path in tmp_path.glob("*.safetensors"))
    assert size <= 16e6


def test_the_tower_reads_the_layer_that_llava_reads(model: LlavaForConditionalGeneration) -> None:
    tower = Tower().eval()
    model.model.vision_tower.load_state_dict(tower.vision.state_dict())
    pixels = torch.randn(2, 3, GRID * PATCH, GRID * PATCH)
    with torch.no_grad():
        hidden = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-2]
        torch.testing.assert_close(tower.features(pixels), hidden, atol=1e-5, rtol=1e-5)
