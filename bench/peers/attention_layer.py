#!/usr/bin/env python3
"""PyTorch's dense attention layer in the shapes of bench/cuda_layer_bench.cpp.

QKV projection, causal flash attention (8 heads of 64), output projection; width 512, bf16, one
sequence, without rotary positions. Queued kernel by kernel, and replayed as a CUDA graph. Times are
medians of samples between CUDA events; bytes/T is the most memory that was in use at once, x, weights
and gradients included.

usage: attention_layer.py [--most T]
"""
import argparse
import statistics

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

WIDTH, HEADS, SHORTEST, SAMPLES, SAMPLE_MS = 512, 8, 2048, 7, 20.0


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


def replayed(call):
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return milliseconds(graph.replay)


class Layer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = torch.nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.out = torch.nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x):
        batch, length, _ = x.shape
        qkv = self.qkv(x).view(batch, length, 3, HEADS, WIDTH // HEADS)
        q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).reshape(batch, length, WIDTH))


def measure(layer, length):
    x = torch.randn(1, length, WIDTH, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    dy = torch.randn_like(x)

    def forward():
        with torch.no_grad():
            layer(x)

    def both():
        layer.zero_grad()
        x.grad = None
        layer(x).backward(dy)

    figures = []
    for call in (forward, both):
        call()
        torch.cuda.reset_peak_memory_stats()
        queued, memory = milliseconds(call), torch.cuda.max_memory_allocated() / length
        figures.append((queued, replayed(call), memory))
    layer.zero_grad()
    (fwd, fwd_replayed, fwd_bytes), (both_ms, both_replayed, both_bytes) = figures
    print(f"{'torch':6} {length:9} {fwd:11.3f} {both_ms:12.3f} {fwd_replayed:11.3f} {both_replayed:12.3f} "
          f"{fwd_bytes:12.0f} {both_bytes:14.0f}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--most", type=int, default=1 << 17)
    most = parser.parse_args().most
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name()}")
    print(f"{'':6} {'T':>9} {'fwd ms':>11} {'fwd+bwd ms':>12} {'replayed':>11} {'replayed':>12} "
          f"{'fwd bytes/T':>12} {'f+b bytes/T':>14}")
    layer = Layer().to("cuda", torch.bfloat16)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        length = SHORTEST
        while length <= most:
            measure(layer, length)
            length *= 2


if __name__ == "__main__":
    main()
