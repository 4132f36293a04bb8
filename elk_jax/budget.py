"""A limit on the memory that reading a foreign file may allocate, in proportion to the size of the file.

A few hundred bytes can ask for terabytes: a compressed stream of zeros, a tensor of stride 0, a shape in a header.
Every reader of foreign files charges each allocation to a budget per file before it allocates.
"""

from __future__ import annotations

from dataclasses import dataclass

from elk_jax.errors import UserError

FLOOR = 1 << 30
"""Bytes that reading any file may allocate, however small the file: a large mammogram in float64, several times."""
FACTOR = 8
"""Bytes allowed for each byte of a file: half precision widened to float64 takes four."""


@dataclass
class Budget:
    """Bytes that reading the file `where` may still allocate."""

    left: int
    where: object

    def spend(self, count: int, what: str) -> None:
        """Charge `count` bytes for `what`; UserError if they exceed the budget."""
        if count < 0 or count > self.left:
            needed = f"{what} would take {count} bytes" if 0 <= count < 1 << 63 else f"{what} has an impossible size"
            todo = "use the file only if you trust its origin; if so, convert it to a plainer format first"
            raise UserError(f"{needed}, far more than a file of its size can hold", where=self.where, todo=todo)
        self.left -= count


def budget_for(size: int, where: object, floor: int | None = None) -> Budget:
    """The budget of a file of `size` bytes. floor: replaces FLOOR."""
    return Budget((FLOOR if floor is None else floor) + FACTOR * size, where)
