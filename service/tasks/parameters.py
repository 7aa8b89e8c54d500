"""Parameters of Hugging Face's tasks that models here do not take: where each belongs, and values that change nothing.

A parameter of another task asks for another answer than the one that the model can give. It is refused by name and
never ignored.
"""

from collections.abc import Mapping

from service.errors import InvalidRequest

# Parameters of generation, each with the values that change nothing in a search by beams without sampling: the defaults
# of Hugging Face's `generate`.
NEUTRAL: Mapping[str, tuple[bool | float, ...]] = {
    "diversity_penalty": (0.0,),
    "do_sample": (False,),
    "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1.0,),
    "epsilon_cutoff": (0.0,),
    "eta_cutoff": (0.0,),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "no_repeat_ngram_size": (0,),
    "num_beam_groups": (1,),
    "num_return_sequences": (1,),
    "remove_invalid_values": (False,),
    "renormalize_logits": (False,),
    "repetition_penalty": (1.0,),
    "temperature": (1.0,),
    "top_k": (50,),
    "top_p": (1.0,),
    "typical_p": (1.0,),
    "use_cache": (False, True),  # changes the time, not the answer
}
# Tasks by the parameters that belong to them alone.
PARAMETERS_OF: Mapping[str, tuple[str, ...]] = {
    "text-classification and image-classification": ("function_to_apply", "top_k"),
    "tasks that read texts": ("truncation",),
    "tasks whose answers can be explained": ("explain",),
    "translation": (
        "clean_up_tokenization_spaces",
        "generate_parameters",
        "length_penalty",
        "max_new_tokens",
        "num_beams",
        "src_lang",
        "stream",
        "tgt_lang",
    ),
    "translation, summarization and text-generation": ("early_stopping", "max_length", *NEUTRAL),
    "text-generation": (
        "adapter_id",
        "best_of",
        "decoder_input_details",
        "details",
        "frequency_penalty",
        "grammar",
        "max_time",
        "return_full_text",
        "stop",
        "stop_sequences",
        "top_n_tokens",
        "watermark",
    ),
    "zero-shot-classification": ("candidate_labels", "hypothesis_template", "multi_label"),
    "token-classification": ("aggregation_strategy", "ignore_labels", "stride"),
    "text-ranking": ("raw_scores", "return_text"),
    "fill-mask": ("targets",),
    "question-answering": (
        "align_to_words",
        "doc_stride",
        "handle_impossible_answer",
        "max_answer_len",
        "max_question_len",
        "max_seq_len",
    ),
    "feature-extraction": ("prompt_name", "truncate", "truncation_direction"),
    "feature-extraction and image-feature-extraction": ("dimensions", "normalize"),
    "image-feature-extraction": ("pool",),
    "object-detection and image-segmentation": (
        "mask_threshold",
        "overlap_mask_area_threshold",
        "subtask",
        "threshold",
    ),
    "text-to-image": ("guidance_scale", "negative_prompt", "num_inference_steps", "scheduler"),
    "automatic-speech-recognition": ("return_timestamps",),
}
OWNER_OF: Mapping[str, str] = {name: owner for owner, names in reversed([*PARAMETERS_OF.items()]) for name in names}


def is_neutral(name: str, value: object) -> bool:
    """Whether a generation parameter has a value that changes nothing; None, JSON's null, is one."""
    if value is None:
        return True
    # 0 equals False in Python, but a number is no truth value.
    return any(value == each and isinstance(value, bool) == isinstance(each, bool) for each in NEUTRAL[name])


def check_neutral(given: Mapping[str, object]) -> None:
    """Check parameters of generation that are offered with one value only.

    Args:
        given: values by the names of parameters; names that are not in `NEUTRAL` are not looked at.

    Raises:
        InvalidRequest: names the parameter and the value that is offered.
    """
    for name, value in given.items():
        if name in NEUTRAL and not is_neutral(name, value):
            offered = " or ".join(repr(each).lower() for each in NEUTRAL[name])
            raise InvalidRequest(f"parameter {name!r} is {value!r}; only {offered} is offered, which changes nothing")


def foreign_parameter(name: str, whose: str) -> str | None:
    """Return the error's text for a parameter that belongs to other tasks; None if no task is known to have it.

    Args:
        name: name of the parameter.
        whose: the model that was asked, with its task: "model 'm' is a translation model".
    """
    owner = OWNER_OF.get(name)
    return None if owner is None else f"parameter {name!r} belongs to {owner}; {whose}"
