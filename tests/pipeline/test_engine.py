"""The engine against `model.generate` of plain transformers, under every kind of reduction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from pipeline.engine import Engine, Request
from pipeline.generation import Generation, GenerationSettings
from pipeline.kv_cache import KVCache
from reduction.settings import Reduction
from tests.clip_checkpoint import QUESTIONS, installed, text_tower
from tests.tiny import EOS_TOKEN, PAD_TOKEN, tiny_llava, tiny_prompts

SETTINGS = [
    "dense",
    "ficoco-v:5",
    "ficoco-l:5",
    "ficoco-vl:5",
    "ficoco-v:5,positions=packed",
    "ficoco-l:5,positions=packed,language_start=2",
    "ficoco-vl:5,positions=packed,split=0.3",
]
PREFIX = [1, 7, 8, 9]
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def suffixes(count: int, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, 9, (count,), generator=generator).tolist()
    return [torch.randint(3, 90, (length,), generator=generator).tolist() for length in lengths]


def pictures(count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 56, 56, 3), dtype=torch.uint8, generator=generator)


def make_engine(model: Any, text: str, **settings: Any) -> Engine:
    generation = GenerationSettings(**{"max_new_tokens": 12, **settings})
    return Engine(
        model,
        Reduction.parse(text),
        mean=MEAN,
        std=STD,
        stop_tokens=frozenset([EOS_TOKEN, 5, 11]),
        settings=generation,
        text_tower=text_tower(model.dtype),
    )


def generated_by_transformers(
    model: Any, text: str, images: torch.Tensor, asked: list[list[int]], questions: Sequence[str] = QUESTIONS
) -> list[tuple[int, ...]]:
    pixels = (images.permute(0, 3, 1, 2).float() / 255 - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(
        1, 3, 1, 1
    )
    prompts = tiny_prompts(PREFIX, asked)
    with installed(model, text, questions[: len(asked)]), torch.inference_mode():
        out = model.generate(
            **prompts,
            pixel_values=pixels,
            do_sample=False,
            max_new_tokens=12,
            eos_token_id=[EOS_TOKEN, 5, 11],
            pad_token_id=PAD_TOKEN,
        )
    answers = []
    for row in out[:, prompts["input_ids"].shape[1] :].tolist():
        stop = next((i for i, token in enumerate(row) if token in (EOS_TOKEN, 5, 11)), len(row))
        answers.append(tuple(row[:stop]))
    return answers


@pytest.mark.parametrize("text", SETTINGS)
def test_greedy_answers_are_those_of_generate(text: str) -> None:
    model, images, asked = tiny_llava(3), pictures(6), suffixes(6)
    engine = make_engine(model, text)
    got = engine.answer(images, PREFIX, [Request(i, tuple(s)) for i, s in enumerate(asked)])
    assert [g.tokens for g in got] == generated_by_transformers(model, text, images, asked)
    assert {g.finish_reason == "stop" for g in got} == {len(g.tokens) < 12 for g in got}


@pytest.mark.parametrize("text", SETTINGS)
def test_prompts_of_equal_length_need_no_mask(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = tiny_llava(3), pictures(4)
    asked = [row[:2] for row in suffixes(4)]
    engine = make_engine(model, text)
    monkeypatch.setattr(KVCache, "visible", lambda *_: pytest.fail("a mask was made"))
    got = engine.answer(images, PREFIX, [Request(i, tuple(s)) for i, s in enumerate(asked)])
    assert [g.tokens for g in got] == generated_by_transformers(model, text, images, asked)


@pytest.mark.parametrize("text", SETTINGS)
def test_questions_that_share_an_image_get_the_answers_they_get_alone(text: str) -> None:
    engine = make_engine(tiny_llava(3), text)
    images, asked = pictures(2), suffixes(7, seed=2)
    image = [0, 1, 1, 0, 0, 1, 0]
    together = engine.answer(images, PREFIX, [Request(i, tuple(s)) for i, s in zip(image, asked, strict=True)])
    alone = [
        engine.answer(images[i : i + 1], PREFIX, [Request(0, tuple(s))])[0] for i, s in zip(image, asked, strict=True)
    ]
    assert [g.tokens for g in together] == [g.tokens for g in alone]
    assert [g.mean_logprob for g in together] == pytest.approx([g.mean_logprob for g in alone], abs=1e-4)


@pytest.mark.parametrize("text", SETTINGS)
def test_key_value_lengths_are_the_schedules(text: str) -> None:
    engine = make_engine(tiny_llava(0), text)
    visual, kept = engine.encode(pictures(2))
    assert visual.shape[1] == kept.shape[1] == engine.plan.visual_tokens
    from pipeline.decoder import Prompts, pad_suffixes

    suffix, lengths = pad_suffixes([[4, 6, 9], [4, 6]], engine.device)
    prompts = Prompts(torch.tensor(PREFIX), visual, kept, suffix, lengths, torch.tensor([0, 1]))
    cache = engine.decoder.new_cache(2, engine.decoder.base(len(PREFIX)), 5)
    expected = [len(PREFIX) + n + 3 + 2 for n in engine.plan.decoder_visual_lengths]
    assert [keys.shape[2] for keys in cache.keys] == expected
    with torch.inference_mode():
        engine.decoder.prefill(prompts, cache)
    if engine.plan.reduces_language:
        assert len(set(expected)) > 1


def test_sampling_repeats_with_its_seed_and_ignores_the_batch() -> None:
    model, images, asked = tiny_llava(1), pictures(4), suffixes(4, seed=5)
    requests = [Request(i, tuple(s), name=f"a/{i}") for i, s in enumerate(asked)]

    def sample(seed: int, chosen: list[Request]) -> list[Generation]:
        return make_engine(model, "ficoco-v:8", temperature=1.5, top_p=0.95, seed=seed).answer(images, PREFIX, chosen)

    first = sample(1, requests)
    assert [g.tokens for g in first] == [g.tokens for g in sample(1, requests)]
    assert [g.tokens for g in first[2:]] == [g.tokens for g in sample(1, requests[2:])]
    assert [g.tokens for g in first] != [g.tokens for g in sample(2, requests)]


def test_top_p_keeps_to_the_nucleus() -> None:
    from pipeline.generation import Sampler

    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]])).repeat(400, 1)
    sampler = Sampler(
        GenerationSettings(temperature=1.0, top_p=0.75), [str(i) for i in range(400)], torch.device("cpu")
    )
    chosen, logprob = sampler.choose(logits)
    counts = chosen.bincount(minlength=4).tolist()
    assert counts[2] == counts[3] == 0
    assert counts[0] / 400 == pytest.approx(0.5 / 0.8, abs=0.08)
    assert logprob[chosen == 0][0].exp() == pytest.approx(0.5, abs=1e-5)


def test_entries_beyond_a_row_never_reach_its_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, asked = make_engine(tiny_llava(3), "ficoco-l:5"), suffixes(5)
    requests = [Request(i, tuple(s)) for i, s in enumerate(asked)]
    expected = engine.answer(pictures(5), PREFIX, requests)

    def overwrite(cache: KVCache) -> None:
        for tensor in [*cache.keys, *cache.values]:
            tensor.fill_(1e4)

    monkeypatch.setattr(KVCache, "clear", overwrite)
    assert engine.answer(pictures(5), PREFIX, requests) == expected


def test_out_of_memory_halves_the_batch_and_remembers(monkeypatch: pytest.MonkeyPatch) -> None:
    model, images, asked = tiny_llava(3), pictures(7), suffixes(7)
    requests = [Request(i, tuple(s)) for i, s in enumerate(asked)]
    expected = make_engine(model, "dense").answer(images, PREFIX, requests)
    engine = make_engine(model, "dense")
    whole, sizes = engine.decoder.prefill, []

    def short_of_memory(prompts, cache):
        sizes.append(len(prompts.suffix))
        if len(prompts.suffix) > 2:
            raise torch.OutOfMemoryError("planted")
        return whole(prompts, cache)

    monkeypatch.setattr(engine.decoder, "prefill", short_of_memory)
    assert [g.tokens for g in engine.answer(images, PREFIX, requests)] == [g.tokens for g in expected]
    sizes.clear()
    engine.answer(images, PREFIX, requests)
    assert max(sizes) <= 3 - 1
