"""Answers of small random models are those of the question-answering pipeline of `transformers`, version 4.

Later versions have no such pipeline, so its rules are written here once more, on whole matrices of spans.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

from export.tasks.text.question_answering import reader_of_hugging_face
from service.tasks.text.question_answering import Question
from tests.export.tasks.text.small_checkpoints import KINDS, answers_of, save_checkpoint

QUESTION = "Where did Ada live?"
SHORT = "Ada lived in São Paulo, 東京; it's warm — isn't it?"
LONG = " ".join(["Ada Lovelace lived in London. Her new book was dull and rich, sadly.", SHORT] * 3)


def answers_of_version_4(model: Any, tokenizer: Any, asked: Question) -> list[dict[str, Any]]:
    """Answer a question by the rules of the pipeline."""
    length = asked.max_seq_len or 40
    stride = min(length // 2, 128) if asked.doc_stride is None else asked.doc_stride
    encoded = tokenizer(
        asked.question, asked.context, truncation="only_second", max_length=length, stride=stride,
        return_overflowing_tokens=True, return_offsets_mapping=True, padding=True,
    )  # fmt: skip
    names = ("input_ids", "attention_mask", "token_type_ids")
    fed = {name: torch.tensor(encoded[name]) for name in names if name in encoded}
    with torch.inference_mode():
        computed = model(**fed)
    answers: list[dict[str, Any]] = []
    of_none, count = 1_000_000.0, 2 * asked.top_k + 10 if asked.align_to_words else asked.top_k
    for row, window in enumerate(encoded.encodings):
        allowed = np.array([number == 1 for number in window.sequence_ids])
        allowed[window.ids.index(tokenizer.cls_token_id)] = True
        start, end = (
            np.where(allowed, logits[row].numpy(), -10000.0) for logits in (computed.start_logits, computed.end_logits)
        )
        start, end = (np.exp(each - each.max()) / np.exp(each - each.max()).sum() for each in (start, end))
        of_none = min(of_none, float(start[0] * end[0]))
        start[0] = end[0] = 0.0
        spans = np.tril(np.triu(np.outer(start, end)), asked.max_answer_len - 1)
        for place in np.argsort(-spans.ravel())[:count]:
            first, last = divmod(int(place), len(start))
            if not (allowed[first] and allowed[last]) or spans[first, last] == 0:
                continue
            begin, finish = window.offsets[first][0], window.offsets[last][1]
            if asked.align_to_words and None not in (window.token_to_word(first), window.token_to_word(last)):
                begin = window.word_to_chars(window.token_to_word(first), 1)[0]
                finish = window.word_to_chars(window.token_to_word(last), 1)[1]
            text, score = asked.context[begin:finish], float(spans[first, last])
            same = next((each for each in answers if each["answer"].lower() == text.lower()), None)
            if same is None:
                answers.append({"score": score, "start": begin, "end": finish, "answer": text})
            else:
                same["score"] += score
    if asked.handle_impossible_answer:
        answers.append({"score": of_none, "start": 0, "end": 0, "answer": ""})
    return sorted(answers, key=lambda answer: -answer["score"])[: asked.top_k]


@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    """Short contexts and long ones by strides, with each parameter."""
    folder = save_checkpoint(kind, AutoModelForQuestionAnswering, tmp_path / "mine")
    source = reader_of_hugging_face(str(folder))
    model, tokenizer = (each.from_pretrained(folder) for each in (AutoModelForQuestionAnswering, AutoTokenizer))
    asked = [
        Question(QUESTION, SHORT),
        Question(QUESTION, SHORT, top_k=4, align_to_words=False),
        Question(QUESTION, SHORT, top_k=30, max_answer_len=2, handle_impossible_answer=True),
        Question(QUESTION, LONG, top_k=5, doc_stride=3),
        Question(
            QUESTION, LONG, top_k=3, max_answer_len=4, max_seq_len=32, doc_stride=2, handle_impossible_answer=True
        ),
    ]
    item = source.served.rows_of(asked[3], truncate=False, field="the input", max_rows=64)
    assert item.rows > 3
    for question, answer in zip(asked, answers_of(source, asked), strict=True):
        expected = answers_of_version_4(model.eval(), tokenizer, question)
        assert len(answer) == len(expected)
        for ours, theirs in zip(answer, expected, strict=True):
            assert ours.score == pytest.approx(theirs["score"], abs=1e-4)
            assert (ours.start, ours.end, ours.answer) == (theirs["start"], theirs["end"], theirs["answer"])
