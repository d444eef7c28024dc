"""The tokenizer: byte-level BPE in the form of DeepSeek-V3's tokenizer.json, with a vocabulary of
our own.

The pre-split, the special strings and the order of ids are the published ones. Merges never join a
digit to anything, nor punctuation to a letter: so a name or number has the same tokens wherever it
is copied to.
"""
import argparse
import json
import random
import re

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

import lines

BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
USER, ASSISTANT = "<｜User｜>", "<｜Assistant｜>"
ADDED = [
    "<｜fim▁hole｜>",
    "<｜fim▁begin｜>",
    "<｜fim▁end｜>",
    USER,
    ASSISTANT,
    "<|EOT|>",
    "<｜tool▁calls▁begin｜>",
    "<｜tool▁calls▁end｜>",
    "<｜tool▁call▁begin｜>",
    "<｜tool▁call▁end｜>",
    "<｜tool▁outputs▁begin｜>",
    "<｜tool▁outputs▁end｜>",
    "<｜tool▁output▁begin｜>",
    "<｜tool▁output▁end｜>",
    "<｜tool▁sep｜>",
]
SPLITS = [
    r"\p{N}{1,3}",
    "[一-龥\u3040-ゟ゠-ヿ]+",
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|"
    "[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
    "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
]
VOCABULARY = 4096


def pieces(text):
    """Cuts text where no merge may form; digits are left out."""
    for part in re.split(r"\d+", text):
        yield from re.split(r"(?<=[!-/:-@\[-`{-~])(?=[A-Za-z])", part)


def corpus(prose_path):
    with open(prose_path, encoding="utf-8") as f:
        for row in f:
            yield from pieces(json.loads(row)["text"])
    r = random.Random(0)
    for _ in range(60000):
        line, answer = lines.draw_training_line(r)
        yield from pieces(lines.draw_prompt(r, line))
        yield from pieces(answer)


def added_token(i, content, first):
    return {
        "id": i,
        "content": content,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": not first,
        "special": first or content == "<|EOT|>",
    }


def train(prose_path):
    """The finished tokenizer.json as an object."""
    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(s), "isolated") for s in SPLITS] + [byte_level]
    )
    base = VOCABULARY - len(ADDED)
    tokenizer.train_from_iterator(
        corpus(prose_path),
        trainers.BpeTrainer(
            vocab_size=base,
            special_tokens=[BOS, EOS, PAD],
            show_progress=False,
            max_token_length=24,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        ),
    )
    model = json.loads(tokenizer.to_str())["model"]
    vocab = dict(sorted(model["vocab"].items(), key=lambda item: item[1]))
    assert len(vocab) == base and [vocab[s] for s in (BOS, EOS, PAD)] == [0, 1, 2]
    first = [added_token(i, s, True) for i, s in enumerate((BOS, EOS, PAD))]
    split = [
        {"type": "Split", "pattern": {"Regex": s}, "behavior": "Isolated", "invert": False}
        for s in SPLITS
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": first + [added_token(base + i, s, False) for i, s in enumerate(ADDED)],
        "normalizer": {"type": "Sequence", "normalizers": []},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": split
            + [
                {
                    "type": "ByteLevel",
                    "add_prefix_space": False,
                    "trim_offsets": True,
                    "use_regex": False,
                }
            ],
        },
        "post_processor": {
            "type": "ByteLevel",
            "add_prefix_space": True,
            "trim_offsets": False,
            "use_regex": True,
        },
        "decoder": {
            "type": "ByteLevel",
            "add_prefix_space": True,
            "trim_offsets": True,
            "use_regex": True,
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": vocab,
            "merges": [m if isinstance(m, str) else " ".join(m) for m in model["merges"]],
        },
    }


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("prose")
    p.add_argument("out", help="tokenizer.json")
    a = p.parse_args()
    made = train(a.prose)
    with open(a.out, "w", encoding="utf-8") as f:
        json.dump(made, f, ensure_ascii=False, indent=1)
    tokenizer = Tokenizer.from_file(a.out)
    for text in (
        "The table was dropped, wasn't it?",
        "2025-01-02 web-12.eu [x7f2]",
        '{"level":"error","code":503}',
        f"{BOS}{USER}hi{ASSISTANT}",
        "naïve 大きい\r\n\ttab",
    ):
        encoded = tokenizer.encode(text, add_special_tokens=False)
        assert tokenizer.decode(encoded.ids, skip_special_tokens=False) == text
        print(encoded.tokens)


if __name__ == "__main__":
    main()
