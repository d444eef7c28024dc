"""The DeepSeek-V3 architecture in PyTorch, small enough to read: MLA, shared and routed experts,
YaRN, MTP.

Parameters are called as in the published checkpoints, except that the experts of a layer are
stacked into one tensor each. All experts are computed for every token and weighted by the router,
zero where it did not choose them: at this size that is faster on a GPU than sorting tokens, and the
same sum.
"""
import json
import math

import torch
import torch.nn.functional as F
from torch import nn

from fp8 import fake_quantise


class Config:
    """config.json as attributes."""

    def __init__(self, path):
        with open(path, encoding="utf-8") as f:
            self.__dict__.update(json.load(f))

    @property
    def qk_head_dim(self):
        return self.qk_nope_head_dim + self.qk_rope_head_dim


class Linear(nn.Module):
    """y = W x without a bias; while training, W is seen through its FP8 blocks."""

    def __init__(self, n_in, n_out, fp8=True):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_out, n_in) * 0.02)
        self.fp8 = fp8

    def forward(self, x):
        quantise = self.fp8 and self.training
        return F.linear(x, fake_quantise(self.weight) if quantise else self.weight)


class RMSNorm(nn.Module):
    def __init__(self, n, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(n))
        self.eps = eps

    def forward(self, x):
        x = x.float()
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


def yarn_frequencies(c):
    """Rotation frequencies of the qk_rope_head_dim / 2 pairs, stretched as YaRN says."""
    d, s = c.qk_rope_head_dim, c.rope_scaling
    f = c.rope_theta ** -(torch.arange(0, d, 2, dtype=torch.float64) / d)
    if s is None:
        return f.float()

    def dim_of(rotations):
        length = s["original_max_position_embeddings"]
        return d * math.log(length / (2 * math.pi * rotations)) / (2 * math.log(c.rope_theta))

    low = max(math.floor(dim_of(s["beta_fast"])), 0)
    high = min(math.ceil(dim_of(s["beta_slow"])), d - 1)
    ramp = ((torch.arange(d // 2) - low) / max(high - low, 0.001)).clamp(0, 1)
    return (f / s["factor"] * ramp + f * (1 - ramp)).float()


def softmax_scale(c):
    scale = c.qk_head_dim**-0.5
    if c.rope_scaling is not None and c.rope_scaling["factor"] > 1:
        scale *= (
            0.1 * c.rope_scaling["mscale_all_dim"] * math.log(c.rope_scaling["factor"]) + 1
        ) ** 2
    return scale


def rotate(x, cos, sin):
    """Rotates the interleaved pairs (2i, 2i+1) of x: (batch, tokens, heads, rope)."""
    a, b = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2).to(x.dtype)


def attend(q, k, v, mask, scale):
    """Softmax attention of (batch, heads, tokens, dim); mask is true where a key may be seen."""
    if hasattr(F, "scaled_dot_product_attention"):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    scores = (q @ k.transpose(-1, -2)).float() * scale
    return scores.masked_fill(~mask, -math.inf).softmax(-1).to(v.dtype) @ v


class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c, heads = c, c.num_attention_heads
        self.q_a_proj = Linear(c.hidden_size, c.q_lora_rank)
        self.q_a_layernorm = RMSNorm(c.q_lora_rank, c.rms_norm_eps)
        self.q_b_proj = Linear(c.q_lora_rank, heads * c.qk_head_dim)
        self.kv_a_proj_with_mqa = Linear(c.hidden_size, c.kv_lora_rank + c.qk_rope_head_dim)
        self.kv_a_layernorm = RMSNorm(c.kv_lora_rank, c.rms_norm_eps)
        self.kv_b_proj = Linear(c.kv_lora_rank, heads * (c.qk_nope_head_dim + c.v_head_dim))
        self.o_proj = Linear(heads * c.v_head_dim, c.hidden_size)

    def forward(self, x, rope, mask):
        c, heads = self.c, self.c.num_attention_heads
        nope = c.qk_nope_head_dim
        cos, sin = rope
        q = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x))).unflatten(
            -1, (heads, c.qk_head_dim)
        )
        q = torch.cat((q[..., :nope], rotate(q[..., nope:], cos, sin)), -1)
        latent, k_pe = self.kv_a_proj_with_mqa(x).split((c.kv_lora_rank, c.qk_rope_head_dim), -1)
        kv = self.kv_b_proj(self.kv_a_layernorm(latent)).unflatten(-1, (heads, nope + c.v_head_dim))
        k_pe = rotate(k_pe.unsqueeze(2), cos, sin).expand(-1, -1, heads, -1)
        k = torch.cat((kv[..., :nope], k_pe), -1)
        out = attend(
            q.transpose(1, 2),
            k.transpose(1, 2),
            kv[..., nope:].transpose(1, 2),
            mask,
            softmax_scale(c),
        )
        return self.o_proj(out.transpose(1, 2).flatten(-2))


class Dense(nn.Module):
    def __init__(self, c, n_inner):
        super().__init__()
        self.gate_proj = Linear(c.hidden_size, n_inner)
        self.up_proj = Linear(c.hidden_size, n_inner)
        self.down_proj = Linear(n_inner, c.hidden_size)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Router(nn.Module):
    """Chooses experts by biased scores, group-limited; weighs them by the scores without the
    bias.
    """

    def __init__(self, c):
        super().__init__()
        self.c = c
        self.weight = nn.Parameter(torch.randn(c.n_routed_experts, c.hidden_size) * 0.02)
        self.register_buffer("e_score_correction_bias", torch.zeros(c.n_routed_experts))

    def forward(self, x):
        c = self.c
        scores = F.linear(x.float(), self.weight.float()).sigmoid()
        biased = scores + self.e_score_correction_bias
        groups = biased.unflatten(-1, (c.n_group, -1))
        best = groups.topk(2, -1).values.sum(-1).topk(c.topk_group, -1).indices
        kept = torch.zeros_like(groups[..., 0]).scatter(-1, best, 1.0)
        biased = groups.masked_fill(kept.unsqueeze(-1) == 0, -math.inf).flatten(-2)
        chosen = biased.topk(c.num_experts_per_tok, -1).indices
        w = scores.gather(-1, chosen)
        if c.norm_topk_prob:
            w = w / (w.sum(-1, keepdim=True) + 1e-20)
        return torch.zeros_like(scores).scatter(-1, chosen, w * c.routed_scaling_factor)


class Experts(nn.Module):
    """Weights of all routed experts of a layer, stacked."""

    def __init__(self, c):
        super().__init__()
        n, hidden, inner = c.n_routed_experts, c.hidden_size, c.moe_intermediate_size
        self.gate_proj = nn.Parameter(torch.randn(n, inner, hidden) * 0.02)
        self.up_proj = nn.Parameter(torch.randn(n, inner, hidden) * 0.02)
        self.down_proj = nn.Parameter(torch.randn(n, hidden, inner) * 0.02)

    def forward(self, x, weights):
        gate, up, down = self.gate_proj, self.up_proj, self.down_proj
        if self.training:
            gate, up, down = fake_quantise(gate), fake_quantise(up), fake_quantise(down)
        inner = F.silu(F.linear(x, gate.flatten(0, 1))) * F.linear(x, up.flatten(0, 1))
        inner = inner.unflatten(-1, (gate.shape[0], -1)) * weights.unsqueeze(-1).to(inner.dtype)
        return inner.flatten(-2) @ down.transpose(1, 2).flatten(0, 1).to(inner.dtype)


class Moe(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.gate = Router(c)
        self.experts = Experts(c)
        self.shared_experts = Dense(c, c.moe_intermediate_size * c.n_shared_experts)

    def forward(self, x):
        with torch.autocast(x.device.type, enabled=False):
            weights = self.gate(x)
        load = (weights.detach() > 0).float().flatten(0, -2).sum(0)
        return self.experts(x, weights) + self.shared_experts(x), load


class Layer(nn.Module):
    def __init__(self, c, dense):
        super().__init__()
        self.dense = dense
        self.input_layernorm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.self_attn = Attention(c)
        self.post_attention_layernorm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.mlp = Dense(c, c.intermediate_size) if dense else Moe(c)

    def forward(self, x, rope, mask):
        """Returns the layer's output and, of a MoE layer, how many tokens each expert got."""
        x = x + self.self_attn(self.input_layernorm(x), rope, mask)
        y = self.mlp(self.post_attention_layernorm(x))
        y, load = (y, None) if self.dense else y
        return x + y, load


class MtpLayer(Layer):
    """Predicts token i+2 from the main model's hidden row i and token i+1."""

    def __init__(self, c):
        super().__init__(c, dense=False)
        self.enorm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.hnorm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.eh_proj = Linear(2 * c.hidden_size, c.hidden_size, fp8=False)
        self.shared_head = nn.ModuleDict({"norm": RMSNorm(c.hidden_size, c.rms_norm_eps)})

    def forward(self, embedded, hidden, rope, mask):
        z = self.eh_proj(torch.cat((self.enorm(embedded), self.hnorm(hidden)), -1))
        y, load = super().forward(z.float(), rope, mask)
        return self.shared_head["norm"](y), load


class Model(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.embed_tokens = nn.Embedding(c.vocab_size, c.hidden_size)
        nn.init.normal_(self.embed_tokens.weight, std=0.02)
        self.layers = nn.ModuleList(
            [Layer(c, i < c.first_k_dense_replace) for i in range(c.num_hidden_layers)]
        )
        self.layers.append(MtpLayer(c))
        self.norm = RMSNorm(c.hidden_size, c.rms_norm_eps)


class Net(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c = c
        self.model = Model(c)
        self.lm_head = Linear(c.hidden_size, c.vocab_size, fp8=False)
        self.register_buffer("frequencies", yarn_frequencies(c), persistent=False)

    def rope(self, n):
        angles = (
            torch.arange(n, device=self.frequencies.device).float()[:, None, None]
            * self.frequencies
        )
        return angles.cos(), angles.sin()

    def main(self, ids, mask):
        """Hidden rows after model.norm of (batch, tokens) ids, and the experts' loads."""
        x, rope, loads = self.model.embed_tokens(ids), self.rope(ids.shape[1]), []
        for layer in self.model.layers[:-1]:
            x, load = layer(x, rope, mask)
            if load is not None:
                loads.append(load)
        return self.model.norm(x), loads

    def mtp(self, next_ids, hidden, mask):
        """Rows whose logits predict token i+2; next_ids[i] is token i+1."""
        embedded = self.model.embed_tokens(next_ids)
        return self.model.layers[-1](embedded, hidden, self.rope(next_ids.shape[1]), mask)

    def logits(self, ids):
        """Logits of whole sequences, and the hidden rows: the plain causal model."""
        n = ids.shape[1]
        mask = torch.ones(n, n, dtype=torch.bool, device=ids.device).tril()
        hidden, _ = self.main(ids, mask)
        return self.lm_head(hidden), hidden

    def mtp_logits(self, next_ids, hidden):
        n = next_ids.shape[1]
        mask = torch.ones(n, n, dtype=torch.bool, device=next_ids.device).tril()
        return self.lm_head(self.mtp(next_ids, hidden, mask)[0])

    def forward(self, ids, docs, weights):
        """Losses of packed rows: ids, docs (which document) and weights are (batch, tokens + 2)."""
        n = ids.shape[1] - 2
        seen = docs[:, :n]
        mask = (seen[:, :, None] == seen[:, None, :]).unsqueeze(1)
        mask = mask & torch.ones(n, n, dtype=torch.bool, device=ids.device).tril()
        hidden, loads = self.main(ids[:, :n], mask)
        ahead, load = self.mtp(ids[:, 1 : n + 1], hidden, mask)
        losses = []
        for rows, shift in ((hidden, 1), (ahead, 2)):
            w = weights[:, shift : n + shift] * (seen == docs[:, shift : n + shift])
            loss = F.cross_entropy(
                self.lm_head(rows).float().flatten(0, 1),
                ids[:, shift : n + shift].flatten(),
                reduction="none",
            )
            losses.append((loss * w.flatten()).sum() / w.sum())
        return losses[0], losses[1], torch.stack(loads + [load])

    def routers(self):
        return [layer.mlp.gate for layer in self.model.layers if not layer.dense]
