"""A bar for long work, none for short."""

from elk_jax.tasks import watching
from elk_jax.tasks.watching import watched
from elk_jax.threads import for_each


def test_long_work_gets_a_line_and_short_none(capsys, monkeypatch):
    monkeypatch.setattr(watching, "LONG", 1e9)
    assert for_each(abs, 60, watched("decoding")) == list(range(60))
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(watching, "LONG", 1e-9)
    assert for_each(abs, 60, watched("decoding")) == list(range(60))
    assert capsys.readouterr().err.startswith("decoding: 60/60 images in ")
