"""What a trace says against what the passes that it watched really did."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.engine import Request
from pipeline.report_flows import patch_moves
from reduction import install, stages
from reduction.methods import METHODS
from reduction.schedule import plan
from reduction.settings import Reduction, ReductionError
from reduction.shapes import from_config
from reduction.trace import OBSERVED, Trace, observe
from reduction.vision import encode_images, run_tower
from tests.clip_checkpoint import QUESTIONS, installed
from tests.pipeline.test_engine import PREFIX, make_engine, pictures, suffixes
from tests.reduction.installed import inputs
from tests.tiny import tiny_images, tiny_llava, tiny_prompts

EXCHANGED = [
    "ficoco-vl:5,positions=packed",
    "ficoco-v:5,filter=bipartite,correlate=cosine,compress=size_mean",
    "fastv:5,correlate=importance,compress=fuse",
    "random:4,correlate=cosine,compress=merge",
]
ADAPTIVE = ["prumerge:adaptive", "prumerge:adaptive,compress=prune"]
SETTINGS = [*(f"{name}:4" for name in METHODS if name != "dense"), *EXCHANGED]


def traced(model: Any, text: str) -> Trace:
    with torch.no_grad(), installed(model, text), observe(model) as trace:
        model(**inputs())
    return trace


def near(left: Tensor, right: Tensor) -> None:
    torch.testing.assert_close(left.double(), right.double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("text", SETTINGS)
def test_every_place_is_linear_and_the_matrix_is_the_product_of_the_places(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, orders, real, sort = [], [], stages.reduce_tokens, stages.sort_raster

    def spy(view: Any, states: Tensor, *rest: Any) -> stages.Reduced:
        left = real(view, states, *rest)
        # As they are here: the layer goes on in place.
        calls.append((view.first, states.clone(), left.states.clone()))
        return left

    def spy_sort(reduced: stages.Reduced, cells: Tensor) -> stages.Reduced:
        orders.append((len(calls), cells.argsort(1)))
        return sort(reduced, cells)

    monkeypatch.setattr(stages, "reduce_tokens", spy)
    monkeypatch.setattr(stages, "sort_raster", spy_sort)
    trace = traced(tiny_llava(3, dtype=torch.float64), text)
    product = torch.eye(16, dtype=torch.float64).expand(2, -1, -1)
    # Each place is called twice: on the states, and on the identity.
    for number in range(0, len(calls), 2):
        first, states, left = calls[number]
        matrix = calls[number + 1][2][:, first:, first:].double()
        near(matrix @ states[:, first:], left[:, first:])
        product = matrix @ product
        for _, order in (found for found in orders if found[0] == number + 2):
            product = product.gather(1, order.unsqueeze(-1).expand_as(product))
    assert len(trace.steps) == len(calls) // 2 > 0
    near(trace.steps[-1].shares, product)


@pytest.mark.parametrize("text", ["random:4", "stride:4", "divprune:4", "average-pool:4", EXCHANGED[3]])
@pytest.mark.parametrize("strategy", ["default", "full"])
def test_at_the_projector_the_matrix_times_the_features_is_what_is_left(text: str, strategy: str) -> None:
    if text.startswith("average-pool"):  # refuses CLS among the tokens
        strategy = "default"
    model, images = tiny_llava(1, strategy=strategy, dtype=torch.float64), tiny_images(2, dtype=torch.float64)
    setting = Reduction.parse(text)
    chosen = plan(setting, from_config(model.config))
    with torch.no_grad(), observe(model) as trace:
        features, kept = encode_images(model, images, chosen, setting)
        whole, _ = encode_images(model, images, plan(Reduction(), from_config(model.config)), Reduction())
    (step,) = trace.steps
    assert torch.equal(step.kept, kept)
    near(step.shares.double() @ whole, features)


LAST = ["visionzip:4", "prumerge:4", "vispruner:4", "visionzip:5,filter=random,compress=mean", "prumerge:6,filter=cls"]


@pytest.mark.parametrize("text", LAST)
@pytest.mark.parametrize("strategy", ["default", "full"])
def test_behind_the_last_encoder_layer_too(text: str, strategy: str) -> None:
    model, images = tiny_llava(1, strategy=strategy, dtype=torch.float64), tiny_images(2, dtype=torch.float64)
    setting, shape = Reduction.parse(text), from_config(model.config)
    with torch.no_grad(), observe(model) as trace:
        (left,), cells = run_tower(model, images, plan(setting, shape), setting)
        (whole,), _ = run_tower(model, images, plan(Reduction(), shape), Reduction())
    shares, kept = trace.steps[-1].shares.double(), trace.steps[-1].kept
    cls = 1 if strategy == "full" else 0
    assert torch.equal(kept[:, cls:] - cls, cells)
    near(shares @ whole[:, 1 - cls :], left[:, 1 - cls :])


@pytest.mark.parametrize(
    "text", ["dart:4", "dart:4,correlate=cosine,compress=merge", "dart:4,correlate=attention,compress=mean"]
)
def test_behind_a_decoder_layer_too(text: str) -> None:
    model, entering = tiny_llava(2, dtype=torch.float64), {}
    for setting in ("dense", text):
        hook = model.model.language_model.layers[2].register_forward_pre_hook(
            lambda module, args, setting=setting: entering.update({setting: args[0]})
        )
        trace = traced(model, setting)
        hook.remove()
    # Prompts of 4 and 2 words behind 2 tokens of prefix; the reduced form starts with the prefix, the dense is padded.
    whole = torch.stack([row[start : start + 16] for row, start in zip(entering["dense"], (2, 4), strict=True)])
    near(trace.steps[-1].shares.double() @ whole, entering[text][:, 2:6])


def test_shares_say_what_the_stages_say() -> None:
    model = tiny_llava(3, dtype=torch.float64)
    merged = traced(model, "ficoco-v:5").flows()
    near(merged.sum(1), torch.ones(2, 5))
    assert (merged.sum(2) > 0).all()
    pruned = traced(model, "ficoco-v:5,compress=prune")
    assert set(pruned.flows().flatten().tolist()) == {0.0, 1.0}
    for row, kept in zip(pruned.flows(), pruned.steps[-1].kept, strict=True):
        assert row.nonzero()[:, 0].tolist() == kept.tolist()
    pooled = traced(model, "average-pool:4").flows()
    assert set(pooled.flatten().tolist()) == {0.0, 0.25}


@pytest.mark.parametrize("text", [*SETTINGS, *ADAPTIVE])
def test_the_engine_is_traced_as_install_is(text: str) -> None:
    model, images, asked = tiny_llava(3), pictures(2), suffixes(2)
    engine = make_engine(model, text)
    with observe(model) as trace:
        engine.answer(images, PREFIX, [Request(i, tuple(s), question=QUESTIONS[i]) for i, s in enumerate(asked)])
    pixels = (images.permute(0, 3, 1, 2).float() / 255 - engine.mean) / engine.std
    with torch.no_grad(), installed(model, text), observe(model) as other:
        model(**tiny_prompts(PREFIX, asked), pixel_values=pixels)
    assert [step.place for step in trace.steps] == [step.place for step in other.steps]
    assert torch.equal(trace.steps[-1].kept, other.steps[-1].kept)
    near(trace.flows(), other.flows())


@pytest.mark.parametrize("text", ADAPTIVE)
@pytest.mark.parametrize("strategy", ["default", "full"])
def test_rows_with_fewer_tokens_are_padded_by_nothing(text: str, strategy: str) -> None:
    model, images = tiny_llava(1, strategy=strategy, grid=6), tiny_images(6, grid=6)
    setting, shape = Reduction.parse(text), from_config(model.config)
    with torch.no_grad(), observe(model) as trace:
        _, cells = run_tower(model, images, plan(setting, shape), setting)
    cls = int(strategy == "full")
    step = trace.steps[-1]
    counts = (cells < 36).sum(1)
    assert len(set(counts.tolist())) > 1
    assert torch.equal(step.kept[:, cls:], cells + cls)
    padding = step.kept == 36 + cls
    assert torch.equal((~padding).sum(1), counts + cls)
    assert not step.shares[padding].any()
    assert (step.shares.sum(2)[~padding] > 0).all()
    for row, count in enumerate(counts.tolist()):
        with torch.no_grad(), observe(model) as alone:
            run_tower(model, images[row : row + 1], plan(setting, shape), setting)
        near(alone.steps[-1].shares[0], step.shares[row, : count + cls])
        assert patch_moves(trace, row)[0] == patch_moves(alone)[0] == tuple(cells[row, :count].tolist())


def test_watching_changes_nothing_and_ends() -> None:
    model = tiny_llava(3, dtype=torch.float64)
    before = [(module.reduce_tokens, module.sort_raster) for module in OBSERVED]
    with torch.no_grad(), install(model, "tome:5"):
        plain = model(**inputs()).logits
        with observe(model):
            watched = model(**inputs()).logits
    assert torch.equal(plain, watched)
    assert [(module.reduce_tokens, module.sort_raster) for module in OBSERVED] == before


@pytest.mark.parametrize("text", ["ficoco-vl:5", "tome:5"])
def test_watching_leaves_gradients_to_those_who_ask(text: str) -> None:
    model = tiny_llava(3, dtype=torch.float64)
    with install(model, text):
        with observe(model):
            model(**inputs()).logits.sum().backward()
        watched = [parameter.grad for parameter in model.parameters()]
        model.zero_grad()
        model(**inputs()).logits.sum().backward()
    assert any(gradient is not None and gradient.any() for gradient in watched)
    for gradient, parameter in zip(watched, model.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad)


def test_a_second_pass_and_a_dense_one_are_refused() -> None:
    model = tiny_llava(3, dtype=torch.float64)
    with torch.no_grad(), install(model, "ficoco-l:5"), observe(model):
        model(**inputs())
        with pytest.raises(ReductionError, match="one forward"):
            model(**inputs())
    with pytest.raises(ReductionError, match="nothing was dropped"):
        traced(model, "dense").flows()
