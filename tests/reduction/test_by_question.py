"""CDPruner and TRIM against straight implementations of the papers, and questions that share an image."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from reduction import flops
from reduction.diversity import greedy_map
from reduction.overhead import question_terms
from reduction.schedule import Plan, plan
from reduction.settings import Reduction
from reduction.shapes import from_config
from reduction.text_tower import Asked
from reduction.vision import encode_images, real_tokens
from tests.clip_checkpoint import END_TOKEN, QUESTIONS, START_TOKEN, letters_tokenizer, text_tower, tiny_clip
from tests.reduction.counted import counting
from tests.reduction.reference_methods import embedded, layers_of
from tests.reduction.test_adaptive import outliers
from tests.reduction.test_linear import WAITS, Recorder
from tests.tiny import tiny_images, tiny_llava

GRID = 9
ASKED = ["what is it?", "how many dogs", "red or blue"]
OWNER = [1, 0, 1]
"""The image that each is about."""


def model(**sizes: Any) -> Any:
    return tiny_llava(4, grid=GRID, dtype=torch.float64, **sizes)


def images() -> Tensor:
    return tiny_images(2, grid=GRID, dtype=torch.float64)


def planned(llava: Any, setting: Reduction) -> Plan:
    return plan(setting, from_config(llava.config, text_tower=text_tower().shape))


def encoded(llava: Any, setting: Reduction, questions: list[str], owner: list[int]) -> tuple[Tensor, Tensor]:
    tower = text_tower(torch.float64)
    asked = Asked(tower, tower.embed(questions), torch.tensor(owner))
    with torch.no_grad():
        return encode_images(llava, images(), planned(llava, setting), setting, asked)


def relevance(llava: Any, image: Tensor, question: str) -> list[float]:
    """Cosine of the question and each patch by CLIP's own model, from the states that LLaVA reads."""
    clip, hidden = tiny_clip().double(), embedded(llava, image)
    for layer in layers_of(llava)[: len(layers_of(llava)) - 1]:
        hidden = layer(hidden[None], None)[0]
    ids = [START_TOKEN, *letters_tokenizer()(question, add_special_tokens=False)["input_ids"], END_TOKEN]
    text = clip.get_text_features(torch.tensor([ids])).pooler_output[0]
    patches = [clip.visual_projection(clip.vision_model.post_layernorm(state)) for state in hidden[1:]]
    return [float(patch @ text / (patch.norm() * text.norm())) for patch in patches]


def likeliest(kernel: Tensor, count: int) -> list[int]:
    """Greedy MAP of a DPP as it is defined: each step the token that makes the determinant largest."""
    chosen: list[int] = []
    while len(chosen) < count:
        rest = [i for i in range(len(kernel)) if i not in chosen]
        chosen.append(max(rest, key=lambda i: float(torch.det(kernel[[*chosen, i]][:, [*chosen, i]]))))
    return chosen


def cdpruner(features: Tensor, cosines: list[float], keep: int) -> list[int]:
    low, high = min(-c for c in cosines), max(-c for c in cosines)
    quality = [(-c - low + 1e-6) / (high - low + 1e-6) for c in cosines]
    norms = [float(x.norm()) for x in features]
    kernel = [
        [quality[i] * quality[j] * float(features[i] @ features[j]) / (norms[i] * norms[j]) for j in range(len(norms))]
        for i in range(len(norms))
    ]
    return likeliest(torch.tensor(kernel, dtype=torch.float64), keep)


@pytest.mark.parametrize("keep", [1, 7, 20])
@torch.no_grad()
def test_cdpruner(keep: int) -> None:
    llava, setting = model(), Reduction("cdpruner", keep)
    whole, _ = encode_images(llava, images(), planned(llava, Reduction()), Reduction())
    features, kept = encoded(llava, setting, ASKED, OWNER)
    for row, (question, owner) in enumerate(zip(ASKED, OWNER, strict=True)):
        chosen = cdpruner(whole[owner], relevance(llava, images()[owner], question), keep)
        assert kept[row].tolist() == sorted(chosen)
        assert torch.equal(features[row], whole[owner][sorted(chosen)])
    assert keep == 1 or kept[0].tolist() != kept[2].tolist(), "the question must matter for this to say anything"


@pytest.mark.parametrize("sign", ["negated", "plain"])
@pytest.mark.parametrize("compress", ["fuse", "prune"])
@torch.no_grad()
def test_trim(sign: str, compress: str) -> None:
    llava, keep = model(), 12
    setting = Reduction("trim", keep, compress=compress, relevance=sign)  # type: ignore[arg-type]
    whole, _ = encode_images(llava, images(), planned(llava, Reduction()), Reduction())
    features, kept = encoded(llava, setting, ASKED, OWNER)
    for row, (question, owner) in enumerate(zip(ASKED, OWNER, strict=True)):
        cosines = relevance(llava, images()[owner], question)
        order = sorted(range(len(cosines)), key=lambda i: cosines[i] if sign == "negated" else -cosines[i])
        stay = order[: keep - (compress == "fuse")]
        expected = {i: whole[owner][i] for i in stay}
        if compress == "fuse":
            dropped = order[len(stay) :]
            (made,) = set(kept[row].tolist()) - set(stay)
            expected[made] = whole[owner][dropped].mean(0)
        assert kept[row].tolist() == sorted(expected)
        torch.testing.assert_close(features[row], torch.stack([expected[i] for i in sorted(expected)]))


@pytest.mark.parametrize(("compress", "made"), [("fuse", 1), ("prune", 0)])
@pytest.mark.parametrize("strategy", ["default", "full"])
@torch.no_grad()
def test_trim_keeps_for_each_question_what_stands_out(compress: str, made: int, strategy: Any) -> None:
    llava, setting = model(strategy=strategy), Reduction("trim", "adaptive", compress=compress)
    cls = int(strategy == "full")
    features, kept = encoded(llava, setting, ASKED, OWNER)
    counts = real_tokens(kept, GRID**2 + cls).sum(1).tolist()
    scale = float(tiny_clip().logit_scale.exp())
    for row, (question, owner) in enumerate(zip(ASKED, OWNER, strict=True)):
        if not cls:  # CLS among the tokens has a weight too, which the loops leave out
            powers = [math.exp(-scale * c) for c in relevance(llava, images()[owner], question)]
            assert counts[row] == outliers([power / sum(powers) for power in powers]) + made
        fixed = Reduction("trim", counts[row], compress=compress)
        alone, left = encoded(llava, fixed, [question], [owner])
        torch.testing.assert_close(features[row, : counts[row]], alone[0])
        assert kept[row].tolist() == [*left[0].tolist(), *[GRID**2 + cls] * (max(counts) - counts[row])]
        assert counts[row] <= planned(llava, setting).visual_tokens_left
    assert len(set(counts)) > 1, "the questions must differ for this to say anything"


@pytest.mark.parametrize(
    "text", ["cdpruner:9", "trim:9", "trim:adaptive", "cdpruner:9,correlate=cosine,compress=merge"]
)
@torch.no_grad()
def test_questions_about_one_image_are_those_of_an_image_each(text: str) -> None:
    llava, setting, tower = model(), Reduction.parse(text), text_tower(torch.float64)
    features, kept = encoded(llava, setting, ASKED, OWNER)
    for row, (question, owner) in enumerate(zip(ASKED, OWNER, strict=True)):
        one = Asked(tower, tower.embed([question]))
        alone, left = encode_images(llava, images()[owner : owner + 1], planned(llava, setting), setting, one)
        count = left.shape[1]
        assert torch.equal(kept[row, :count], left[0])
        torch.testing.assert_close(features[row, :count], alone[0])


def test_the_greedy_search_is_that_of_determinants() -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(5, 8, 6, generator=generator, dtype=torch.float64)
    kernels = points @ points.transpose(1, 2)
    for kernel, chosen in zip(kernels, greedy_map(kernels, 4).tolist(), strict=True):
        assert chosen == likeliest(kernel, 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_beyond_the_rank_of_the_features_the_most_relevant_go_on(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    states = torch.randn(3, 12, 4, generator=generator, dtype=dtype)
    quality = torch.rand(3, 12, generator=generator, dtype=dtype)
    states = states / states.norm(dim=-1, keepdim=True) * quality.unsqueeze(-1)
    chosen = greedy_map(states @ states.transpose(1, 2), 12)
    assert chosen.sort(1).values.tolist() == [list(range(12))] * 3
    for row in range(3):
        later = chosen[row, 4:].tolist()
        assert later == sorted(later, key=lambda i: -float(quality[row, i]))


@pytest.mark.parametrize(
    "text", ["cdpruner:5", "trim:5", "random:5,filter=text_relevance,correlate=cosine,compress=merge"]
)
def test_flops_of_questions_that_share_an_image(text: str) -> None:
    llava, setting, tower = tiny_llava(), Reduction.parse(text), text_tower()
    shape = from_config(llava.config, text_tower=tower.shape)
    schedule, questions = plan(setting, shape), ["red?", "blue", "dogs"]
    ids = tower.tokenise(questions)
    with counting() as counter:
        asked = Asked(tower, tower.embed_ids(ids), torch.tensor([0, 0, 0]))
        encode_images(llava, tiny_images(1), schedule, setting, asked)
    (length,) = {len(row) for row in ids}
    own = sum(question_terms(shape, schedule, setting, length).values())
    assert counter.get_total_flops() == flops.count_image(shape, schedule, setting).total + 3 * own
    share = flops.count_shared_text(shape, schedule, 2, 9, 3, setting, 3, question_tokens=length)
    alone = flops.count_text(shape, schedule, 2, 9, 3, setting, question_tokens=length)
    assert share == alone, "questions that keep their own tokens share no keys"
    assert alone.reduction == own


@pytest.mark.parametrize("text", ["cdpruner:5", "trim:5"])
def test_nothing_waits_for_the_host(text: str) -> None:
    llava, setting, tower = tiny_llava(), Reduction.parse(text), text_tower()
    asked, pixels = Asked(tower, tower.embed(ASKED[:2]), torch.tensor([0, 0])), tiny_images(1)
    with torch.no_grad(), Recorder() as seen:
        encode_images(llava, pixels, planned(llava, setting), setting, asked)
    assert seen.names
    assert seen.names.isdisjoint(WAITS)


def test_a_question_counts_as_the_text_behind_the_image_up_to_the_towers_length() -> None:
    shape = from_config(tiny_llava().config, text_tower=text_tower().shape)
    setting = Reduction.parse("trim:5")
    schedule = plan(setting, shape)
    for after, read in ((7, 7), (100, 24)):
        counted = flops.count_text(shape, schedule, 2, 2 + after, 1, setting).reduction
        assert counted == sum(question_terms(shape, schedule, setting, read).values())


@torch.no_grad()
def test_a_text_is_where_clip_puts_it_alone_and_together() -> None:
    tower, clip = text_tower(torch.float64), tiny_clip().double()
    together = tower.embed(QUESTIONS)
    for row, question in enumerate(QUESTIONS):
        ids = [START_TOKEN, *letters_tokenizer()(question, add_special_tokens=False)["input_ids"][:22], END_TOKEN]
        torch.testing.assert_close(together[row], clip.get_text_features(torch.tensor([ids])).pooler_output[0])
        torch.testing.assert_close(tower.embed([question])[0], together[row])
    assert max(map(len, tower.tokenise(QUESTIONS))) == 24 == tower.shape.positions
