# DeepSeek-V3 in float64, plainly: what the formulas say, with no cache, no absorption and no
# partition. And checkpoints of this architecture with random weights, written byte by byte. Shares
# nothing with the code that it judges.
import json
import math
import os
import struct

import numpy as np

BLOCK = 128  # rows and columns of an FP8 matrix that share a scale

# --- number formats


def e4m3_table():
    """The values of the 256 codes of e4m3fn."""
    out = np.zeros(256)
    for code in range(256):
        exponent, mantissa = code >> 3 & 15, code & 7
        one = 1 if exponent > 0 else 0  # subnormals have none in front
        value = (one + mantissa / 8) * 2.0**(max(exponent, 1) - 7)
        out[code] = math.nan if code & 127 == 127 else -value if code & 128 else value
    return out


E4M3 = e4m3_table()


def decode(dtype, raw):
    """Bytes to float64 (or to integers)."""
    if dtype == "BF16":
        return (np.frombuffer(raw, "<u2").astype("<u4") << 16).view("<f4").astype(np.float64)
    if dtype == "F8_E4M3":
        return E4M3[np.frombuffer(raw, np.uint8)]
    if dtype in ("I32", "I64"):
        return np.frombuffer(raw, {"I32": "<i4", "I64": "<i8"}[dtype])
    return np.frombuffer(raw, {"F64": "<f8", "F32": "<f4", "F16": "<f2"}[dtype]).astype(np.float64)


def encode(dtype, values):
    """Finite values to bytes, to nearest."""
    values = np.ascontiguousarray(values)
    if dtype == "BF16":
        bits = values.astype("<f4").view("<u4")
        return ((bits + 0x7fff + (bits >> 16 & 1)) >> 16).astype("<u2").tobytes()
    if dtype == "F8_E4M3":
        size = np.clip(np.abs(values), 0, E4M3[126])
        code = np.searchsorted((E4M3[:126] + E4M3[1:127]) / 2, size)
        return (code + np.where(np.signbit(values), 128, 0)).astype(np.uint8).tobytes()
    return values.astype({"F32": "<f4", "F16": "<f2"}[dtype]).tobytes()


def over_blocks(scales, shape):
    """One scale a block -> one an element."""
    return np.repeat(np.repeat(scales, BLOCK, 0), BLOCK, 1)[:shape[0], :shape[1]]


# --- files


def read_safetensors(path):
    """{name: (dtype, shape, bytes)}"""
    with open(path, "rb") as f:
        n, = struct.unpack("<Q", f.read(8))
        header, body = json.loads(f.read(n)), f.read()
    header.pop("__metadata__", None)
    return {name: (t["dtype"], t["shape"], body[t["data_offsets"][0]:t["data_offsets"][1]])
            for name, t in header.items()}


def write_safetensors(path, tensors):
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, (dtype, shape, raw) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + len(raw)]}
        at += len(raw)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for _, _, raw in tensors.values():
            f.write(raw)


def write_checkpoint(folder, config, tensors, n_files=1):
    """config.json and the tensors, in one file or in shards with an index."""
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "config.json"), "w") as f:
        json.dump(config, f, indent=1)
    if n_files == 1:
        write_safetensors(os.path.join(folder, "model.safetensors"), tensors)
        return
    shards = [{} for _ in range(n_files)]
    for i, (name, tensor) in enumerate(tensors.items()):
        shards[i * n_files // len(tensors)][name] = tensor
    index = {}
    for i, shard in enumerate(shards, 1):
        file = "model-%05d-of-%05d.safetensors" % (i, n_files)
        write_safetensors(os.path.join(folder, file), shard)
        index.update(dict.fromkeys(shard, file))
    with open(os.path.join(folder, "model.safetensors.index.json"), "w") as f:
        total = sum(len(raw) for _, _, raw in tensors.values())
        json.dump({"metadata": {"total_size": total}, "weight_map": index}, f)


# --- config

DEFAULTS = {"num_nextn_predict_layers": 0, "n_shared_experts": 1, "norm_topk_prob": True,
            "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "rope_scaling": None, "n_group": 1,
            "topk_group": 1, "first_k_dense_replace": 0}


def full(config):
    """The config with what absent keys mean; rope_parameters taken apart."""
    c = dict(DEFAULTS, **config)
    parameters = c.get("rope_parameters")
    if parameters:
        c["rope_theta"] = parameters.get("rope_theta", c["rope_theta"])
        kind = parameters.get("rope_type", parameters.get("type", "default"))
        c["rope_scaling"] = None if kind == "default" else parameters
    c["n_shared_experts"] = c["n_shared_experts"] or 0
    return c


# --- random checkpoints


def matrices(c):
    """Of the layers, the embedding and the head: name -> shape; vectors have one dimension."""
    out = {"model.embed_tokens.weight": (c["vocab_size"], c["hidden_size"])}
    layers = c["num_hidden_layers"] + c["num_nextn_predict_layers"]
    for i in range(layers):
        out.update({"model.layers.%d.%s" % (i, k): v for k, v in layer(c, i).items()})
    out["model.norm.weight"] = (c["hidden_size"],)
    out["lm_head.weight"] = (c["vocab_size"], c["hidden_size"])
    return out


def gated(prefix, width, hidden):
    return {prefix + "gate_proj.weight": (width, hidden),
            prefix + "up_proj.weight": (width, hidden),
            prefix + "down_proj.weight": (hidden, width)}


def layer(c, i):
    hidden, heads, latent = c["hidden_size"], c["num_attention_heads"], c["kv_lora_rank"]
    nope, rope, v = c["qk_nope_head_dim"], c["qk_rope_head_dim"], c["v_head_dim"]
    out, attention = {"input_layernorm.weight": (hidden,)}, "self_attn."
    if c["q_lora_rank"]:
        out[attention + "q_a_proj.weight"] = (c["q_lora_rank"], hidden)
        out[attention + "q_a_layernorm.weight"] = (c["q_lora_rank"],)
        out[attention + "q_b_proj.weight"] = (heads * (nope + rope), c["q_lora_rank"])
    else:
        out[attention + "q_proj.weight"] = (heads * (nope + rope), hidden)
    out[attention + "kv_a_proj_with_mqa.weight"] = (latent + rope, hidden)
    out[attention + "kv_a_layernorm.weight"] = (latent,)
    out[attention + "kv_b_proj.weight"] = (heads * (nope + v), latent)
    out[attention + "o_proj.weight"] = (hidden, heads * v)
    out["post_attention_layernorm.weight"] = (hidden,)
    if i < c["first_k_dense_replace"]:
        out.update(gated("mlp.", c["intermediate_size"], hidden))
    else:
        width, shared = c["moe_intermediate_size"], c["n_shared_experts"]
        out["mlp.gate.weight"] = (c["n_routed_experts"], hidden)
        out["mlp.gate.e_score_correction_bias"] = (c["n_routed_experts"],)
        for e in range(c["n_routed_experts"]):
            out.update(gated("mlp.experts.%d." % e, width, hidden))
        if shared:
            out.update(gated("mlp.shared_experts.", shared * width, hidden))
    if i >= c["num_hidden_layers"]:
        out["eh_proj.weight"] = (hidden, 2 * hidden)
        for name in ("enorm", "hnorm", "shared_head.norm"):
            out[name + ".weight"] = (hidden,)
        for name in ("embed_tokens", "shared_head.head"):
            out[name + ".weight"] = (c["vocab_size"], hidden)
    return out


PLAIN = ("embed_tokens", "lm_head", "shared_head", "eh_proj", "mlp.gate.")


def draw(config, seed, dtype_of=None, bias=(0, 0.05)):
    """Tensors of a random checkpoint. Logits have a standard deviation of about 2. dtype_of(name)
    may give another type than bf16 (FP8 matrices excepted); bias: mean and deviation of the
    router's."""
    c, rng, out = full(config), np.random.default_rng(seed), {}
    fp8 = c.get("quantization_config") is not None
    for name, shape in matrices(c).items():
        if name.endswith("e_score_correction_bias"):
            values, dtype = bias[0] + bias[1] * rng.standard_normal(shape), "F32"
        elif len(shape) == 1:
            values, dtype = 1 + 0.2 * rng.standard_normal(shape), "BF16"
        else:
            gain = 1 if "embed_tokens" in name else shape[1] ** -0.5
            gain *= 2 if name == "lm_head.weight" else 1
            values, dtype = gain * rng.standard_normal(shape), "BF16"
        dtype = dtype_of(name) or dtype if dtype_of else dtype
        if not fp8 or len(shape) == 1 or any(p in name for p in PLAIN) or dtype != "BF16":
            out[name] = (dtype, shape, encode(dtype, values))
            continue
        # Scales of their own for each block, so that a block taken for another one shows.
        blocks = [-(-n // BLOCK) for n in shape]
        scales = (rng.uniform(0.5, 2, blocks) * gain / 60).astype(np.float32).astype(np.float64)
        out[name] = ("F8_E4M3", shape, encode("F8_E4M3", values / over_blocks(scales, shape)))
        out[name + "_scale_inv"] = ("F32", blocks, encode("F32", scales))
    return out


# --- the model


def rmsnorm(x, weight, eps):
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * weight


def silu(x):
    return x / (1 + np.exp(-x))


def mscale(scale, m):
    return 1.0 if scale <= 1 else 0.1 * m * math.log(scale) + 1


class Model:
    LATENT_EPS = 1e-6  # of q_a and kv_a: whatever rms_norm_eps says, the others' default

    def __init__(self, config, tensors):
        self.c, self.tensors, self.cache = full(config), tensors, {}
        c = self.c
        d, yarn = c["qk_rope_head_dim"], c["rope_scaling"]
        self.scale = (c["qk_nope_head_dim"] + d) ** -0.5
        self.multiplier, self.inv_freq = 1.0, []
        if yarn:
            factor, all_dim = yarn["factor"], yarn.get("mscale_all_dim", 0)
            self.scale *= mscale(factor, all_dim) ** 2
            self.multiplier = mscale(factor, yarn.get("mscale", 1)) / mscale(factor, all_dim)
            low = max(math.floor(self.turning_dim(yarn.get("beta_fast", 32))), 0)
            high = min(math.ceil(self.turning_dim(yarn.get("beta_slow", 1))), d - 1)
        for i in range(d // 2):
            f = c["rope_theta"] ** (-2 * i / d)
            if yarn:
                ramp = min(max((i - low) / max(high - low, 0.001), 0), 1)
                f = f / factor * ramp + f * (1 - ramp)
            self.inv_freq.append(f)

    @staticmethod
    def load(folder):
        with open(os.path.join(folder, "config.json")) as f:
            config = json.load(f)
        tensors = {}
        for file in sorted(os.listdir(folder)):
            if file.startswith("model") and file.endswith(".safetensors"):
                tensors.update(read_safetensors(os.path.join(folder, file)))
        return Model(config, tensors)

    def turning_dim(self, r):
        """The dimension that turns r times in the original context."""
        yarn, d = self.c["rope_scaling"], self.c["qk_rope_head_dim"]
        length = yarn.get("original_max_position_embeddings", self.c["max_position_embeddings"])
        return d * math.log(length / (2 * math.pi * r)) / (2 * math.log(self.c["rope_theta"]))

    def weight(self, name):
        if name not in self.cache:
            dtype, shape, raw = self.tensors[name]
            values = decode(dtype, raw).reshape(shape)
            if name + "_scale_inv" in self.tensors:
                dtype, blocks, raw = self.tensors[name + "_scale_inv"]
                values = values * over_blocks(decode(dtype, raw).reshape(blocks), shape)
            self.cache[name] = values
        return self.cache[name]

    def rope(self, x):
        """x (n, ..., rope) at positions 0, 1, ...: turns the pairs (2i, 2i + 1)."""
        angle = np.arange(len(x))[:, None] * np.array(self.inv_freq)
        angle = angle.reshape(len(x), *[1] * (x.ndim - 2), -1)
        cos, sin = np.cos(angle) * self.multiplier, np.sin(angle) * self.multiplier
        even, odd = x[..., 0::2], x[..., 1::2]
        return np.stack([even * cos - odd * sin, even * sin + odd * cos], -1).reshape(x.shape)

    def attention(self, x, at):
        c, n = self.c, len(x)
        heads, latent = c["num_attention_heads"], c["kv_lora_rank"]
        nope, rope, v = c["qk_nope_head_dim"], c["qk_rope_head_dim"], c["v_head_dim"]
        if c["q_lora_rank"]:
            q = x @ self.weight(at + "q_a_proj.weight").T
            q = rmsnorm(q, self.weight(at + "q_a_layernorm.weight"), self.LATENT_EPS)
            q = q @ self.weight(at + "q_b_proj.weight").T
        else:
            q = x @ self.weight(at + "q_proj.weight").T
        q = q.reshape(n, heads, nope + rope)
        q_nope, q_pe = q[..., :nope], self.rope(q[..., nope:])
        kv = x @ self.weight(at + "kv_a_proj_with_mqa.weight").T
        k_pe = self.rope(kv[:, latent:])
        kv = rmsnorm(kv[:, :latent], self.weight(at + "kv_a_layernorm.weight"), self.LATENT_EPS)
        kv = (kv @ self.weight(at + "kv_b_proj.weight").T).reshape(n, heads, nope + v)
        scores = np.einsum("ihd,jhd->hij", q_nope, kv[..., :nope])
        scores = (scores + np.einsum("ihd,jd->hij", q_pe, k_pe)) * self.scale
        scores[:, np.triu(np.ones((n, n), bool), 1)] = -np.inf
        p = np.exp(scores - scores.max(-1, keepdims=True))
        p /= p.sum(-1, keepdims=True)
        out = np.einsum("hij,jhd->ihd", p, kv[..., nope:]).reshape(n, heads * v)
        return out @ self.weight(at + "o_proj.weight").T

    def gated(self, x, at):
        gate = silu(x @ self.weight(at + "gate_proj.weight").T)
        up = x @ self.weight(at + "up_proj.weight").T
        return (gate * up) @ self.weight(at + "down_proj.weight").T

    def route(self, row, at):
        """(experts, weights) of one row; notes how near another choice was."""
        c = self.c
        s = 1 / (1 + np.exp(-(self.weight(at + "gate.weight") @ row)))
        biased = s + self.weight(at + "gate.e_score_correction_bias")
        groups, kept, k = c["n_group"], c["topk_group"], c["num_experts_per_tok"]
        if groups > 1:
            by_group = biased.reshape(groups, -1)
            score = np.sort(by_group, axis=1)[:, -2:].sum(1)
            order = np.argsort(-score, kind="stable")
            if kept < groups:
                self.gap = min(self.gap, score[order[kept - 1]] - score[order[kept]])
            masked = np.full_like(by_group, -np.inf)
            masked[order[:kept]] = by_group[order[:kept]]
            biased = masked.reshape(-1)
        order = np.argsort(-biased, kind="stable")
        if k < len(biased) and biased[order[k]] > -np.inf:
            self.gap = min(self.gap, biased[order[k - 1]] - biased[order[k]])
        chosen = order[:k]
        w = s[chosen]
        if c["norm_topk_prob"]:
            w = w / (w.sum() + 1e-20)
        return chosen, w * c["routed_scaling_factor"]

    def experts(self, x, at):
        y = np.zeros_like(x)
        if self.c["n_shared_experts"]:
            y += self.gated(x, at + "shared_experts.")
        rows = {}
        for i, row in enumerate(x):
            for e, w in zip(*self.route(row, at)):
                rows.setdefault(e, []).append((i, w))
        for e, pairs in rows.items():
            i, w = [p[0] for p in pairs], np.array([p[1] for p in pairs])
            y[i] += w[:, None] * self.gated(x[i], at + "experts.%d." % e)
        return y

    def decoder_layer(self, x, i):
        at, eps = "model.layers.%d." % i, self.c["rms_norm_eps"]
        h = rmsnorm(x, self.weight(at + "input_layernorm.weight"), eps)
        x = x + self.attention(h, at + "self_attn.")
        h = rmsnorm(x, self.weight(at + "post_attention_layernorm.weight"), eps)
        dense = i < self.c["first_k_dense_replace"]
        return x + (self.gated(h, at + "mlp.") if dense else self.experts(h, at + "mlp."))

    def hidden(self, ids):
        x = self.weight("model.embed_tokens.weight")[ids]
        for i in range(self.c["num_hidden_layers"]):
            x = self.decoder_layer(x, i)
        return rmsnorm(x, self.weight("model.norm.weight"), self.c["rms_norm_eps"])

    def logits(self, ids):
        """(n, vocab). self.gap becomes the smallest gap at any decision of the router."""
        self.gap = np.inf
        return self.hidden(ids) @ self.weight("lm_head.weight").T

    def mtp(self, ids):
        """(n - 1, vocab): row i uses hidden i and token i + 1, and predicts token i + 2."""
        i, eps = self.c["num_hidden_layers"], self.c["rms_norm_eps"]
        at = "model.layers.%d." % i
        e = rmsnorm(self.weight("model.embed_tokens.weight")[ids[1:]],
                    self.weight(at + "enorm.weight"), eps)
        h = rmsnorm(self.hidden(ids)[:-1], self.weight(at + "hnorm.weight"), eps)
        z = np.concatenate([e, h], -1) @ self.weight(at + "eh_proj.weight").T
        y = rmsnorm(self.decoder_layer(z, i), self.weight(at + "shared_head.norm.weight"), eps)
        return y @ self.weight("lm_head.weight").T


def prompt(model, n, seed):
    """(ids, logits) of a random prompt in which no row is near another choice of experts."""
    for again in range(200):
        ids = np.random.default_rng([seed, again]).integers(0, model.c["vocab_size"], n)
        logits = model.logits(ids)
        if model.gap >= 1e-4:
            return ids, logits
    raise AssertionError("no prompt of %d tokens has a routing gap of 1e-4" % n)
