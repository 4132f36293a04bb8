"""Loops whose number of turns depends on the data: the expected number, for accounts of the compiled program."""

from __future__ import annotations

import contextlib

import jax


def expected_turns(count: int) -> contextlib.AbstractContextManager[None]:
    """Around a `while_loop` whose number of turns depends on the data: `count` is what a typical batch takes.

    A compiled program does not contain the number of turns of such a loop. The name `turns=COUNT` of its operations
    gives it to an account of arithmetic and memory traffic; no result depends on it.
    """
    return jax.named_scope(f"turns={count}")
