"""The tokenizer of CLIP: byte-level byte-pair encoding (Radford et al. 2021), from the files of Stable Diffusion.

tokenizer = read_tokenizer("stable-diffusion/tokenizer")
ids = tokenizer.encode(["a mammogram with a mass lesion"])     # int32 [1, 77]
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers

from elk_jax import files
from elk_jax.errors import UserError

START, END = "<|startoftext|>", "<|endoftext|>"
VOCAB, MERGES, WHOLE = "vocab.json", "merges.txt", "tokenizer.json"
SETTINGS, SPECIAL = "tokenizer_config.json", "special_tokens_map.json"
_OTHER = "use the tokenizer of a Stable Diffusion folder"
WORD = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


@dataclass(frozen=True)
class Tokenizer:
    """vocab: token -> id. merges: pairs of tokens in order of priority. pad: the padding token.

    `pad` is END in Stable Diffusion 1.x and "!" in 2.x. length: tokens per text, including START, END and padding.
    """

    vocab: Mapping[str, int]
    merges: tuple[tuple[str, str], ...]
    pad: str = END
    length: int = 77

    def __post_init__(self) -> None:
        absent = [token for token in (START, END, self.pad) if token not in self.vocab]
        if absent:
            raise UserError(f"the vocabulary has no {absent[0]!r}", where="tokenizer", todo=_OTHER)

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Token ids [len(texts), length] int32: START, the text, END, padding.

        Logs a warning for a text that is too long, with the truncated words.
        """
        start, end = self.vocab[START], self.vocab[END]
        ids = np.full((len(texts), self.length), self.vocab[self.pad], np.int32)
        for row, text in zip(ids, texts):
            found = self._words.encode(text, add_special_tokens=False)
            used = found.ids[: self.length - 2]
            if len(used) < len(found.ids):
                cut = text[found.offsets[len(used)][0] :]
                logging.getLogger(__name__).warning(
                    f"a text of {len(found.ids)} tokens is truncated to {len(used)}; dropped: {cut.strip()!r}"
                )
            row[: len(used) + 2] = [start, *used, end]
        return ids

    @cached_property
    def _words(self) -> tokenizers.Tokenizer:
        try:
            model = models.BPE(
                vocab=dict(self.vocab), merges=list(self.merges), end_of_word_suffix="</w>", unk_token=END
            )
        except Exception as error:  # the library has no narrower exception
            raise UserError(f"broken tokenizer: {error}", where="tokenizer", todo=_OTHER) from error
        words = tokenizers.Tokenizer(model)
        space = normalizers.Replace(tokenizers.Regex(r"\s+"), " ")
        words.normalizer = normalizers.Sequence([normalizers.NFC(), space, normalizers.Lowercase()])  # type: ignore
        split = pre_tokenizers.Split(tokenizers.Regex(WORD), behavior="removed", invert=True)
        words.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False)])  # type: ignore
        words.add_special_tokens([START, END, self.pad])
        return words


def read_tokenizer(folder: str | os.PathLike) -> Tokenizer:
    """Read vocab.json and merges.txt in `folder`, or tokenizer.json, and its settings.

    The padding token is that of special_tokens_map.json if tokenizer_config.json has no `added_tokens_decoder`, as in
    transformers: these two differ in Stable Diffusion 2.
    Raises UserError if they are missing or damaged.
    """
    folder = Path(folder)
    if (folder / VOCAB).is_file() and (folder / MERGES).is_file():
        vocab, merges = files.read_json(folder / VOCAB), _read_merges(folder / MERGES)
    elif (folder / WHOLE).is_file():
        model = files.read_json(folder / WHOLE)
        model = model.get("model") if isinstance(model, dict) else None
        if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
            raise UserError("not a byte-pair encoding", where=folder / WHOLE, todo="use CLIP's tokenizer")
        lines = model.get("merges", [])
        if not isinstance(lines, list):
            raise UserError("its merges are not a list", where=folder / WHOLE, todo="use CLIP's tokenizer")
        vocab, merges = model.get("vocab"), [_pair(line, folder / WHOLE) for line in lines]
    else:
        raise UserError("no tokenizer", where=folder, todo=f"add {VOCAB} and {MERGES}, or {WHOLE}")
    if not isinstance(vocab, dict) or not all(type(value) is int and value >= 0 for value in vocab.values()):
        raise UserError("not a vocabulary (token -> id)", where=folder, todo="download it again")
    given = _settings(folder / SETTINGS)
    if "added_tokens_decoder" not in given:
        given |= _settings(folder / SPECIAL)
    pad, length = given.get("pad_token"), given.get("model_max_length")
    return Tokenizer(
        vocab,
        tuple(merges),
        END if pad is None else _content(pad),
        length if type(length) is int and 2 < length < 1000 else 77,
    )


def write_tokenizer(folder: str | os.PathLike, tokenizer: Tokenizer) -> None:
    """Write vocab.json, merges.txt and the settings for the CLIPTokenizer of transformers."""
    folder = files.make_folder(folder)
    files.write_text(folder / VOCAB, json.dumps(dict(tokenizer.vocab), ensure_ascii=False))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in tokenizer.merges)]
    files.write_text(folder / MERGES, "\n".join(lines) + "\n")
    tokens = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": tokenizer.pad}
    files.write_json(folder / SPECIAL, tokens)
    settings = {"tokenizer_class": "CLIPTokenizer", "do_lower_case": True, "model_max_length": tokenizer.length}
    files.write_json(folder / SETTINGS, {**settings, **tokens})


def _settings(path: Path) -> dict[str, Any]:
    content = files.read_json(path) if path.is_file() else {}
    if not isinstance(content, dict):
        raise UserError("not a JSON object", where=path, todo="download it again")
    return content


def _read_merges(path: Path) -> list[tuple[str, str]]:
    lines = files.read_text(path).split("\n")
    return [_pair(line, path) for line in lines if line.strip() and not line.startswith("#version")]


def _pair(line: Any, path: Path) -> tuple[str, str]:
    parts = line.split() if isinstance(line, str) else line
    if not isinstance(parts, list) or len(parts) != 2:
        raise UserError(f"not a pair of tokens: {line!r}", where=path, todo="download it again")
    return str(parts[0]), str(parts[1])


def _content(token: Any) -> str:
    """A token of tokenizer_config.json: a string, or a dict with its content."""
    return str(token["content"] if isinstance(token, dict) and "content" in token else token)
