"""Trains the sub-word tokenizer of a text classifier."""

from collections.abc import Iterable

from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

PAD, CLS = "[PAD]", "[CLS]"

# The Penn Treebank writes "do n't", "it 's", "-lrb-" and "``" where people write "don't", "it's", "(" and a quotation
# mark. Both spellings become the same tokens, so that a model trained on treebank text serves everyday text.
TREEBANK_SPELLINGS = {" n't": "n't", "-lrb- ": "(", "-rrb-": ")", "`` ": '"', " ''": '"'}


def train_tokenizer(texts: Iterable[str], vocab_size: int, max_tokens: int) -> Tokenizer:
    """Byte-level BPE (Sennrich et al. 2016, arXiv 1508.07909): any text has tokens, none is unknown.

    The text is put in NFKC and lower case; each text begins with [CLS]. Truncation is not part of the tokenizer:
    whoever encodes decides what to do with a text beyond `max_tokens`, which is kept as the padding-free limit.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.Lowercase(),
            normalizers.Replace(Regex(r"[\u2018\u2019]"), "'"),
            normalizers.Replace(Regex(r"[\u201c\u201d]"), '"'),
            *(normalizers.Replace(treebank, everyday) for treebank, everyday in TREEBANK_SPELLINGS.items()),
            # "fun ." and "fun." alike.
            normalizers.Replace(Regex(r"\s+(?=[.,!?;:)'])"), ""),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Strip(),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[PAD, CLS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{CLS} $A", special_tokens=[(CLS, 1)])
    return tokenizer
