"""Small random checkpoints of each family: tokens, languages and searches are those of `transformers`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, PegasusConfig

from export.conversion.checkpoints.reading import ODD_TEXTS, LoadRefused
from export.conversion.golden_texts import GOLDEN_TEXTS
from export.conversion.seq2seq.source import TASK_TYPES, source_of_seq2seq
from export.conversion.translation import write_configuration
from export.conversion.translation_source import TranslationSource
from export.training.translation import TorchTranslator
from service.errors import InvalidRequest
from service.prediction.messages import RequestOptions
from service.tasks.task import GenerationOptions, RequestLimits
from tests.toy_seq2seq import MAX_TOKENS, save_bart, save_m2m, save_mbart, save_nllb, save_t5

TRANSLATION, SUMMARIZATION, TEXT2TEXT = TASK_TYPES
TEXTS = ("A wonderful film.", "Not bad at all, dull and funny.")
SEARCH = {"num_beams": 3, "length_penalty": 0.8, "max_length": 16, "min_length": 5, "no_repeat_ngram_size": 2}


def written(source: TranslationSource, text: str, **languages: str) -> list[int]:
    """Search as a request that names no search settings would."""
    task = source.task()
    options = RequestOptions("m", "", "http", "1", generation=GenerationOptions(**languages) if languages else None)
    (step,) = task.prepare([text], options, "text", RequestLimits(8, 8, 1)).steps
    translator = TorchTranslator(source.module, torch.device("cpu"))
    (item,) = step()
    sentence: Any = item
    (found,) = source.translate(translator, [sentence]) if sentence.bos_id == source.bos_id else ()
    return found.ids


def generated(folder: Path, text: str, eos_id: int, *, source: str | None = None, **options: Any) -> list[int]:
    """Generate with `transformers` and the checkpoint's own settings."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    if source is not None:
        tokenizer.src_lang = source
    ids = [int(token) for token in model.generate(**tokenizer(text, return_tensors="pt"), **options)[0, 1:]]
    return ids[: ids.index(eos_id)] if eos_id in ids else ids


def no_options(source: TranslationSource) -> dict[str, Any]:
    """Return no options of `generate`."""
    return {}


def first_token(source: TranslationSource) -> dict[str, Any]:
    """Return the option that forces the token of the target language."""
    assert source.language_tokens is not None
    return {"forced_bos_token_id": source.language_tokens.ids[source.target_language]}


def begin_token(source: TranslationSource) -> dict[str, Any]:
    """Return the option that begins with the token of the target language."""
    return {"decoder_start_token_id": source.bos_id}


@pytest.mark.parametrize(
    ("save", "options"),
    [
        (save_t5, no_options),
        (lambda folder, search: save_t5(folder, search, spm_only=True), no_options),
        (save_bart, no_options),
        (save_mbart, begin_token),
        (lambda folder, search: save_mbart(folder, search, fifty=True), first_token),
        (save_m2m, first_token),
        (save_nllb, first_token),
    ],
    ids=("t5", "t5 with a SentencePiece model alone", "bart", "mbart", "mbart-50", "m2m_100", "nllb"),
)
def test_sources_equal_transformers(
    save: Callable[[Path, dict[str, Any]], Path],
    options: Callable[[TranslationSource], dict[str, Any]],
    tmp_path: Path,
) -> None:
    """Ids of all texts are equal, and so are the answers by the model's own search."""
    folder = save(tmp_path / "mine", SEARCH)
    source, tokenizer = source_of_seq2seq(str(folder), TRANSLATION), AutoTokenizer.from_pretrained(folder)
    task = source.task()
    for text in (*GOLDEN_TEXTS, *ODD_TEXTS):
        sentence = task.preprocess(text, truncate=True, field="text")
        assert sentence.ids == tokenizer(text, truncation=True, max_length=MAX_TOKENS).input_ids, text
        assert len(task.spans(text, truncate=True)) == len(sentence.ids)
    answers = [written(source, text) for text in TEXTS]
    assert answers == [generated(folder, text, source.eos_id, **options(source)) for text in TEXTS]
    assert task.text_of(answers[0])


def test_requests_choose_among_the_languages_of_a_model(tmp_path: Path) -> None:
    """Source and target change the ids; an unknown language is refused with the list."""
    folder = save_m2m(tmp_path / "mine", {"max_length": 16})
    source = source_of_seq2seq(str(folder), TRANSLATION)
    assert source.language_tokens is not None
    ids = source.language_tokens.ids
    text = TEXTS[0]
    found = written(source, text, src_lang="fr", tgt_lang="ro")
    expected = generated(folder, text, source.eos_id, source="fr", forced_bos_token_id=ids["ro"])
    assert found == expected
    assert found[0] == ids["ro"]
    with pytest.raises(InvalidRequest, match="tgt_lang is 'klingon', the model supports 'af', 'am',"):
        written(source, text, tgt_lang="klingon")
    begin = source_of_seq2seq(str(save_mbart(tmp_path / "other", {"max_length": 16})), TRANSLATION)
    task, options = begin.task(), RequestOptions("m", "", "http", "1", generation=GenerationOptions(tgt_lang="ro_RO"))
    assert begin.language_tokens is not None
    ((sentence,),) = (step() for step in task.prepare([text], options, "t", RequestLimits(8, 8, 1)).steps)
    assert sentence.next_ids == [begin.language_tokens.ids["ro_RO"]]  # type: ignore[attr-defined] # any item's


def test_a_checkpoint_tells_prefix_and_search_of_each_task(tmp_path: Path) -> None:
    """T5 puts words before a text; they are part of its ids, and of no span."""
    params = {
        "summarization": {"prefix": "summarize: ", "num_beams": 2, "max_length": 12},
        "translation_en_to_de": {"prefix": "translate English to German: "},
        "translation_en_to_fr": {"prefix": "translate English to French: "},
    }
    folder = save_t5(tmp_path / "mine", task_specific_params=params)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    summary = source_of_seq2seq(str(folder), SUMMARIZATION)
    assert (summary.defaults.num_beams, summary.defaults.max_new_tokens) == (2, 11)
    text = TEXTS[0]
    sentence = summary.task().preprocess(text, truncate=False, field="text")
    assert sentence.ids == tokenizer(f"summarize: {text}").input_ids
    spans = summary.task().spans(text, truncate=False)
    covered = "".join(text[slice(*span)] for span in spans if span is not None)
    assert covered.replace(" ", "") == text.replace(" ", "")
    assert source_of_seq2seq(str(folder), TEXT2TEXT).prefixes == ()
    translation = source_of_seq2seq(str(folder), TRANSLATION)
    assert (translation.source_language, translation.target_language) == ("en", "de")
    task = translation.task()
    options = RequestOptions("m", "", "http", "1", generation=GenerationOptions(tgt_lang="fr"))
    ((french,),) = (step() for step in task.prepare([text], options, "text", RequestLimits(8, 8, 1)).steps)
    assert french.ids == tokenizer(f"translate English to French: {text}").input_ids  # type: ignore[attr-defined]
    options = RequestOptions("m", "", "http", "1", generation=GenerationOptions(tgt_lang="es"))
    with pytest.raises(InvalidRequest, match="are 'en' and 'es', the model knows 'en' to 'de', 'en' to 'fr'"):
        task.prepare([text], options, "text", RequestLimits(8, 8, 1))
    with pytest.raises(InvalidRequest, match="text is empty"):
        task.preprocess(" ", truncate=False, field="text")


def test_the_configuration_of_a_folder_sets_up_the_same_task(tmp_path: Path) -> None:
    """Languages, rules and limits survive the JSON files."""
    folder = save_m2m(tmp_path / "mine", SEARCH | {"forced_eos_token_id": 2, "repetition_penalty": 1.2})
    source = source_of_seq2seq(str(folder), TRANSLATION)
    write_configuration(source, tmp_path)
    generation = json.loads((tmp_path / "generation_config.json").read_text())
    assert generation["min_new_tokens"] == 4
    assert generation["forced_eos_token_id"] == 2
    assert (generation["no_repeat_ngram_size"], generation["repetition_penalty"]) == (2, 1.2)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["language_tokens"]["target_place"] == "first"
    assert config["vocab_size"] == source.module.config.vocab_size


def test_what_is_not_offered_is_refused_in_a_sentence(tmp_path: Path) -> None:
    """Another family, narrow heads, an activation, and a tokenizer of another model."""
    PegasusConfig().save_pretrained(tmp_path / "pegasus")
    with pytest.raises(LoadRefused, match="model type 'pegasus' is not one of marian, t5, mt5, bart, mbart, m2m_100"):
        source_of_seq2seq(str(tmp_path / "pegasus"), TRANSLATION)
    for number, (changes, text) in enumerate(
        (
            ({"encoder_attention_heads": 8, "decoder_attention_heads": 8}, "heads are 4 wide; multiples of 8"),
            ({"decoder_attention_heads": 2}, "encoder_attention_heads and decoder_attention_heads differ"),
            ({"activation_function": "tanh"}, "activation 'tanh' is not one of relu"),
        )
    ):
        with pytest.raises(LoadRefused, match=text):
            source_of_seq2seq(str(save_bart(tmp_path / str(number), **changes)), SUMMARIZATION)
    sampled = save_bart(tmp_path / "sampled", {"do_sample": True})
    with pytest.raises(LoadRefused, match="do_sample is True, which is not offered"):
        source_of_seq2seq(str(sampled), SUMMARIZATION)
