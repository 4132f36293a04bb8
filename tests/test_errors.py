"""What reaches the user, and with which exit code."""

from __future__ import annotations

import errno

import jax
import pytest

from elk_jax.errors import UserError, run_main


def ended(capsys, error: BaseException) -> tuple[int, str]:
    """Exit code and standard error of a program that ends in `error`."""

    def main():
        raise error

    with pytest.raises(SystemExit) as stopped:
        run_main(main)
    return stopped.value.code, capsys.readouterr().err


def test_a_user_s_error_is_one_line(capsys):
    code, said = ended(capsys, UserError("the sky is\n green.", where="config.sky", todo="paint it"))
    assert (code, said) == (2, "error: the sky is green (config.sky). paint it\n")
    code, said = ended(capsys, OSError(errno.ENOSPC, "No space left", "/data/x"))
    assert code == 2 and said.startswith("error: the disk is full (/data/x). ")
    assert ended(capsys, KeyboardInterrupt())[0] == 130


@pytest.mark.parametrize(
    "text, words",
    [
        ("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 12.50GiB.\nBreakdown:\n ...", "for 12.50GiB"),
        ("RESOURCE_EXHAUSTED: Out of memory allocating 1024 bytes.", "for 1024 bytes"),
        ("RESOURCE_EXHAUSTED: something else", "out of device memory. lower"),
    ],
)
def test_out_of_device_memory_is_one_line_that_helps(capsys, text, words):
    code, said = ended(capsys, jax.errors.JaxRuntimeError(text))
    assert code == 2 and said.count("\n") == 1 and said.startswith("error: out of device memory")
    assert words in said and "loader.batch_size" in said and "remat" in said


@pytest.mark.parametrize("error", [jax.errors.JaxRuntimeError("INTERNAL: oh"), RuntimeError("RESOURCE_EXHAUSTED")])
def test_other_errors_keep_their_traceback(error):
    def main():
        raise error

    with pytest.raises(type(error)) as met:
        run_main(main)
    assert met.value is error


def test_what_returns_leaves_with_nothing(capsys):
    run_main(lambda: None)
    assert capsys.readouterr() == ("", "")
