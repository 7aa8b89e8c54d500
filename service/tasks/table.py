"""The tasks that a manifest can name: a new task is a module of this folder and a line here."""

from typing import Any

from service.tasks.images.image_classification import ImageClassification
from service.tasks.images.image_feature_extraction import ImageFeatureExtraction
from service.tasks.stored_task import StoredTask
from service.tasks.text.classification import TextClassification
from service.tasks.text.embeddings import FeatureExtraction
from service.tasks.text.fill_mask import FillMask
from service.tasks.text.question_answering import QuestionAnswering
from service.tasks.text.ranking import TextRanking
from service.tasks.text.token_classification import TokenClassification
from service.tasks.text.zero_shot import ZeroShotClassification
from service.tasks.translation import Translation

_TASKS: tuple[type[StoredTask[Any]], ...] = (
    TextClassification,
    ImageClassification,
    Translation,
    FeatureExtraction,
    TokenClassification,
    TextRanking,
    QuestionAnswering,
    ZeroShotClassification,
    FillMask,
    ImageFeatureExtraction,
)

TASKS = {task.name: task for task in _TASKS}
