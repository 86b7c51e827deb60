"""The errors of Delta and polars: which are failures, and what they say. Their Rust code raises kinds of its own."""

import re


def failure(error: BaseException) -> BaseException:
    """The error, if it is a failure; a wish to stop goes on its way. A panic of Rust code is no `Exception`."""
    if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
        raise error
    return error


def said(error: BaseException | None) -> str:
    """What an error says, on one line: Delta draws the causes below one another, in colours."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    return re.sub(r"\s*[\n\r]\s*(?:↳\s*)?|\s*↳\s*", ": ", plain.strip())
