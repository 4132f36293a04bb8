"""A bar for many images, none for a few."""

from elk_jax.data.many import for_each
from elk_jax.tasks.watching import MANY, watched


def test_many_images_get_a_line_and_a_few_none(capsys):
    assert for_each(abs, MANY - 1, watched("decoding")) == list(range(MANY - 1))
    assert capsys.readouterr().err == ""
    assert for_each(abs, MANY, watched("decoding")) == list(range(MANY))
    assert capsys.readouterr().err.startswith(f"decoding: {MANY}/{MANY} images in ")
