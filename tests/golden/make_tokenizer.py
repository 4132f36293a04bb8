"""Runs transformers' CLIPTokenizer on a small vocabulary and stores its token ids. Needs transformers:

    python tests/golden/make_tokenizer.py

Made with transformers 5.23.0 and tokenizers 0.23.3. The vocabulary is one token per byte, one per byte at the end of a
word, one per merge, and CLIP's two special tokens, in CLIP's order.
"""

import json
from pathlib import Path

import transformers
from tokenizers.pre_tokenizers import ByteLevel

FOLDER = Path(__file__).parent
MERGES = [
    ("m", "a"), ("s", "s</w>"), ("a", "m"), ("ma", "ss</w>"), ("ma", "m"), ("mam", "ma"), ("i", "n</w>"),
    ("t", "h"), ("th", "e</w>"), ("o", "g"), ("og", "r"), ("mamma", "ogr"), ("a", "ogr"), ("l", "e"), ("s", "i"),
    ("o", "n</w>"), ("le", "si"), ("lesi", "on</w>"), ("Ã", "©</w>"), ("'", "s</w>"),
]  # fmt: skip
TEXTS = [
    "a mammogram with a mass lesion",
    "A  Mammogram\n with\ta MASS lesion!!",
    "",
    "the patient's left breast, 12.5 mm; BI-RADS 4b (R-MLO)",
    "café CAFE\u0301 naïve Läsion β-blocker 病変 ½ x² _under_score 👩‍⚕️",
    "don't we'll they've I'm he'd <|endoftext|> a <|startoftext|>mass",
    "mass " * 100,
]


def vocabulary():
    letters = sorted(ByteLevel.alphabet())
    words = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in MERGES)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    return {word: i for i, word in enumerate(dict.fromkeys(words))}


def main():
    vocab = vocabulary()
    ids = {}
    for pad in ("<|endoftext|>", "!"):
        tokenizer = transformers.CLIPTokenizer(vocab=vocab, merges=MERGES, pad_token=pad, model_max_length=77)
        ids[pad] = tokenizer(TEXTS, padding="max_length", truncation=True, max_length=77)["input_ids"]
    facts = {"vocab": vocab, "merges": MERGES, "texts": TEXTS, "ids": ids}
    (FOLDER / "tokenizer.json").write_text(json.dumps(facts) + "\n")


if __name__ == "__main__":
    main()
