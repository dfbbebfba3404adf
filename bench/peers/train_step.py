#!/usr/bin/env python3
"""The dense training step of a preset in PyTorch, to stand beside `proteus` in one run.

The model is the one that `proteus train --model dense` builds: pre-norm blocks, LayerNorm without
bias, rotary positions on interleaved pairs, tanh-GELU, tied head, AdamW with betas (0.9, 0.99) and
weight decay 0.1 on matrices, gradient norm clipped to 1. It reads random tokens: the speed does not
depend on the text.

With --device cuda: bf16 autocast, fused AdamW, and attention through the flash kernel; the loss is
read after the last step only. --preset gpt2 is GPT-2 124M at 32 sequences of 1,024 tokens.

usage: train_step.py --preset tiny|baby|gpt2 [--device cpu|cuda] [--threads 2] [--seconds 10] [--compile]
prints one JSON object: tokens_per_s (median over steps on the CPU, mean on a GPU), step_ms,
peak_memory_bytes (of tensors on a GPU).
"""
import argparse
import contextlib
import json
import resource
import statistics
import time

import torch
import torch.nn as nn
import torch.nn.functional as F

PRESETS = {
    "tiny": dict(layers=4, width=128, heads=4, context=64, batch=12, dropout=0.0, vocab=65),
    "baby": dict(layers=6, width=384, heads=6, context=256, batch=64, dropout=0.2, vocab=65),
    "gpt2": dict(layers=12, width=768, heads=12, context=1024, batch=32, dropout=0.0, vocab=50304),
}


class Rope(nn.Module):
    def __init__(self, context, head_width):
        super().__init__()
        frequency = 10000.0 ** (-torch.arange(0, head_width, 2).float() / head_width)
        angle = torch.arange(context).float()[:, None] * frequency
        self.register_buffer("cos", angle.cos())
        self.register_buffer("sin", angle.sin())

    def forward(self, x):
        even, odd = x[..., 0::2], x[..., 1::2]
        rotated = torch.stack((even * self.cos - odd * self.sin, even * self.sin + odd * self.cos), -1)
        return rotated.flatten(-2)


class Block(nn.Module):
    def __init__(self, c, rope):
        super().__init__()
        width = c["width"]
        self.heads, self.p, self.rope = c["heads"], c["dropout"], rope
        self.norm1, self.norm2 = nn.LayerNorm(width, bias=False), nn.LayerNorm(width, bias=False)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)
        self.drop = nn.Dropout(c["dropout"])

    def forward(self, x):
        b, t, width = x.shape
        qkv = self.qkv(self.norm1(x)).view(b, t, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(self.rope(q), self.rope(k), v, is_causal=True,
                                           dropout_p=self.p if self.training else 0.0)
        x = x + self.drop(self.out(y.transpose(1, 2).reshape(b, t, width)))
        return x + self.drop(self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh")))


class Model(nn.Module):
    def __init__(self, c):
        super().__init__()
        rope = Rope(c["context"], c["width"] // c["heads"])
        self.embedding = nn.Embedding(c["vocab"], c["width"])
        self.drop = nn.Dropout(c["dropout"])
        self.blocks = nn.ModuleList(Block(c, rope) for _ in range(c["layers"]))
        self.norm = nn.LayerNorm(c["width"], bias=False)
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, x, y):
        h = self.drop(self.embedding(x))
        for block in self.blocks:
            h = block(h)
        logits = F.linear(self.norm(h), self.embedding.weight)
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), y.reshape(-1))


def cpu_figures(step, seconds, before):
    for _ in range(2):
        float(step())
    times, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 3:
        start = time.perf_counter()
        float(step())
        times.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return len(times), statistics.median(times), peak - before


def cuda_figures(step, seconds, _):
    for _ in range(10):
        step()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds or count < 10:
        for _ in range(10):
            step()
        torch.cuda.synchronize()
        count += 10
    return count, (time.perf_counter() - start) / count, torch.cuda.max_memory_allocated()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--preset", choices=PRESETS, required=True)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(1)
    torch.set_float32_matmul_precision("high")
    c = PRESETS[args.preset]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    model = Model(c).to(args.device)
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    optimizer = torch.optim.AdamW([dict(params=matrices, weight_decay=0.1), dict(params=vectors, weight_decay=0.0)],
                                  lr=1e-3, betas=(0.9, 0.99), fused=True)
    forward = torch.compile(model) if args.compile else model
    on_gpu = args.device == "cuda"
    autocast = torch.autocast("cuda", torch.bfloat16) if on_gpu else contextlib.nullcontext()
    fixed = torch.randint(c["vocab"], (c["batch"], c["context"] + 1), device=args.device)

    def step():
        x = fixed if on_gpu else torch.randint(c["vocab"], (c["batch"], c["context"] + 1))
        with autocast:
            loss = forward(x[:, :-1], x[:, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    steps, seconds, peak = (cuda_figures if on_gpu else cpu_figures)(step, args.seconds, before)
    print(json.dumps(dict(framework=f"torch {torch.__version__}" + (" compile" if args.compile else ""),
                          preset=args.preset, device=args.device, threads=args.threads, steps=steps,
                          step_ms=seconds * 1e3, tokens_per_s=c["batch"] * c["context"] / seconds,
                          peak_memory_bytes=peak)))


if __name__ == "__main__":
    main()
