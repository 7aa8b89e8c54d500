"""Loads Hugging Face encoder-decoder models as sources for conversion: T5, mT5, BART, mBART, M2M-100 and NLLB, Marian.

folder ──> weights, tokenizer, languages, search settings ──> source, whose tokens and logits are those of
`transformers` on texts of every kind, or a refusal that says what is not offered
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from sentencepiece import SentencePieceProcessor
from tokenizers import processors
from transformers import AutoModelForSeq2SeqLM

from export.conversion.checkpoints.reading import (
    CONFIG,
    GENERATION_CONFIG,
    ODD_TEXTS,
    LoadRefused,
    check_vocabulary,
    load_tokenizer,
    load_weights,
    path_of,
    provenance_of_loaded,
    read_config,
    read_object,
    reading,
)
from export.conversion.comparison.classifier import MAX_LOGIT_DIFFERENCE
from export.conversion.golden_texts import GOLDEN_TEXTS
from export.conversion.seq2seq.generation_settings import begin_id_of, eos_ids_of, search_defaults
from export.conversion.seq2seq.spm_tokenizers import tokenizer_of_pieces
from export.conversion.seq2seq.weights import FAMILIES, network_of
from export.conversion.translation_source import TranslationSource
from model_store.folder import TOKENIZER
from service.tasks.decoding.settings import LanguageTokens, TextPrefix
from service.tasks.generation.text_to_text import Summarization, Text2TextGeneration
from service.tasks.translation import Translation

SENTENCEPIECE_FILES = ("spiece.model", "sentencepiece.bpe.model", "spm.model")
MODEL_TYPES = tuple(FAMILIES)
TASK_TYPES: dict[str, type[Translation]] = {
    task.name: task for task in (Translation, Summarization, Text2TextGeneration)
}
# Longest source and answer of a model without a table of positions whose tokenizer names no limit.
DEFAULT_MAX_TOKENS = 512


def source_of_seq2seq(name_or_path: str, task: str) -> TranslationSource:
    """Load an encoder-decoder model from a saved folder or a hub id.

    Args:
        name_or_path: the folder, or the hub id.
        task: a name of `TASK_TYPES`.

    Raises:
        LoadRefused: another family, an option that is not offered, or tokens or logits differ from `transformers`.
    """
    document = read_config(name_or_path, MODEL_TYPES)
    read_object(name_or_path, GENERATION_CONFIG)
    if document["model_type"] == "marian":
        from export.conversion.marian import source_of_marian  # which has its tokenizers, and calls this module

        return source_of_marian(name_or_path, task)
    model, said = load_weights(AutoModelForSeq2SeqLM, name_or_path)
    tokenizer = load_tokenizer(name_or_path)
    max_tokens = _max_tokens(model.config, tokenizer)
    module = network_of(model, max_tokens)
    vocabulary = tokenizer.get_vocab() | getattr(tokenizer, "lang_token_to_id", {})
    check_vocabulary(vocabulary, model.get_encoder().embed_tokens.num_embeddings)
    tokens, (source_language, target_language) = _languages(model, tokenizer)
    params = _task_params(model.config, task)
    eos_ids, begin_id = eos_ids_of(model.generation_config), begin_id_of(model.generation_config, model.config)
    if tokens is not None and tokens.target_place == "begin":
        begin_id = tokens.ids[target_language]
    prefixes = _prefixes(model.config, task)
    if prefixes:
        source_language, target_language = prefixes[0].source_language, prefixes[0].target_language
    source = TranslationSource(
        module=module,
        tokenizer_json=_tokenizer_json(name_or_path, tokenizer, tokens is not None),
        source_language=source_language,
        target_language=target_language,
        bos_id=begin_id,
        eos_id=eos_ids[0],
        pad_id=model.config.pad_token_id,
        defaults=search_defaults(model.generation_config, max_tokens, changes=params),
        language_tokens=tokens,
        prefixes=prefixes,
        task_type=TASK_TYPES[task],
        provenance=provenance_of_loaded(name_or_path, model) | said,
    )
    with reading("the model cannot be computed"):
        check_tokens(source, tokenizer)
        if tokenizer.is_fast and path_of(name_or_path, TOKENIZER) is None:
            _check_pieces(name_or_path, tokenizer)
        check_logits(source, model)
    return source


def _max_tokens(config: Any, tokenizer: Any) -> int:
    """Return the longest source and answer in tokens.

    Raises:
        LoadRefused: no text fits.
    """
    positions = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    found = min(positions or DEFAULT_MAX_TOKENS, tokenizer.model_max_length or DEFAULT_MAX_TOKENS)
    if found < 4:
        raise LoadRefused(f"the model takes {found} tokens (max_position_embeddings, model_max_length): no text fits")
    return int(found)


def _tokenizer_json(name_or_path: str, tokenizer: Any, multilingual: bool) -> str:
    """Return `tokenizer.json`; ids end with the end-of-sentence token, and have no token of a language.

    Raises:
        LoadRefused: the tokenizer has no fast form and none can be built.
    """
    if tokenizer.is_fast:
        fast = tokenizer.backend_tokenizer
        original = fast.post_processor
    elif hasattr(tokenizer, "spm_file"):
        specials = [*tokenizer.all_special_tokens, *tokenizer.lang_token_to_id]
        ids = tokenizer.encoder | tokenizer.lang_token_to_id
        fast, original = tokenizer_of_pieces(Path(tokenizer.spm_file), ids, tokenizer.unk_token, specials), None
    else:
        raise LoadRefused(f"the tokenizer of {name_or_path}, a {type(tokenizer).__name__}, has no fast form")
    if multilingual:
        eos = tokenizer.eos_token
        fast.post_processor = processors.TemplateProcessing(
            single=f"$A {eos}", special_tokens=[(eos, tokenizer.eos_token_id)]
        )
    fast.no_padding()
    fast.no_truncation()
    text = str(fast.to_str())
    if original is not None:
        fast.post_processor = original
    return text


def _languages(model: Any, tokenizer: Any) -> tuple[LanguageTokens | None, tuple[str, str]]:
    """Return the languages' tokens of a multilingual model, and its own source and target language.

    Raises:
        LoadRefused: a multilingual model without tokens of languages.
    """
    ids = getattr(tokenizer, "lang_code_to_id", None)
    kind = type(tokenizer).__name__
    if ids is None and kind == "NllbTokenizer":
        ids = {token: tokenizer.convert_tokens_to_ids(token) for token in tokenizer.extra_special_tokens}
    if ids is None:
        return None, ("", "")
    rows = model.get_encoder().embed_tokens.num_embeddings
    known = {code: number for code, number in ids.items() if number not in (None, tokenizer.unk_token_id)}
    known = {code: number for code, number in known.items() if number < rows}
    if len(known) < 2:
        raise LoadRefused("the tokenizer has no tokens of languages")
    after = kind == "MBartTokenizer" or getattr(tokenizer, "legacy_behaviour", False)
    tokens = LanguageTokens(known, "after" if after else "before", "begin" if kind == "MBartTokenizer" else "first")
    code_of = {number: code for code, number in known.items()}
    generation = model.generation_config
    source = tokenizer.src_lang if tokenizer.src_lang in known else next(iter(known))
    forced = generation.forced_bos_token_id if tokens.target_place == "first" else generation.decoder_start_token_id
    target = code_of.get(forced) or tokenizer.tgt_lang
    if target not in known:
        target = next(code for code in known if code != source)
    return tokens, (source, target)


def _task_params(config: Any, task: str) -> Mapping[str, Any]:
    """Return the search settings that the checkpoint has for a task."""
    found: dict[str, Any] = {}
    for name, params in (getattr(config, "task_specific_params", None) or {}).items():
        if name == task or (task == Translation.name and name.startswith(Translation.name)):
            found = found or dict(params)
    found.pop("prefix", None)
    return found


def _prefixes(config: Any, task: str) -> tuple[TextPrefix, ...]:
    """Return the texts that the checkpoint puts before a source, such as "summarize: "."""
    found = []
    for name, params in (getattr(config, "task_specific_params", None) or {}).items():
        text = params.get("prefix")
        if not text:
            continue
        if task == Translation.name and name.startswith(f"{Translation.name}_") and "_to_" in name:
            source, target = name.removeprefix(f"{Translation.name}_").split("_to_")
            found.append(TextPrefix(source, target, text))
        elif name == task:
            found.append(TextPrefix("", "", text))
    return tuple(found)


def check_tokens(source: TranslationSource, tokenizer: Any) -> None:
    """Refuse a source whose ids differ from those of `transformers`.

    Raises:
        LoadRefused: a text gets other ids.
    """
    task, max_tokens = source.task(), source.module.config.max_tokens
    prefix = source.prefixes[0].text if source.prefixes else ""
    for text in (*source.golden_texts(), *ODD_TEXTS, " ".join(source.golden_texts() * max_tokens)[: 8 * max_tokens]):
        sentence = task.preprocess(text, truncate=True, field="text")
        theirs = tokenizer(prefix + text, truncation=True, max_length=max_tokens)["input_ids"]
        if list(sentence.ids) != list(theirs):
            clipped = text if len(text) <= 80 else f"{text[:80]}..."
            raise LoadRefused(f"the tokenizer cuts {clipped!r} differently than transformers does")


def _check_pieces(name_or_path: str, tokenizer: Any) -> None:
    """Refuse a fast tokenizer that `transformers` has built, if it splits differently than the SentencePiece model.

    Raises:
        LoadRefused: a text is split differently.
    """
    for file_name in SENTENCEPIECE_FILES:
        if (path := path_of(name_or_path, file_name)) is None:
            continue
        processor, unk_id = SentencePieceProcessor(model_file=str(path)), tokenizer.unk_token_id
        for text in (*GOLDEN_TEXTS, *ODD_TEXTS):
            if "<" in text:  # special tokens as text, which a SentencePiece model does not know
                continue
            theirs = tokenizer.convert_tokens_to_ids(processor.encode(text, out_type=str))
            ours = tokenizer(text, add_special_tokens=False)["input_ids"]
            # A fast tokenizer joins unknown pieces that follow one another.
            if _joined(ours, unk_id) != _joined(theirs, unk_id):
                raise LoadRefused(f"{file_name} splits {text!r} differently than the fast tokenizer made from it")


def _joined(ids: list[int], unk_id: int) -> list[int]:
    return [token for place, token in enumerate(ids) if not (place and token == unk_id == ids[place - 1])]


@torch.inference_mode()
def check_logits(source: TranslationSource, model: Any) -> None:
    """Refuse a network whose next-token logits differ from those of `transformers`.

    Raises:
        LoadRefused: logits differ, or are no numbers.
    """
    task = source.task()
    for text in source.golden_texts():
        sentence = task.preprocess(text, truncate=True, field="text")
        ids = torch.tensor([sentence.ids])
        written = [token for token in sentence.ids if token < source.module.config.vocab_size][:-1]
        target = torch.tensor([[sentence.bos_id, *written]])
        theirs_TV = model(input_ids=ids, decoder_input_ids=target).logits[0]
        ours_TV = source.module(ids, torch.ones_like(ids), target, torch.ones_like(target))
        readable = torch.arange(theirs_TV.shape[1]) != source.pad_id  # some families never generate it here
        difference = float((ours_TV - theirs_TV)[:, readable].abs().max())
        if not difference <= MAX_LOGIT_DIFFERENCE * max(1.0, float(theirs_TV[:, readable].abs().max())):
            raise LoadRefused(
                f"{CONFIG}: the network is not the one in transformers: logits differ by up to {difference:.3g}"
            )
