import pytest

from elk_jax.spread import spread


@pytest.mark.parametrize(("total", "count", "wanted"), [(5, 3, [0, 2, 4]), (3, 9, [0, 1, 2]), (4, 1, [0]), (0, 3, [])])
def test_positions(total, count, wanted):
    assert spread(total, count).tolist() == wanted


def test_no_position_twice():
    for total in range(1, 50):
        for count in range(2, total + 1):
            found = spread(total, count).tolist()
            assert len(set(found)) == count and found == sorted(found) and (found[0], found[-1]) == (0, total - 1)
