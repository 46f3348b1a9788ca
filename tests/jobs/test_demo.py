"""What the demo shows."""

from __future__ import annotations

from jobs.demo import table


def test_the_table_says_that_its_speed_is_of_single_runs() -> None:
    flops = dict.fromkeys(("vision", "prefill", "decode", "projector", "reduction"), 1e9)
    dense = {"flops_per_answer": flops, "visual_tokens": 256, "accuracy": None, "images_per_second": 9.0}
    head, line, remark = table({"dense": dense}).splitlines()
    assert head.split()[0] == "setting"
    assert line.split() == ["dense", "256", "1.000", "1.000", "1.000", "2.000", "5.000", "9.0"]
    assert "one run each" in remark
    assert "compare_reductions.py" in remark
