"""How much a sample or rejection will take as rows, which are in memory until their shard is committed."""

from __future__ import annotations

from pipeline.records import Question, Rejection, Sample

ROW_BYTES = 512
"""Of a row besides its text: the numbers, and what Python adds to every value."""
REFERENCE_BYTES = 64


def row_bytes(item: Sample | Rejection) -> int:
    """About the bytes of its rows, a character taken for one; what belongs to the sample stands in every row."""
    if isinstance(item, Rejection):
        texts = (item.shard, item.key, item.reason, item.question_id or "", item.question or "")
        return ROW_BYTES + sum(map(len, texts))
    shared = ROW_BYTES + len(item.shard) + len(item.key) + len(item.meta)
    return sum(shared + _own_bytes(question) for question in item.questions)


def _own_bytes(question: Question) -> int:
    texts = (question.text, question.id, question.kind or "", *question.references)
    return sum(map(len, texts)) + REFERENCE_BYTES * len(question.references)
