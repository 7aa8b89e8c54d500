"""Small random checkpoints of every family of text encoders, each with a tokenizer of its family's own class."""

import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import sentencepiece
import torch
import transformers
from tokenizers import ByteLevelBPETokenizer, processors
from torch import nn

from export.conversion.checkpoints.reading import provide_sentencepiece_messages
from export.conversion.golden_texts import GOLDEN_TEXTS, made_up_sentences

MAX_TOKENS, WIDTH = 48, 32
TEXTS = [*made_up_sentences(300), *GOLDEN_TEXTS]
LABELS = {"bad": 0, "mixed": 1, "good": 2}
SIZES = {"hidden_size": WIDTH, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 64}


class Family(NamedTuple):
    """How a checkpoint of a family is made: the names of its classes, its sizes, and the files of its tokenizer."""

    classes: str  # the name before `Config`, `Model` and `ForSequenceClassification`
    tokenizer: str
    write_vocabulary: Callable[[Path], Any]
    more: Mapping[str, Any] = {}
    first_position: int = 0  # positions of the table before that of the first token


def write_word_pieces(folder: Path) -> None:
    """Write `vocab.txt`: whole words and single characters, in lower case."""
    words = sorted({word for text in TEXTS for word in text.lower().split() if word.isalpha()})
    letters = sorted({letter for text in TEXTS for letter in text.lower() if letter.strip()})
    special = ["[PAD]", "<pad>", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "<s>", "</s>", "<mask>", "<unk>"]
    tokens = dict.fromkeys([*special, *letters, *words, *(f"##{letter}" for letter in letters)])
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n")


def write_byte_pairs(folder: Path) -> None:
    """Write `vocab.json` and `merges.txt`."""
    tokenizer = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"]
    tokenizer.train_from_iterator(TEXTS, vocab_size=420, min_frequency=1, special_tokens=special, show_progress=False)
    tokenizer.save_model(str(folder))


def write_whole_tokenizer(folder: Path) -> None:
    """Write `tokenizer.json` alone, of byte pairs with BERT's special tokens."""
    write_byte_pairs(folder)
    tokenizer = ByteLevelBPETokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    for name in ("vocab.json", "merges.txt"):
        (folder / name).unlink()
    number = tokenizer.token_to_id
    tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[(token, number(token)) for token in ("[CLS]", "[SEP]")],
    )
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "cls", "sep", "unk", "mask")}
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer._tokenizer, model_input_names=["input_ids", "attention_mask"], **special
    ).save_pretrained(folder)


def sentence_pieces(name: str, **options: Any) -> Callable[[Path], None]:
    """Return a function that writes a model of SentencePiece under the name of the family."""

    def write(folder: Path) -> None:
        (folder / name).write_bytes(_trained_pieces(tuple(options.items())))

    return write


@cache
def _trained_pieces(options: tuple[tuple[str, Any], ...]) -> bytes:
    """Train a small model of unigrams."""
    from io import BytesIO

    written = BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS),
        model_writer=written,
        vocab_size=300,
        hard_vocab_limit=False,
        minloglevel=2,
        **dict(options),
    )
    return written.getvalue()


LIKE_ALBERT = {"unk_id": 1, "pad_id": 0, "bos_id": 2, "eos_id": 3, "pad_piece": "<pad>"} | {
    "bos_piece": "[CLS]",
    "eos_piece": "[SEP]",
}
# Pieces as those of DeBERTa-v3 are numbered.
LIKE_DEBERTA = {"pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3, "pad_piece": "[PAD]", "bos_piece": "[CLS]"} | {
    "eos_piece": "[SEP]",
    "unk_piece": "[UNK]",
}
ROBERTA_LIKE = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "type_vocab_size": 1}
RELATIVE = {
    "relative_attention": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
    "type_vocab_size": 0,
}
FAMILIES: Mapping[str, Family] = {
    "bert": Family("Bert", "BertTokenizer", write_word_pieces),
    "distilbert": Family(
        "DistilBert",
        "DistilBertTokenizer",
        write_word_pieces,
        {"dim": WIDTH, "n_heads": 4, "n_layers": 2, "hidden_dim": 64},
    ),
    "roberta": Family("Roberta", "RobertaTokenizer", write_byte_pairs, ROBERTA_LIKE, 2),
    "xlm-roberta": Family(
        "XLMRoberta", "XLMRobertaTokenizer", sentence_pieces("sentencepiece.bpe.model"), ROBERTA_LIKE, 2
    ),
    "camembert": Family("Camembert", "CamembertTokenizer", sentence_pieces("sentencepiece.bpe.model"), ROBERTA_LIKE, 2),
    "electra": Family("Electra", "ElectraTokenizer", write_word_pieces, {"embedding_size": 16}),
    "albert": Family(
        "Albert", "AlbertTokenizer", sentence_pieces("spiece.model", **LIKE_ALBERT), {"embedding_size": 16}
    ),
    "deberta-v2": Family(
        "DebertaV2",
        "DebertaV2Tokenizer",
        sentence_pieces("spm.model", **LIKE_DEBERTA),
        RELATIVE | {"position_buckets": 8, "norm_rel_ebd": "layer_norm", "share_att_key": True},
    ),
    "deberta": Family("Deberta", "DebertaTokenizer", write_byte_pairs, RELATIVE),
    "mpnet": Family("MPNet", "MPNetTokenizer", write_word_pieces, {"pad_token_id": 1}, 2),
    "mobilebert": Family(
        "MobileBert",
        "MobileBertTokenizer",
        write_word_pieces,
        # Without normalisation, large weights would make large numbers, and those large differences.
        {"embedding_size": 16, "intra_bottleneck_size": 16, "true_hidden_size": 16, "num_feedforward_networks": 2}
        | {"initializer_range": 0.15},
    ),
    "modernbert": Family(
        "ModernBert",
        "",
        write_whole_tokenizer,
        {"num_hidden_layers": 4, "local_attention": 8, "global_attn_every_n_layers": 3},
    ),
}


def save_tokenizer(family: str, folder: Path, **options: Any) -> Any:
    """Write only the files of a family's vocabulary and the tokenizer's settings; return the tokenizer."""
    made = FAMILIES[family]
    folder.mkdir(parents=True, exist_ok=True)
    made.write_vocabulary(folder)
    provide_sentencepiece_messages()
    settings = {"model_max_length": MAX_TOKENS, **options}
    if made.tokenizer:
        settings["tokenizer_class"] = made.tokenizer
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps((json.loads(path.read_text()) if path.is_file() else {}) | settings))
    kind = getattr(transformers, made.tokenizer or "PreTrainedTokenizerFast")
    return kind.from_pretrained(folder)


def save_checkpoint(family: str, folder: Path, head: str = "ForSequenceClassification", **options: Any) -> Path:
    """Save a random network with its tokenizer.

    Args:
        family: `model_type` of the configuration.
        folder: the folder of the checkpoint.
        head: the end of the network's class name, such as "ForSequenceClassification" or "Model".
        options: fields of the configuration.
    """
    made = FAMILIES[family]
    tokenizer = save_tokenizer(family, folder)
    fields = {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "max_position_embeddings": MAX_TOKENS + made.first_position,
        "initializer_range": 0.3,
        "id2label": {number: label for label, number in LABELS.items()},
        "label2id": LABELS,
        "architectures": [f"{made.classes}{head}"],
    }
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("cls", "sep", "bos", "eos")}
    config = getattr(transformers, f"{made.classes}Config")(
        **SIZES | fields | {name: number for name, number in special.items() if number is not None} | made.more
        | {"pad_token_id": tokenizer.pad_token_id} | options
    )  # fmt: skip
    torch.manual_seed(1)
    model = getattr(transformers, f"{made.classes}{head}")(config)
    for parameter in model.parameters():  # biases and norms that are not all 0 and 1
        if parameter.ndim == 1:
            nn.init.normal_(parameter, parameter.mean().item(), 0.2)
    model.save_pretrained(folder)
    return folder
