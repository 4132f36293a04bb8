"""Loops that run as often as their data asks: how many turns to expect, for readers of the compiled program."""

from __future__ import annotations

import contextlib

import jax


def expected_turns(count: int) -> contextlib.AbstractContextManager[None]:
    """Around a `while_loop` whose number of turns depends on the data: `count` is what a typical batch takes.

    A compiled program does not say how often such a loop runs. The name `turns=COUNT` of its operations tells an
    account of arithmetic and memory traffic; nothing that is computed depends on it.
    """
    return jax.named_scope(f"turns={count}")
