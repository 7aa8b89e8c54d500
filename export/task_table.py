"""The table of tasks: the name that manifests and records of runs have, and the module that implements the task.

The module imports nothing, so that every room may use the names and `python -m export --help` is fast. `task_of` in
`export.tasks.task` loads an entry.
"""

TEXT_CLASSIFICATION = "text-classification"
IMAGE_CLASSIFICATION = "image-classification"
TRANSLATION = "translation"
FEATURE_EXTRACTION = "feature-extraction"
TOKEN_CLASSIFICATION = "token-classification"  # noqa: S105, no password
TEXT_RANKING = "text-ranking"
QUESTION_ANSWERING = "question-answering"
ZERO_SHOT_CLASSIFICATION = "zero-shot-classification"
FILL_MASK = "fill-mask"
IMAGE_FEATURE_EXTRACTION = "image-feature-extraction"
SUMMARIZATION = "summarization"
TEXT2TEXT_GENERATION = "text2text-generation"

TASKS = {
    TEXT_CLASSIFICATION: "export.tasks.text_classification",
    IMAGE_CLASSIFICATION: "export.tasks.image_classification",
    TRANSLATION: "export.tasks.translation",
    FEATURE_EXTRACTION: "export.tasks.feature_extraction",
    TOKEN_CLASSIFICATION: "export.tasks.text.token_classification",
    TEXT_RANKING: "export.tasks.text.text_ranking",
    QUESTION_ANSWERING: "export.tasks.text.question_answering",
    ZERO_SHOT_CLASSIFICATION: "export.tasks.text.zero_shot_classification",
    FILL_MASK: "export.tasks.text.fill_mask",
    IMAGE_FEATURE_EXTRACTION: "export.tasks.image_feature_extraction",
    SUMMARIZATION: "export.tasks.text_to_text.summarization",
    TEXT2TEXT_GENERATION: "export.tasks.text_to_text.text2text_generation",
}

# Tasks by the end of an architecture's name in `config.json`, such as BertForSequenceClassification.
TASK_OF_ENDING = {
    "ForSequenceClassification": TEXT_CLASSIFICATION,
    "ForQuestionAnswering": QUESTION_ANSWERING,
    "ForMaskedLM": FILL_MASK,
    "ForTokenClassification": TOKEN_CLASSIFICATION,
    "ForImageClassification": IMAGE_CLASSIFICATION,
    "MarianMTModel": TRANSLATION,
    "MBartForConditionalGeneration": TRANSLATION,
    "M2M100ForConditionalGeneration": TRANSLATION,
    "ForConditionalGeneration": TEXT2TEXT_GENERATION,
    "Model": FEATURE_EXTRACTION,
}
