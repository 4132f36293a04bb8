"""Freed memory is used again, by this process and by the programs that JAX compiles."""

import platform
import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc")

FAULTS = """
import resource, sys
import jax, jax.numpy as jnp
from elk_jax import host_memory

if sys.argv[1] == "kept":
    host_memory.keep_freed()

@jax.jit
def program(x, y):
    return (x @ y).T @ x  # of a product of 96 MB

tall, wide = jnp.ones((24 << 10, 8)), jnp.ones((8, 1 << 10))

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    program(tall, wide).block_until_ready()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults(), faults()
print(min(faults() for _ in range(3)))
"""


def page_faults(what: str) -> int:
    run = subprocess.run([sys.executable, "-c", FAULTS, what], capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stderr
    return int(run.stdout)


def test_the_memory_of_a_program_is_that_of_its_last_call():
    pages = (96 << 20) // resource.getpagesize()
    if page_faults("given back") < pages // 2:
        pytest.skip("pages of this system are large")
    assert page_faults("kept") < pages // 4
