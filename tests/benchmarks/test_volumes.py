"""The benchmark of volumes: one line of JSON, by a real detector over a real file."""

from __future__ import annotations

import json

from tests.refusals import refused


def test_one_line_of_json(capsys):
    from benchmarks import volumes

    given = ["--slices=6", "--size=96x64", "--short_side=64", "--tiny", "--repetitions=1", "--syntax=jpeg2000"]
    volumes.main(given)
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    speed = found["slices_per_second"]
    assert speed["reading"]["median"] > speed["reading_and_detecting"]["median"] > 0
    assert found["peak_memory_bytes"]["detecting"] >= found["peak_memory_bytes"]["reading"] > 0
    assert found["syntax"] == "jpeg2000" and found["hardware"]["cores"] >= 1
    with refused(1, where="--slices"):
        volumes.main(["--slices=1"])
