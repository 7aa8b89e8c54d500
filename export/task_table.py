"""The table of tasks: the name that manifests and records of runs have, and the module that implements the task.

`RECIPES` names what `python -m export train` trains. The module imports nothing, so that every room may use the names
and `python -m export --help` is fast. `task_of` in `export.tasks.task` loads an entry.
"""

TEXT_CLASSIFICATION = "text-classification"
IMAGE_CLASSIFICATION = "image-classification"
TRANSLATION = "translation"
FEATURE_EXTRACTION = "feature-extraction"
IMAGE_FEATURE_EXTRACTION = "image-feature-extraction"

TASKS = {
    TEXT_CLASSIFICATION: "export.tasks.text_classification",
    IMAGE_CLASSIFICATION: "export.tasks.image_classification",
    TRANSLATION: "export.tasks.translation",
    FEATURE_EXTRACTION: "export.tasks.feature_extraction",
    IMAGE_FEATURE_EXTRACTION: "export.tasks.image_feature_extraction",
}

# The recipes of all tasks, whose settings are in RECIPES of the modules in `export/training/`.
RECIPES = {
    "sentiment": "SST-2: small Transformer encoder; 2 to 3 minutes on two cores",
    "sentiment-minilm": "SST-2: the pre-trained MiniLM (extra `pretrained`)",
    "sentiment-minilm-shape": "SST-2: the network of MiniLM from random weights (extra `pretrained`)",
    "sentiment-bilstm": "SST-2: recurrent baseline; cannot be served",
    "sentiment-kim-cnn": "SST-2: convolutional baseline; cannot be served",
    "sentiment-distilled": "SST-2: student of a finished run of sentiment-minilm (extra `pretrained`)",
    "cifar10-vit-lesson": "CIFAR-10: plain vision transformer",
    "cifar10-cnn": "CIFAR-10: residual network",
    "cifar10-vit": "CIFAR-10: vision transformer, student of a finished run of cifar10-cnn",
    "multi30k": "English to German on Multi30k alone",
    "multi30k-lstm": "the same with an LSTM; cannot be served",
    "translation-en-de": "English to German on Tatoeba and Multi30k; about 90 minutes on two cores",
}
