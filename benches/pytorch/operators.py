"""The core operators in plain PyTorch on the CPU: the twins that `cargo bench --bench operators` is measured against.

    python benches/pytorch/operators.py FILE --operator "scalar decay"

FILE (safetensors, made by the bench): inputs q, k, v, gate, beta, a, b [1, T, H, K or 1] as far as the operator has
them, the gradient from above `up` [1, T, H, V], and what the bench computed: `o` and the gradient d<name> of every
input. Prints one JSON line: differences (largest over the forms, root mean square of the error over that of the
value, of `o` and every d<name>) and ms (forward and backward, the least of several runs, of every form).

Forms, all on [1, H, T, K] as PyTorch's batched products want them:
    parallel    masked T x T matrices
    chunked     64 tokens in batched products; the states before all chunks in one product over chunks (A, B, C) or
                one after the other (D, DPLR), where each depends on the one before; triangular solves for the WY form
Gates here sum to at most 64 * 0.3 inside a chunk, so that a gate per channel is one product around the chunk's middle.
"""

import argparse
import json
import time

import torch
from safetensors.torch import load_file

CHUNK = 64
EPS = 1e-6


def masked(n, inclusive=True):
    return torch.ones(n, n, dtype=torch.bool).tril(0 if inclusive else -1)


def decays(cumulative, inclusive=True):
    """e^(G_i - G_j), [.., n] -> [.., n, n], masked before exp."""
    difference = cumulative[..., :, None] - cumulative[..., None, :]
    return difference.masked_fill(~masked(cumulative.shape[-1], inclusive), float("-inf")).exp()


def split(x):
    return x.unflatten(2, (-1, CHUNK))


def linear_parallel(x):
    p = (x["q"] @ x["k"].mT).tril()
    return (p @ x["v"]) / (p.sum(-1, keepdim=True) + EPS)


def linear_chunked(x):
    q, k, v = (split(x[n]) for n in "qkv")
    p = (q @ k.mT).tril()
    state, z = k.mT @ v, k.sum(-2)
    state, z = state.cumsum(2) - state, z.cumsum(2) - z
    num = p @ v + q @ state
    den = p.sum(-1) + (q @ z[..., None])[..., 0]
    return (num / (den[..., None] + EPS)).flatten(2, 3)


def scalar_parallel(x):
    weights = decays(x["gate"][..., 0].cumsum(-1))
    return ((x["q"] @ x["k"].mT) * weights) @ x["v"]


def scalar_chunked(x):
    q, k, v = (split(x[n]) for n in "qkv")
    g = split(x["gate"])[..., 0].cumsum(-1)
    end = g[..., -1:]
    inside = ((q @ k.mT) * decays(g)) @ v
    written = (k * (end - g).exp()[..., None]).mT @ v
    # What chunk m wrote reaches chunk n > m by the chunks between them.
    total = end[..., 0].cumsum(-1)
    weights = ((total - end[..., 0])[..., :, None] - total[..., None, :]).masked_fill(
        ~masked(total.shape[-1], False), float("-inf")
    ).exp()
    before = (weights @ written.flatten(-2)).unflatten(-1, written.shape[-2:])
    return (inside + (q * g.exp()[..., None]) @ before).flatten(2, 3)


def around(g):
    """G around the middle of its span, so that both signs stay in range."""
    return g - 0.5 * (g[..., :1, :] + g[..., -1:, :]).detach()


def vector_chunked(x):
    q, k, v = (split(x[n]) for n in "qkv")
    g = split(x["gate"]).cumsum(-2)
    end = g[..., -1:, :]
    middle = around(g)
    inside = ((q * middle.exp()) @ (k * (-middle).exp()).mT).tril() @ v
    written = (k * (end - g).exp()).mT @ v
    total = end[..., 0, :].cumsum(-2).mT
    own = end[..., 0, :].mT
    weights = ((total - own)[..., :, None] - total[..., None, :]).masked_fill(
        ~masked(total.shape[-1], False), float("-inf")
    ).exp()
    before = (weights @ written.transpose(2, 3)).transpose(2, 3)
    return (inside + (q * g.exp()) @ before).flatten(2, 3)


def delta_chunked(x):
    """The WY form; gate none, per token or per channel."""
    q, k, v, beta = split(x["q"]), split(x["k"]), split(x["v"]), split(x["beta"])
    written = k * beta
    if "gate" not in x:
        products, reads = (written @ k.mT).tril(-1), (q @ k.mT).tril()
        q_start, k_start, k_end, last = q, written, k, None
    elif x["gate"].shape[-1] == 1:
        g = split(x["gate"])[..., 0].cumsum(-1)
        weights = decays(g)
        products, reads = ((written @ k.mT) * weights).tril(-1), (q @ k.mT) * weights
        start, end = g.exp()[..., None], (g[..., -1:] - g).exp()[..., None]
        q_start, k_start, k_end, last = q * start, written * start, k * end, start[..., -1:, :]
    else:
        g = split(x["gate"]).cumsum(-2)
        middle = around(g)
        up, down = middle.exp(), k * (-middle).exp()
        products, reads = ((written * up) @ down.mT).tril(-1), ((q * up) @ down.mT).tril()
        start, end = g.exp(), (g[..., -1:, :] - g).exp()
        q_start, k_start, k_end, last = q * start, written * start, k * end, start[..., -1, :, None]
    both = torch.cat([v * beta, k_start], -1)
    both = torch.linalg.solve_triangular(products, both, upper=False, unitriangular=True)
    u, w = both.split([v.shape[-1], k.shape[-1]], -1)
    state, outputs = torch.zeros(*q.shape[:2], k.shape[-1], v.shape[-1]), []
    chunks = zip(*(t.unbind(2) for t in (u, w, reads, q_start, k_end)))
    for i, (u, w, reads, q, k) in enumerate(chunks):
        new = u - w @ state
        outputs.append(q @ state + reads @ new)
        state = (state if last is None else last[:, :, i] * state) + k.mT @ new
    return torch.stack(outputs, 2).flatten(2, 3)


def dplr_chunked(x):
    q, k, v, a, b = (split(x[n]) for n in "qkvab")
    gate = split(x["gate"])
    g = gate.cumsum(-2)
    middle = around(g)
    up, before, down = middle.exp(), (middle - gate).exp(), (-middle).exp()
    k_down, b_down, a_up, q_up = k * down, b * down, a * before, q * up
    ab, ak = (a_up @ b_down.mT).tril(-1), (a_up @ k_down.mT).tril(-1)
    qk, qb = (q_up @ k_down.mT).tril(), (q_up @ b_down.mT).tril()
    start, end = g.exp(), (g[..., -1:, :] - g).exp()
    both = torch.cat([ak @ v, a * (g - gate).exp()], -1)
    both = torch.linalg.solve_triangular(-ab, both, upper=False, unitriangular=True)
    u, w = both.split([v.shape[-1], k.shape[-1]], -1)
    inside, written, last = qk @ v, (k * end).mT @ v, start[..., -1, :, None]
    state, outputs = torch.zeros(*q.shape[:2], k.shape[-1], v.shape[-1]), []
    chunks = zip(*(t.unbind(2) for t in (u, w, qb, q * start, b * end, written, last)))
    for u, w, qb, q, b, written, last in chunks:
        y = u + w @ state
        outputs.append(q @ state + qb @ y)
        state = last * state + written + b.mT @ y
    return (inside + torch.stack(outputs, 2)).flatten(2, 3)


FORMS = {
    "linear": {"parallel": linear_parallel, "chunked": linear_chunked},
    "scalar decay": {"parallel": scalar_parallel, "chunked": scalar_chunked},
    "vector decay": {"chunked": vector_chunked},
    "delta": {"chunked": delta_chunked},
    "delta, scalar gate": {"chunked": delta_chunked},
    "delta, vector gate": {"chunked": delta_chunked},
    "dplr": {"chunked": dplr_chunked},
}


def difference(x, y):
    return ((x - y).double().square().sum() / y.double().square().sum()).sqrt().item()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file")
    parser.add_argument("--operator", choices=FORMS, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=1.5, help="at least this long, at least five runs")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    tensors = {name: t.transpose(1, 2).contiguous() for name, t in load_file(args.file).items()}
    names = [n for n in ("q", "k", "v", "gate", "beta", "a", "b") if n in tensors]
    inputs = {name: tensors[name].requires_grad_() for name in names}
    differences, times = {}, {}
    for form, function in FORMS[args.operator].items():
        best, runs, started = float("inf"), 0, time.perf_counter()
        while runs < 5 or time.perf_counter() - started < args.seconds:
            now = time.perf_counter()
            output = function(inputs)
            gradients = torch.autograd.grad(output, list(inputs.values()), tensors["up"])
            best, runs = min(best, time.perf_counter() - now), runs + 1
        times[form] = best * 1e3
        found = {"o": output.detach()} | {f"d{name}": g for name, g in zip(names, gradients)}
        for name, value in found.items():
            differences[name] = max(differences.get(name, 0.0), difference(tensors[name], value))
    print(json.dumps({"differences": differences, "ms": times}))


if __name__ == "__main__":
    main()
