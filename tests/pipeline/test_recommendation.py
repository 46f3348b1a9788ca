"""Which setting is recommended, and that the sentence carries its evidence."""

from __future__ import annotations

from pipeline.comparison import Interval, SettingResult
from pipeline.recommendation import recommend


def result(
    setting: str,
    speed: float,
    difference: tuple[float, float, float] | None = None,
    fidelity: tuple[float, float, float] | None = None,
    scored: bool = True,
) -> SettingResult:
    rate = Interval(speed, speed, speed)
    return SettingResult(
        setting=setting,
        method=setting.partition(":")[0],
        visual_tokens=4.0,
        vision_lengths=(16,),
        decoder_lengths=(20,),
        flops={"prefill": 100.0 / speed},
        llm_viewer_tflops=1.0,
        kv_megabytes=1.0,
        kv_megabytes_fp16=1.0,
        questions=10,
        answers=10,
        images_per_second=rate,
        answers_per_second=rate,
        seconds={},
        peak_megabytes=1.0,
        accuracy=Interval(0.8 + (difference[0] if difference else 0.0), 0.7, 0.9) if scored else None,
        accuracy_difference=Interval(*difference) if difference else None,
        fidelity=Interval(*fidelity) if fidelity else None,
    )


DENSE = result("dense", 1.0)
SURE = result("ficoco-l:64", 1.5, (-0.002, -0.008, 0.004))
SURER = result("fastv:128", 1.2, (0.0, -0.001, 0.001))
UNSURE = result("random:64", 2.0, (-0.004, -0.02, 0.012))
BAD = result("stride:8", 3.0, (-0.2, -0.25, -0.15))


def test_the_cheapest_that_holds_with_confidence_is_taken() -> None:
    advice = recommend([DENSE, SURER, SURE, UNSURE, BAD])
    assert advice.setting == "ficoco-l:64"
    assert "within 1 point of dense, with 95 % confidence, is ficoco-l:64" in advice.sentence
    assert "accuracy 79.8% against 80.0% (-0.2 points, 95 % interval -0.8 to +0.4)" in advice.sentence
    assert "1.50 times dense's images per second, 67% of its FLOPs" in advice.sentence


def test_where_none_is_sure_dense_is_taken_and_the_likeliest_named() -> None:
    advice = recommend([DENSE, UNSURE, BAD])
    assert advice.setting == "dense"
    assert "More samples may tell: by its estimate alone the cheapest is random:64" in advice.sentence


def test_where_none_is_near_dense_is_taken_and_the_best_named() -> None:
    worse = result("stride:4", 4.0, (-0.4, -0.5, -0.3))
    advice = recommend([DENSE, worse, BAD])
    assert advice.setting == "dense"
    assert "no setting is within 1 point of dense; the best is stride:8" in advice.sentence


def test_one_that_holds_and_saves_no_time_is_not_taken() -> None:
    slow = result("ficoco-v:200", 0.9, (0.0, -0.001, 0.001))
    advice = recommend([DENSE, slow])
    assert advice.setting == "dense"
    assert "ficoco-v:200, the cheapest setting within 1 point of dense, is no faster" in advice.sentence


def test_a_faster_one_that_may_hold_is_named_rather_than_a_slower_one_that_does() -> None:
    slow = result("sparsevlm:230", 0.9, (0.0, -0.001, 0.001))
    advice = recommend([DENSE, slow, UNSURE, BAD])
    assert advice.setting == "dense"
    assert "no faster setting is within 1 point" in advice.sentence
    assert "by its estimate alone the cheapest is random:64" in advice.sentence


def test_without_references_fidelity_decides() -> None:
    dense = result("dense", 1.0, scored=False)
    close = result("ficoco-l:64", 1.5, fidelity=(0.98, 0.96, 0.99), scored=False)
    far = result("stride:8", 3.0, fidelity=(0.5, 0.4, 0.6), scored=False)
    advice = recommend([dense, far, close])
    assert advice.setting == "ficoco-l:64"
    assert "98.0% of its answers are dense's (95 % interval 96.0% to 99.0%)" in advice.sentence
