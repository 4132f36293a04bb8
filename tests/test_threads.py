"""Work in threads: results in order, failures as if one after the other."""

import threading

import pytest

from elk_jax.threads import in_parts, map_in_threads


def test_results_come_in_order_and_from_several_threads_at_once():
    both = threading.Barrier(2, timeout=60)  # neither of the two first ones ends before the other has begun

    def work(position):
        if position < 2:
            both.wait()
        return position * position

    assert map_in_threads(work, 40) == [position * position for position in range(40)]
    assert map_in_threads(work, 0) == []


def test_the_first_failure_by_position_is_raised():
    late = threading.Event()

    def work(position):
        if position == 5:
            late.wait(60)
            raise ValueError("5")
        if position == 6:
            late.set()
            raise ValueError("6")
        return position

    with pytest.raises(ValueError, match="5"):
        map_in_threads(work, 9)


def test_the_progress_bar_sees_every_result():
    seen = []

    def progress(results, total):
        for result in results:
            seen.append((result, total))
            yield result

    assert map_in_threads(str, 3, progress) == ["0", "1", "2"]
    assert seen == [("0", 3), ("1", 3), ("2", 3)]


def test_a_bar_over_parts_shows_their_things():
    shown = []

    def bar(results, total):
        for result in results:
            shown.append(total)
            yield result

    assert map_in_threads(lambda k: k * 10, 3, in_parts(bar, [2, 1, 3])) == [0, 10, 20]
    assert shown == [6] * 6
