"""Trains the shipped model on one GPU: bf16 arithmetic, float32 weights seen through their FP8
blocks, AdamW with a cosine, MTP beside the main loss, routers balanced by their biases as in the
V3 paper.

Runs for --steps, or for as many as fit into --minutes; stopped, it goes on from its last state.
"""
import argparse
import math
import os
import time

import torch
from tokenizers import Tokenizer

import checkpoint
import lines
from evaluate import encode_chats, exact_matches, judge
from net import Config, Net
from stream import Prose, batches

WARMUP_STEPS = 300
RATE_STEPS = (80, 180)  # between these the speed is measured, when --minutes decides
BIAS_STEP = 0.001
VALIDATION_SEED = 1


def learning_rate(step, n_steps, peak):
    if step < WARMUP_STEPS:
        return peak * (step + 1) / WARMUP_STEPS
    done = min((step - WARMUP_STEPS) / max(n_steps - WARMUP_STEPS, 1), 1)
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))


def make_optimizer(net, lr, fused):
    matrices = [w for n, w in net.named_parameters() if w.dim() >= 2 and "embed_tokens" not in n]
    rest = [w for n, w in net.named_parameters() if w.dim() < 2 or "embed_tokens" in n]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(
        groups, lr=lr, betas=(0.9, 0.95), eps=1e-9, **({"fused": True} if fused else {})
    )


@torch.no_grad()
def balance(net, loads, size):
    """Raises the bias of experts with less than their share of tokens, lowers that of the
    others.
    """
    for router, load in zip(net.routers(), loads):
        router.e_score_correction_bias += size * torch.sign(load.mean() - load)


class State:
    """What training resumes from."""

    def __init__(self, path, net, optimizer):
        self.path, self.net, self.optimizer = path, net, optimizer
        self.step, self.n_steps, self.seconds = 0, 0, 0.0

    def load(self, device):
        saved = torch.load(self.path, map_location=device)
        self.net.load_state_dict(saved["net"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.step, self.n_steps, self.seconds = saved["step"], saved["n_steps"], saved["seconds"]

    def save(self):
        torch.save(
            {
                "net": self.net.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "step": self.step,
                "n_steps": self.n_steps,
                "seconds": self.seconds,
            },
            self.path + ".new",
        )
        os.replace(self.path + ".new", self.path)


def train_step(a, net, forward, optimizer, batch, step, n_steps):
    lr = learning_rate(step, n_steps, a.lr)
    for group in optimizer.param_groups:
        group["lr"] = lr
    with torch.autocast(a.device, torch.bfloat16):
        loss, ahead, loads = forward(*batch)
    late = step > WARMUP_STEPS and step > 0.67 * n_steps
    (loss + (0.1 if late else 0.3) * ahead).backward()
    torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    nearly_done = step > WARMUP_STEPS and step > 0.9 * n_steps
    balance(net, loads, 0.0 if nearly_done else BIAS_STEP)
    return loss.detach(), ahead.detach(), loads, lr


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument(
        "model",
        help="directory with config.json and tokenizer.json; the checkpoint is written into it",
    )
    p.add_argument("prose")
    p.add_argument("state", help="file to save the training state in, and to go on from")
    p.add_argument("--steps", type=int, default=0)
    p.add_argument("--minutes", type=float, default=15)
    p.add_argument("--rows", type=int, default=64)
    p.add_argument("--tokens", type=int, default=512)
    p.add_argument("--lr", type=float, default=2e-3)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--workers", type=int, default=12)
    p.add_argument("--every", type=float, default=60, help="seconds between validations")
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    a = p.parse_args()
    began = time.monotonic()
    torch.manual_seed(a.seed)
    torch.set_float32_matmul_precision("high")
    tokenizer = Tokenizer.from_file(f"{a.model}/tokenizer.json")
    prose = Prose(a.prose, tokenizer)
    net = Net(Config(f"{a.model}/config.json")).to(a.device)
    optimizer = make_optimizer(net, a.lr, a.device == "cuda")
    state = State(a.state, net, optimizer)
    if os.path.exists(a.state):
        state.load(a.device)
    n_parameters = sum(w.numel() for w in net.parameters())
    print(
        f"{n_parameters} parameters, {sum(len(q) for q in prose.pages)} tokens of prose, "
        f"from step {state.step}",
        flush=True,
    )
    chats = encode_chats(tokenizer, lines.held_out_lines(VALIDATION_SEED, 512))
    stream = batches(tokenizer, prose, a.tokens, a.rows, f"{a.seed}/{state.step}", a.workers)
    forward = torch.compile(net) if a.device == "cuda" else net
    net.train()
    if a.steps:
        state.n_steps = a.steps
    before, last, rate_from = state.seconds, time.monotonic(), None
    while not state.n_steps or state.step < state.n_steps:
        batch = [t.to(a.device, non_blocking=True) for t in next(stream)]
        loss, ahead, loads, lr = train_step(
            a, net, forward, optimizer, batch, state.step, state.n_steps
        )
        state.step += 1
        now = time.monotonic()
        state.seconds = before + now - began
        if not state.n_steps and state.step in RATE_STEPS:
            loss.item()
            now = time.monotonic()
            if state.step == RATE_STEPS[1]:
                seconds = (now - rate_from) / (RATE_STEPS[1] - RATE_STEPS[0])
                state.n_steps = state.step + int(0.97 * (a.minutes * 60 - (now - began)) / seconds)
                print(f"{seconds * 1000:.1f} ms a step: {state.n_steps} steps", flush=True)
            rate_from = now
        if now - last > a.every or state.step in (20, 400, state.n_steps):
            state.save()
            choices, acceptance = judge(checkpoint.settled(net), chats, a.device)
            exact = exact_matches(chats, choices)
            uneven = (loads.max(-1).values / loads.mean(-1)).max().item()
            print(
                f"step {state.step} {state.seconds:.0f} s loss {loss.item():.4f} "
                f"ahead {ahead.item():.4f} lr {lr:.2e} exact {sum(exact) / len(exact):.4f} "
                f"drafts {acceptance:.3f} uneven {uneven:.2f}",
                flush=True,
            )
            last = time.monotonic()
    state.save()
    checkpoint.save(net, a.model)
    print("done", flush=True)


if __name__ == "__main__":
    main()
