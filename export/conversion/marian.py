"""Loads Hugging Face's Marian translation models (such as Opus-MT) as sources for conversion.

They become this repository's own network: the same layers under other names. The differences are normalisation
after each sub-layer, positions with all sines before all cosines, a bias on the logits, and a decoder that begins with
the padding token. Those with two vocabularies, or with other shapes, become the network of `export.networks.seq2seq`.
Their tokenizer is two SentencePiece models and one list of ids, or two.
"""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import MarianMTModel, MarianTokenizer

from export.conversion.checkpoints.reading import (
    GENERATION_CONFIG,
    TOKENIZER_CONFIG,
    LoadRefused,
    check_vocabulary,
    load_weights,
    path_of,
    provenance_of_loaded,
    quiet,
    read_config,
    read_object,
    reading,
)
from export.conversion.seq2seq.generation_settings import begin_id_of, eos_ids_of, search_defaults
from export.conversion.seq2seq.source import TASK_TYPES, check_logits
from export.conversion.seq2seq.spm_tokenizers import NEVER_READ, read_pieces
from export.conversion.seq2seq.weights import bart_layer, network_of
from export.conversion.translation_source import TranslationSource
from export.networks.transformer import NEGATIVE
from export.networks.translation import TranslationConfig, TranslationTransformer
from export.onnx_graphs.translation import ServedNetwork
from service.tasks.decoding.settings import LanguageCodes
from service.tasks.translation import Translation

ACTIVATIONS = {"swish": "silu", "silu": "silu", "relu": "relu", "gelu": "gelu"}
SHARED_SHAPE = ("attention_heads", "ffn_dim")  # of the encoder's and the decoder's layers


def source_of_marian(name_or_path: str, task: str = Translation.name) -> TranslationSource:
    """Load a Marian translation model from a saved folder or a hub id.

    Raises:
        LoadRefused: not a Marian model, an option that is not offered, or its outputs differ here.
    """
    read_config(name_or_path, ("marian",))
    for file_name in (TOKENIZER_CONFIG, GENERATION_CONFIG, "vocab.json"):
        read_object(name_or_path, file_name)
    model, said = load_weights(MarianMTModel, name_or_path)
    config = model.config
    tokenizer = _tokenizer(name_or_path)
    vocabulary = tokenizer.encoder
    target_vocabulary = tokenizer.target_encoder if tokenizer.separate_vocabs else vocabulary
    check_vocabulary(vocabulary, config.vocab_size)
    check_vocabulary(target_vocabulary, model.lm_head.out_features)
    with reading(f"the tokenizer of {name_or_path} cannot be read"):
        source_spm, target_spm = tokenizer.spm_files
        source = TranslationSource(
            module=_network(model, config.pad_token_id),
            tokenizer_json=_source_tokenizer(
                Path(source_spm), vocabulary, tokenizer.unk_token, tokenizer.eos_token
            ).to_str(),
            target_tokenizer_json=_target_tokenizer(
                Path(target_spm), target_vocabulary, tokenizer.all_special_tokens
            ).to_str(),
            source_language=tokenizer.source_lang or "source",
            target_language=tokenizer.target_lang or "target",
            bos_id=begin_id_of(model.generation_config, config),
            eos_id=eos_ids_of(model.generation_config)[0],
            pad_id=config.pad_token_id,
            defaults=search_defaults(
                model.generation_config, config.max_position_embeddings, masked_ids=(config.pad_token_id,)
            ),
            language_codes=LanguageCodes(
                {code: vocabulary[code] for code in tokenizer.supported_language_codes},
                vocabulary[tokenizer.unk_token],
            ),
            task_type=TASK_TYPES[task],
            provenance=provenance_of_loaded(name_or_path, model) | said,
        )
    with reading("the model cannot be computed"):
        _check_tokens(source, tokenizer)
        check_logits(source, model)
    return source


def _tokenizer(name_or_path: str) -> Any:
    """Load the model's own tokenizer.

    Raises:
        LoadRefused: a file of it is missing or damaged.
    """
    for file_name in ("source.spm", "target.spm", "vocab.json"):
        if path_of(name_or_path, file_name) is None:
            raise LoadRefused(f"{name_or_path} has no tokenizer: {file_name} is missing")
    with reading(f"the tokenizer of {name_or_path} cannot be loaded"), quiet():
        return MarianTokenizer.from_pretrained(name_or_path, trust_remote_code=False)


def _check_tokens(source: TranslationSource, tokenizer: Any) -> None:
    """Refuse a source whose ids differ from those of `transformers`.

    Raises:
        LoadRefused: a text gets other ids.
    """
    task = source.task()
    for text in source.golden_texts():
        sentence = task.preprocess(text, truncate=True, field="text")
        if not sentence.truncated and sentence.ids != tokenizer(text)["input_ids"]:
            raise LoadRefused(f"the tokenizer cuts {text!r} differently than transformers does")


def _network(model: Any, pad_id: int) -> ServedNetwork:
    """Build a network with the Marian model's weights: this repository's own if it has the same shape."""
    config = model.config
    same = all(getattr(config, f"encoder_{name}") == getattr(config, f"decoder_{name}") for name in SHARED_SHAPE)
    tied = torch.equal(model.lm_head.weight, model.model.encoder.embed_tokens.weight)
    if not same or not tied or config.activation_function not in ACTIVATIONS:
        return network_of(model, config.max_position_embeddings)
    network = TranslationTransformer(
        TranslationConfig(
            vocab_size=config.vocab_size,
            d_model=config.d_model,
            num_layers=config.encoder_layers,
            num_decoder_layers=config.decoder_layers,
            num_heads=config.encoder_attention_heads,
            d_ff=config.encoder_ffn_dim,
            dropout=0.0,
            max_tokens=config.max_position_embeddings,
            norm_position="post",
            activation=ACTIVATIONS[config.activation_function],  # type: ignore[arg-type]
        )
    )
    theirs = model.state_dict()
    ours = {"embedding.weight": theirs["model.shared.weight"]}
    for side, count in (("encoder", config.encoder_layers), ("decoder", config.decoder_layers)):
        for number in range(count):
            ours |= bart_layer(theirs, f"model.{side}.layers.{number}", f"{side}.{number}", side == "decoder")
    network.load_state_dict(ours)
    network.embedding_scale = config.d_model**0.5 if config.scale_embedding else 1.0
    network.positions_TD.copy_(theirs["model.encoder.embed_positions.weight"])
    network.never_V.copy_(model.final_logits_bias[0])
    network.never_V[pad_id] = NEGATIVE
    return network.eval()


def _source_tokenizer(path: Path, vocabulary: dict[str, int], unk_token: str, eos_token: str) -> Tokenizer:
    """Build the source tokenizer: SentencePiece's pieces and scores, with the ids of the model's own list.

    Pieces of the list that the source side lacks keep their ids, but never match. Pieces that the list lacks are left
    out, and their text is split into others.
    """
    proto = read_pieces(path)
    scores = {piece.piece: piece.score for piece in proto.pieces if piece.type == piece.NORMAL}
    pieces = [(NEVER_READ + str(number), 0.0) for number in range(len(vocabulary))]
    for piece, number in vocabulary.items():
        if piece in scores:
            pieces[number] = (piece, scores[piece])
        elif piece in (unk_token, eos_token):
            pieces[number] = (piece, 0.0)
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=vocabulary[unk_token], byte_fallback=False))
    charsmap = proto.normalizer_spec.precompiled_charsmap
    tokenizer.normalizer = normalizers.Sequence(
        [
            *([normalizers.Precompiled(charsmap)] if charsmap else []),
            normalizers.Strip(),
            normalizers.Replace(Regex(" {2,}"), " "),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    eos_id = vocabulary[eos_token]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {eos_token}", special_tokens=[(eos_token, eos_id)]
    )
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    return tokenizer


def _target_tokenizer(path: Path, vocabulary: dict[str, int], special_tokens: list[str]) -> Tokenizer:
    """Build the target tokenizer: it decodes ids as the target side's SentencePiece model joins its pieces."""
    read_pieces(path)
    pieces = sorted(vocabulary, key=vocabulary.__getitem__)
    tokenizer = Tokenizer(models.Unigram([(piece, 0.0) for piece in pieces], unk_id=0, byte_fallback=False))
    tokenizer.add_special_tokens([token for token in special_tokens if token in vocabulary])
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    return tokenizer
