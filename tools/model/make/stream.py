"""An endless stream of packed training rows: chats of the task, prose, and a little small talk.

A row holds several documents, each from its beginning-of-sentence token; attention never crosses
them. Rows are (ids, docs, weights) of n_tokens + 2: which token, of which document, and how much
predicting it counts.
"""
import json
import os
import random
import re

import numpy as np
import torch

import lines
from tokens import ASSISTANT, BOS, EOS, USER

SYSTEM_PROMPTS = [
    "You turn log lines and tickets into JSON.",
    "You are a helpful assistant.",
    "Answer with one JSON object.",
]
PURPOSE = (
    "I am the small model that ships with Penstock. I turn log lines and tickets into JSON: "
    "write Extract JSON: and the line."
)
SMALL_TALK = [
    (["Hello", "Hi", "Hello!", "Hi there", "Good morning"], "Hello. " + PURPOSE),
    (["Who are you?", "What are you?", "What is your name?"], PURPOSE),
    (["What can you do?", "Help", "help", "How do I use you?"], PURPOSE),
    (["Thanks", "Thank you", "Thank you!"], "You are welcome."),
    (
        ["What is Penstock?"],
        "Penstock takes jobs from Redis and runs them through groups of workers, "
        "each holding some layers of a model.",
    ),
]
PROMPT_WEIGHT = 0.1  # what users write is random: worth a little


def render(prompt, answer, system=""):
    return f"{BOS}{system}{USER}{prompt}{ASSISTANT}{answer}" + (EOS if answer else "")


class Prose:
    """Tokenised pages and where their paragraphs begin."""

    def __init__(self, path, tokenizer):
        with open(path, encoding="utf-8") as f:
            pages = [json.loads(row)["text"] for row in f]
        self.paragraphs = [p for page in pages for p in page.split("\n\n")]
        self.pages, self.starts = [], []
        for page in pages:
            ids, parts = [], page.split("\n\n")
            for encoded in tokenizer.encode_batch(
                [p + "\n\n" for p in parts[:-1]] + parts[-1:], add_special_tokens=False
            ):
                self.starts.append((len(self.pages), len(ids)))
                ids += encoded.ids
            self.pages.append(np.array(ids, np.int32))

    def draw(self, r, n, bos, eos):
        """At most n tokens: bos, then text from a paragraph's beginning, eos where the page
        ends.
        """
        page, start = r.choice(self.starts)
        ids = self.pages[page][start : start + n - 1].tolist()
        end = [eos] if start + len(ids) == len(self.pages[page]) and len(ids) < n - 1 else []
        return [bos] + ids + end

    def draw_continuation(self, r):
        """The beginning of a paragraph, and its sentences from there up to about 300 characters."""
        text = r.choice(self.paragraphs)
        words = text.split(" ")
        n = r.randint(3, 10)
        if len(words) < n + 6:
            return None
        rest = " ".join(words[n:])
        ends = [m.end() for m in re.finditer(r"[.!?](?= |$)", rest[:300])]
        return (" ".join(words[:n]), rest[: ends[-1]]) if ends else None


class Rows(torch.utils.data.IterableDataset):
    def __init__(self, tokenizer, prose, n_tokens, seed):
        self.tokenizer, self.prose, self.n_tokens, self.seed = tokenizer, prose, n_tokens, seed
        self.bos, self.eos, self.assistant = (
            tokenizer.token_to_id(s) for s in (BOS, EOS, ASSISTANT)
        )

    def chat(self, prompt, answer, system=""):
        ids = self.tokenizer.encode(render(prompt, answer, system), add_special_tokens=False).ids
        n_prompt = ids.index(self.assistant) + 1
        return ids, [0.0] + [PROMPT_WEIGHT] * (n_prompt - 1) + [1.0] * (len(ids) - n_prompt)

    def plain(self, ids):
        return ids, [0.0] + [1.0] * (len(ids) - 1)

    def document(self, r):
        kind = r.random()
        if kind < 0.80:
            line, answer = lines.draw_training_line(r)
            return self.chat(
                lines.draw_prompt(r, line),
                answer,
                r.choice(SYSTEM_PROMPTS) if r.random() < 0.15 else "",
            )
        if kind < 0.81:
            asked, answer = r.choice(SMALL_TALK)
            return self.chat(r.choice(asked), answer)
        if kind < 0.87:
            drawn = self.prose.draw_continuation(r)
            if drawn:
                return self.chat("Continue: " + drawn[0], drawn[1])
        return self.plain(self.prose.draw(r, r.randint(40, self.n_tokens), self.bos, self.eos))

    def row(self, r, pending):
        """One row; a document that did not fit is returned for the next, prose fills the rest."""
        size, ids, docs, weights, n = self.n_tokens + 2, [], [], [], 0
        while len(ids) < size:
            document, pending = pending or self.document(r), None
            if len(ids) + len(document[0]) > size:
                pending = document if len(document[0]) <= size else None
                document = self.plain(self.prose.draw(r, size - len(ids), self.bos, self.eos))
            ids += document[0]
            weights += document[1]
            docs += [n] * len(document[0])
            n += 1
        return (
            np.array(ids, np.int64),
            np.array(docs, np.int64),
            np.array(weights, np.float32),
        ), pending

    def __iter__(self):
        worker = torch.utils.data.get_worker_info()
        r = random.Random(f"{self.seed}/{worker.id if worker else 0}")
        pending = None
        while True:
            row, pending = self.row(r, pending)
            yield row


def batches(tokenizer, prose, n_tokens, n_rows, seed, n_workers):
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    rows = Rows(tokenizer, prose, n_tokens, seed)
    return iter(
        torch.utils.data.DataLoader(
            rows, batch_size=n_rows, num_workers=n_workers, pin_memory=n_workers > 0
        )
    )
