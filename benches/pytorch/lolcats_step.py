"""One LoLCATs training step in plain PyTorch on the CPU: the twin that `benches/` is measured against.

    python benches/pytorch/lolcats_step.py assets/books-llama-7m --mode attention-transfer
    python benches/pytorch/lolcats_step.py assets/books-llama-7m --mode lora --ids ids.u32

Prints one JSON line: mode, window, full_teacher, batch, sequence, threads, steps, tokens_per_s (over the timed steps, after one
warm-up step), peak_mb (largest resident set of the process, Python and PyTorch included, 10^6 bytes) and losses
(of the warm-up step and the next two). Every step sees the same batch, so the losses check gradients as well.

The student attention is computed as the published code does, with masked T x T matrices for the window and for the
linear part; the teacher's with F.scaled_dot_product_attention. f32, no checkpointing, one backward for the step.

attention-transfer: one teacher forward without gradients (what follows the last layer's attention, logits included,
is left out unless --full-teacher asks for it, as in the published code); on each layer's own q, k, v (after RoPE) the student's output before o_proj is compared with the
teacher's. loss = 1000 * mean over layers of the mean squared difference. Trained: W_q, W_k, window factor. lr 1e-2.
lora: student forward, next-token cross-entropy (mean over B (T - 1)). Trained: LoRA on q, k, v, o. lr 1e-4.
AdamW, betas 0.9 and 0.999, eps 1e-8, no weight decay, no clipping.

Everything that starts the run is fixed, so another implementation must get the same losses:
    feature maps      W_q = W_k = identity [K, f = K] for every head; phi clamped below at 1e-12
    window factor     -2.1972246 (sigmoid 0.1)
    LoRA              rank 8, alpha 16, B = 0; A [8, in] of layer l and projection p (q 0, k 1, v 2, o 3), row major,
                      = (2 u - 1) / sqrt(in) with u = (x >> 40) / 2^24 and x = splitmix64(1 + 4 l + p)
    ids               a file of B T raw little-endian u32, or without one x % vocabulary of x = splitmix64(0)
splitmix64(seed) is the usual sequence: state = seed; for each number state += 0x9E3779B97F4A7C15, then mixed.
"""

import argparse
import json
import math
import resource
import sys
import time
from pathlib import Path

import numpy
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

EPS = 1e-12
FACTOR = -2.1972246
RANK, ALPHA = 8, 16
TRANSFER_LR, LORA_LR = 1e-2, 1e-4
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj"]


def splitmix64(seed, count):
    x = numpy.uint64(seed) + numpy.arange(1, count + 1, dtype=numpy.uint64) * numpy.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> numpy.uint64(30))) * numpy.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> numpy.uint64(27))) * numpy.uint64(0x94D049BB133111EB)
    return x ^ (x >> numpy.uint64(31))


def rotate(x, cos, sin):
    """RoPE on [B, H, T, K], the two halves of K paired as in transformers."""
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin


class Hedgehog(torch.nn.Module):
    """Feature maps per query head and a window of softmax under one normaliser; window 0: the linear part alone."""

    def __init__(self, heads, width, window):
        super().__init__()
        self.w_q = torch.nn.Parameter(torch.eye(width).repeat(heads, 1, 1))
        self.w_k = torch.nn.Parameter(torch.eye(width).repeat(heads, 1, 1))
        self.factor = torch.nn.Parameter(torch.full((1, heads, 1, 1), FACTOR)) if window else None

    @staticmethod
    def features(x, w):
        y = x @ w
        return torch.cat([y.softmax(-1), (-y).softmax(-1)], -1).clamp(min=EPS)

    def forward(self, q, k, v, near, far):
        """[B, H, T, K] each, kv heads repeated; near, far: masks [T, T] of what does NOT belong to either part."""
        linear = self.features(q, self.w_q) @ self.features(k, self.w_k).transpose(-1, -2)
        linear = linear.masked_fill(far, 0)
        if self.factor is None:
            return (linear @ v) / (linear.sum(-1, keepdim=True) + EPS)
        scores = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).masked_fill(near, -math.inf)
        weights = self.factor.sigmoid() * torch.exp(scores - scores.amax(-1, keepdim=True)) + linear
        return (weights @ v) / weights.sum(-1, keepdim=True)


class Llama:
    def __init__(self, folder, window, sequence):
        config = json.loads((folder / "config.json").read_text())
        self.layers, self.vocabulary = config["num_hidden_layers"], config["vocab_size"]
        self.heads, self.kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
        self.width = config.get("head_dim") or config["hidden_size"] // self.heads
        self.eps = config["rms_norm_eps"]
        self.weights = {}
        for file in sorted(folder.glob("*.safetensors")):
            self.weights |= {name: tensor.float() for name, tensor in load_file(file).items()}
        theta = config.get("rope_theta") or config["rope_parameters"]["rope_theta"]
        rates = theta ** (-torch.arange(0, self.width, 2).double() / self.width)
        angles = (torch.arange(sequence).double()[:, None] * rates).repeat(1, 2)
        self.cos, self.sin = angles.cos().float(), angles.sin().float()
        i, j = torch.arange(sequence)[:, None], torch.arange(sequence)[None, :]
        self.near, self.far = (j > i) | (j <= i - window), j > i - window
        if not window:
            self.far = j > i
        self.students = [Hedgehog(self.heads, self.width, window) for _ in range(self.layers)]
        self.adapters = {}
        self.full_teacher = False

    def add_lora(self):
        for layer in range(self.layers):
            for index, name in enumerate(PROJECTIONS):
                outputs, inputs = self.weights[f"model.layers.{layer}.self_attn.{name}.weight"].shape
                u = (splitmix64(1 + 4 * layer + index, RANK * inputs) >> numpy.uint64(40)) / 2.0**24
                a = torch.tensor((2 * u - 1) / math.sqrt(inputs), dtype=torch.float32).reshape(RANK, inputs)
                self.adapters[layer, name] = (a.requires_grad_(), torch.zeros(outputs, RANK).requires_grad_())

    def project(self, x, layer, name):
        y = F.linear(x, self.weights[f"model.layers.{layer}.self_attn.{name}.weight"])
        if (layer, name) in self.adapters:
            a, b = self.adapters[layer, name]
            y = y + ALPHA / RANK * F.linear(F.linear(x, a), b)
        return y

    def norm(self, x, name):
        return F.rms_norm(x, x.shape[-1:], self.weights[name], self.eps)

    def queries_keys_values(self, x, layer):
        """[B, H, T, K] each, after RoPE, key/value heads repeated to H."""
        x = self.norm(x, f"model.layers.{layer}.input_layernorm.weight")
        q, k, v = (
            self.project(x, layer, name).unflatten(-1, (-1, self.width)).transpose(1, 2) for name in PROJECTIONS[:3]
        )
        q, k = rotate(q, self.cos, self.sin), rotate(k, self.cos, self.sin)
        group = self.heads // self.kv_heads
        return q, k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)

    def rest_of_layer(self, x, attention, layer):
        x = x + self.project(attention.transpose(1, 2).flatten(2), layer, "o_proj")
        y = self.norm(x, f"model.layers.{layer}.post_attention_layernorm.weight")
        gate, up, down = (self.weights[f"model.layers.{layer}.mlp.{name}_proj.weight"] for name in ("gate", "up", "down"))
        return x + F.linear(F.silu(F.linear(y, gate)) * F.linear(y, up), down)

    def embed(self, ids):
        return F.embedding(ids, self.weights["model.embed_tokens.weight"])

    def student(self, layer, q, k, v):
        return self.students[layer](q, k, v, self.near, self.far)

    def logits(self, x):
        head = self.weights.get("lm_head.weight", self.weights["model.embed_tokens.weight"])
        return F.linear(self.norm(x, "model.norm.weight"), head)

    def attention_transfer_loss(self, ids):
        x, losses = self.embed(ids), []
        for layer in range(self.layers):
            with torch.no_grad():
                q, k, v = self.queries_keys_values(x, layer)
                teacher = F.scaled_dot_product_attention(q, k, v, is_causal=True)
                if layer + 1 < self.layers or self.full_teacher:
                    x = self.rest_of_layer(x, teacher, layer)
            losses.append(F.mse_loss(self.student(layer, q, k, v), teacher))
        if self.full_teacher:
            with torch.no_grad():
                self.logits(x)
        return 1000 * torch.stack(losses).mean()

    def label_loss(self, ids):
        x = self.embed(ids)
        for layer in range(self.layers):
            q, k, v = self.queries_keys_values(x, layer)
            x = self.rest_of_layer(x, self.student(layer, q, k, v), layer)
        return F.cross_entropy(self.logits(x)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def read_ids(path, batch, sequence, vocabulary):
    if path is None:
        ids = (splitmix64(0, batch * sequence) % numpy.uint64(vocabulary)).astype(numpy.int64)
    else:
        ids = numpy.fromfile(path, dtype="<u4").astype(numpy.int64)
        if ids.size != batch * sequence or ids.max() >= vocabulary:
            sys.exit(f"{path}: {batch} * {sequence} ids below {vocabulary} wanted, {ids.size} up to {ids.max()} found")
    return torch.from_numpy(ids).reshape(batch, sequence)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher", type=Path, help="a Llama folder: config.json and *.safetensors")
    parser.add_argument("--mode", choices=["attention-transfer", "lora"], required=True)
    parser.add_argument("--window", type=int, default=64, help="keys of softmax; 0: the linear part alone (default 64)")
    parser.add_argument("--full-teacher", action="store_true", help="attention-transfer: compute the teacher's logits too")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--sequence", type=int, default=512)
    parser.add_argument("--steps", type=int, default=4, help="timed steps (default 4)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--ids", type=Path, help="raw little-endian u32 token ids, batch * sequence of them")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    model = Llama(args.teacher, args.window, args.sequence)
    model.full_teacher = args.full_teacher
    ids = read_ids(args.ids, args.batch, args.sequence, model.vocabulary)
    students = [parameter for student in model.students for parameter in student.parameters()]
    if args.mode == "lora":
        model.add_lora()
        for parameter in students:
            parameter.requires_grad_(False)
        trained, lr, loss_of = [p for pair in model.adapters.values() for p in pair], LORA_LR, model.label_loss
    else:
        trained, lr, loss_of = students, TRANSFER_LR, model.attention_transfer_loss
    optimizer = torch.optim.AdamW(trained, lr=lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)

    losses = []

    def step():
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(ids)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

    step()
    start = time.perf_counter()
    for _ in range(args.steps):
        step()
    seconds = time.perf_counter() - start
    result = {
        "mode": args.mode,
        "window": args.window,
        "full_teacher": args.full_teacher,
        "batch": args.batch,
        "sequence": args.sequence,
        "threads": args.threads,
        "steps": args.steps,
        "tokens_per_s": round(args.batch * args.sequence * args.steps / seconds, 1),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6, 1),
        "losses": losses[:3],
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
