"""Reads a user's declaration about a model: `<store>/<name>/policy.toml`, or Triton's `config.pbtxt` beside it.

A policy lies beside the versions and applies to all of them; no manifest lists it. If the store is read-only, a policy
under the same path in the server's state folder replaces the policy of the store:

    [batching]
    rows_independent = true    # rows of several requests may share an engine call; false: never
    max_rows = 32              # optional: largest number of rows of one engine call

Triton's `config.pbtxt` counts as a declaration if it sets `max_batch_size`: N above 0 declares that rows are
independent, with at most N per call; 0 declares that rows of several requests must not share a call.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import msgspec
from google.protobuf import text_format

from model_store.private_files import FolderCopy, FolderError

POLICY, TRITON_CONFIG = "policy.toml", "config.pbtxt"
MAX_POLICY_BYTES = 2**20


@dataclass(frozen=True)
class BatchingDeclaration:
    """A user's declaration about the rows of a model, and the file that contains it."""

    rows_independent: bool
    max_rows: int | None  # largest number of rows of an engine call; None: the server's limit
    source: str  # name of the file


class _Batching(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    rows_independent: bool
    max_rows: int | None = None


class _Policy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    batching: _Batching | None = None


def read_batching_declaration(model: Path, state: Path | None = None) -> BatchingDeclaration | None:
    """Read the declaration about a model's rows; None if there is none.

    Args:
        model: `<store>/<name>`, the folder of the model's versions.
        state: `<state folder>/<name>`; a policy in it replaces the files of the store. None: there is no state folder.

    Raises:
        FolderError: a file is invalid; the message names the file and the field.
    """
    for folder in (state, model):
        if folder is not None and (declaration := _read_policy(folder)) is not None:
            return declaration
    return _read_triton_config(model)


def _read_policy(folder: Path) -> BatchingDeclaration | None:
    if (content := _content(folder, POLICY)) is None:
        return None
    try:
        batching = msgspec.toml.decode(content, type=_Policy).batching
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise FolderError(f"{POLICY}: {error}") from error
    if batching is None:
        return None
    if batching.max_rows is not None and batching.max_rows < 1:
        raise FolderError(f"{POLICY}: batching.max_rows is {batching.max_rows}, the least is 1")
    return BatchingDeclaration(batching.rows_independent, batching.max_rows, POLICY)


def _read_triton_config(folder: Path) -> BatchingDeclaration | None:
    if (content := _content(folder, TRITON_CONFIG)) is None:
        return None
    try:
        max_batch_size = _top_level_integer(content.decode(), "max_batch_size")
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise FolderError(f"{TRITON_CONFIG}: {error}") from error
    if max_batch_size is None:
        return None
    if max_batch_size < 0:
        raise FolderError(f"{TRITON_CONFIG}: max_batch_size is {max_batch_size}, the least is 0")
    return BatchingDeclaration(max_batch_size > 0, max_batch_size or None, TRITON_CONFIG)


def _top_level_integer(text: str, name: str) -> int | None:
    """Read an integer field from the top level of a protobuf text; fields of nested messages are ignored.

    Raises:
        text_format.ParseError: the text is not protobuf text, or the field is not an integer.
    """
    tokenizer, depth, value = text_format.Tokenizer(text.splitlines()), 0, None
    while not tokenizer.AtEnd():
        token = tokenizer.token
        tokenizer.NextToken()
        if depth == 0 and token == name and tokenizer.TryConsume(":"):
            value = tokenizer.ConsumeInteger()
        depth += (token in {"{", "[", "<"}) - (token in {"}", "]", ">"})
    if depth != 0:
        raise text_format.ParseError("brackets do not match")
    return value


def _content(folder: Path, name: str) -> bytes | None:
    """Read a file of the model's folder; None if there is none. Links may lead to places within the store."""
    path = folder / name
    if not os.path.lexists(path):
        return None
    try:
        num_bytes = path.stat().st_size
    except OSError as error:
        raise FolderError(f"{name}: {error.strerror}") from error
    if num_bytes > MAX_POLICY_BYTES:
        raise FolderError(f"{name}: more than {MAX_POLICY_BYTES} bytes")
    return FolderCopy(folder, folder.parent).copy(name).read_bytes()
