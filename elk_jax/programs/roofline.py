"""The minimum time of a program on a chip: arithmetic, memory and links at published speed (Williams et al. 2009).

An instruction takes at least the longer of its arithmetic and its memory traffic; instructions run one after another.
Concurrent transfers only use memory bandwidth. Data between chips may be hidden behind other instructions: completely
at best, not at all at worst.
"""

from __future__ import annotations

from typing import NamedTuple

from elk_jax.programs.account import Account
from elk_jax.programs.chips import Chip
from elk_jax.programs.costs import Collective


class Bound(NamedTuple):
    """Seconds at the chip's published speed. alone: for one chip without data between chips."""

    arithmetic: float
    memory: float
    links: float
    alone: float

    @property
    def least(self) -> float:
        """With all data between chips hidden."""
        return max(self.alone, self.links)

    @property
    def exposed(self) -> float:
        """With none of it hidden."""
        return self.alone + self.links


def bound(account: Account, chip: Chip) -> Bound:
    """The minimum time of a program by its account."""
    total, in_turn, own_bytes, links = account.total, 0.0, 0, 0.0
    for cost in account.costs:
        arithmetic, memory = cost.flops / chip.flops, cost.bytes / chip.bandwidth
        if cost.collective is not None:  # a product fused with it counts; its memory traffic is hidden by the links
            links += cost.times * seconds(cost.collective, chip)
            in_turn += cost.times * arithmetic
            continue
        own_bytes += cost.times * cost.bytes
        if not cost.is_async:
            in_turn += cost.times * max(arithmetic, memory)
    alone = max(in_turn, own_bytes / chip.bandwidth)
    return Bound(total.flops / chip.flops, total.bytes / chip.bandwidth, links, alone)


def seconds(collective: Collective, chip: Chip) -> float:
    """Seconds of a collective whose data takes the shortest way over all links (rings; Thakur et al. 2005)."""
    others = (collective.group - 1) / collective.group
    rounds = {"all-reduce": 2 * others, "collective-permute": 1, "collective-broadcast": 1}.get(collective.kind, others)
    return rounds * collective.bytes / chip.links if collective.group > 1 else 0.0
