"""The benchmark of the private step, at a tiny size."""

import contextlib
import dataclasses
import json
import types

import jax
import numpy as np
import pytest

from elk_jax.privacy.settings import Privacy
from tests.refusals import refused


def test_a_private_step_is_compared_with_the_plain_one(capsys):
    from benchmarks import privacy

    tiny = ["--model=translator", "--tiny", "--size=16", "--batch=2", "--ways=per_example/1", "--repetitions=1"]
    privacy.main([*tiny, "--least_seconds=0.01", "--torch_python=none"])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["seconds"].keys() == result["program_bytes"].keys() == {"plain", "per_example/1"}
    assert result["private_over_plain"].keys() == {"per_example/1"}
    ratio = result["seconds"]["per_example/1"]["median"] / result["seconds"]["plain"]["median"]
    assert result["private_over_plain"]["per_example/1"]["median"] == pytest.approx(ratio)


@pytest.mark.parametrize("name", ["swin_t", "efficientnet_b0", "translator"])
def test_the_models_of_the_table_take_their_examples(name):
    from benchmarks import privacy

    kind = privacy.MODELS[name]
    subject = kind.make(kind.size, "float32", tiny=True)
    batch = privacy.examples(subject, 2) | {"valid": np.ones(2, bool)}
    params = jax.eval_shape(subject.model.init, jax.random.key(0))
    loss = lambda params: subject.model.loss(params, subject.model.constants, batch, jax.random.key(0), jax.vmap)[0]
    assert subject.model.per_example and jax.eval_shape(loss, params).shape == ()


def test_the_swin_of_the_benchmark_is_the_published_one():
    from benchmarks import privacy

    subject = privacy.MODELS["swin_t"].make(224, "float32", tiny=False)
    params = jax.eval_shape(subject.model.init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 27_520_892 and subject.torch == "swin_t"


def test_times_of_torch_are_those_of_its_own_programs(monkeypatch):
    """A private program is compared with the plain one that the other side names."""
    from benchmarks import privacy

    class Side:
        def __init__(self):
            self.description = {"programs": {"net": "net", "net/way": "net"}}

        def seconds(self, name, calls):
            return {"net": 2.0, "net/way": 5.0}[name]

    @contextlib.contextmanager
    def start(python, settings, batch, library):
        assert python == "torch's" and library == "opacus" and settings["network"] == "a network"
        assert batch["low_energy"].shape == (2, 16, 16, 1)
        yield Side()

    monkeypatch.setattr(privacy.rival, "start", start)
    program = types.SimpleNamespace(step=int, parameters=1, bytes=1, compile_seconds=1.0)
    monkeypatch.setattr(privacy, "Program", lambda *_: program)
    subject = dataclasses.replace(privacy.translator_subject(16, "float32", True), torch="a network")
    ways = {"ghost/1": Privacy(noise_multiplier=1.0, gradients="ghost")}
    found = privacy.benchmark(subject, 2, ways, settings={}, repetitions=3, least_seconds=0.0, python="torch's")
    assert found["torch"]["private_over_plain"]["net/way"]["median"] == 2.5
    assert found["torch"]["private_over_plain"].keys() == {"net/way"}
    assert found["seconds"].keys() == {"plain", "ghost/1"}


@pytest.mark.parametrize("text", ["ghost/3", "ghost/0", "ghost/1,ghost", "other/2", ""])
def test_ways_and_micro_batches_that_are_none(text):
    from benchmarks import privacy

    with refused(8, "ghost", where="--ways"):
        privacy.parse_ways(text, 8)
