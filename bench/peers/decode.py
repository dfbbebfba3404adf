#!/usr/bin/env python3
"""Decoding of dense models in PyTorch, to stand beside bench/cuda_decode_bench in one run.

The models are those of train_step.py in bf16, with a static cache of keys and values that
scaled_dot_product_attention reads up to the step's position, and the likeliest token taken on the
device. The step is recorded as a CUDA graph and replayed; --compile compiles it first.

usage: decode.py [--preset gpt2|baby] [--batch 1,32] [--context 1024,8192,65536] [--compile]
prints a row per shape: model, torch, bf16, batch, tokens, queued ms, replay ms, tokens/s
"""
import argparse
import time

import torch
import torch.nn.functional as F

PRESETS = {
    "gpt2": dict(layers=12, width=768, heads=12, vocab=50304),
    "baby": dict(layers=6, width=384, heads=6, vocab=65),
}
STEPS, ROUNDS = 20, 5


class Decoder:
    """All of a sequence's cache is read: SDPA has no length on the device, and the cache is as long as
    the sequence."""

    def __init__(self, preset, batch, context):
        c = PRESETS[preset]
        self.c, self.batch, self.context = c, batch, context
        width, heads = c["width"], c["heads"]
        make = lambda *shape: torch.randn(*shape, device="cuda", dtype=torch.bfloat16) * 0.02
        self.embedding = make(c["vocab"], width)
        self.layers = [dict(norm1=make(width) + 1, norm2=make(width) + 1, qkv=make(3 * width, width),
                            out=make(width, width), up=make(4 * width, width), down=make(width, 4 * width),
                            k=torch.zeros(batch, heads, context, width // heads, device="cuda", dtype=torch.bfloat16),
                            v=torch.zeros(batch, heads, context, width // heads, device="cuda", dtype=torch.bfloat16))
                       for _ in range(c["layers"])]
        self.norm = make(width) + 1
        frequency = 10000.0 ** (-torch.arange(0, width // heads, 2, device="cuda").float() / (width // heads))
        angle = torch.arange(context, device="cuda").float()[:, None] * frequency
        self.cos, self.sin = angle.cos().bfloat16(), angle.sin().bfloat16()
        self.tokens = torch.zeros(batch, dtype=torch.long, device="cuda")
        self.position = torch.full((1,), context - 1, dtype=torch.long, device="cuda")

    def rope(self, x):
        cos, sin = self.cos[self.position], self.sin[self.position]
        even, odd = x[..., 0::2], x[..., 1::2]
        return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)

    def step(self):
        width, heads, batch = self.c["width"], self.c["heads"], self.batch
        x = self.embedding[self.tokens]
        for w in self.layers:
            h = F.layer_norm(x, (width,), w["norm1"])
            q, k, v = F.linear(h, w["qkv"]).view(batch, 3, heads, 1, width // heads).unbind(1)
            w["k"].index_copy_(2, self.position, self.rope(k))
            w["v"].index_copy_(2, self.position, v)
            y = F.scaled_dot_product_attention(self.rope(q), w["k"], w["v"])
            x = x + F.linear(y.reshape(batch, width), w["out"])
            h = F.layer_norm(x, (width,), w["norm2"])
            x = x + F.linear(F.gelu(F.linear(h, w["up"]), approximate="tanh"), w["down"])
        logits = F.linear(F.layer_norm(x, (width,), self.norm), self.embedding).float()
        self.tokens.copy_(logits.argmax(-1))


def seconds(call):
    times = []
    for _ in range(ROUNDS):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(STEPS):
            call()
        torch.cuda.synchronize()
        times.append((time.perf_counter() - start) / STEPS)
    return sorted(times)[ROUNDS // 2]


@torch.no_grad()
def measure(preset, batch, context, compiled):
    decoder = Decoder(preset, batch, context)
    step = torch.compile(decoder.step) if compiled else decoder.step
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(5):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    queued = seconds(step)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    replayed = seconds(graph.replay)
    name = "torchc" if compiled else "torch"
    print(f"{preset:<5} {name:<6} {'bf16':<5} {batch:5d} {context:7d} {queued * 1e3:10.3f} {replayed * 1e3:10.3f} "
          f"{batch / replayed:10.0f}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--preset", choices=PRESETS)
    parser.add_argument("--batch", default="1,32")
    parser.add_argument("--context", default="1024,8192,65536")
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    for preset in [args.preset] if args.preset else PRESETS:
        for batch in map(int, args.batch.split(",")):
            for context in map(int, args.context.split(",")):
                try:
                    measure(preset, batch, context, args.compile)
                except torch.cuda.OutOfMemoryError:
                    print(f"{preset:<5} torch  bf16  {batch:5d} {context:7d}: does not fit into the memory")
                torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
