"""Loads Hugging Face's Marian translation models (such as Opus-MT) as sources for conversion.

They become this repository's own network: the same layers under other names. The differences are normalisation
after each sub-layer, positions with all sines before all cosines, a bias on the logits, and a decoder that begins with
the padding token. Their tokenizer is two SentencePiece models and one list of ids.
"""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from transformers import MarianMTModel, MarianTokenizer

from export.conversion.checkpoints.reading import (
    GENERATION_CONFIG,
    TOKENIZER_CONFIG,
    LoadRefused,
    check_vocabulary,
    load_weights,
    path_of,
    provide_sentencepiece_messages,
    quiet,
    read_config,
    read_object,
    reading,
)
from export.conversion.comparison.classifier import MAX_LOGIT_DIFFERENCE
from export.conversion.hugging_face import provenance_of_loaded
from export.conversion.seq2seq.generation_settings import begin_id_of, eos_ids_of, search_defaults
from export.conversion.translation_source import TranslationSource
from export.networks.transformer import NEGATIVE
from export.networks.translation import TranslationConfig, TranslationTransformer
from service.tasks.decoding.settings import LanguageCodes

ACTIVATIONS = {"swish": "silu", "silu": "silu", "relu": "relu", "gelu": "gelu"}
NEVER_READ = "\0"  # marks pieces of the target side only; no text contains it


def source_of_marian(name_or_path: str) -> TranslationSource:
    """Load a Marian translation model from a saved folder or a hub id.

    Raises:
        LoadRefused: not a Marian model with one vocabulary for both languages, or its outputs differ here.
    """
    read_config(name_or_path, ("marian",))
    for file_name in (TOKENIZER_CONFIG, GENERATION_CONFIG, "vocab.json"):
        read_object(name_or_path, file_name)
    model, said = load_weights(MarianMTModel, name_or_path)
    config = model.config
    if not config.share_encoder_decoder_embeddings:
        raise LoadRefused("a vocabulary of its own for each language is not offered")
    if config.activation_function not in ACTIVATIONS:
        raise LoadRefused(f"activation {config.activation_function!r} is not one of {', '.join(ACTIVATIONS)}")
    for name in ("attention_heads", "ffn_dim"):
        if getattr(config, f"encoder_{name}") != getattr(config, f"decoder_{name}"):
            raise LoadRefused(f"encoder_{name} and decoder_{name} differ")
    tokenizer = _tokenizer(name_or_path)
    vocabulary = tokenizer.encoder
    check_vocabulary(vocabulary, config.vocab_size)
    with reading(f"the tokenizer of {name_or_path} cannot be read"):
        source_spm, target_spm = tokenizer.spm_files
        source = TranslationSource(
            module=_network(model, config.pad_token_id),
            tokenizer_json=_source_tokenizer(
                Path(source_spm), vocabulary, tokenizer.unk_token, tokenizer.eos_token
            ).to_str(),
            target_tokenizer_json=_target_tokenizer(
                Path(target_spm), vocabulary, tokenizer.all_special_tokens
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
            provenance=provenance_of_loaded(name_or_path, model) | said,
        )
    with reading("the model cannot be computed"):
        _require_same(source, model, tokenizer)
    return source


def _tokenizer(name_or_path: str) -> Any:
    """Load the model's own tokenizer.

    Raises:
        LoadRefused: a file of it is missing or damaged, or each language has a vocabulary of its own.
    """
    for file_name in ("source.spm", "target.spm", "vocab.json"):
        if path_of(name_or_path, file_name) is None:
            raise LoadRefused(f"{name_or_path} has no tokenizer: {file_name} is missing")
    with reading(f"the tokenizer of {name_or_path} cannot be loaded"), quiet():
        tokenizer = MarianTokenizer.from_pretrained(name_or_path, trust_remote_code=False)
    if tokenizer.separate_vocabs:
        raise LoadRefused("a vocabulary of its own for each language is not offered")
    return tokenizer


@torch.inference_mode()
def _require_same(source: TranslationSource, model: Any, tokenizer: Any) -> None:
    """Refuse a network whose tokens or next-token logits differ from those of `transformers`.

    Raises:
        LoadRefused: tokens or logits differ.
    """
    task = source.task()
    for text in source.golden_texts():
        sentence = task.preprocess(text, truncate=True, field="text")
        if not sentence.truncated and sentence.ids != tokenizer(text)["input_ids"]:
            raise LoadRefused(f"the tokenizer cuts {text!r} differently than transformers does")
        ids = torch.tensor([sentence.ids])
        target = torch.tensor([[source.bos_id, *sentence.ids[:-1]]])
        theirs_TV = model(input_ids=ids, decoder_input_ids=target).logits[0]
        ours_TV = source.module(ids, torch.ones_like(ids), target, torch.ones_like(target))
        readable = torch.arange(theirs_TV.shape[1]) != source.pad_id  # [PAD] is never generated here
        difference = float((ours_TV - theirs_TV)[:, readable].abs().max())
        if not difference <= MAX_LOGIT_DIFFERENCE * max(1.0, float(theirs_TV[:, readable].abs().max())):
            raise LoadRefused(f"the network is not the one in transformers: logits differ by up to {difference:.3g}")


def _network(model: Any, pad_id: int) -> TranslationTransformer:
    """Build this repository's network with the Marian model's weights."""
    config = model.config
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
            ours |= _layer(theirs, f"model.{side}.layers.{number}", f"{side}.{number}", side == "decoder")
    network.load_state_dict(ours)
    network.embedding_scale = config.d_model**0.5 if config.scale_embedding else 1.0
    network.positions_TD.copy_(theirs["model.encoder.embed_positions.weight"])
    network.never_V.copy_(model.final_logits_bias[0])
    network.never_V[pad_id] = NEGATIVE
    return network.eval()


def _layer(theirs: dict[str, Tensor], their: str, our: str, decodes: bool) -> dict[str, Tensor]:
    """Rename the weights of a layer to the names of this repository's network."""
    ours: dict[str, Tensor] = {}
    pairs = [
        ("self_attn.out_proj", "attention.out"),
        ("self_attn_layer_norm", "attention_norm"),
        ("fc1", "feed_forward.up"),
        ("fc2", "feed_forward.down"),
        ("final_layer_norm", "feed_forward_norm"),
    ]
    joined: list[tuple[tuple[str, ...], str, str]] = [(("q", "k", "v"), "self_attn", "attention.qkv")]
    if decodes:
        pairs += [
            ("encoder_attn.out_proj", "cross.out"),
            ("encoder_attn.q_proj", "cross.query"),
            ("encoder_attn_layer_norm", "cross_norm"),
        ]
        joined.append((("k", "v"), "encoder_attn", "cross.key_value"))
    for kind in ("weight", "bias"):
        for theirs_name, ours_name in pairs:
            ours[f"{our}.{ours_name}.{kind}"] = theirs[f"{their}.{theirs_name}.{kind}"]
        for parts, attention, ours_name in joined:
            tensors = [theirs[f"{their}.{attention}.{part}_proj.{kind}"] for part in parts]
            ours[f"{our}.{ours_name}.{kind}"] = torch.cat(tensors)
    return ours


def _read_pieces(path: Path) -> Any:
    """Read the pieces of a SentencePiece model file.

    Raises:
        LoadRefused: the model is not a unigram model.
    """
    provide_sentencepiece_messages()
    from sentencepiece import sentencepiece_model_pb2  # of whichever of the two packages it can be

    proto = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined] # generated code without types
    proto.ParseFromString(path.read_bytes())
    if proto.trainer_spec.model_type != proto.trainer_spec.UNIGRAM:
        raise LoadRefused(f"{path.name} is not a unigram model")
    return proto


def _source_tokenizer(path: Path, vocabulary: dict[str, int], unk_token: str, eos_token: str) -> Tokenizer:
    """Build the source tokenizer: SentencePiece's pieces and scores, with the ids of the model's own list.

    Pieces of the list that the source side lacks keep their ids, but never match. Pieces that the list lacks are left
    out, and their text is split into others.
    """
    proto = _read_pieces(path)
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
    _read_pieces(path)
    pieces = sorted(vocabulary, key=vocabulary.__getitem__)
    tokenizer = Tokenizer(models.Unigram([(piece, 0.0) for piece in pieces], unk_id=0, byte_fallback=False))
    tokenizer.add_special_tokens([token for token in special_tokens if token in vocabulary])
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    return tokenizer
