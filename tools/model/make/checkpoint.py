"""From the net to a published checkpoint and back: FP8 blocks in safetensors shards with their
index."""
import copy
import glob
import json

import torch
from safetensors.torch import load_file, save_file

from fp8 import block_scales, dequantised, spread
from net import Linear, Net

SHARD_BYTES = 11_900_000


def is_fp8(net, name):
    """Whether the parameter `name` of the net is stored as FP8."""
    owner = net.get_submodule(name.rsplit(".", 1)[0])
    return name.split(".")[-2] == "experts" or (isinstance(owner, Linear) and owner.fp8)


def settled(net):
    """A copy of the net with the weights that its checkpoint holds, in evaluation mode."""
    net = copy.deepcopy(net).float().eval()
    with torch.no_grad():
        for name, w in net.named_parameters():
            w.copy_(dequantised(w) if is_fp8(net, name) else w.bfloat16().float())
    return net


def stored_tensors(net):
    """(name, tensor) of the checkpoint, layer after layer, from float32 weights."""
    last = f"model.layers.{net.c.num_hidden_layers}"
    for name, w in net.state_dict().items():
        w = w.detach().cpu()
        if name.endswith("e_score_correction_bias"):
            yield name, w
        elif not is_fp8(net, name):
            yield name, w.bfloat16()
            if name == "model.embed_tokens.weight":
                yield f"{last}.embed_tokens.weight", w.bfloat16()
            if name == "lm_head.weight":
                yield f"{last}.shared_head.head.weight", w.bfloat16()
        elif name.split(".")[-2] == "experts":
            prefix, part = name.rsplit(".", 1)
            for e in range(w.shape[0]):
                yield from fp8_pair(f"{prefix}.{e}.{part}.weight", w[e])
        else:
            yield from fp8_pair(name, w)


def fp8_pair(name, w):
    scales = block_scales(w)
    yield name, (w / spread(scales, w.shape)).to(torch.float8_e4m3fn)
    yield name + "_scale_inv", scales


def save(net, directory):
    """Writes the shards and model.safetensors.index.json."""
    shards, sizes = [{}], [0]
    for name, tensor in stored_tensors(net):
        n_bytes = tensor.numel() * tensor.element_size()
        if sizes[-1] + n_bytes + 120 * len(shards[-1]) > SHARD_BYTES:
            shards.append({})
            sizes.append(0)
        shards[-1][name] = tensor.contiguous().clone()
        sizes[-1] += n_bytes
    where = {}
    for i, shard in enumerate(shards, 1):
        file = f"model-{i:05}-of-{len(shards):05}.safetensors"
        save_file(shard, f"{directory}/{file}", metadata={"format": "pt"})
        where.update({name: file for name in shard})
    with open(f"{directory}/model.safetensors.index.json", "w", encoding="utf-8") as f:
        json.dump(
            {"metadata": {"total_size": sum(sizes)}, "weight_map": dict(sorted(where.items()))},
            f,
            indent=1,
        )
        f.write("\n")


def load_dequantised(directory):
    """All tensors of a checkpoint directory as float32, scales multiplied in."""
    tensors = {}
    for path in sorted(glob.glob(f"{directory}/*.safetensors")):
        tensors.update(load_file(path))
    for name in [n for n in tensors if n.endswith("_scale_inv")]:
        scales, w = tensors.pop(name), name[: -len("_scale_inv")]
        tensors[w] = tensors[w].float() * spread(scales, tensors[w].shape)
    return {name: w.float() for name, w in tensors.items()}


def load(config, directory):
    """The net of a checkpoint directory, in evaluation mode."""
    tensors, net = load_dequantised(directory), Net(config)
    state = net.state_dict()
    for name in state:
        if name.split(".")[-2] == "experts":
            prefix, part = name.rsplit(".", 1)
            state[name] = torch.stack(
                [tensors[f"{prefix}.{e}.{part}.weight"] for e in range(state[name].shape[0])]
            )
        else:
            state[name] = tensors[name]
    net.load_state_dict(state)
    return net.eval()
