"""Question answering: encoders that find an answer in a context, from Hugging Face."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from rich.console import Console

from export.conversion.golden_texts import GOLDEN_TEXTS, made_up_sentences
from export.task_table import QUESTION_ANSWERING
from export.tasks.task import Target
from export.tasks.text.agreement import AgreementTask, Numbers
from export.tasks.text.rows_source import (
    RawInput,
    RowsSource,
    TokenLogits,
    rows_source_of_hugging_face,
    served_arguments,
)
from service.tasks.text.question_answering import Question
from service.tasks.text.question_answering import QuestionAnswering as Served

QUESTIONS = ("What is it about?", "Who was there?", "How did it end?")


def reader_of_hugging_face(name_or_path: str) -> RowsSource:
    """Load a model that answers questions.

    Raises:
        LoadRefused: not a complete model of this task.
    """
    from transformers import AutoModelForQuestionAnswering

    from export.conversion.checkpoints.reading import LoadRefused
    from export.conversion.text_checkpoint import read_text_checkpoint

    checkpoint = read_text_checkpoint(name_or_path, AutoModelForQuestionAnswering)
    try:
        served = Served(**served_arguments(checkpoint))
    except ValueError as error:
        raise LoadRefused(str(error)) from error
    # A long context is cut into windows.
    contexts = [*GOLDEN_TEXTS, " ".join(made_up_sentences(served.max_length // 8 + 2))]
    asked = [Question(QUESTIONS[number % len(QUESTIONS)], text) for number, text in enumerate(contexts)]
    return rows_source_of_hugging_face(
        checkpoint,
        partial(TokenLogits, outputs=["start_logits", "end_logits"]),
        served,
        width=2,
        golden=[RawInput({"question": each.question, "context": each.context}, each) for each in asked],
    )


class QuestionAnswering(AgreementTask):
    """Encoders that answer questions."""

    name = QUESTION_ANSWERING
    answers_name = "starts and ends of answers"

    def made_up(self, texts: Sequence[str]) -> list[Any]:
        """Ask a question of each text."""
        return [Question(QUESTIONS[number % len(QUESTIONS)], text) for number, text in enumerate(texts)]

    def decided(self, numbers: Numbers) -> Any:
        """Return the likeliest start and end."""
        return numbers.argmax(0)

    def load(self, source: str, validate_on: str | None, target: Target, console: Console) -> None:
        """Convert a model that answers questions."""
        self.write(reader_of_hugging_face(source), target, console)


TASK = QuestionAnswering()
