"""What a user's error must name: the place and the values that matter, in whatever sentence."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from elk_jax.errors import UserError


@contextmanager
def refused(*words: object, where: object = "") -> Iterator[pytest.ExceptionInfo[UserError]]:
    """Assert that the block raises a UserError of one line that names `where` and `words`; yields what it raised.

    words: what the error's `what` or `todo` contains: text anywhere, a number only as a whole (1 is not in 12).
    where: the end of the error's `where`: of a path, or of a dotted name such as config.detector.steps.
    """
    with pytest.raises(UserError) as raised:
        yield raised
    check_refusal(raised.value, *words, where=where)


def check_refusal(error: UserError, *words: object, where: object = "") -> None:
    """Assert that `error` is one line and names `where` and `words`, as in `refused`."""
    assert "\n" not in str(error)
    place = str(where)
    assert error.where.endswith(place), f"{error.where!r} does not end with {place!r}"
    missing = [word for word in words if not _names(f"{error.what} {error.todo}", word)]
    assert not missing, f"{missing} not in: {error}"


def _names(text: str, word: object) -> bool:
    if isinstance(word, int | float):
        return re.search(rf"(?<![\w.]){re.escape(str(word))}(?!\w|\.\d)", text) is not None
    return str(word) in text
