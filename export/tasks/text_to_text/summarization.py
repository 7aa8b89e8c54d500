"""Summarization: models of Hugging Face."""

from export.task_table import SUMMARIZATION
from export.tasks.text_to_text.loaded import TextToText


class Summarization(TextToText):
    """Models of the task summarization."""

    name = SUMMARIZATION


TASK = Summarization()
