"""Settings of training an encoder of `transformers` on labelled texts; `export/recipes/text-*.toml` has the recipes."""

import dataclasses
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

from export.networks.bert_weights import MINILM_PACKAGE
from export.training.trainer import TrainerConfig

SCRATCH, MINILM = "scratch", "minilm"
FEW_ROWS = 2_000  # with fewer training rows, more epochs of smaller batches are trained
# From this many training rows on, a small network from random weights is trained where nothing else is asked for: on
# two cores MiniLM would take hours, and so many rows teach a small network most of what it can learn.
MANY_ROWS = 20_000
# The families of encoders that can be the start of training, by `model_type` of `config.json`.
FAMILIES = (
    "albert",
    "bert",
    "camembert",
    "deberta-v2",
    "distilbert",
    "electra",
    "mobilebert",
    "modernbert",
    "mpnet",
    "roberta",
    "xlm-roberta",
)


@dataclass(frozen=True, kw_only=True)
class EncoderShape:
    """Shape of an encoder: a BERT from random weights. A start with weights brings its own shape, except dropout."""

    model_type: str = "bert"
    vocab_size: int = 8000
    d_model: int = 128
    num_layers: int = 2
    num_heads: int = 4
    d_ff: int = 512
    dropout: float = 0.1
    max_tokens: int = 256
    num_labels: int = 2

    def __post_init__(self) -> None:
        """Refuse shapes that cannot be built.

        Raises:
            ValueError: the width is not a multiple of the heads.
        """
        if self.d_model % self.num_heads:
            raise ValueError(f"d_model {self.d_model} is not a multiple of num_heads {self.num_heads}")


def shape_of(config: Any, max_tokens: int) -> EncoderShape:
    """Read the shape of a network from its `transformers` configuration; families name their fields differently."""

    def first(*names: str) -> Any:
        return next(value for name in names if (value := getattr(config, name, None)) is not None)

    return EncoderShape(
        model_type=config.model_type,
        vocab_size=config.vocab_size,
        d_model=first("hidden_size", "dim"),
        num_layers=first("num_hidden_layers", "n_layers"),
        num_heads=first("num_attention_heads", "n_heads"),
        d_ff=first("intermediate_size", "hidden_dim"),
        dropout=first("hidden_dropout_prob", "dropout", "mlp_dropout"),
        max_tokens=max_tokens,
        num_labels=config.num_labels,
    )


@dataclass(frozen=True, kw_only=True)
class FineTuneConfig(TrainerConfig):
    """How an encoder of `transformers` is trained on labelled texts, or pairs of texts."""

    epochs: int = 4
    patience: int = 4
    learning_rate: float = 5e-5
    weight_decay: float = 0.01
    batch_size: int = 32
    label_smoothing: float = 0.0  # for one label of many
    token_dropout: float = 0.0  # fraction of tokens dropped from each training text, redrawn each epoch
    train_share: float = 1.0  # fraction of the training examples that is used; equal seeds choose equal examples
    # "scratch": random weights and a new tokenizer; "minilm": the pre-trained MiniLM (extra `pretrained`); else the
    # folder of an encoder in Hugging Face form.
    start_from: str = SCRATCH
    # "balanced": labels weigh in the loss inversely to their frequency; for several labels at once, the presence of a
    # label weighs as much as its absence (at most `MAX_PRESENCE_WEIGHT` times).
    class_weights: Literal["none", "balanced"] = "none"
    # The factor of the learning rate from each layer to the one below, and whether the embeddings stay as they are; the
    # sources are those of `TextTrainConfig`.
    layer_decay: float = 1.0
    freeze_embeddings: bool = False
    # The longest text in tokens, for training, measuring and serving; a network with fewer positions has its own limit.
    max_tokens: int = 256
    model: EncoderShape = dataclasses.field(default_factory=EncoderShape)


def recipe_for(num_rows: int, start_from: str) -> tuple[str, str]:
    """Choose the name of a recipe by the number of training rows and the given start, and say why."""
    few, start = num_rows < FEW_ROWS, start_from
    why = f"{num_rows:,} training rows are {'fewer than' if few else 'at least'} {FEW_ROWS:,}"
    if not start and num_rows >= MANY_ROWS:
        start, why = (
            SCRATCH,
            f"{num_rows:,} training rows are at least {MANY_ROWS:,}, enough for a network from scratch",
        )
    elif not start and find_spec(MINILM_PACKAGE) is None:
        start = SCRATCH
        why += "; from scratch, because MiniLM is not installed (extra `pretrained`) and --start-from names no encoder"
    elif not start:
        start = MINILM
        why += "; MiniLM knows English: for other languages name an encoder with --start-from"
    kind = start if start in (SCRATCH, MINILM) else "encoder"
    return f"text-{kind}{'-few-rows' if few else ''}", why
