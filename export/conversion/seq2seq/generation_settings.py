"""Reads how a Hugging Face model searches, from its generation configuration; refuses by name what is not offered."""

from collections.abc import Collection, Mapping
from typing import Any

from export.conversion.checkpoints.reading import GENERATION_CONFIG, LoadRefused
from service.tasks.decoding.constraints import MAX_NGRAM_SIZE, MAX_REPETITION_PENALTY, Constraints
from service.tasks.decoding.search import MAX_BEAMS, MAX_LENGTH_PENALTY, SearchDefaults

DEFAULT_MAX_LENGTH = 20  # the default of `transformers`

# Options that change a search and are not offered, with their neutral values.
NOT_OFFERED: dict[str, tuple[Any, ...]] = {
    "do_sample": (False, None),
    "num_beam_groups": (1, None),
    "diversity_penalty": (0.0, None),
    "encoder_repetition_penalty": (1.0, None),
    "penalty_alpha": (0.0, None),
    "dola_layers": (None,),
    "sequence_bias": (None,),
    "exponential_decay_length_penalty": (None,),
    "constraints": (None,),
    "force_words_ids": (None,),
    "guidance_scale": (None, 1.0),
    "renormalize_logits": (False, None),
    "prompt_lookup_num_tokens": (None,),
    "assistant_early_exit": (None,),
    "num_return_sequences": (1, None),
    "stop_strings": (None,),
    "max_time": (None,),
    "watermarking_config": (None,),
    "token_healing": (False, None),
}


def search_defaults(
    generation: Any, max_tokens: int, *, masked_ids: Collection[int] = (), changes: Mapping[str, Any] | None = None
) -> SearchDefaults:
    """Read the model's default search options.

    Args:
        generation: the model's `GenerationConfig` of `transformers`.
        max_tokens: longest answer of the model.
        masked_ids: tokens that the network itself never predicts.
        changes: options of the model's task that replace those of the configuration (`task_specific_params`).

    Raises:
        LoadRefused: the search has an option that is not offered, or one outside its limits.
    """

    def option(name: str) -> Any:
        return (changes or {}).get(name, getattr(generation, name, None))

    for name, harmless in NOT_OFFERED.items():
        if (value := option(name)) not in harmless:
            raise LoadRefused(f"{GENERATION_CONFIG}: {name} is {value!r}, which is not offered")
    num_beams, penalty = option("num_beams") or 1, option("length_penalty")
    penalty = 1.0 if penalty is None else float(penalty)
    if not 1 <= num_beams <= MAX_BEAMS or not abs(penalty) <= MAX_LENGTH_PENALTY:
        raise LoadRefused(
            f"{GENERATION_CONFIG}: num_beams {num_beams} with length_penalty {penalty:g}; at most {MAX_BEAMS} beams and"
            f" a penalty from {-MAX_LENGTH_PENALTY:g} to {MAX_LENGTH_PENALTY:g} are offered"
        )
    # An answer begins with one token that counts as part of `max_length` and of `min_length`.
    most = option("max_new_tokens") or (option("max_length") or DEFAULT_MAX_LENGTH) - 1
    least = max((option("min_length") or 0) - 1, option("min_new_tokens") or 0)
    early_stopping = option("early_stopping")
    return SearchDefaults(
        num_beams=num_beams,
        length_penalty=penalty,
        early_stopping="never" if early_stopping == "never" else bool(early_stopping),
        max_new_tokens=max(1, min(most, max_tokens)),
        constraints=Constraints(
            min_new_tokens=min(least, max_tokens),
            no_repeat_ngram_size=_limited(option, "no_repeat_ngram_size", 0, MAX_NGRAM_SIZE) or 0,
            encoder_no_repeat_ngram_size=_limited(option, "encoder_no_repeat_ngram_size", 0, MAX_NGRAM_SIZE) or 0,
            repetition_penalty=float(_limited(option, "repetition_penalty", 1, MAX_REPETITION_PENALTY) or 1.0),
            bad_words_ids=_bad_words(option("bad_words_ids"), masked_ids),
            suppress_tokens=tuple(option("suppress_tokens") or ()),
            begin_suppress_tokens=tuple(option("begin_suppress_tokens") or ()),
            forced_bos_token_id=option("forced_bos_token_id"),
            forces_eos=_forces_eos(option),
            more_eos_token_ids=tuple(eos_ids_of(generation)[1:]),
        ),
    )


def eos_ids_of(generation: Any) -> list[int]:
    """Return the tokens that end an answer.

    Raises:
        LoadRefused: there is none.
    """
    ids = generation.eos_token_id
    if ids is None or ids == []:
        raise LoadRefused(f"{GENERATION_CONFIG} has no eos_token_id: no answer would end")
    return [ids] if isinstance(ids, int) else list(ids)


def begin_id_of(generation: Any, config: Any) -> int:
    """Return the token that every answer begins with.

    Raises:
        LoadRefused: there is none, or several.
    """
    for found in (generation.decoder_start_token_id, getattr(config, "decoder_start_token_id", None)):
        if isinstance(found, int):
            return found
        if found is not None:
            raise LoadRefused(f"decoder_start_token_id is {found!r}; only one token is offered")
    if isinstance(generation.bos_token_id, int):
        return generation.bos_token_id
    raise LoadRefused(f"{GENERATION_CONFIG} has no decoder_start_token_id: no answer could begin")


def generation_document(defaults: SearchDefaults, eos_id: int) -> dict[str, Any]:
    """Return the search settings as a served folder's `generation_config.json` has them."""
    document: dict[str, Any] = {
        "num_beams": defaults.num_beams,
        "length_penalty": defaults.length_penalty,
        "early_stopping": defaults.early_stopping,
    }
    if defaults.max_new_tokens is not None:
        document["max_new_tokens"] = defaults.max_new_tokens
    rules = defaults.constraints
    for name in ("min_new_tokens", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size"):
        if value := getattr(rules, name):
            document[name] = value
    if rules.repetition_penalty != 1.0:
        document["repetition_penalty"] = rules.repetition_penalty
    for name in ("bad_words_ids", "suppress_tokens", "begin_suppress_tokens"):
        if value := getattr(rules, name):
            document[name] = value
    if rules.forced_bos_token_id is not None:
        document["forced_bos_token_id"] = rules.forced_bos_token_id
    if rules.forces_eos:
        document["forced_eos_token_id"] = eos_id
    if rules.more_eos_token_ids:
        document["eos_token_id"] = [eos_id, *rules.more_eos_token_ids]
    return document


def _limited(option: Any, name: str, least: float, most: float) -> Any:
    value = option(name)
    if value is not None and not least <= value <= most:
        raise LoadRefused(f"{GENERATION_CONFIG}: {name} is {value!r}; from {least:g} to {most:g} is offered")
    return value


def _bad_words(words: Any, masked_ids: Collection[int]) -> tuple[tuple[int, ...], ...]:
    found = tuple(tuple(word) for word in words or ())
    if not all(found):
        raise LoadRefused(f"{GENERATION_CONFIG}: bad_words_ids has an empty sequence")
    return tuple(word for word in found if len(word) > 1 or word[0] not in masked_ids)


def _forces_eos(option: Any) -> bool:
    forced, ends = option("forced_eos_token_id"), option("eos_token_id")
    if forced is None:
        return False
    forced_ids = [forced] if isinstance(forced, int) else list(forced)
    if unknown := set(forced_ids) - set([ends] if isinstance(ends, int) else ends or ()):
        raise LoadRefused(
            f"{GENERATION_CONFIG}: forced_eos_token_id {', '.join(map(str, unknown))} is not an eos_token_id"
        )
    return True
