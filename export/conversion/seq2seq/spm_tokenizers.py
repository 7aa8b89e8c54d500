"""Builds a fast tokenizer from the SentencePiece model of a checkpoint that has no `tokenizer.json` of its own."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from export.conversion.checkpoints.reading import LoadRefused, provide_sentencepiece_messages

NEVER_READ = "\0"  # marks pieces that no text contains


def read_pieces(path: Path) -> Any:
    """Read a SentencePiece model file.

    Raises:
        LoadRefused: the model is neither a unigram model nor one of byte pairs.
    """
    provide_sentencepiece_messages()
    from sentencepiece import sentencepiece_model_pb2  # of whichever of the two packages it can be

    proto = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined] # generated code without types
    proto.ParseFromString(path.read_bytes())
    if proto.trainer_spec.model_type not in (proto.trainer_spec.UNIGRAM, proto.trainer_spec.BPE):
        raise LoadRefused(f"{path.name} is neither a unigram model nor one of byte pairs")
    return proto


def tokenizer_of_pieces(
    path: Path, vocabulary: Mapping[str, int], unk_token: str, special_tokens: Sequence[str]
) -> Tokenizer:
    """Build a tokenizer that splits as the SentencePiece model does, with the ids of the model's own list.

    Pieces of the list that the SentencePiece model lacks keep their ids, but never match. Pieces that the list lacks
    become unknown tokens. Nothing is added at the ends of a text.

    Args:
        path: the SentencePiece model.
        vocabulary: ids by piece, without a gap.
        unk_token: the piece for what is unknown.
        special_tokens: tokens that text may contain and that are not split.
    """
    proto = read_pieces(path)
    byte_pairs = proto.trainer_spec.model_type == proto.trainer_spec.BPE
    unk_id = vocabulary[unk_token]
    if byte_pairs:
        tokenizer = Tokenizer(_byte_pairs(proto, vocabulary, unk_token))
    else:
        scores = {piece.piece: piece.score for piece in proto.pieces if piece.type == piece.NORMAL}
        pieces = [(NEVER_READ + str(number), 0.0) for number in range(max(vocabulary.values()) + 1)]
        for piece, number in vocabulary.items():
            if piece in scores or piece == unk_token:
                pieces[number] = (piece, scores.get(piece, 0.0))
        tokenizer = Tokenizer(models.Unigram(pieces, unk_id=unk_id, byte_fallback=False))
    charsmap = proto.normalizer_spec.precompiled_charsmap
    tokenizer.normalizer = normalizers.Sequence(
        [
            *([normalizers.Precompiled(charsmap)] if charsmap else []),
            normalizers.Strip(),
            normalizers.Replace(Regex(" {2,}"), " "),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=byte_pairs)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in special_tokens if token in vocabulary]
    )
    return tokenizer


def _byte_pairs(proto: Any, vocabulary: Mapping[str, int], unk_token: str) -> models.BPE:
    """Build the model of byte pairs: a pair merges into each piece, and pieces of higher score merge first.

    Raises:
        LoadRefused: the list lacks a piece, whose merges could not be told from others.
    """
    pieces = {piece.piece: number for number, piece in enumerate(proto.pieces) if piece.type == piece.NORMAL}
    if missing := [piece for piece in pieces if piece not in vocabulary]:
        raise LoadRefused(
            f"{len(missing)} pieces of the SentencePiece model are not in the vocabulary, such as {missing[0]!r}"
        )
    merges = []
    for piece, rank in pieces.items():
        for place in range(1, len(piece)):
            left, right = piece[:place], piece[place:]
            if left in pieces and right in pieces:
                merges.append((rank, pieces[left], pieces[right], left, right))
    return models.BPE(
        vocab=dict(vocabulary),
        merges=[(left, right) for *_, left, right in sorted(merges)],
        unk_token=unk_token,
        fuse_unk=True,
        byte_fallback=False,
    )
