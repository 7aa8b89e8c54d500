"""Reads text files: UTF-8 with or without a byte order mark, or UTF-16 with one; other encodings are refused."""

import codecs
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.data.own.refusals import DataRefused

NEWLINE = "\n"
UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


@dataclass(frozen=True)
class FileRecord:
    """A file that was read: enough to find it again and to see whether it changed."""

    path: Path
    sha256: str
    encoding: str | None = None  # None for binary formats

    def as_dict(self, rows: int, **more: Any) -> dict[str, Any]:
        """Return the record for JSON, with the number of rows and the facts of the format."""
        encoding = {"encoding": self.encoding} if self.encoding else {}
        return {"name": self.path.name, "path": str(self.path.resolve()), "sha256": self.sha256, "rows": rows} | (
            encoding | more
        )


def read_bytes(path: Path) -> tuple[bytes, FileRecord]:
    """Read a file once, so that the content and its sha256 belong together.

    Raises:
        DataRefused: there is no such file, or it is empty.
    """
    if not path.exists():
        raise DataRefused(f"{path}: there is no such file")
    if not path.is_file():
        raise DataRefused(f"{path} is a folder, but a file is taken here")
    content = path.read_bytes()
    if not content:
        raise DataRefused(f"{path} is empty")
    return content, FileRecord(path, hashlib.sha256(content).hexdigest())


def read_text(path: Path) -> tuple[str, FileRecord]:
    """Read a text file; its line ends stay as they are.

    Raises:
        DataRefused: the file is missing, empty, or in another encoding; the sentence says at which line and byte.
    """
    content, record = read_bytes(path)
    if content.startswith(UTF16_MARKS):
        encoding = "utf-16"
    elif content.startswith(codecs.BOM_UTF8):
        encoding = "utf-8-sig"
    else:
        encoding = "utf-8"
    if encoding != "utf-16" and b"\0" in content:
        zero = content.index(0)
        raise DataRefused(
            f"{path}, line {content[:zero].count(10) + 1}: byte {zero + 1} of the file is 0, as in binary files and in"
            " UTF-16 without a byte order mark; save the file as UTF-8"
        )
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        before = error.object[: error.start].decode(encoding, errors="ignore")
        line_so_far = before.rpartition("\n")[2].encode("utf-16-le" if encoding == "utf-16" else "utf-8")
        raise DataRefused(
            f"{path}, line {before.count(NEWLINE) + 1}: byte {len(line_so_far) + 1} of the line"
            f" (0x{error.object[error.start]:02X}) is not {encoding.removesuffix('-sig').upper()};"
            " save the file as UTF-8, for example with: iconv -f WINDOWS-1252 -t UTF-8"
        ) from error
    if not text.strip():
        raise DataRefused(f"{path} has no text in it")
    return text, FileRecord(path, record.sha256, encoding)


def lines_of(text: str) -> list[str]:
    """Split a text at line ends of Unix and Windows only; other separators of Unicode are part of a line."""
    lines = text.replace("\r\n", "\n").split("\n")
    return lines[:-1] if lines[-1] == "" else lines
