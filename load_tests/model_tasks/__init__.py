"""Everything that load tests know about the task of a model: the only room here that names a task.

A task has inputs with the expected answers, requests over each interface, measures of quality, and its part of a soak.
Requests and answers of the task API are those of Hugging Face, which every target (`targets.py`) takes. A new task is a
class in a module of this room and its place in `TASKS`.
"""

from load_tests.model_tasks.images import ImageClassification, ImageFeatureExtraction
from load_tests.model_tasks.task import AnswerPair, ModelTask, SoakInput
from load_tests.model_tasks.texts import (
    FeatureExtraction,
    FillMask,
    QuestionAnswering,
    TextClassification,
    TextRanking,
    TokenClassification,
    ZeroShotClassification,
)
from load_tests.model_tasks.translation import Translation

__all__ = ["MEASURES", "TASKS", "AnswerPair", "ModelTask", "SoakInput", "TextClassification"]

TASKS: dict[str, ModelTask] = {
    task.name: task
    for task in (
        TextClassification(),
        ImageClassification(),
        Translation(),
        FeatureExtraction(),
        TokenClassification(),
        TextRanking(),
        QuestionAnswering(),
        ZeroShotClassification(),
        FillMask(),
        ImageFeatureExtraction(),
    )
}
MEASURES = tuple(dict.fromkeys(measure for task in TASKS.values() for measure in task.measures))
