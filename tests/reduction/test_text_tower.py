"""Loading CLIP's text tower, asking questions of an installed reduction, and what is refused, in a sentence each."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers.processors import TemplateProcessing

import reduction
from reduction.cost import main
from reduction.schedule import plan
from reduction.settings import Reduction, ReductionError
from reduction.shapes import NAMED, from_config
from reduction.text_checkpoint import load_text_tower
from reduction.vision import encode_images
from tests.checkpoint import save_checkpoint
from tests.clip_checkpoint import QUESTIONS, START_TOKEN, letters_tokenizer, save_clip, text_tower, tiny_clip
from tests.tiny import tiny_images, tiny_llava, tiny_prompts

PROMPTS = tiny_prompts([1, 5], [[3, 4, 5], [9]])
WEIGHTS = "model.safetensors"


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    weights = load_file(folder / WEIGHTS)
    change(weights)
    save_file(weights, folder / WEIGHTS, {"format": "pt"})


def test_a_folder_with_nothing_but_what_is_needed_is_loaded(tmp_path: Path) -> None:
    def strip(weights: dict[str, torch.Tensor]) -> None:
        for key in list(weights):
            if (key.startswith("vision_model.") and "post_layernorm" not in key) or key == "logit_scale":
                del weights[key]

    rewrite(save_clip(tmp_path), strip)
    tower = load_text_tower(str(tmp_path))
    assert torch.equal(tower.embed(QUESTIONS), text_tower().embed(QUESTIONS))
    assert tower.scale == 100
    assert text_tower().scale == pytest.approx(tiny_clip().logit_scale.exp().item())


def test_weights_in_several_files_and_of_another_type(tmp_path: Path) -> None:
    save_clip(tmp_path)
    tiny_clip().save_pretrained(tmp_path, max_shard_size="20KB")
    (tmp_path / WEIGHTS).unlink()
    assert torch.equal(load_text_tower(str(tmp_path)).embed(QUESTIONS), text_tower().embed(QUESTIONS))
    half = load_text_tower(str(tmp_path), dtype=torch.bfloat16)
    assert half.embed(QUESTIONS).dtype == torch.bfloat16
    torch.testing.assert_close(half.embed(QUESTIONS).float(), text_tower().embed(QUESTIONS), rtol=0.2, atol=0.2)


def other_tokenizer(folder: Path) -> None:
    """One that begins a text and does not end it."""
    tokenizer = letters_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<start> $A", special_tokens=[("<start>", START_TOKEN)]
    )
    tokenizer.save_pretrained(folder)


def larger_tokenizer(folder: Path) -> None:
    tokenizer = letters_tokenizer()
    tokenizer.add_tokens(["another"])
    tokenizer.save_pretrained(folder)


def other_kind(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "siglip"}))


def without_projection(folder: Path) -> None:
    rewrite(folder, lambda weights: weights.pop("visual_projection.weight"))  # type: ignore[arg-type]


def cut_projection(folder: Path) -> None:
    def cut(weights: dict[str, torch.Tensor]) -> None:
        weights["text_projection.weight"] = weights["text_projection.weight"][:, 1:].clone()

    rewrite(folder, cut)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: (folder / "config.json").unlink(), "no text tower at"),
        (other_kind, "is a 'siglip', not a clip: give a CLIP checkpoint"),
        (lambda folder: (folder / WEIGHTS).unlink(), "it has no model.safetensors; convert the checkpoint"),
        (lambda folder: (folder / WEIGHTS).write_bytes(b"\x00" * 64), "cannot be loaded"),
        (without_projection, "1 of its weights are not in its files, projection.weight among them"),
        (cut_projection, "text.text_projection.weight has the shape (20, 23)"),
        (other_tokenizer, "does not end a text with the token"),
        (lambda folder: [file.unlink() for file in folder.glob("tokenizer*")], "does not end a text with the token"),
        (larger_tokenizer, "knows 98 tokens, and the tower has 97"),
    ],
)
def test_what_cannot_be_loaded_says_so(tmp_path: Path, spoil: Callable[[Path], None], said: str) -> None:
    spoil(save_clip(tmp_path))
    with pytest.raises(ReductionError) as error:
        load_text_tower(str(tmp_path))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["cdpruner:9", "trim:9", "trim:adaptive", "divprune:9,filter=text_relevance"])
def test_without_a_text_tower_every_such_setting_says_what_it_lacks(text: str) -> None:
    with pytest.raises(ReductionError, match=r"CLIP's text tower, which a LLaVA checkpoint does not carry: give one"):
        plan(Reduction.parse(text), from_config(tiny_llava().config))
    with (
        pytest.raises(ReductionError, match="which a LLaVA checkpoint does not carry"),
        reduction.install(tiny_llava(), text),
    ):
        pass


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({"tower": "siglip", "strategy": "full"}, "has another tower, or reads several layers"),
        ({"feature_layer": [-3, -2]}, "has another tower, or reads several layers"),
    ],
)
def test_a_llava_that_the_text_tower_does_not_fit(sizes: Any, said: str) -> None:
    with pytest.raises(ReductionError, match=said):
        plan(Reduction.parse("trim:9"), from_config(tiny_llava(**sizes).config, text_tower=text_tower().shape))


def test_a_text_tower_of_another_width(tmp_path: Path) -> None:
    folder = str(save_clip(tmp_path, hidden_size=40))
    with (
        pytest.raises(ReductionError, match="vision tower of width 40, and that of llava has 32"),
        reduction.install(tiny_llava(), "cdpruner:9", text_tower=folder),
    ):
        pass


@torch.no_grad()
def test_questions_are_asked_before_each_batch(tmp_path: Path) -> None:
    llava, images = tiny_llava(1), tiny_images(2)
    with reduction.install(llava, "cdpruner:5", text_tower=str(save_clip(tmp_path))) as chosen:
        assert chosen.visual_tokens == 5
        with pytest.raises(ReductionError, match=r"call reduction\.ask"):
            llava(**PROMPTS, pixel_values=images)
        reduction.ask(llava, QUESTIONS[:3])
        with pytest.raises(ReductionError, match="3 questions were asked for 2 rows"):
            llava(**PROMPTS, pixel_values=images)
        reduction.ask(llava, QUESTIONS[:2])
        first = llava(**PROMPTS, pixel_values=images).logits
        assert torch.equal(llava(**PROMPTS, pixel_values=images).logits, first), "the same images need no new question"
        with pytest.raises(ReductionError, match="these images come without"):
            llava(**PROMPTS, pixel_values=images.clone())
        reduction.ask(llava, [QUESTIONS[2], QUESTIONS[1]])
        other = llava(**PROMPTS, pixel_values=images).logits
        assert not torch.equal(other[0], first[0])
        assert torch.equal(other[1], first[1])
    with pytest.raises(ReductionError, match="no reduction is installed"):
        reduction.ask(llava, QUESTIONS[:2])


@torch.no_grad()
def test_generate_asks_once_with_and_without_a_cache_and_with_beams() -> None:
    llava: Any = tiny_llava(1)
    images = tiny_images(2)
    asked: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "min_new_tokens": 5}
    with reduction.install(llava, "trim:5", text_tower=text_tower()):
        reduction.ask(llava, QUESTIONS[:2])
        cached = llava.generate(**PROMPTS, pixel_values=images, **asked)
        reduction.ask(llava, QUESTIONS[:2])
        assert torch.equal(llava.generate(**PROMPTS, pixel_values=images, **asked, use_cache=False), cached)
        reduction.ask(llava, [question for question in QUESTIONS[:2] for _ in range(2)])
        assert llava.generate(**PROMPTS, pixel_values=images, **asked, num_beams=2).shape == cached.shape


@pytest.mark.parametrize("text", ["cdpruner:5", "trim:5", "trim:adaptive"])
def test_gradients_flow_through_what_stays(text: str) -> None:
    llava, images = tiny_llava(1), tiny_images(2).requires_grad_()
    with reduction.install(llava, text, text_tower=text_tower()):
        reduction.ask(llava, QUESTIONS[:2])
        llava(**PROMPTS, pixel_values=images).logits.sum().backward()
    assert images.grad is not None
    assert bool(images.grad.any())


def test_methods_that_need_no_question_may_be_asked_all_the_same() -> None:
    llava = tiny_llava(1)
    with reduction.install(llava, "random:5", text_tower="no/such/folder"), torch.no_grad():
        reduction.ask(llava, QUESTIONS[:1])
        assert bool(llava(**PROMPTS, pixel_values=tiny_images(2)).logits.isfinite().all())


def test_the_plain_call_needs_its_questions_too() -> None:
    llava, setting = tiny_llava(), Reduction.parse("trim:5")
    chosen = plan(setting, from_config(llava.config, text_tower=text_tower().shape))
    with pytest.raises(ReductionError, match="trim:5 chooses by the question, and none was given"):
        encode_images(llava, tiny_images(1), chosen, setting)


@pytest.mark.parametrize(("setting", "left"), [("cdpruner:64", 64), ("trim:64", 64), ("trim:adaptive", 145)])
def test_named_shapes_have_clips_own_text_tower(setting: str, left: int, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["cost", "--model-shape", "llava-1.5-7b", "--reduction", setting, "--question-tokens", "12"]
    assert main(words) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["visual_tokens_left"] == left
    # Twelve layers of 4 d² + 2 d · 4 d weights at width 768, 12 tokens each, are most of 2.1 GFLOPs.
    tower = 12 * 12 * (24 * 768**2 + 4 * 12 * 768) + 2 * 768 * 768
    shared = 2 * 576 * 1024 * 768 + (2 * 576 * 576 * 4096 if setting.startswith("cdpruner") else 0)
    assert 0 < figures["flops"]["reduction"] - tower - shared < 0.05 * tower
    assert plan(Reduction.parse(setting), NAMED["llava-1.5-7b"]).by_question


def test_the_cost_of_a_folder_takes_its_text_tower(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    llava, clip = save_checkpoint(tmp_path / "llava"), save_clip(tmp_path / "clip")
    words = ["cost", "--model-shape", str(llava), "--reduction", "trim:5"]
    assert main(words) == 2
    assert "give one with --text-tower" in capsys.readouterr().err
    assert main([*words, "--text-tower", str(clip)]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["flops"]["reduction"] > 0
