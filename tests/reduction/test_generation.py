"""What a plain model says under `install`, and what its cache holds."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import reduction
from tests.reduction.installed import SUFFIXES, TEXTS, generate, inputs
from tests.tiny import tiny_llava


@pytest.mark.parametrize("text", TEXTS)
def test_generate_keeps_the_usual_shape(model: Any, text: str) -> None:
    with reduction.install(model, text):
        tokens = generate(model)
    given = inputs()["input_ids"]
    assert tokens.shape == (2, given.shape[1] + 7)
    assert torch.equal(tokens[:, : given.shape[1]], given)


@pytest.mark.parametrize("beams", [1, 3])
def test_the_cache_changes_no_answer(model: Any, beams: int) -> None:
    # With V the text plays no part in what is kept, so a pass without a cache must say the same.
    with reduction.install(model, "ficoco-v:5"):
        cached = generate(model, num_beams=beams)
        assert torch.equal(cached, generate(model, num_beams=beams, use_cache=False))


@pytest.mark.parametrize("text", TEXTS)
def test_the_side_of_the_padding_changes_no_answer(model: Any, text: str) -> None:
    with reduction.install(model, text):
        assert torch.equal(generate(model, side="right")[:, -7:], generate(model)[:, -7:])


@pytest.mark.parametrize("text", TEXTS)
def test_each_layer_holds_what_the_plan_says(model: Any, text: str) -> None:
    with reduction.install(model, text) as plan, torch.no_grad():
        cache = model(**inputs()).past_key_values
        words = 2 + len(SUFFIXES[0])
        assert cache.lengths() == plan.decoder_lengths(words)
        assert cache.get_seq_length() == words + 16
        for count in (1, 2):
            model(input_ids=torch.tensor([[5], [6]]), past_key_values=cache)
            assert cache.lengths() == tuple(length + count for length in plan.decoder_lengths(words))
            assert cache.get_seq_length() == words + 16 + count


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("text", TEXTS)
@torch.no_grad()
def test_tokens_may_follow_together_or_one_by_one(model: Any, text: str, side: str) -> None:
    more = torch.tensor([[5, 6, 7], [8, 9, 10]])
    with reduction.install(model, text):
        cache = model(**inputs(side)).past_key_values
        together = model(input_ids=more, past_key_values=cache).logits
        cache = model(**inputs(side)).past_key_values
        for index in range(3):
            single = model(input_ids=more[:, index : index + 1], past_key_values=cache).logits
            torch.testing.assert_close(single[:, 0], together[:, index])


@torch.no_grad()
def test_padding_after_the_prompt_is_not_seen(model: Any) -> None:
    given = inputs()
    with reduction.install(model, "ficoco-vl:5"):
        cache = model(**given).past_key_values
        expected = model(input_ids=torch.tensor([[5], [8]]), past_key_values=cache).logits
        cache = model(**given).past_key_values
        cache.next_position -= 2
        padded = torch.tensor([[70, 71, 5], [80, 81, 8]])
        mask = torch.cat([given["attention_mask"], torch.tensor([[0, 0, 1], [0, 0, 1]])], dim=1)
        got = model(input_ids=padded, attention_mask=mask, past_key_values=cache).logits
    torch.testing.assert_close(got[:, -1:], expected)


@pytest.mark.parametrize("text", TEXTS)
@torch.no_grad()
def test_rows_of_the_cache_can_be_chosen(model: Any, text: str) -> None:
    token = torch.tensor([[5], [5], [5], [5]])
    with reduction.install(model, text):
        alone = model(input_ids=token[:2], past_key_values=model(**inputs()).past_key_values).logits
        cache = model(**inputs()).past_key_values
        cache.batch_repeat_interleave(2)
        cache.reorder_cache(torch.tensor([3, 0, 1, 2]))
        cache.batch_select_indices(torch.tensor([0, 1, 3]))
        got = model(input_ids=token[:3], past_key_values=cache).logits
    torch.testing.assert_close(got, alone[[1, 0, 1]])


@pytest.mark.parametrize("text", TEXTS)
@torch.no_grad()
def test_eager_attention_gives_the_same(model: Any, text: str) -> None:
    eager = tiny_llava(1, dtype=torch.float64, attn_implementation="eager")
    assert eager.model.language_model.config._attn_implementation == "eager"
    with reduction.install(model, text), reduction.install(eager, text):
        # Eager attention takes its softmax in float32.
        torch.testing.assert_close(eager(**inputs()).logits, model(**inputs()).logits, rtol=1e-4, atol=1e-4)
        assert torch.equal(generate(eager), generate(model))


@torch.no_grad()
def test_embeddings_instead_of_ids(model: Any) -> None:
    given = inputs()
    with reduction.install(model, "ficoco-l:5"):
        expected = model(**given).logits
        embeds = model.get_input_embeddings()(given.pop("input_ids"))
        assert torch.equal(model(**given, inputs_embeds=embeds).logits, expected)
        short = model(**given, inputs_embeds=embeds, use_cache=False, return_dict=False, logits_to_keep=1)
        torch.testing.assert_close(short[0], expected[:, -1:])


@torch.no_grad()
def test_dropped_positions_show_the_last_token_left(model: Any) -> None:
    with reduction.install(model, "ficoco-v:5") as plan:
        logits = model(**inputs()).logits[0]
    _, kept = reduction.encode_images(model, inputs()["pixel_values"], plan, reduction.Reduction.parse("ficoco-v:5"))
    left = {0, 1, *range(18, 22), *(2 + token for token in kept[0].tolist())}
    for position in range(22):
        shown = max(other for other in left if other <= position)
        assert torch.equal(logits[position], logits[shown])
    assert len({tuple(row.tolist()) for row in logits}) == len(left)
