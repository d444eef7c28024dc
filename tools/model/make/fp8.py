"""FP8 blocks: e4m3fn weights with one float32 scale for each 128 x 128 block.

A block's scale is its largest magnitude / 448, so w = float(q) * scale (the checkpoints call it
weight_scale_inv, but it multiplies).
"""
import torch
import torch.nn.functional as F

BLOCK = 128
LARGEST = 448.0


def block_scales(w):
    """Scales (..., ceil(out/128), ceil(in/128)) of w (..., out, in)."""
    rows, cols = w.shape[-2:]
    w = F.pad(w, (0, -cols % BLOCK, 0, -rows % BLOCK))
    blocks = w.unflatten(-1, (-1, BLOCK)).unflatten(-3, (-1, BLOCK))
    return blocks.abs().amax((-3, -1)).clamp(min=1e-12) / LARGEST


def spread(scales, shape):
    """Scales repeated over the elements of their blocks."""
    s = scales.repeat_interleave(BLOCK, -2).repeat_interleave(BLOCK, -1)
    return s[..., : shape[-2], : shape[-1]]


def round_e4m3(x):
    """x (at most 448 in magnitude) rounded to the nearest e4m3 value, ties to even."""
    if hasattr(torch, "float8_e4m3fn"):
        return x.to(torch.float8_e4m3fn).float()
    exponent = torch.frexp(x)[1] - 1
    step = torch.ldexp(torch.ones_like(x), exponent.clamp(min=-6) - 3)
    return torch.round(x / step) * step


def dequantised(w):
    """The weights as they read after a round trip through FP8."""
    s = spread(block_scales(w), w.shape)
    return round_e4m3(w / s) * s


def fake_quantise(w):
    """FP8's values forward, the identity backward: the weights learn to live with their
    rounding.
    """
    with torch.no_grad():
        error = dequantised(w) - w
    return w + error
