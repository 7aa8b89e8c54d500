"""A tokenizer of a few whole words, with marks around a text and between the two texts of a pair."""

from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, processors

WORDS = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]", "ada", "lived", "in", "london", "where", "a", "b", "c"]
NUMBER = {word: number for number, word in enumerate(WORDS)}
ARGUMENTS: dict[str, Any] = {
    "max_tokens": 8,
    "pad_id": 0,
    "graph_inputs": ["input_ids", "attention_mask", "token_type_ids"],
}


def small_tokenizer() -> Tokenizer:
    """Make the tokenizer."""
    tokenizer = Tokenizer(models.WordLevel(NUMBER, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["[MASK]"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", NUMBER["[CLS]"]), ("[SEP]", NUMBER["[SEP]"])],
    )
    return tokenizer
