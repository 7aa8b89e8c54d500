"""Text2text-generation: models of Hugging Face that make a text of a text."""

from export.task_table import TEXT2TEXT_GENERATION
from export.tasks.text_to_text.loaded import TextToText


class Text2TextGeneration(TextToText):
    """Models of the task text2text-generation."""

    name = TEXT2TEXT_GENERATION


TASK = Text2TextGeneration()
