"""Says in one sentence why a command ended early: the disk is full, or it was stopped."""

import errno
from collections.abc import Iterator

from export.stopping import Terminated

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# What libraries and programs that write files say in place of an error number: torch, those in Rust, the archiver.
NO_SPACE_TEXTS = (
    "PytorchStreamWriter failed writing file",
    *(f"(os error {number})" for number in NO_SPACE),
    *(f"[Errno {number}]" for number in NO_SPACE),
)
FAILED, NOT_INSTALLED, INTERRUPTED, TERMINATED = 1, 2, 130, 143


def sentence_of(error: Exception) -> str:
    """Return an error's message; of an error of the system, its text and the file, without the number."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.strerror}: {error.filename}"
    return str(error)


def lacks_space(error: BaseException) -> str | None:
    """Return what the system says if the error is a full disk or a limit on sizes; None for other errors."""
    for each in chain_of(error):
        if isinstance(each, OSError) and each.errno in NO_SPACE:
            return sentence_of(each) if each.filename else str(each.strerror)
        if any(text in str(each) for text in NO_SPACE_TEXTS):
            return str(each).strip().splitlines()[0]
    return None


def chain_of(error: BaseException) -> Iterator[BaseException]:
    """Yield the error, and the errors that it was raised from or during."""
    seen: set[int] = set()
    each: BaseException | None = error
    while each is not None and id(each) not in seen:
        yield each
        seen.add(id(each))
        each = each.__cause__ or each.__context__


def stopped(error: KeyboardInterrupt) -> tuple[str, int]:
    """Return the word for how a command was stopped, and its exit status."""
    return ("terminated", TERMINATED) if isinstance(error, Terminated) else ("interrupted", INTERRUPTED)
