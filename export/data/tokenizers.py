"""Trains sub-word tokenizers for text classifiers and translation models."""

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

PAD, CLS, SEP, BOS, EOS, UNK = "[PAD]", "[CLS]", "[SEP]", "[BOS]", "[EOS]", "[UNK]"

# The Penn Treebank writes "do n't", "it 's", "-lrb-" and "``" where people write "don't", "it's", "(" and a quotation
# mark. Both spellings become the same tokens, so that a model trained on treebank text serves everyday text.
TREEBANK_SPELLINGS = {" n't": "n't", "-lrb- ": "(", "-rrb-": ")", "`` ": '"', " ''": '"'}


def everyday_spelling() -> list[normalizers.Normalizer]:
    """Build a normalizer that turns lower-case treebank spelling into everyday spelling."""
    return [
        normalizers.Replace(Regex(r"[\u2018\u2019]"), "'"),
        normalizers.Replace(Regex(r"[\u201c\u201d]"), '"'),
        *(normalizers.Replace(treebank, everyday) for treebank, everyday in TREEBANK_SPELLINGS.items()),
        # "fun ." and "fun." become equal.
        normalizers.Replace(Regex(r"\s+(?=[.,!?;:)'])"), ""),
    ]


def with_everyday_spelling(tokenizer: Tokenizer) -> Tokenizer:
    """Let a tokenizer read treebank text in everyday spelling, which pre-trained networks know."""
    tokenizer.normalizer = normalizers.Sequence([*everyday_spelling(), tokenizer.normalizer])
    return tokenizer


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train byte-level BPE (Sennrich et al. 2016, arXiv 1508.07909): no text has unknown tokens.

    Texts are normalised to NFKC and lower case, and begin with [CLS]. Truncation is not part of the tokenizer: the
    caller decides what to do with a text that is too long.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.Lowercase(),
            *everyday_spelling(),
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


def train_pair_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train byte-level BPE for texts and pairs of texts of any language, in the form that BERT takes.

    Texts are normalised to NFKC and lower case. A text becomes `[CLS] text [SEP]`; a pair `[CLS] first [SEP] second
    [SEP]`, where the second text and its [SEP] have type 1.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.Lowercase(),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Strip(),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[PAD, CLS, SEP],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{CLS} $A {SEP}",
        pair=f"{CLS} $A {SEP} $B:1 {SEP}:1",
        special_tokens=[(CLS, 1), (SEP, 2)],
    )
    return tokenizer


def train_word_pieces(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train WordPiece for texts with entities, in the form that BERT takes (Devlin et al. 2019, arXiv 1810.04805).

    Case is kept, because names are often written in capitals; pieces end at spaces and punctuation, and those that
    continue a word begin with ##. A text becomes `[CLS] text [SEP]`.
    """
    tokenizer = Tokenizer(models.WordPiece(unk_token=UNK))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False, strip_accents=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size, min_frequency=2, special_tokens=[PAD, CLS, SEP, UNK], show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{CLS} $A {SEP}",
        pair=f"{CLS} $A {SEP} $B:1 {SEP}:1",
        special_tokens=[(CLS, 1), (SEP, 2)],
    )
    return tokenizer


def train_translation_tokenizer(texts: Iterable[str], vocab_size: int, lowercase: bool = False) -> Tokenizer:
    """Train byte-level BPE over both languages, so that one matrix embeds both and names are copied.

    Case and spelling are kept, because people read the decoded text. [PAD], [BOS] and [EOS] are 0, 1 and 2; each text
    ends with [EOS].
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFC(),
            *([normalizers.Lowercase()] if lowercase else []),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Strip(),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    # The first word is encoded with a space before it, like all others, and decoded without.
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {EOS}", special_tokens=[(EOS, 2)])
    return tokenizer
