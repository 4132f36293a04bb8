"""The helper that other tests refuse with: it holds an error to its place, its words and one line."""

from __future__ import annotations

import pytest

from elk_jax.errors import UserError
from tests.refusals import refused


def fails(*words: object, where: object = "") -> bool:
    try:
        with refused(*words, where=where):
            raise UserError("12 bits in P1.dcm", where="config.sources.bit_depth", todo="give at most 16")
    except AssertionError:
        return True
    return False


def test_place_and_words_of_an_error():
    assert not fails()
    assert not fails("bits", 12, "P1.dcm", 16, where="bit_depth")
    assert fails("bit depth")
    assert fails(1) and fails(2) and fails("12 bits", 6)
    assert fails("bits", where="config.sources")
    assert fails("bit_depth")


def test_only_a_user_s_error_is_a_refusal():
    with pytest.raises(ValueError), refused():
        raise ValueError("x")
    with pytest.raises(pytest.fail.Exception), refused():
        pass
