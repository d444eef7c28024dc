"""Golden logits of a checkpoint: transformers' DeepseekV3ForCausalLM in float32 on the dequantised
weights.

Prompts p0.. are written as in tests/fixtures/tiny-fp8: pN.ids, pN.logits_last, pN.logits_all (short
ones), pN.greedy (ends with an end of sentence, or after N_GREEDY), pN.margin; mtp.logits for p3 by
net.py, which must agree with transformers on everything else.
"""
import argparse
import json
import os
import tempfile

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

import checkpoint
import lines
from net import Config, Router
from stream import render
from tokens import BOS

N_GREEDY = 64
N_ALL = 40  # prompts up to this length keep all their rows
MTP_PROMPT = 3
ROUTING_GAP = 2e-5  # no choice of an expert in a prompt is nearer to another


def official_model(directory):
    """transformers' model of the checkpoint; every tensor but the MTP layer's must find its
    place.
    """
    from transformers import DeepseekV3ForCausalLM

    with open(f"{directory}/config.json", encoding="utf-8") as f:
        config = json.load(f)
    del config["quantization_config"]
    config["torch_dtype"] = "float32"
    mtp = f"model.layers.{config['num_hidden_layers']}."
    tensors = checkpoint.load_dequantised(directory)
    with tempfile.TemporaryDirectory() as plain:
        with open(f"{plain}/config.json", "w", encoding="utf-8") as f:
            json.dump(config, f)
        save_file(
            {n: w.contiguous() for n, w in tensors.items() if not n.startswith(mtp)},
            f"{plain}/model.safetensors",
            metadata={"format": "pt"},
        )
        model, info = DeepseekV3ForCausalLM.from_pretrained(
            plain, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
        )
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    return model.eval()


def prompts(net, tokenizer):
    """Text of several lengths, then chats: one line, the task twice in one chat, and a text to
    go on with.
    """

    def encode(text):
        return tokenizer.encode(text, add_special_tokens=False).ids

    def first(candidates):
        """The first one on which no router wavers, if there is one."""
        sure = (ids for ids in candidates if routing_gap(net, torch.tensor([ids])) > ROUTING_GAP)
        return next(sure, candidates[0])

    text = encode(
        BOS + "The query planner chooses an index when the WHERE clause of the statement names its "
        "leftmost column, and scans the whole table otherwise."
    )
    pairs = [(lines.INSTRUCTION + line, answer) for line, answer in lines.held_out_lines(4, 40)]
    chats = [encode(render(prompt, "")) for prompt, _ in pairs]
    twice = [
        encode(render(*one)) + encode(render(two[0], ""))[1:] for one, two in zip(pairs, pairs[1:])
    ]
    more = [
        encode(render("Continue: " + start, ""))
        for start in (
            "The database file is locked while",
            "The server reads its configuration",
            "This function returns",
        )
    ]
    return [first([text[: n - less] for less in range(n)]) for n in (1, 5, 17, 32)] + [
        first(sorted(chats, key=len, reverse=True)),
        first(chats),
        first(twice),
        first(more),
    ]


def routing_gap(net, ids):
    """The smallest distance by which any expert or group was chosen over the next."""
    gaps = []

    def note(router, inputs, _):
        c = router.c
        biased = (
            torch.nn.functional.linear(inputs[0], router.weight).sigmoid()
            + router.e_score_correction_bias
        )
        groups = biased.unflatten(-1, (c.n_group, -1))
        sums = groups.topk(2, -1).values.sum(-1)
        ranked = sums.sort(-1, descending=True).values
        if c.topk_group < c.n_group:
            gaps.append((ranked[..., c.topk_group - 1] - ranked[..., c.topk_group]).min())
        kept = torch.zeros_like(sums).scatter(-1, sums.topk(c.topk_group, -1).indices, 1.0)
        ranked = (
            groups.masked_fill(kept.unsqueeze(-1) == 0, -1e9)
            .flatten(-2)
            .sort(-1, descending=True)
            .values
        )
        gaps.append(
            (ranked[..., c.num_experts_per_tok - 1] - ranked[..., c.num_experts_per_tok]).min()
        )

    hooks = [m.register_forward_hook(note) for m in net.modules() if isinstance(m, Router)]
    net.logits(ids)
    for hook in hooks:
        hook.remove()
    return min(gaps).item()


def greedy(model, ids, end):
    """Greedy tokens and the gap between best and second logit at each."""
    ids, tokens, margins = ids.clone(), [], []
    while len(tokens) < N_GREEDY and (not tokens or tokens[-1] != end):
        best = model(ids, use_cache=False).logits[0, -1].topk(2)
        tokens.append(best.indices[0].item())
        margins.append((best.values[0] - best.values[1]).item())
        ids = torch.cat((ids, best.indices[:1][None]), 1)
    return torch.tensor(tokens, dtype=torch.int32), torch.tensor(margins)


@torch.no_grad()
def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("model", help="checkpoint directory")
    p.add_argument("out", help="directory for golden.safetensors and golden.json")
    a = p.parse_args()
    os.makedirs(a.out, exist_ok=True)
    tokenizer = Tokenizer.from_file(f"{a.model}/tokenizer.json")
    model, net = official_model(a.model), checkpoint.load(Config(f"{a.model}/config.json"), a.model)
    tensors, notes, worst = {}, [], 0.0
    for i, prompt in enumerate(prompts(net, tokenizer)):
        ids = torch.tensor([prompt])
        logits = model(ids, use_cache=False).logits[0]
        own, hidden = net.logits(ids)
        worst = max(worst, (own[0] - logits).abs().max().item())
        tensors[f"p{i}.ids"] = ids[0].int()
        tensors[f"p{i}.logits_last"] = logits[-1].clone()
        if len(prompt) <= N_ALL:
            tensors[f"p{i}.logits_all"] = logits.clone()
        tensors[f"p{i}.greedy"], tensors[f"p{i}.margin"] = greedy(model, ids, net.c.eos_token_id)
        if i == MTP_PROMPT:
            tensors["mtp.logits"] = net.mtp_logits(ids[:, 1:], hidden[:, :-1])[0]
        notes.append(
            {
                "n": len(prompt),
                "routing_gap": round(routing_gap(net, ids), 8),
                "std": round(logits.std().item(), 3),
                "min_margin": round(tensors[f"p{i}.margin"].min().item(), 5),
                "text": tokenizer.decode(
                    tensors[f"p{i}.greedy"].tolist(), skip_special_tokens=False
                ),
            }
        )
        print(notes[-1])
    save_file(tensors, f"{a.out}/golden.safetensors")
    with open(f"{a.out}/golden.json", "w", encoding="utf-8") as f:
        json.dump(notes, f, ensure_ascii=False, indent=1)
        f.write("\n")
    print(f"largest difference between net.py and transformers: {worst:.2e}")
    assert worst < 2e-3


if __name__ == "__main__":
    main()
