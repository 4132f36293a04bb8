"""The benchmark of the private step, at a tiny size."""

import json

import pytest

from tests.refusals import refused


def test_a_private_step_is_compared_with_the_plain_one(capsys):
    from benchmarks import privacy

    tiny = ["--tiny", "--size=16", "--batch=2", "--micro_batches=1", "--repetitions=1", "--least_seconds=0.01"]
    privacy.main(tiny)
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["seconds"].keys() == result["program_bytes"].keys() == {"plain", "1"}
    assert result["private_over_plain"].keys() == {"1"}
    ratio = result["seconds"]["1"]["median"] / result["seconds"]["plain"]["median"]
    assert result["private_over_plain"]["1"]["median"] == pytest.approx(ratio)


@pytest.mark.parametrize("text", ["3", "0", "1,x", ""])
def test_micro_batches_divide_the_batch(text):
    from benchmarks import privacy

    with refused(8, where="--micro_batches"):
        privacy.parse_sizes(text, 8)
