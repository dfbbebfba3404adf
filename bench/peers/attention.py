#!/usr/bin/env python3
"""PyTorch's flash attention at the dense shapes of bench/cuda_attention_bench.cpp.

16,384 tokens in bf16, width 2,048; operations are counted for the visible (query, key) pairs alone:
4*D forward, 10*D backward. Times are medians of samples between CUDA events.

usage: attention.py
"""
import statistics

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

TOKENS, WIDTH, SAMPLES, SAMPLE_MS = 16384, 2048, 7, 20.0


def milliseconds(call):
    def sample(calls):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(calls):
            call()
        stop.record()
        stop.synchronize()
        return start.elapsed_time(stop) / calls

    sample(1)
    calls = min(200, 1 + int(SAMPLE_MS / max(sample(1), 1e-3)))
    return statistics.median(sample(calls) for _ in range(SAMPLES))


def measure(length, width):
    batch, heads = TOKENS // length, WIDTH // width
    # As a fused projection gives them: views of [B, T, 3, H, D].
    qkv = torch.randn(batch, length, 3, heads, width, device="cuda", dtype=torch.bfloat16)
    q, k, v = (x.detach().transpose(1, 2).requires_grad_() for x in qkv.unbind(2))
    dout = torch.randn(batch, length, heads, width, device="cuda", dtype=torch.bfloat16).transpose(1, 2)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        with torch.no_grad():
            forward = milliseconds(lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        backward = milliseconds(lambda: torch.autograd.grad(out, (q, k, v), dout, retain_graph=True))
    flops = 4.0 * width * batch * heads * length * (length + 1) / 2
    print(f"{'sdpa':10} {length:8} {width:4} {forward:10.3f} {flops / forward / 1e9:10.1f} "
          f"{backward:10.3f} {2.5 * flops / backward / 1e9:10.1f}", flush=True)


def main():
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name()}")
    print(f"{'':10} {'T':>8} {'D':>4} {'fwd ms':>10} {'TFLOP/s':>10} {'bwd ms':>10} {'TFLOP/s':>10}")
    for width in (64, 128):
        for length in (1024, 2048, 4096, 8192, 16384):
            measure(length, width)
    measure(4096, 32)


if __name__ == "__main__":
    main()
