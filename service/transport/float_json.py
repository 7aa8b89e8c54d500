"""Writes float32 numbers as JSON without a Python object for each number.

Each number takes 16 characters: a separator, a sign or a space, nine digits, and an exponent, as in `,-1.23456789e-02`.
Nine digits are enough for a float32 to be read back unchanged (IEEE 754-2019, section 5.12.2).

Shapes: n rows, D numbers of a row.
"""

from collections.abc import Sequence
from fractions import Fraction

import msgspec
import numpy as np
from numpy.typing import NDArray

CHARACTERS = 16  # of a number, with its separator
NUMBERS_PER_ELEMENT = 10  # numbers that are written in the time that the JSON encoder takes for an object
MIN_EXPONENT, MAX_EXPONENT = -38, 38  # of normal float32 numbers other than 0, in base 10
FOUR_CHARACTERS = np.dtype("<u4")


def _words(texts: Sequence[str]) -> NDArray[np.uint32]:
    """Return texts of four characters as numbers whose bytes are the texts."""
    return np.frombuffer("".join(texts).encode(), dtype=FOUR_CHARACTERS).astype(np.uint32)


def _power_of_ten(biased_exponent: int) -> int:
    """Return the exponent in base 10 of the smallest float32 with an exponent in base 2, in its biased form."""
    smallest = Fraction(2) ** (biased_exponent - 127)
    power = MIN_EXPONENT
    while Fraction(10) ** (power + 1) <= smallest:
        power += 1
    return power


# By the biased exponent of a float32 (8 bits): 0 is zero, 255 is no number.
_POWERS = np.array([0, *map(_power_of_ten, range(1, 255)), 0])
_SCALES = np.array([10.0 ** (8 - power) for power in _POWERS.tolist()])  # to numbers from 1e8 to below 2e9
_FIRST_DIGITS = _words([f",{sign}{digit}." for sign in " -" for digit in range(10)])
_FOUR_DIGITS = _words([f"{number:04d}" for number in range(10_000)])
_EXPONENTS = _words([f"e{exponent:+03d}" for exponent in range(MIN_EXPONENT, MAX_EXPONENT + 1)])


def json_rows(array_nD: NDArray[np.float32]) -> list[bytes | memoryview]:
    """Write the numbers of each row as JSON, separated by commas, without the brackets.

    A number that is not finite becomes null, as in msgspec's JSON.

    Args:
        array_nD: float32 [n, D], D at least 1.
    """
    num_rows, width = array_nD.shape
    values = np.ascontiguousarray(array_nD, dtype=np.float32).reshape(-1)
    bits = values.view(np.uint32)
    exponents = bits >> 23
    negative = exponents >> 8
    exponents &= 255
    is_subnormal = (exponents == 0) & (bits << 1 != 0)
    if is_subnormal.any() or (exponents == 255).any():
        return [msgspec.json.encode(row)[1:-1] for row in array_nD.tolist()]
    digits = np.abs(values).astype(np.float64)
    digits *= _SCALES[exponents]
    ten_digits = digits >= 999_999_999.5  # they would be rounded to a tenth digit
    digits *= np.where(ten_digits, 0.1, 1.0)
    digits += 0.5
    leading, last = np.divmod(digits.astype(np.uint32), np.uint32(10_000))
    first, middle = np.divmod(leading, np.uint32(10_000))
    negative *= 10
    negative += first
    words = np.empty((values.size, 4), dtype=FOUR_CHARACTERS)
    words[:, 0] = _FIRST_DIGITS[negative]
    words[:, 1] = _FOUR_DIGITS[middle]
    words[:, 2] = _FOUR_DIGITS[last]
    words[:, 3] = _EXPONENTS[_POWERS[exponents] + ten_digits - MIN_EXPONENT]
    characters, row_bytes = words.data.cast("B"), CHARACTERS * width
    return [characters[number * row_bytes + 1 : (number + 1) * row_bytes] for number in range(num_rows)]


def json_of_rows(array_nD: NDArray[np.float32]) -> bytes:
    """Write an array as JSON: a list with a list of numbers for each row; arguments are those of `json_rows`."""
    return b"".join((b"[[", b"],[".join(json_rows(array_nD)), b"]]"))
