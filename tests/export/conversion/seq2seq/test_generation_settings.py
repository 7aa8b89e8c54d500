"""Search settings of a checkpoint: what is read, what is refused by name, and what a served folder keeps of it."""

from typing import Any

import msgspec
import pytest
from transformers import GenerationConfig

from export.conversion.checkpoints.reading import LoadRefused
from export.conversion.seq2seq.generation_settings import (
    NOT_OFFERED,
    begin_id_of,
    eos_ids_of,
    generation_document,
    search_defaults,
)
from service.tasks.decoding.constraints import NO_CONSTRAINTS, Constraints
from service.tasks.decoding.settings import GenerationConfig as ServedConfig
from service.tasks.stored_task import TaskError

EVERYTHING: dict[str, Any] = {
    "num_beams": 4,
    "length_penalty": 2.0,
    "early_stopping": "never",
    "max_length": 142,
    "min_length": 56,
    "no_repeat_ngram_size": 3,
    "encoder_no_repeat_ngram_size": 4,
    "repetition_penalty": 1.5,
    "bad_words_ids": [[5], [6, 7], [1]],
    "suppress_tokens": [8],
    "begin_suppress_tokens": [9],
    "forced_bos_token_id": 0,
    "forced_eos_token_id": 2,
}


def config_of(**settings: Any) -> GenerationConfig:
    """Make a generation configuration."""
    return GenerationConfig(**{"eos_token_id": [2, 3], "decoder_start_token_id": 2, **settings})


def test_a_served_folder_searches_as_the_checkpoint() -> None:
    """Every setting survives; lengths lose the begin token, and tokens that the network never predicts are left out."""
    read = search_defaults(config_of(**EVERYTHING), 1024, masked_ids=[1])
    assert read.max_new_tokens == 141
    assert read.constraints == Constraints(
        min_new_tokens=55,
        no_repeat_ngram_size=3,
        encoder_no_repeat_ngram_size=4,
        repetition_penalty=1.5,
        bad_words_ids=((5,), (6, 7)),
        suppress_tokens=(8,),
        begin_suppress_tokens=(9,),
        forced_bos_token_id=0,
        forces_eos=True,
        more_eos_token_ids=(3,),
    )
    document = {"decoder_start_token_id": 2, "eos_token_id": 2} | generation_document(read, 2)
    served = msgspec.convert(document, ServedConfig)
    assert served.defaults(1024) == read
    assert served.eos_id == 2
    plain = search_defaults(config_of(eos_token_id=2), 64)
    assert (plain.constraints, plain.max_new_tokens) == (NO_CONSTRAINTS, 19)
    assert generation_document(plain, 2).keys() == {"num_beams", "length_penalty", "early_stopping", "max_new_tokens"}


def test_settings_of_a_task_replace_those_of_the_checkpoint() -> None:
    """`task_specific_params` come before the generation configuration."""
    read = search_defaults(config_of(**EVERYTHING), 64, changes={"num_beams": 2, "min_length": 4, "max_length": 20})
    assert (read.num_beams, read.constraints.min_new_tokens, read.max_new_tokens) == (2, 3, 19)


@pytest.mark.parametrize("name", NOT_OFFERED)
def test_options_that_are_not_offered_are_refused_by_name(name: str) -> None:
    """None and the neutral value are taken."""
    config = config_of()
    for neutral in NOT_OFFERED[name]:
        setattr(config, name, neutral)
        assert search_defaults(config, 64).constraints.more_eos_token_ids == (3,)
    setattr(config, name, 7)
    with pytest.raises(LoadRefused, match=rf"generation_config.json: {name} is 7, which is not offered"):
        search_defaults(config, 64)


def test_first_and_last_tokens_must_be_known() -> None:
    """A search needs one token to begin with and one to end with."""
    assert eos_ids_of(config_of(eos_token_id=4)) == [4]
    with pytest.raises(LoadRefused, match="has no eos_token_id"):
        eos_ids_of(config_of(eos_token_id=None))
    assert begin_id_of(config_of(decoder_start_token_id=None, bos_token_id=6), GenerationConfig()) == 6
    with pytest.raises(LoadRefused, match=r"decoder_start_token_id is \[1, 2\]; only one token is offered"):
        begin_id_of(config_of(decoder_start_token_id=[1, 2]), GenerationConfig())
    with pytest.raises(LoadRefused, match="has no decoder_start_token_id"):
        begin_id_of(config_of(decoder_start_token_id=None, bos_token_id=None), GenerationConfig())


def test_a_folder_with_settings_beyond_their_limits_is_refused() -> None:
    """The error names the setting and the limits."""
    for changes, text in (
        ({"repetition_penalty": 0.5}, "repetition_penalty is 0.5, not between 1 and 10"),
        ({"no_repeat_ngram_size": 100}, "no_repeat_ngram_size is 100, not between 0 and 64"),
        ({"min_new_tokens": 65}, "min_new_tokens is 65, not between 0 and 64"),
        ({"forced_eos_token_id": 9}, "forced_eos_token_id is 9, not one of eos_token_id"),
        ({"bad_words_ids": [[]]}, "a sequence of bad_words_ids is empty"),
    ):
        served = msgspec.convert({"decoder_start_token_id": 0, "eos_token_id": 1} | changes, ServedConfig)
        with pytest.raises(TaskError, match=text):
            served.defaults(64)
