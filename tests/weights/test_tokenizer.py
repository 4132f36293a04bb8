"""Token ids are those of transformers' CLIPTokenizer (tests/golden/make_tokenizer.py)."""

import json

import numpy as np
import pytest

from elk_jax.weights.tokenizer import END, Tokenizer, read_tokenizer, write_tokenizer
from tests.refusals import refused


def make(vocabulary, **changes):
    return Tokenizer(vocabulary["vocab"], tuple(map(tuple, vocabulary["merges"])), **changes)


@pytest.mark.parametrize("pad", [END, "!"])
def test_ids(vocabulary, pad, caplog):
    found = make(vocabulary, pad=pad).encode(vocabulary["texts"])
    (warning,) = [record.getMessage() for record in caplog.records]
    assert "100 tokens" in warning and "75" in warning and "'mass " in warning
    np.testing.assert_array_equal(found, vocabulary["ids"][pad])
    assert found.dtype == np.int32


def test_a_text_that_fits_gives_no_warning(vocabulary, caplog):
    found = make(vocabulary).encode(["mass " * 75])
    assert not caplog.records
    assert (found[0, 1:76] == vocabulary["vocab"]["mass</w>"]).all() and found[0, 76] == vocabulary["vocab"][END]


def test_the_warning_is_one_line_with_the_truncated_words(vocabulary, caplog):
    found = make(vocabulary, length=4).encode(["a mass a MASS"])
    (warning,) = [record.getMessage() for record in caplog.records]
    assert "4 tokens" in warning and warning.endswith("'a MASS'") and "\n" not in warning
    assert found.shape == (1, 4)


def test_written_files_are_read_back(vocabulary, tmp_path):
    tokenizer = make(vocabulary, pad="!", length=20)
    write_tokenizer(tmp_path, tokenizer)
    assert read_tokenizer(tmp_path) == tokenizer


@pytest.mark.parametrize("pairs", [True, False], ids=["pairs", "strings"])
def test_one_file_is_read_too(vocabulary, tmp_path, pairs):
    merges = vocabulary["merges"] if pairs else [" ".join(pair) for pair in vocabulary["merges"]]
    model = {"type": "BPE", "vocab": vocabulary["vocab"], "merges": merges}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": model}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"pad_token": {"content": "!"}}))
    assert read_tokenizer(tmp_path) == make(vocabulary, pad="!")


@pytest.mark.parametrize("decoder, pad", [({}, "!"), ({"added_tokens_decoder": {}}, END)], ids=["older", "newer"])
def test_the_padding_token_of_stable_diffusion_2(vocabulary, tmp_path, decoder, pad):
    """tokenizer_config.json of its folder has END, special_tokens_map.json "!", which transformers takes."""
    write_tokenizer(tmp_path, make(vocabulary))
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings | decoder))
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"pad_token": "!"}))
    assert read_tokenizer(tmp_path).pad == pad


def test_bad_files(vocabulary, tmp_path):
    with refused("vocab.json", "merges.txt", "tokenizer.json", where=tmp_path):
        read_tokenizer(tmp_path)
    write_tokenizer(tmp_path, make(vocabulary))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b c\n")
    with refused("'a b c'", where="merges.txt"):
        read_tokenizer(tmp_path)
    (tmp_path / "merges.txt").write_text("a nothing\n")
    with refused("nothing", where="tokenizer"):
        read_tokenizer(tmp_path).encode(["a"])
    (tmp_path / "vocab.json").write_text("{")
    with refused("JSON", where="vocab.json"):
        read_tokenizer(tmp_path)
    (tmp_path / "vocab.json").write_text('["a"]')
    with refused("vocabulary", where=tmp_path):
        read_tokenizer(tmp_path)
    (tmp_path / "vocab.json").write_text('{"a": 1}')
    with refused("'<|startoftext|>'", where="tokenizer"):
        read_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "change, word",
    [
        (lambda model: model["vocab"].update(a=-1), "vocabulary"),
        (lambda model: model["vocab"].update(a=True), "vocabulary"),
        (lambda model: model["vocab"].update(a="1"), "vocabulary"),
        (lambda model: model.update(merges=5), "merges"),
        (lambda model: model.update(merges=[["a"]]), "pair"),
        (lambda model: model.update(type="WordPiece"), "byte-pair"),
    ],
)
def test_a_tokenizer_of_another_kind_is_refused(vocabulary, tmp_path, change, word):
    model = {"vocab": dict(vocabulary["vocab"]), "merges": vocabulary["merges"]}
    (tmp_path / "tokenizer_config.json").write_text('{"pad_token": null, "model_max_length": 1e30}')
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": model}))
    assert read_tokenizer(tmp_path) == make(vocabulary)
    change(model)
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": model}))
    with refused(word, where=tmp_path) if word == "vocabulary" else refused(word, where="tokenizer.json"):
        read_tokenizer(tmp_path)
