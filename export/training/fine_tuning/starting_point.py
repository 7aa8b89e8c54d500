"""Starting points of fine-tuning: a small BERT with random weights, MiniLM, or an encoder in Hugging Face form."""

import contextlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import transformers
from tokenizers import Tokenizer
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, PreTrainedTokenizerFast

from export.closest import closest_first
from export.data.text_classification import TextClassificationData
from export.data.tokenizers import UNK, train_pair_tokenizer
from export.networks.bert_weights import minilm_folder
from export.training.fine_tuning.measuring import LabelledData
from export.training.fine_tuning.settings import FAMILIES, MINILM, SCRATCH, FineTuneConfig

CONFIG = "config.json"
# Weights that a new task trains anew, whatever the checkpoint was trained for.
NEW_HEAD = re.compile(r"(^|\.)(classifier|pre_classifier|pooler|head|score)(\.|$)")
MAX_NAMED = 5  # weights in a message
# Families that number positions from the padding id on, so their table has more rows than a text has tokens.
POSITIONS_AFTER_PADDING = ("camembert", "mpnet", "roberta", "xlm-roberta")


class StartingPoint(NamedTuple):
    """Tokenizer and network at the start; `max_tokens` is the longest text, special tokens included."""

    tokenizer: Any
    model: Any
    max_tokens: int


def starting_point(data: TextClassificationData, config: FineTuneConfig) -> StartingPoint:
    """Build or load tokenizer and network, with a head for the labels of the data.

    Raises:
        FileNotFoundError: MiniLM is not installed.
        ValueError: the folder has no encoder of a known family, or one that is damaged.
    """
    texts = data.train.texts + (data.train.pairs or [])
    return encoder_start(
        config, about_labels(data), AutoModelForSequenceClassification, partial(train_pair_tokenizer, texts)
    )


def encoder_start(
    config: FineTuneConfig, about: Mapping[str, Any], auto_class: Any, train: Callable[[int], Tokenizer]
) -> StartingPoint:
    """Build or load tokenizer and network.

    Args:
        config: the settings of training.
        about: the fields of `config.json` about labels and problem.
        auto_class: the class of `transformers` that builds networks with the head of the task.
        train: trains the tokenizer of a start from scratch, with so many pieces.

    Raises:
        FileNotFoundError: MiniLM is not installed.
        ValueError: the folder has no encoder of a known family, or one that is damaged.
    """
    if config.start_from == SCRATCH:
        start = _from_scratch(config, about, auto_class, train)
    else:
        if not config.start_from:
            raise ValueError(f"the recipe needs a start: --start-from takes {MINILM}, {SCRATCH} or a folder")
        folder = minilm_folder() if config.start_from == MINILM else Path(config.start_from)
        start = _from_folder(folder, config, about, auto_class)
    start.tokenizer.model_max_length = start.max_tokens
    start.tokenizer.truncation_side = "right"
    start.model.config.pad_token_id = start.tokenizer.pad_token_id
    return start


def about_labels(data: LabelledData) -> dict[str, Any]:
    """Return the fields of `config.json` about labels and problem."""
    return {
        "num_labels": len(data.label_names),
        "id2label": dict(enumerate(data.label_names)),
        "label2id": {label: number for number, label in enumerate(data.label_names)},
        "problem_type": data.problem,
    }


def _from_scratch(
    config: FineTuneConfig, about: Mapping[str, Any], auto_class: Any, train: Callable[[int], Tokenizer]
) -> StartingPoint:
    trained, shape = train(config.model.vocab_size), config.model
    unknown = {"unk_token": UNK} if trained.token_to_id(UNK) is not None else {}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=trained,
        pad_token="[PAD]",  # noqa: S106, tokens of a vocabulary
        cls_token="[CLS]",  # noqa: S106
        sep_token="[SEP]",  # noqa: S106
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **unknown,
    )
    described = BertConfig(
        vocab_size=trained.get_vocab_size(),
        hidden_size=shape.d_model,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        intermediate_size=shape.d_ff,
        hidden_dropout_prob=shape.dropout,
        attention_probs_dropout_prob=shape.dropout,
        max_position_embeddings=config.max_tokens,
        **about,
    )
    return StartingPoint(tokenizer, auto_class.from_config(described), config.max_tokens)


def _from_folder(folder: Path, config: FineTuneConfig, about: Mapping[str, Any], auto_class: Any) -> StartingPoint:
    document = read_encoder_config(folder)
    with reading(folder):
        tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
        model, info = auto_class.from_pretrained(
            str(folder),
            output_loading_info=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,
            dtype="float32",
            **about,
            **_dropout(document["model_type"], config.model.dropout),
        )
    if not tokenizer.is_fast or tokenizer.pad_token_id is None:
        raise ValueError(f"{folder}: the tokenizer has no fast form (tokenizer.json) with a padding token")
    require_whole(folder, info)
    size = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > size:
        raise ValueError(f"{folder}: the tokenizer has {len(tokenizer)} pieces, the network embeds {size}")
    return StartingPoint(tokenizer, model, min(config.max_tokens, positions_of(model.config)))


def require_whole(folder: Path, info: Mapping[str, Any]) -> None:
    """Check what `from_pretrained` says of a checkpoint: only the head may be new.

    Raises:
        ValueError: weights of the encoder are missing, or have another shape.
    """
    mismatched = {str(each[0] if isinstance(each, tuple) else each) for each in info["mismatched_keys"]}
    if lacking := sorted(name for name in {*info["missing_keys"], *mismatched} if not NEW_HEAD.search(name)):
        more = f" and {len(lacking) - MAX_NAMED} more" if len(lacking) > MAX_NAMED else ""
        raise ValueError(
            f"{folder} lacks {len(lacking)} weights of the encoder that {CONFIG} describes, or has them in another"
            f" shape: {', '.join(lacking[:MAX_NAMED])}{more}"
        )


def read_encoder_config(folder: Path, families: Sequence[str] = FAMILIES) -> dict[str, Any]:
    """Read `config.json` of an encoder in Hugging Face form.

    Raises:
        ValueError: there is none, or one of a family that is not offered.
    """
    path = folder / CONFIG
    if not path.is_file():
        beside = sorted(str(each.parent) for each in folder.parent.glob(f"*/{CONFIG}"))
        found = ", ".join(closest_first(str(folder), beside)) or "none"
        raise ValueError(
            f"{folder} has no {CONFIG}: --start-from takes {MINILM}, {SCRATCH} or a folder; there are {found}"
        )
    try:
        document = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    model_type = document.get("model_type") if isinstance(document, dict) else None
    if not isinstance(document, dict) or model_type not in families:
        raise ValueError(f"{folder}: model type {model_type!r} is not one of {', '.join(families)}")
    if document.get("auto_map"):
        raise ValueError(f"{path}: auto_map names code of the checkpoint's own, which is never run here")
    return document


def positions_of(config: Any) -> int:
    """Return the longest text that the network's positions allow, in tokens."""
    positions = int(config.max_position_embeddings)
    return positions - config.pad_token_id - 1 if config.model_type in POSITIONS_AFTER_PADDING else positions


def _dropout(model_type: str, fraction: float) -> dict[str, float]:
    """Name the settings of dropout as the family does."""
    if model_type == "distilbert":
        return {"dropout": fraction, "seq_classif_dropout": fraction}
    if model_type == "modernbert":
        return {"mlp_dropout": fraction, "classifier_dropout": fraction}
    return {"hidden_dropout_prob": fraction, "attention_probs_dropout_prob": fraction}


@contextlib.contextmanager
def reading(folder: Path) -> Iterator[None]:
    """Silence the reports of `transformers`, and turn what it raises for damaged files into one sentence."""
    verbosity, bars = transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield
    except Exception as error:
        first = str(error).strip().split("\n")[0]
        raise ValueError(f"{folder} cannot be loaded: {type(error).__name__}: {first}") from error
    finally:
        transformers.logging.set_verbosity(verbosity)
        if bars:
            transformers.logging.enable_progress_bar()
