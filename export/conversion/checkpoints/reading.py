"""Reads files and weights of Hugging Face checkpoints as they were saved, or refuses them in one sentence.

No code of a checkpoint is ever run, and nothing that a checkpoint lacks is made up.
"""

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import transformers
from safetensors import safe_open
from tokenizers import Tokenizer
from transformers.utils.hub import cached_file

from export.closest import closest_first
from export.conversion.golden_texts import GOLDEN_TEXTS, made_up_sentences
from service.tasks.text.tokenization import TEXT_PAIR, Pair

CONFIG, TOKENIZER_CONFIG, GENERATION_CONFIG = "config.json", "tokenizer_config.json", "generation_config.json"
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
MAX_NAMED = 5  # weights or tokens in a message
# Weights of the network itself, behind its head. Those that are not used are a sign of another network: more layers,
# relative positions, adapters.
BACKBONE = re.compile(r"(^|\.)(encoder|decoder|embeddings|transformer|layers?|shared)(\.|$)")
# Weights that checkpoints of other tasks or of older versions of `transformers` have as well.
UNUSED_WITHOUT_HARM = re.compile(r"(^|\.)(pooler|cls|lm_head|position_ids|token_type_ids|mask_token)(\.|$)")
# Embeddings are often padded to a round number of rows. A much smaller vocabulary belongs to another model.
MIN_VOCABULARY_FRACTION = 0.9
# Texts on which tokenizers differ: special tokens as text, other scripts, odd spaces.
ODD_TEXTS = (
    " two  spaces\tand a tab ",
    "ﬁne ② ☃ 日本 тест",
    "<s> a </s> [SEP] b <mask> [MASK]",
    "@user http://x.y #tag 1,000.5",
)


class LoadRefused(ValueError):
    """A checkpoint that cannot be converted; the message says why."""


def sentence_of(error: BaseException) -> str:
    """Return the first line of a library's error, with the error's type where the text alone says little."""
    text = str(error).strip().split("\n")[0]
    return text if isinstance(error, OSError | ValueError) and text else f"{type(error).__name__}: {text}"


@contextlib.contextmanager
def reading(what: str) -> Iterator[None]:
    """Turn whatever a library raises for a damaged or unknown file into one sentence.

    Raises:
        LoadRefused: the library raised an error.
    """
    try:
        yield
    except LoadRefused:
        raise
    except Exception as error:
        raise LoadRefused(f"{what}: {sentence_of(error)}") from error


def check_files(name_or_path: str) -> None:
    """Refuse a folder with an incomplete checkpoint. A hub id is left to the hub's own client.

    Raises:
        LoadRefused: no such folder, or files that are damaged, incomplete, or not there.
    """
    folder = Path(name_or_path)
    if folder.is_file():
        raise LoadRefused(f"{name_or_path} is a file; give the folder of the checkpoint")
    if not folder.is_dir():
        if folder.is_absolute() or len(folder.parts) > 2 or name_or_path.startswith((".", "~")):
            raise LoadRefused(f"{name_or_path} is not a folder; {_checkpoints_beside(folder)}")
        return
    if not (folder / CONFIG).is_file():
        adapter = (folder / "adapter_config.json").is_file()
        hint = "; it holds an adapter (adapter_config.json): merge it into its model first" if adapter else ""
        raise LoadRefused(f"{name_or_path} has no {CONFIG}{hint}")
    for path in sorted(folder.iterdir()):
        if path.is_file():
            _check_file(path)
    _check_shards(folder)


def _checkpoints_beside(folder: Path) -> str:
    """List the folders with a checkpoint in the folder of the one that was named, closest first."""
    found = [str(path.parent) for path in sorted(folder.parent.glob(f"*/{CONFIG}"))]
    return f"with a checkpoint there are: {', '.join(closest_first(str(folder), found)) or 'none'}"


def _check_file(path: Path) -> None:
    with path.open("rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise LoadRefused(f"{path.name} is a Git LFS pointer, not the file itself: run `git lfs pull`")
    if path.suffix == ".safetensors":
        with reading(f"{path.name} is damaged or incomplete"), safe_open(path, "pt") as weights:
            weights.keys()


def _check_shards(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    if index.is_file() and not (folder / "model.safetensors").is_file():
        shards = read_object(str(folder), index.name).get("weight_map")
        if not isinstance(shards, dict):
            raise LoadRefused(f"{index.name} has no weight_map")
        if missing := sorted({name for name in shards.values() if not (folder / str(name)).is_file()}):
            raise LoadRefused(f"{index.name} names files that are not there: {few(missing)}")


def read_object(name_or_path: str, file_name: str) -> dict[str, Any]:
    """Read a JSON file of a checkpoint; a missing file gives an empty object.

    Raises:
        LoadRefused: the file is not a JSON object.
    """
    path = path_of(name_or_path, file_name)
    if path is None:
        return {}
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.DecodeError) as error:
        raise LoadRefused(f"{file_name} is not a JSON object: {error}") from error


def path_of(name_or_path: str, file_name: str) -> Path | None:
    """Return the path of a checkpoint's file, or None if the file does not exist."""
    with reading(name_or_path):
        path = cached_file(
            name_or_path,
            file_name,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
    return Path(path) if path else None


def read_checked_config(name_or_path: str) -> dict[str, Any]:
    """Check a checkpoint's files, and read its `config.json`.

    Raises:
        LoadRefused: files are damaged, incomplete, or not there.
    """
    check_files(name_or_path)
    config = read_object(name_or_path, CONFIG)
    if not config:
        beside = _checkpoints_beside(Path(name_or_path))
        raise LoadRefused(f"{name_or_path}: no {CONFIG} was found, in a folder of this name or on the hub; {beside}")
    return config


def read_config(name_or_path: str, model_types: Iterable[str]) -> dict[str, Any]:
    """Check a checkpoint's files, and read its `config.json`; only the given model families are accepted.

    Raises:
        LoadRefused: another model family, quantized weights, or a network defined by the checkpoint's own code.
    """
    config = read_checked_config(name_or_path)
    if config.get("model_type") not in set(model_types):
        raise LoadRefused(f"model type {config.get('model_type')!r} is not one of {', '.join(model_types)}")
    if config.get("quantization_config"):
        quantization = config["quantization_config"]
        method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
        raise LoadRefused(
            f"{CONFIG}: quantization_config ({method!r}): weights that are quantized already are not offered; load the"
            " checkpoint that they were made from"
        )
    for file_name, document in ((CONFIG, config), (TOKENIZER_CONFIG, read_object(name_or_path, TOKENIZER_CONFIG))):
        if document.get("auto_map"):
            raise LoadRefused(f"{file_name}: auto_map names code of the checkpoint's own, which is never run here")
    if config.get("position_embedding_type", "absolute") not in ("absolute", None):
        raise LoadRefused(
            f"{CONFIG}: position_embedding_type {config['position_embedding_type']!r}: only 'absolute' is offered"
        )
    for name in ("is_decoder", "add_cross_attention"):
        if config.get(name) and config["model_type"] != "marian":
            raise LoadRefused(f"{CONFIG}: {name} is true: a decoder is not offered as a classifier")
    return config


def labels_of(config: Mapping[str, Any], num_labels: int) -> list[str]:
    """Return the names of the classes by number, from the contents of `config.json`.

    Raises:
        LoadRefused: the labels are not texts for the numbers from 0 on.
    """
    names = config.get("id2label")
    if names is None:
        return [f"LABEL_{number}" for number in range(num_labels)]
    if not isinstance(names, dict):
        raise LoadRefused(f"{CONFIG}: id2label is not an object")
    if sorted(names) != sorted(str(number) for number in range(len(names))) or not names:
        raise LoadRefused(
            f"{CONFIG}: id2label has the numbers {few(names)}; the classes must be numbered from 0 on, without a gap"
        )
    for number, label in names.items():
        if not isinstance(label, str) or not label:
            raise LoadRefused(f"{CONFIG}: id2label[{number}] is {label!r}; the name of a class must be a text")
    return [names[str(number)] for number in range(len(names))]


def load_weights(auto_class: Any, name_or_path: str, **options: Any) -> tuple[Any, dict[str, Any]]:
    """Load the network in float32; every weight must come from the checkpoint.

    Args:
        auto_class: a class of `transformers`, such as `AutoModelForSequenceClassification`.
        name_or_path: the folder, or the hub id.
        options: arguments for `from_pretrained`.

    Returns:
        the network, and what a model card must say of its weights.

    Raises:
        LoadRefused: weights are missing, have another shape, or belong to another network.
    """
    with reading(f"{name_or_path} cannot be loaded"), quiet():
        model, info = auto_class.from_pretrained(
            name_or_path,
            output_loading_info=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # the message below names them
            **options,
        )
    # `transformers` does not list weights as missing that are tied to others or computed.
    if missing := sorted(info["missing_keys"]):
        raise LoadRefused(f"{len(missing)} weights are missing from the checkpoint: {few(missing)}")
    if mismatched := sorted(_mismatch(each) for each in info["mismatched_keys"]):
        raise LoadRefused(f"{len(mismatched)} weights have another shape than {CONFIG} says: {few(mismatched)}")
    if info.get("error_msgs"):
        raise LoadRefused(f"{name_or_path} cannot be loaded: {few(info['error_msgs'])}")
    unused = sorted(info["unexpected_keys"])
    if foreign := [key for key in unused if BACKBONE.search(key) and not UNUSED_WITHOUT_HARM.search(key)]:
        raise LoadRefused(
            f"{len(foreign)} weights of the checkpoint have no place in the network that {CONFIG} describes:"
            f" {few(foreign)}"
        )
    said: dict[str, Any] = {}
    if unused:
        said["weights_not_used"] = few(unused)
    folder = Path(name_or_path)
    if folder.is_dir() and not list(folder.glob("*.safetensors")):
        said["weights_read_from"] = "a pickle, by PyTorch's reader of weights alone, which runs no code in it"
    return model.eval().float(), said


def _mismatch(entry: Any) -> str:
    if isinstance(entry, tuple) and len(entry) == 3:
        name, found, expected = entry
        return f"{name} {tuple(found)} instead of {tuple(expected)}"
    return str(entry)


def load_tokenizer(name_or_path: str) -> Any:
    """Load the tokenizer that was saved with the checkpoint, in the form that is served.

    `transformers` makes that form of `vocab.txt`, `vocab.json` with `merges.txt`, and models of SentencePiece.

    Raises:
        LoadRefused: the tokenizer is missing or damaged.
    """
    for file_name in (TOKENIZER_CONFIG, "special_tokens_map.json", "added_tokens.json", "vocab.json"):
        read_object(name_or_path, file_name)
    provide_sentencepiece_messages()
    with reading(f"the tokenizer of {name_or_path} cannot be loaded"), quiet():
        if (path := path_of(name_or_path, "tokenizer.json")) is not None:
            with reading(f"tokenizer.json of {name_or_path} is damaged"):
                Tokenizer.from_file(str(path))
        tokenizer = transformers.AutoTokenizer.from_pretrained(name_or_path, trust_remote_code=False)
    _check_tokenizer_files(name_or_path, tokenizer)
    return tokenizer


def load_fast_tokenizer(name_or_path: str) -> Any:
    """Load the tokenizer that was saved with the checkpoint in its fast form.

    Raises:
        LoadRefused: the tokenizer is missing or damaged, or exists only as code in Python.
    """
    tokenizer = load_tokenizer(name_or_path)
    if not tokenizer.is_fast:
        raise LoadRefused(
            f"the tokenizer {type(tokenizer).__name__} exists only as Python code, without a fast form; offered:"
            " tokenizer.json, vocab.txt of WordPiece, vocab.json with merges.txt of byte-level BPE, a model of"
            " SentencePiece"
        )
    return tokenizer


def _check_tokenizer_files(name_or_path: str, tokenizer: Any) -> None:
    """Refuse missing files, for which `transformers` would make up a tokenizer without any word."""
    needed = dict(tokenizer.vocab_files_names)
    whole = needed.pop("tokenizer_file", "tokenizer.json")
    if path_of(name_or_path, whole) is not None:
        return
    for optional in ("tokenizer_config_file", "target_vocab_file", "added_tokens_file"):
        needed.pop(optional, None)
    missing = [file_name for file_name in needed.values() if path_of(name_or_path, file_name) is None]
    if missing or not needed:
        either = f"{whole} or {' and '.join(needed.values())}" if needed else whole
        raise LoadRefused(f"{name_or_path} has no tokenizer: {either} must be there")


def check_vocabulary(tokens: Mapping[str, int], num_rows: int) -> None:
    """Compare a tokenizer's ids with the rows of the embedding.

    Raises:
        LoadRefused: an id has no row, or so many rows have no token that the tokenizer must be another model's.
    """
    if beyond := [token for token, number in tokens.items() if not 0 <= number < num_rows]:
        raise LoadRefused(
            f"the tokenizer has tokens without a row in the embedding, which has {num_rows} (vocab_size):"
            f" {few(sorted(beyond))}"
        )
    if len(tokens) < MIN_VOCABULARY_FRACTION * num_rows:
        raise LoadRefused(
            f"the tokenizer has {len(tokens)} tokens, the embedding {num_rows} rows (vocab_size): it is the tokenizer"
            " of another model, or not whole"
        )


def check_same_tokens(task: Any, tokenizer: Any, max_tokens: int) -> None:
    """Prove that the service tokenizes like `transformers`, on texts of every kind, on pairs, and where it truncates.

    Raises:
        LoadRefused: a text or pair gets different ids, or a pair different token types.
    """
    long = " ".join(made_up_sentences(max_tokens // 2 + 8))
    texts = (*GOLDEN_TEXTS, *ODD_TEXTS, long)
    for text in texts:
        ours = task.preprocess(text, truncate=True, field="text").ids
        theirs = tokenizer(text, truncation=True, max_length=max_tokens)["input_ids"]
        if list(ours) != list(theirs):
            raise LoadRefused(f"the tokenizer cuts {_clipped(text)} differently than transformers does")
    if not getattr(task, "optional_inputs", ()) or TEXT_PAIR not in {tensor.name for tensor in task.optional_inputs}:
        return
    types = "token_type_ids" in tokenizer.model_input_names
    for first, second in (*pairwise(texts), (long, long)):
        pair = task.preprocess(Pair(first, second), truncate=True, field="text")
        wanted = tokenizer(first, second, truncation=True, max_length=max_tokens, return_token_type_ids=types)
        if list(pair.ids) != list(wanted["input_ids"]) or (types and pair.type_ids != wanted["token_type_ids"]):
            raise LoadRefused(
                f"the tokenizer cuts the pair {_clipped(first)}, {_clipped(second)} differently than transformers does"
            )


def _clipped(text: str) -> str:
    return repr(text if len(text) <= 80 else f"{text[:80]}...")


def provide_sentencepiece_messages() -> None:
    """Let `transformers` read SentencePiece models with any version of protobuf's runtime.

    The generated code that the package `sentencepiece` ships refuses runtimes that are older than itself. That of
    `transformers` has the same messages, and does not.
    """
    import sentencepiece

    try:
        from sentencepiece import sentencepiece_model_pb2  # noqa: F401, only whether it can be
    except Exception:  # a type of protobuf's own, or TypeError where the messages are known already
        from transformers.utils import sentencepiece_model_pb2_new

        sentencepiece.sentencepiece_model_pb2 = sentencepiece_model_pb2_new


def few(names: Iterable[Any]) -> str:
    """List the first few of many names, and count the rest."""
    known: Sequence[str] = [str(name) for name in names]
    more = len(known) - MAX_NAMED
    return ", ".join(known[:MAX_NAMED]) + (f" and {more} more" if more > 0 else "")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the reports of `transformers`: every problem becomes an error here."""
    verbosity, bars = transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(verbosity)
        if bars:
            transformers.logging.enable_progress_bar()


def provenance_of_loaded(name_or_path: str, model: Any) -> dict[str, Any]:
    """Return the provenance of a model that `transformers` has loaded."""
    return {
        "loaded_from": Path(name_or_path).name,
        "model_type": model.config.model_type,
        "num_parameters": model.num_parameters(),
        "transformers": transformers.__version__,
    }
