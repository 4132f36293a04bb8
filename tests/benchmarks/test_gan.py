"""The benchmark of the step of two players, at a tiny size."""

import contextlib
import json
import types

from elk_jax.gan.networks import GanConfig

TINY = ["--size=16", "--width=4", "--batch=2", "--repetitions=2", "--least_seconds=0.01"]


def result(capsys, *arguments):
    from benchmarks import gan

    gan.main([*TINY, *arguments])
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_a_step_is_timed(capsys):
    found = result(capsys, "--torch_python=none")
    assert found["seconds"].keys() == {"ours"} and found["torch"] is found["torch_over_ours"] is None
    assert found["seconds"]["ours"]["median"] > 0
    players = 16 * (200 * 8 + 8 * 4 + 4) + 5_200, 36 * (2 * 4 + 4 * 8 + 8) + 100 + 51 * 256
    assert found["settings"]["parameters"] == sum(players) and GanConfig(size=16).doublings == 2


def test_torch_gets_the_same_batch_and_is_timed_in_the_same_rounds(capsys, monkeypatch):
    from benchmarks import gan

    given = {}

    @contextlib.contextmanager
    def start(python, settings, batch, library, side):
        given.update(settings, shape=batch["image"].shape, python=python, side=(library, side))
        yield types.SimpleNamespace(description={"parameters": 1}, seconds=lambda what, calls: 1e6)

    monkeypatch.setattr(gan.rival, "start", start)
    found = result(capsys, "--torch_python=python3", "--ratio=3")
    assert given["shape"] == (6, 16, 16, 1) and given["python"] == "python3" and given["side"] == ("torch", "gan")
    assert (given["batch"], given["ratio"], given["width"]) == (2, 3, 4)
    assert found["torch_over_ours"]["min"] == 1e6 / found["seconds"]["ours"]["max"]
