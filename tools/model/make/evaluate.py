"""Exact match on held-out lines, greedy, on the dequantised FP8 weights; and how often MTP's draft
is taken.

A greedy answer equals the expected one exactly if the expected tokens, fed in, are each the best
choice at their place: so one pass over prompt and answer decides, without decoding.
"""
import argparse
import collections
import json

import torch
from tokenizers import Tokenizer

import checkpoint
import lines
from net import Config
from stream import render
from tokens import ASSISTANT

HELD_OUT_SEED = 2


def encode_chats(tokenizer, pairs):
    """(ids, n_prompt) of (line, answer) pairs in the plain instruction."""
    assistant = tokenizer.token_to_id(ASSISTANT)
    chats = []
    for line, answer in pairs:
        ids = tokenizer.encode(
            render(lines.INSTRUCTION + line, answer), add_special_tokens=False
        ).ids
        chats.append((ids, ids.index(assistant) + 1))
    return chats


@torch.no_grad()
def judge(net, chats, device, n_rows=128):
    """For each chat the greedy choices at its answer's places; and MTP's accepted and offered
    drafts.
    """
    choices, accepted, offered = [], 0, 0
    for begin in range(0, len(chats), n_rows):
        part = chats[begin : begin + n_rows]
        ids = torch.zeros(len(part), max(len(c[0]) for c in part), dtype=torch.int64)
        for row, (tokens, _) in enumerate(part):
            ids[row, : len(tokens)] = torch.tensor(tokens)
        ids = ids.to(device)
        logits, hidden = net.logits(ids)
        best = logits.argmax(-1).cpu()
        ahead = net.mtp_logits(ids[:, 1:], hidden[:, :-1]).argmax(-1).cpu()
        for row, (tokens, n_prompt) in enumerate(part):
            choices.append(best[row, n_prompt - 1 : len(tokens) - 1].tolist())
            places = slice(n_prompt - 1, len(tokens) - 2)
            accepted += (ahead[row, places] == best[row, n_prompt : len(tokens) - 1]).sum().item()
            offered += len(tokens) - 1 - n_prompt
    return choices, accepted / offered


def exact_matches(chats, choices):
    return [tokens[n_prompt:] == chosen for (tokens, n_prompt), chosen in zip(chats, choices)]


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("model", help="checkpoint directory")
    p.add_argument("--n", type=int, default=4000)
    p.add_argument("--bulk", action="store_true", help="the bundled tickets instead")
    p.add_argument("--misses", type=int, default=10)
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    a = p.parse_args()
    torch.set_grad_enabled(False)
    tokenizer = Tokenizer.from_file(f"{a.model}/tokenizer.json")
    net = checkpoint.load(Config(f"{a.model}/config.json"), a.model).to(a.device)
    pairs = lines.held_out_lines(HELD_OUT_SEED, a.n)
    if a.bulk:
        with open(f"{a.model}/bulk.jsonl", encoding="utf-8") as f:
            prompts = [json.loads(row)["body"]["messages"][-1]["content"] for row in f]
        with open(f"{a.model}/expected.jsonl", encoding="utf-8") as f:
            pairs = [
                (p[len(lines.INSTRUCTION) :], json.loads(row)["answer"])
                for p, row in zip(prompts, f)
            ]
    chats = encode_chats(tokenizer, pairs)
    choices, acceptance = judge(net, chats, a.device)
    exact = exact_matches(chats, choices)
    fields = collections.Counter()
    for (line, answer), chosen, good in zip(pairs, choices, exact):
        if good:
            continue
        text = tokenizer.decode(chosen)
        for name, value in json.loads(answer).items():
            fields[name] += f'"{name}":{json.dumps(value)}' not in text
        if a.misses > 0:
            a.misses -= 1
            print(f"line     {line}\nexpected {answer}\nchosen   {text}")
    print(
        f"{sum(exact)} of {len(exact)} exact = {sum(exact) / len(exact):.4f}; "
        f"MTP drafts taken {acceptance:.3f}; "
        f"prompt {sum(c[1] for c in chats) / len(chats):.1f} tokens, "
        f"answer {sum(len(c[0]) - c[1] for c in chats) / len(chats):.1f}, "
        f"longest {max(len(c[0]) - c[1] for c in chats)}; wrong fields {dict(fields)}"
    )


if __name__ == "__main__":
    main()
