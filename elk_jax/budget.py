"""What a file from elsewhere may make its reader allocate: a limit in proportion to the size of the file.

A few hundred bytes can ask for terabytes: a compressed stream of zeros, a tensor of stride 0, a shape in a header.
Every reader of foreign files draws what it is about to allocate from one budget per file, before it allocates.
"""

from __future__ import annotations

from dataclasses import dataclass

from elk_jax.errors import UserError

FLOOR = 1 << 30
"""Bytes that reading any file may allocate, however small it is: a large mammogram in float64, several times."""
FACTOR = 8
"""Bytes for each byte of a file: half precision widened to float64 takes four."""


@dataclass
class Budget:
    """Bytes that reading the file `where` may still allocate."""

    left: int
    where: object

    def spend(self, count: int, what: str) -> None:
        """Take `count` bytes for `what`; UserError where the budget does not hold them."""
        if count < 0 or count > self.left:
            needed = f"{what} would take {count} bytes" if 0 <= count < 1 << 63 else f"{what} has an impossible size"
            todo = "use the file only if you trust its origin, and then write it again in a plainer form"
            raise UserError(f"{needed}, far more than the file holds", where=self.where, todo=todo)
        self.left -= count


def budget_for(size: int, where: object, floor: int | None = None) -> Budget:
    """The budget of a file of `size` bytes. floor: in place of FLOOR."""
    return Budget((FLOOR if floor is None else floor) + FACTOR * size, where)
