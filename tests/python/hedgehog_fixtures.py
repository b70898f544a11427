"""Hedgehog attention of LoLCATs by its definition: tests/fixtures/hedgehog_CASE.safetensors.

    python tests/python/hedgehog_fixtures.py tests/fixtures

Quadratic formulas and autograd in f64 on inputs that are exact in f32; results stored as f32. Every output is
also computed by the one-token recurrence and must agree to 1e-12, or no file is written.

    phi(x)  = max(concat(softmax(x W), softmax(-x W)), 1e-12)            over the feature axis, per query head
    linear  : o_i = sum_{j <= i} phi(q_i).phi(k_j) v_j / (sum_{j <= i} phi(q_i).phi(k_j) + 1e-12)
    window w: s_ij = q_i.k_j / sqrt(K);  m_i = max of s_ij over i - w < j <= i, differentiated as well
              p_ij = sigmoid(factor) exp(s_ij - m_i)   for i - w < j <= i
                   = phi(q_i).phi(k_j)                 for j <= i - w      (not multiplied by exp(-m_i))
              o_i  = sum_j p_ij v_j / sum_j p_ij                           (no eps)
    weights loss: mean over B, H, i of -sum_{j <= i} softmax_j(s_ij) log(max(p_ij / sum_j p_ij, 1e-12))

q and k stand as after RoPE. Query head h reads key/value head floor(h / (H / G)).

tensor           shape        meaning
q, k, v          [B, T, H, K], [B, T, G, K], [B, T, G, V]
w_q, w_k         [H, K, f]    feature maps; F = 2 f features
window           u32 [1]      w; 0 means no window: the tensors named `*factor` are then absent
factor           [H]          before the sigmoid
output           [B, T, H, V]
output_gradient  [B, T, H, V] the upstream gradient, dLoss/d`output`
grad.NAME        as NAME      dLoss/dNAME for q, k, v, w_q, w_k, factor; grad.k and grad.v summed over a group
weights_loss     [1]
weights_grad.NAME as NAME     gradients of `weights_loss` for w_q, w_k, factor
"""

import argparse
import json
import math
from pathlib import Path

import torch
from safetensors.torch import save_file

EPS = 1e-12

# name: B, T, H, G, K, V, f, window (0: none), spread of q, k and the maps
CASES = {
    "window5": (2, 37, 4, 2, 8, 8, 8, 5, 1.0),
    "window64": (1, 130, 2, 1, 16, 16, 16, 64, 1.0),
    "linear": (2, 65, 2, 2, 8, 8, 4, 0, 1.0),
    "short": (1, 7, 2, 1, 8, 8, 8, 16, 1.0),
    # Further than asked of any one size: several chunks, groups, and values of another width than keys.
    "linear_long": (1, 130, 4, 2, 8, 12, 8, 0, 1.0),
    # The window is the token itself; its score is then always its own maximum.
    "window1": (1, 19, 2, 2, 8, 8, 8, 1, 1.0),
    # Peaked features: many lie below the clamp, where no gradient flows.
    "clamped": (1, 40, 2, 1, 8, 8, 8, 5, 4.0),
}


def features(x, w):
    y = torch.einsum("bthk,hkf->bthf", x, w)
    return torch.cat([y.softmax(-1), (-y).softmax(-1)], -1).clamp(min=EPS)


def weights(q, k, w_q, w_k, factor, window):
    """Unnormalised weights p [B, H, T, T], their row sums [B, H, T, 1] and softmax attention [B, H, T, T]."""
    t = q.shape[1]
    i, j = torch.arange(t)[:, None], torch.arange(t)[None, :]
    linear = torch.einsum("bihf,bjhf->bhij", features(q, w_q), features(k, w_k))
    scores = torch.einsum("bihk,bjhk->bhij", q, k) / math.sqrt(q.shape[-1])
    softmax = scores.masked_fill(j > i, -math.inf).softmax(-1)
    if window == 0:
        p = linear.masked_fill(j > i, 0)
        return p, p.sum(-1, keepdim=True) + EPS, softmax
    outside = (j > i) | (j <= i - window)
    inside = scores.masked_fill(outside, -math.inf)
    near = torch.exp(inside - inside.amax(-1, keepdim=True)) * factor.sigmoid()[None, :, None, None]
    p = near + linear.masked_fill(j > i - window, 0)
    return p, p.sum(-1, keepdim=True), softmax


def recurrence(q, k, v, w_q, w_k, factor, window):
    """One token at a time, one batch row and head at a time: state, window buffer, joint normaliser."""
    out = torch.zeros(*q.shape[:3], v.shape[-1], dtype=q.dtype)
    a, b = features(q, w_q), features(k, w_k)
    for row in range(q.shape[0]):
        for head in range(q.shape[2]):
            state, z = torch.zeros(a.shape[-1], v.shape[-1], dtype=q.dtype), torch.zeros(a.shape[-1], dtype=q.dtype)
            for t in range(q.shape[1]):
                enters = t - window
                if enters >= 0:
                    state += torch.outer(b[row, enters, head], v[row, enters, head])
                    z += b[row, enters, head]
                num, den = a[row, t, head] @ state, a[row, t, head] @ z
                if window:
                    near = slice(max(0, t - window + 1), t + 1)
                    s = k[row, near, head] @ q[row, t, head] / math.sqrt(q.shape[-1])
                    e = factor[head].sigmoid() * torch.exp(s - s.max())
                    num, den = num + e @ v[row, near, head], den + e.sum()
                else:
                    den = den + EPS
                out[row, t, head] = num / den
    return out


def fixture(seed, b, t, h, g, k_width, v_width, f, window, spread):
    random = torch.Generator().manual_seed(seed)

    def normal(*shape, scale=1.0):
        return (torch.randn(*shape, generator=random) * scale).double().requires_grad_()

    identity = torch.eye(k_width, f)
    leaves = {
        "q": normal(b, t, h, k_width, scale=1.5 * spread),
        "k": normal(b, t, g, k_width, scale=1.5 * spread),
        "v": normal(b, t, g, v_width),
        "w_q": (identity + torch.randn(h, k_width, f, generator=random) * 0.3).double().requires_grad_(),
        "w_k": (identity + torch.randn(h, k_width, f, generator=random) * 0.3).double().requires_grad_(),
    }
    if window:
        leaves["factor"] = (torch.randn(h, generator=random) - 1.5).double().requires_grad_()
    upstream = normal(b, t, h, v_width).detach()

    factor = leaves.get("factor")
    k, v = (leaves[name].repeat_interleave(h // g, dim=2) for name in "kv")
    p, total, softmax = weights(leaves["q"], k, leaves["w_q"], leaves["w_k"], factor, window)
    output = torch.einsum("bhij,bjhv->bihv", p, v) / total.permute(0, 2, 1, 3)
    with torch.no_grad():
        steps = recurrence(leaves["q"], k, v, leaves["w_q"], leaves["w_k"], factor, window)
        difference = float((steps - output).abs().max())
        assert difference < 1e-12, f"recurrence and quadratic form differ by {difference}"
        low = float((features(leaves["q"], leaves["w_q"]) == EPS).double().mean())

    mixed = torch.autograd.grad(output, list(leaves.values()), upstream, retain_graph=True)
    loss = -(softmax.detach() * (p / total).clamp(min=EPS).log()).sum(-1).mean()
    maps = [name for name in ("w_q", "w_k", "factor") if name in leaves]
    crossed = torch.autograd.grad(loss, [leaves[name] for name in maps])

    tensors = {**leaves, "output": output, "output_gradient": upstream, "weights_loss": loss[None]}
    tensors |= {f"grad.{name}": gradient for name, gradient in zip(leaves, mixed)}
    tensors |= {f"weights_grad.{name}": gradient for name, gradient in zip(maps, crossed)}
    tensors = {name: tensor.detach().float().contiguous() for name, tensor in tensors.items()}
    tensors["window"] = torch.tensor([window]).to(torch.uint32)
    assert all(torch.isfinite(tensor.float()).all() for tensor in tensors.values())
    return tensors, difference, low


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="folder for hedgehog_CASE.safetensors")
    args = parser.parse_args()
    torch.set_num_threads(1)
    made = {"script": "tests/python/hedgehog_fixtures.py", "torch": torch.__version__.split("+")[0]}
    for seed, (name, sizes) in enumerate(CASES.items()):
        tensors, difference, low = fixture(seed, *sizes)
        path = args.output / f"hedgehog_{name}.safetensors"
        save_file(tensors, path, metadata={"made": json.dumps(made, sort_keys=True)})
        sizes_seen = {key: float(t.abs().max()) for key, t in tensors.items() if key.startswith(("grad", "weights"))}
        print(f"{path.name}: {path.stat().st_size} bytes, recurrence differs by {difference:.1e}, clamped q features {low:.3f}")
        print("   largest", {key: f"{value:.4g}" for key, value in sizes_seen.items()})


if __name__ == "__main__":
    main()
