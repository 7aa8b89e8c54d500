"""Settings of text classifier training; `export/recipes/` has the recipes."""

import dataclasses
from dataclasses import dataclass
from typing import Literal

from export.networks.text_baselines import BiLstmConfig, KimCnnConfig
from export.networks.transformer import EncoderConfig
from export.training.trainer import TrainerConfig

BERT_VOCAB_SIZE = 30522
NetworkConfig = EncoderConfig | BiLstmConfig | KimCnnConfig


@dataclass(frozen=True, kw_only=True)
class TextTrainConfig(TrainerConfig):
    """How a text classifier is trained. The defaults are those of a small Transformer."""

    batch_size: int = 64
    label_smoothing: float = 0.1
    token_dropout: float = 0.3  # fraction of tokens dropped from each training text, redrawn each epoch
    train_share: float = 1.0  # fraction of the training examples that is used; equal seeds choose equal examples
    # The starting point: random weights; the MiniLM of `export.networks.bert_weights`, whose shape (except dropout) and
    # tokenizer replace those given here; MiniLM's shape and tokenizer with random weights; or `vocab_size` of its
    # words, whose vectors are projected to the network's width.
    start_from: Literal["scratch", "minilm", "minilm-shape", "minilm-words"] = "scratch"
    # For pre-trained networks: the factor of the learning rate from each layer to the one below (Howard and Ruder 2018,
    # arXiv 1801.06146; Clark et al. 2020, arXiv 2003.10555), and whether word vectors stay frozen, so that those of the
    # training texts remain comparable with all others (Lee et al. 2019, arXiv 1911.03090).
    layer_decay: float = 1.0
    freeze_embeddings: bool = False
    # Above 0, each batch is computed twice with different dropout, and the loss is the mean cross entropy plus the
    # divergence of the two with this weight (Liang et al. 2021, "R-Drop", arXiv 2106.14448, half equation 4).
    r_drop: float = 0.0
    # The name of a finished run beside this one, whose logits replace the labels as targets. Its token vectors are
    # targets too, with the weight below (`export.training.distillation`; the student's pieces must be the teacher's).
    # The teacher labels the texts that the student sees, so edits may change the label (`augment_texts`): words are
    # dropped (`token_dropout` then counts words), a fraction of the texts is joined with another one, and a fraction of
    # the words is replaced by words that both know and that are near in the teacher's vectors.
    teacher: str = ""
    token_vectors_weight: float = 0.0
    join_share: float = 0.0
    replace_share: float = 0.0
    vocab_size: int = 8000
    model: NetworkConfig = dataclasses.field(
        default_factory=lambda: EncoderConfig(
            vocab_size=8000,
            num_labels=2,
            d_model=128,
            num_layers=2,
            num_heads=4,
            d_ff=256,
            dropout=0.3,
            pooling="max",
        )
    )


def check_settings(config: TextTrainConfig) -> None:
    """Raise ValueError if a setting would have no effect."""
    for name in ("token_vectors_weight", "join_share", "replace_share"):
        if getattr(config, name) and not config.teacher:
            raise ValueError(f"{name} is {getattr(config, name)}, but there is no teacher")
    if config.r_drop and config.teacher:
        raise ValueError(f"r_drop is {config.r_drop}, but a student of {config.teacher} learns from no labels")
