"""The message and the exit code for the user."""

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
    code, text = ended(capsys, UserError("the sky is\n green.", where="config.sky", todo="paint it"))
    assert (code, text) == (2, "error: the sky is green (config.sky). paint it\n")
    code, text = ended(capsys, OSError(errno.ENOSPC, "No space left", "/data/x"))
    assert code == 2 and text.startswith("error: ") and "full (/data/x)" in text and text.count("\n") == 1
    assert ended(capsys, KeyboardInterrupt())[0] == 130


@pytest.mark.parametrize(
    "text, words",
    [
        ("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 12.50GiB.\nBreakdown:\n ...", "12.50GiB"),
        ("RESOURCE_EXHAUSTED: Out of memory allocating 1024 bytes.", "1024 bytes"),
        ("RESOURCE_EXHAUSTED: something else", "batch_size"),
    ],
)
def test_out_of_device_memory_is_one_line_that_helps(capsys, text, words):
    code, line = ended(capsys, jax.errors.JaxRuntimeError(text))
    assert code == 2 and line.count("\n") == 1 and line.startswith("error: ") and "device memory" in line
    assert words in line and "loader.batch_size" in line and "remat" in line


@pytest.mark.parametrize("error", [jax.errors.JaxRuntimeError("INTERNAL: oh"), RuntimeError("RESOURCE_EXHAUSTED")])
def test_other_errors_keep_their_traceback(error):
    def main():
        raise error

    with pytest.raises(type(error)) as met:
        run_main(main)
    assert met.value is error


def test_success_prints_nothing(capsys):
    run_main(lambda: None)
    assert capsys.readouterr() == ("", "")
