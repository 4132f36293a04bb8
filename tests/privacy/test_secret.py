import numpy as np
import pytest

from elk_jax.privacy import secret
from elk_jax.randomness import Purpose
from tests.refusals import refused


def test_a_fresh_secret_is_another_one_each_time_and_a_known_one_says_so():
    assert secret.fresh().words != secret.fresh().words and not secret.fresh().known
    assert secret.known(1) == secret.known(1) != secret.known(2) and secret.known(1).known
    assert len(set(secret.fresh().words)) == secret.WORDS


def test_a_secret_comes_back_from_its_text_and_is_not_printed():
    one = secret.fresh()
    assert secret.read(one.text(), "").words == one.words
    assert str(one.words[0]) not in repr(one) and one.text() not in repr(one)


@pytest.mark.parametrize("text", ["", "12", "zz" * 32, "00" * 31, None, 7])
def test_a_damaged_secret_is_refused(text):
    with refused("damaged", where="place"):
        secret.read(text, "place")


def test_noise_loss_and_batches_have_words_of_their_own():
    one = secret.known(1)
    assert one.keys().shape == (2, 2) and one.keys().dtype == np.uint32
    other = secret.Secret((*one.words[:4], 1, 2, 3, 4))
    assert (one.keys() == other.keys()).all()
    drawn = lambda secret, *of: secret.generator(*of).random()
    assert drawn(one, Purpose.PRIVATE_BATCH, 0) != drawn(other, Purpose.PRIVATE_BATCH, 0)
    assert drawn(one, Purpose.PRIVATE_BATCH, 0) != drawn(one, Purpose.PRIVATE_UNIT, 0, 0)
