"""The cases of mixer_fixtures.py that no package's layer covers: each formula once more, as plain masked matrices.

Quadratic in T and without a state, so nothing here shares its order of computation with a recurrence or a chunked form.
q, k, v are [B, T, H, K] projections of x; `weights` are [B, H, T, T], row i over columns j <= i. Positions count from 0
in RoPE (base 10000, halves rotated, as in LLaMA) and from 1 in cosformer's angle and wherever a mean is taken.
"""

import functools
import math

import torch
import torch.nn.functional as F
from fla.ops.generalized_delta_rule.dplr.naive import dplr_recurrence
from fla.ops.gla.naive import naive_recurrent_gla
from fla.ops.gsa.naive import naive_recurrent_gsa
from mixer_layers import D, H, T, W, core, plain, split
from oracles import SINGLE

WINDOW = 5
ROOT = W**-0.5
I, J = torch.arange(T)[:, None], torch.arange(T)[None, :]
CAUSAL = J <= I
COUNT = torch.arange(1, T + 1, dtype=torch.float64)


def rows(weights, v):
    return torch.einsum("bhij,bjhv->bihv", weights, v)


def scores(a, b):
    return torch.einsum("bihk,bjhk->bhij", a, b)


def causal(weights):
    return weights.masked_fill(~CAUSAL, 0)


def normalised(weights, v, eps):
    return rows(weights / (weights.sum(-1, keepdim=True) + eps), v)


def softmax(scores, allowed, v):
    return rows(scores.masked_fill(~allowed, -math.inf).softmax(-1), v)


def rope_tables():
    angles = torch.outer(torch.arange(T, dtype=torch.float64), 10000.0 ** (-torch.arange(0, W, 2).double() / W))
    return angles.cos(), angles.sin()


def rope(x):
    cos, sin = (torch.cat([table, table], -1)[:, None] for table in rope_tables())
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin


def decayed(q, k, g, v):
    """sum_j sum_d q_id k_jd exp(G_id - G_jd) v_j, G the sum of g to and with its row; every exponent is <= 0."""
    cumulated = g.cumsum(1)
    exponent = cumulated[:, :, None] - cumulated[:, None]
    factors = exponent.masked_fill(~CAUSAL[None, :, :, None, None], -math.inf).exp()
    return rows(torch.einsum("bihd,bjhd,bijhd->bhij", q, k, factors), v)


def slots(q, k, s, g):
    """sum_j (q_i.k_j) exp(G_im - G_jm) s_jm: decay on the value side."""
    cumulated = g.cumsum(1)
    exponent = cumulated[:, :, None] - cumulated[:, None]
    factors = exponent.masked_fill(~CAUSAL[None, :, :, None, None], -math.inf).exp()
    return torch.einsum("bhij,bijhm,bjhm->bihm", scores(q, k), factors, s)


def case(formula, own=lambda: {}, given=lambda n: {}):
    """A case whose core is `formula(q, k, v, layer, x, **given)`; it returns (o [B, T, H, V], output or None)."""

    def make(n):
        layer = plain(n, **own())
        tensors = {key: tensor.double() for key, tensor in given(n).items()}

        def run(x):
            q, k, v = split(layer.q_proj(x), layer.k_proj(x), layer.v_proj(x))
            o, output = formula(q, k, v, layer, x, **tensors)
            core(o)
            return o.flatten(2) if output is None else output

        return layer, run, f"{formula.__name__} of tests/python/mixer_formulas.py", (), tensors

    return make


def performer(q, k, v, layer, x, omega):
    def features(x, is_query):
        x = x * W**-0.25
        exponent = x @ omega.T - x.square().sum(-1, keepdim=True) / 2
        stabiliser = exponent.amax(-1, keepdim=True) if is_query else 0
        return omega.shape[0] ** -0.5 * ((exponent - stabiliser).exp() + 1e-4)

    return normalised(causal(scores(features(q, True), features(k, False))), v, 1e-6), None


def cosformer(q, k, v, layer, x, length):
    angles = (math.pi / 2 / length) * (I - J)
    weights = causal(scores(q.relu(), k.relu()) * angles.cos())
    return rows(weights / weights.sum(-1, keepdim=True).clamp(min=1e-6), v), None


def norm_attention(q, k, v, layer, x):
    o = rows(causal(scores(F.elu(q) + 1, F.elu(k) + 1)), v)
    flat = o.flatten(2)
    return o, flat / (flat.norm(dim=-1, keepdim=True) * (H * W) ** -0.5 + 1e-8)


def diag_attention(q, k, v, layer, x, block):
    return softmax(scores(q, k) * ROOT, CAUSAL & (I // block == J // block), v), None


def flowformer(q, k, v, layer, x):
    """Every sum over s <= t is a product with the causal matrix."""
    a, b, ones, eps = q.sigmoid(), k.sigmoid(), CAUSAL.double(), 1e-6

    def total(x):
        return torch.einsum("ij,bjh...->bih...", ones, x)

    count = COUNT[None, :, None]
    incoming = count / ((a + eps) * (total(b) + eps)).sum(-1)
    outgoing = count / ((b + eps) * (total(a) + eps)).sum(-1)
    conserved_in = ((a + eps) * (total(b * outgoing[..., None]) + eps)).sum(-1) / count
    conserved_out = ((b + eps) * (total(a * incoming[..., None]) + eps)).sum(-1) / count
    competition = conserved_out.clamp(-1, 1).exp()
    competition = count * competition / total(competition)
    o = rows(causal(scores(a, b)), v * competition[..., None])
    return o * (conserved_in.sigmoid() * incoming / count)[..., None], None


def blended(linear, q, k, v):
    allowed = CAUSAL & (J > I - WINDOW)
    return 0.5 * linear + 0.5 * softmax(scores(rope(q), rope(k)) * ROOT, allowed, v), None


def held_to(o, other):
    """The masked matrix and the package's recurrence, whose query is always multiplied by K^-1/2, are one function."""
    assert (o - other).abs().max() < 1e-12
    return o


def liger_gla(q, k, v, layer, x):
    a, b, g = q.softmax(-1), k.softmax(-1), F.logsigmoid(k) / 16
    return blended(held_to(decayed(a, b, g, v), naive_recurrent_gla(a / ROOT, b, v, g)[0]), q, k, v)


def liger_hgrn2(q, k, v, layer, x):
    a, g = q.softmax(-1), F.logsigmoid(k)
    b = 1 - g.exp()
    return blended(held_to(decayed(a, b, g, v), naive_recurrent_gla(a / ROOT, b, v, g)[0]), q, k, v)


def liger_gsa(q, k, v, layer, x):
    g = F.logsigmoid(k) / 16
    s = 1 - g.exp()
    o = decayed(slots(q, k, s, g).softmax(-1), s, g, v)
    return blended(held_to(o, naive_recurrent_gsa(q, k, v, s, g, scale=1.0)[0]), q, k, v)


def titans(q, k, v, layer, x):
    """The memory is S; its step is autograd's gradient of mean over V of (S^T k - v)^2, before the decay."""
    theta, alpha = layer.theta_proj(x).sigmoid(), layer.alpha_proj(x).sigmoid()
    state = torch.zeros(x.shape[0], H, W, W)
    outputs = []
    for t in range(T):
        before = state if state.requires_grad else state.requires_grad_()
        loss = (torch.einsum("bhk,bhkv->bhv", k[:, t], before) - v[:, t]).square().mean(-1).sum()
        (gradient,) = torch.autograd.grad(loss, before, create_graph=True)
        state = (1 - alpha[:, t, :, None, None]) * before - theta[:, t, :, None, None] * gradient
        outputs.append(torch.einsum("bhk,bhkv->bhv", q[:, t], state))
    rate = 2 * theta[..., None] / W
    decay = torch.log1p(-alpha)[..., None].expand_as(k)
    tokens = (tensor.transpose(1, 2) for tensor in (q / ROOT, rate * k, v, k, -rate * k, decay))
    return held_to(torch.stack(outputs, 1), dplr_recurrence(*tokens)[0].transpose(1, 2)), None


def mala(q, k, v, layer, x, rotate=lambda x: x):
    a, b = F.elu(q) + 1, F.elu(k) + 1
    count = COUNT[:, None]
    zeta = ROOT * causal(scores(a, b)).sum(-1, keepdim=True) / count
    weights = (1 + 1 / (zeta + 1e-6)) * (ROOT / count) * scores(rotate(a), rotate(b)) - zeta / count
    return rows(causal(weights), v), None


def mala_rope(q, k, v, layer, x):
    return mala(q, k, v, layer, x, rotate=rope)


def inline(q, k, v, layer, x):
    count = COUNT[:, None]
    products = causal(scores(q, k))
    mean = products.sum(-1, keepdim=True) / count
    return rows(causal(ROOT / count * products + (1 - ROOT * mean) / count), v), None


def nalaformer(q, k, v, layer, x):
    def signs(x):
        return torch.cat([x.relu(), (-x).relu()], -1)

    length = q.norm(dim=-1, keepdim=True)
    direction = signs(q) / length
    power = 3 * (0.5 + length.tanh())
    # 0 stays 0, with no gradient.
    positive = direction > 0
    a = torch.where(positive, torch.where(positive, direction, 1.0) ** power, 0.0)
    b = signs(k**3)
    return normalised(causal(scores(a, b)), v, 1e-6), None


def slab(q, k, v, layer, x):
    return normalised(causal(scores(q.relu(), k.relu())), v, 1e-6), None


def omega(n):
    """Orthogonal rows in blocks, each of the length of a Gaussian vector."""
    blocks = [torch.linalg.qr(n.normal(W, W).double())[0].T for _ in range(2)]
    lengths = n.normal(2 * W, W).norm(dim=-1, keepdim=True)
    return {"omega": (torch.cat(blocks) * lengths).to(SINGLE)}


def tables(n):
    return dict(zip(("cos", "sin"), rope_tables()))


def with_tables(formula):
    """Stores RoPE's tables beside the case; the formula computes its own in f64."""

    @functools.wraps(formula)
    def with_stored(q, k, v, layer, x, cos, sin):
        return formula(q, k, v, layer, x)

    return with_stored


def gates():
    return {name: torch.nn.Linear(D, H) for name in ("theta_proj", "alpha_proj")}


CASES = {
    "performer": case(performer, given=omega),
    "cosformer": case(cosformer, given=lambda n: {"length": torch.tensor([32.0])}),
    "norm_attention": case(norm_attention),
    "diag_attention": case(diag_attention, given=lambda n: {"block": torch.tensor([float(WINDOW)])}),
    "flowformer": case(flowformer),
    "liger_gla": case(with_tables(liger_gla), given=tables),
    "liger_hgrn2": case(with_tables(liger_hgrn2), given=tables),
    "liger_gsa": case(with_tables(liger_gsa), given=tables),
    "titans": case(titans, own=gates),
    "mala": case(mala),
    "mala_rope": case(with_tables(mala_rope), given=tables),
    "inline": case(inline),
    "nalaformer": case(nalaformer),
    "slab": case(slab),
}
