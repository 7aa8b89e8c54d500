"""Types of options: each converts the text of an option, or says what it takes and what there is."""

import argparse
import re

from export.recipes.files import built_in_recipe


def recipe(text: str) -> str:
    """Return the name of a recipe.

    Raises:
        ArgumentTypeError: there is no such recipe; lists all of them, closest first.
    """
    try:
        built_in_recipe(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def seconds_of(text: str) -> float:
    """Convert a duration such as 90s, 8m or 1.5h to seconds.

    Raises:
        ArgumentTypeError: the text is not a duration.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number with s, m or h, such as 8m")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]


def positive(text: str) -> int:
    """Convert a whole number of at least 1.

    Raises:
        ArgumentTypeError: the text is not one.
    """
    if not re.fullmatch(r"0*[1-9]\d*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)
