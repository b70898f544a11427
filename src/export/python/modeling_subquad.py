"""A decoder whose attention was replaced by linear-time mixers: one file for every mixer and every teacher of subquad.

It needs torch and transformers alone. Where flash-linear-attention is installed, its kernels serve on a GPU.

    Operators    recurrences, chunked for many tokens and step by step for one; local softmax attention
    Kernels      the recurrences by flash-linear-attention
    Carry        the operators with what each of them carries from call to call
    Window       the softmax window beside a mixer
    Mixers       one function each, under its name in MIXERS
    Decoder      the teacher's body as config.json describes it
    Cache, models

Letters: B batch, T tokens, H query heads, G key-value heads, K width of a key, V of a value, F features, D width of the
model, C chunk. Tensors are [B, T, H, K]. Mixers compute in float32 whatever the type of the weights.
"""

import copy
import math
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging

from .configuration_subquad import SubquadConfig

try:
    if not torch.cuda.is_available():
        raise ImportError("its kernels need a GPU")
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule
    from fla.ops.generalized_delta_rule import chunk_dplr_delta_rule
    from fla.ops.gla import chunk_gla
    from fla.ops.kda import chunk_kda
    from fla.ops.rwkv6 import chunk_rwkv6
    from fla.ops.simple_gla import chunk_simple_gla

    FLA = True
except Exception:  # not installed, or not for this machine: the operators below do the same
    FLA = False

logger = logging.get_logger(__name__)


# ------------------------------------------------------------------------------------------------------------ Operators

CHUNK = 64
BLOCK = 16  # rows whose vector decays are multiplied out one by one


def repeat(x, heads):
    """[B, T, G, ...] -> [B, T, H, ...]: query head h reads key-value head h / (H / G)."""
    return x if x.shape[2] == heads else x.repeat_interleave(heads // x.shape[2], dim=2)


def quotient(num, den):
    """num / den; 0 where the denominator is 0, as in padding."""
    nothing = den == 0
    return torch.where(nothing, 0.0, num / torch.where(nothing, 1.0, den))


def wide(x):
    """x in float64, which MPS does not have: sums of log decays grow, and it is their differences that count."""
    return x if x.device.type == "mps" else x.double()


def factors(x):
    """e^x of such sums."""
    return x.float().exp()


def chunks(x):
    """[B, T, H, n] -> [B, H, T / C, C, n], the last chunk filled with zeros."""
    b, t, h, n = x.shape
    x = F.pad(x.transpose(1, 2), (0, 0, 0, -t % CHUNK))
    return x.reshape(b, h, -1, CHUNK, n)


def decayed_scores(x, y, rows, columns, strict):
    """sum over d of x_id y_jd exp(rows_id - columns_jd) for j <= i, or j < i; without decays where `rows` is None.

    No exponent is ever positive: masked ones are removed before exp, and of decays per channel only differences within
    a block of rows are multiplied out, others in two factors around the block's beginning.
    """
    offset = -1 if strict else 0
    if rows is None:
        return (x @ y.transpose(-1, -2)).tril(offset)
    if rows.shape[-1] == 1:
        visible = torch.ones(CHUNK, CHUNK, dtype=torch.bool, device=x.device).tril(offset)
        difference = (rows - columns.transpose(-1, -2)).float()
        return (x @ y.transpose(-1, -2)) * difference.masked_fill(~visible, -torch.inf).exp()
    visible = torch.ones(BLOCK, BLOCK, dtype=torch.bool, device=x.device).tril(offset).unsqueeze(-1)
    out = []
    for first in range(0, CHUNK, BLOCK):
        block = slice(first, first + BLOCK)
        difference = (rows[..., block, None, :] - columns[..., None, block, :]).float()
        weights = difference.masked_fill(~visible, -torch.inf).exp()
        parts = [(x[..., block, None, :] * y[..., None, block, :] * weights).sum(-1)]
        if first > 0:
            middle = columns[..., first - 1 : first, :]
            left = x[..., block, :] * factors(rows[..., block, :] - middle)
            right = y[..., :first, :] * factors(middle - columns[..., :first, :])
            parts.insert(0, left @ right.transpose(-1, -2))
        out.append(F.pad(torch.cat(parts, -1), (0, CHUNK - first - BLOCK)))
    return torch.cat(out, -2)


def recurrence(q, k, v, g=None, erase=None, bonus=None, state=None):
    """S_t = diag(e^g_t) S_{t-1} + b_t (a_t^T S) + k_t v_t^T,  o_t = q_t^T S_t: o [B, T, H, V], state [B, H, K, V].

    q, k, a, b [B, T, H, K]; v [B, T, H, V]; log decays g [B, T, H, 1 or K] or None; erase = (a, b, after): a meets the
    state after its decay (the delta rule) or before (diagonal plus low rank); with a bonus u [H, K] a token reads
    S_{t-1} + diag(u) k_t v_t^T instead.
    """
    if state is None:
        state = q.new_zeros(q.shape[0], q.shape[2], k.shape[3], v.shape[3])
    if q.shape[1] == 1:
        return step(q, k, v, g, erase, bonus, state)
    if fast(q) and (erase is None or not erase[2]):
        a, b, _ = erase or (None, None, False)
        return fastest(by_kernel, by_chunks, q, k, v, g, a, b, bonus, state)
    return chunked(q, k, v, g, erase, bonus, state)


def delta_rule(q, k, v, beta, g=None, state=None):
    """S~ = e^g S_{t-1},  S_t = S~ + beta k (v - S~^T k)^T,  o_t = q_t^T S_t: what is written is what is erased.

    beta [B, T, H, 1], g [B, T, H, 1 or K] or None.
    """
    if fast(q):
        return fastest(delta_by_kernel, delta_by_chunks, q, k, v, beta, g, state)
    return delta_by_chunks(q, k, v, beta, g, state)


def delta_by_chunks(q, k, v, beta, g, state):
    write = beta * k
    return recurrence(q, write, v, g, erase=(k, -write, True), state=state)


def step(q, k, v, g, erase, bonus, state):
    """The recurrence of one token."""
    q, k, v = q.squeeze(1), k.squeeze(1), v.squeeze(1)
    write = k.unsqueeze(-1) * v.unsqueeze(-2)
    after = state if g is None else state * g.squeeze(1).exp().unsqueeze(-1)
    if erase is not None:
        a, b, decayed = erase
        seen = torch.einsum("bhk,bhkv->bhv", a.squeeze(1), after if decayed else state)
        after = after + b.squeeze(1).unsqueeze(-1) * seen.unsqueeze(-2)
    # Its own value is weighed as one: of a numerator and its denominator the same rounding, which cancels.
    own = q * k if bonus is None else q * bonus * k
    read = torch.einsum("bhk,bhkv->bhv", q, after if bonus is None else state) + own.sum(-1, keepdim=True) * v
    return read.unsqueeze(1), after + write


def chunked(q, k, v, g, erase, bonus, state):
    """The recurrence of many tokens: products inside chunks, states between them."""
    tokens = q.shape[1]
    q, k, v = chunks(q), chunks(k), chunks(v)
    total = before = None
    if g is not None:
        g = wide(chunks(g))
        total = g.cumsum(-2)
        before = total - g
    last = None if g is None else total[..., -1:, :]

    def scale(x, exponent):
        return x if g is None else x * factors(exponent)

    if bonus is None:
        scores, read = decayed_scores(q, k, total, total, False), scale(q, total)
    else:
        scores, read = decayed_scores(q, k, before, total, True), scale(q, before)
        scores = scores + torch.diag_embed((q * bonus[:, None, None, :] * k).sum(-1))
    out, write = scores @ v, scale(k, last - total if g is not None else None)
    keep = None if g is None else factors(last.squeeze(-2).unsqueeze(-1))
    if erase is not None:
        a, b, decayed = erase
        a, b = chunks(a), chunks(b)
        rows = total if decayed else before
        inverse = torch.eye(CHUNK, device=q.device) - decayed_scores(a, b, rows, total, True)
        # What a token writes is not yet in the state that it erases from.
        known = decayed_scores(a, k, rows, total, True) @ v
        both = torch.cat([known, scale(a, rows)], -1)
        both = torch.linalg.solve_triangular(inverse, both, upper=False, unitriangular=True)
        known, through = both.split([v.shape[-1], a.shape[-1]], -1)
        erased, removal = decayed_scores(q, b, total, total, False), scale(b, last - total if g is not None else None)
    parts = []
    for n in range(q.shape[2]):
        part = out[:, :, n] + read[:, :, n] @ state
        update = write[:, :, n].transpose(-1, -2) @ v[:, :, n]
        if erase is not None:
            values = known[:, :, n] + through[:, :, n] @ state
            part = part + erased[:, :, n] @ values
            update = update + removal[:, :, n].transpose(-1, -2) @ values
        state = update + (state if g is None else state * keep[:, :, n])
        parts.append(part)
    return torch.cat(parts, 2)[:, :, :tokens].transpose(1, 2), state


def value_gated(q, k, v, g, state=None):
    """S_t = S_{t-1} diag(e^g_t) + k_t v_t^T with log decays of values, g [B, T, H, V]:  o_t = q_t^T S_t."""
    tokens = q.shape[1]
    if state is None:
        state = q.new_zeros(q.shape[0], q.shape[2], k.shape[3], v.shape[3])
    if tokens == 1:
        state = state * g.squeeze(1).exp().unsqueeze(-2) + k.squeeze(1).unsqueeze(-1) * v.squeeze(1).unsqueeze(-2)
        return torch.einsum("bhk,bhkv->bhv", q.squeeze(1), state).unsqueeze(1), state
    q, k, v, g = chunks(q), chunks(k), chunks(v), chunks(g)
    total = wide(g).cumsum(-2)
    scores = (q @ k.transpose(-1, -2)).tril()
    visible = torch.ones(BLOCK, BLOCK, dtype=torch.bool, device=q.device).tril().unsqueeze(-1)
    inside = []
    for first in range(0, CHUNK, BLOCK):
        block = slice(first, first + BLOCK)
        difference = total[..., block, None, :] - total[..., None, block, :]
        weights = factors(difference.masked_fill(~visible, -torch.inf))
        part = (scores[..., block, block, None] * weights * v[..., None, block, :]).sum(-2)
        if first > 0:
            middle = total[..., first - 1 : first, :]
            earlier = v[..., :first, :] * factors(middle - total[..., :first, :])
            part = part + factors(total[..., block, :] - middle) * (scores[..., block, :first] @ earlier)
        inside.append(part)
    inside = torch.cat(inside, -2)
    last = total[..., -1:, :]
    write = k.transpose(-1, -2) @ (v * factors(last - total))
    parts = []
    for n in range(q.shape[2]):
        parts.append(inside[:, :, n] + factors(total[:, :, n]) * (q[:, :, n] @ state))
        state = state * factors(last[:, :, n]) + write[:, :, n]
    return torch.cat(parts, 2)[:, :, :tokens].transpose(1, 2), state


def stabilise(forget, write, maximum):
    """The running maximum m_t = max(lf_t + m_{t-1}, i_t) of an exponential gate: log decays lf_t + m_{t-1} - m_t,
    weights e^(i_t - m_t), and m. `forget`, `write` [B, T, H, 1], `maximum` [B, H] before."""
    forget, write, maximum = wide(forget), wide(write), wide(maximum)[:, None, :, None]
    total = forget.cumsum(1)
    m = total + torch.maximum((write - total).cummax(1).values, maximum)
    decay = forget + torch.cat([maximum, m[:, :-1]], 1) - m
    return decay.float(), (write - m).exp().float(), m.float()


def local_attention(q, keys, size, scale, cap=None, block=False):
    """Softmax over the last `size` keys, in the query's own block of so many where `block`: numerator [B, T, H, V] and
    denominator [B, T, H, 1].

    `keys` has `size` columns of the past before those of the queries: k and v [B, size + T, G, .], and their positions,
    -1 where there is none. Time and memory are linear in T.
    """
    b, t, h, width = q.shape
    k, v = repeat(keys.k, h), repeat(keys.v, h)
    rows = min(t, size)  # queries of a tile, which see 2 size keys at most
    more = -t % rows
    tiles, span = (t + more) // rows, size + rows

    def of_queries(x):
        return F.pad(x, (0, 0) * (x.dim() - 2) + (0, more)).unflatten(1, (tiles, rows))

    def of_keys(x, value=0):
        x = F.pad(x, (0, 0) * (x.dim() - 2) + (0, more), value=value)
        return x.unfold(1, span, rows).movedim(-1, 2)

    scores = torch.einsum("bnqhk,bnshk->bnhqs", of_queries(q), of_keys(k)) * scale
    if cap is not None:
        scores = cap * torch.tanh(scores / cap)
    places = of_keys(keys.position, -1)
    row, column = torch.arange(rows, device=q.device)[:, None], torch.arange(span, device=q.device)[None, :]
    visible = (column > row) & (column <= row + size) & (places >= 0)[:, :, None, :]
    if block:
        own = of_queries(keys.position[:, size:]) // size
        visible = visible & (places.unsqueeze(2) // size == own.unsqueeze(-1))
    visible = visible.unsqueeze(2)
    values = of_keys(v)
    sinks = None
    if keys.sink_k is not None:
        # A sink is seen besides once it has left the window.
        sink_k, sink_v = repeat(keys.sink_k, h), repeat(keys.sink_v, h)
        sinks = torch.einsum("bnqhk,bshk->bnhqs", of_queries(q), sink_k) * scale
        sinks = cap * torch.tanh(sinks / cap) if cap is not None else sinks
        first = torch.arange(tiles * rows, device=q.device).unflatten(0, (tiles, rows))
        gone = keys.sink_column[:, None, None, :] <= first[None, :, :, None]
        scores, visible = torch.cat([scores, sinks], -1), torch.cat([visible, gone.unsqueeze(2)], -1)
    scores = scores.masked_fill(~visible, -torch.inf)
    maximum = scores.amax(-1, keepdim=True)
    weights = (scores - maximum.masked_fill(maximum == -torch.inf, 0.0)).exp()
    num = torch.einsum("bnhqs,bnshv->bnqhv", weights[..., :span], values)
    if sinks is not None:
        num = num + torch.einsum("bnhqs,bshv->bnqhv", weights[..., span:], sink_v)
    den = weights.sum(-1).transpose(2, 3).unsqueeze(-1)
    return num.flatten(1, 2)[:, :t], den.flatten(1, 2)[:, :t]


# -------------------------------------------------------------------------------------------------------------- Kernels

# Whether a kernel agreed with its operator, by widths and whether gradients were wanted.
AGREED = {}
SAMPLE = 2 * CHUNK - 1  # tokens that they agree about


def fast(x):
    """Whether kernels are asked for x [B, T, ...]: many tokens at once on a GPU."""
    return FLA and x.is_cuda and x.shape[1] > 1


def fastest(kernel, operator, *tensors):
    """`kernel(*tensors)` where it does to a sample of them what `operator` does, else `operator(*tensors)`.

    Kernels do not compile for every width, and under some versions of Triton some refuse or are wrong.
    """
    gradients = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)
    key = (kernel, gradients, *(None if x is None else x.shape[-1] for x in tensors))
    if key not in AGREED:
        AGREED[key] = agree(kernel, operator, tensors, gradients)
    return (kernel if AGREED[key] else operator)(*tensors)


@torch.compiler.disable
def agree(kernel, operator, tensors, gradients):
    """Whether outputs, states and, if asked, gradients are the same but for the rounding of TF32."""
    tokens = tensors[0].shape[1]

    def sample(x):
        if x is None or x.dim() == 2:
            return x
        return x[:1, :SAMPLE] if x.shape[1] == tokens else x[:1]

    def results(function):
        arguments = [None if x is None else sample(x).detach().clone().requires_grad_(gradients) for x in tensors]
        found = list(function(*arguments))
        if gradients:
            # Squares give every output another weight.
            loss = sum(x.square().sum() for x in found)
            found += torch.autograd.grad(loss, [x for x in arguments if x is not None])
        return found

    why = "its results are others"
    try:
        # What is saved for these gradients is none of a gradient checkpoint's.
        with torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x):
            pairs = zip(results(kernel), results(operator))
        if all((x - y).norm() <= 1e-2 * y.norm() for x, y in pairs):
            return True
    except Exception as error:  # the compiler's, or a kernel's own refusal
        why = f"{type(error).__name__}: {error}".splitlines()[0]
    widths = f"keys of {tensors[1].shape[-1]} and values of {tensors[2].shape[-1]}"
    logger.warning(f"a kernel of flash-linear-attention is not used for {widths}, torch code instead: {why}")
    return False


def by_chunks(q, k, v, g, a, b, bonus, state):
    return chunked(q, k, v, g, None if a is None else (a, b, False), bonus, state)


def by_kernel(q, k, v, g, a, b, bonus, state):
    """The recurrence where it erases before it decays, or not at all."""
    named = {"scale": 1.0, "initial_state": state, "output_final_state": True}
    if a is not None:
        return chunk_dplr_delta_rule(q, k, v, a, b, g.expand_as(k), **named)
    if bonus is not None:
        return chunk_rwkv6(q, k, v, g, bonus, **named)
    if g is not None and g.shape[-1] > 1:
        return chunk_gla(q, k, v, g, **named)
    return chunk_simple_gla(q, k, v, g=None if g is None else g.squeeze(-1), **named)


def delta_by_kernel(q, k, v, beta, g, state):
    beta = beta.squeeze(-1)
    named = {"beta": beta, "scale": 1.0, "initial_state": state, "output_final_state": True}
    if g is not None and g.shape[-1] > 1:
        return chunk_kda(q, k, v, g, **named)
    return chunk_gated_delta_rule(q, k, v, g=torch.zeros_like(beta) if g is None else g.squeeze(-1), **named)


# ---------------------------------------------------------------------------------------------------------------- Carry


class Carry:
    """The operators of one layer with the state of each by name, in a StateLayer; with `state` None nothing is carried.

    At padding (`mask` 0) nothing is written and nothing decays, convolutions and shifts see zeros, and positions stand
    still.
    """

    def __init__(self, state, mask, position):
        self.state, self.mask, self.position = state, mask, position

    def get(self, name):
        return None if self.state is None else self.state.get(name)

    def put(self, name, value):
        if self.state is not None:
            self.state.put(name, value)

    def seen(self, x):
        """x [B, T, ...] with zeros at padding."""
        if self.mask is None:
            return x
        return x.masked_fill(~self.mask.reshape(*self.mask.shape, *[1] * (x.dim() - 2)), 0.0)

    def gated(self, name, q, k, v, g=None, bonus=None):
        heads = q.shape[2]
        k, v = repeat(self.seen(k), heads), repeat(v, heads)
        g = None if g is None else repeat(self.seen(g), heads)
        o, state = recurrence(q, k, v, g, bonus=bonus, state=self.get(name))
        self.put(name, state)
        return o

    def linear(self, name, a, b, v):
        """Numerator [B, T, H, V] and denominator [B, T, H, 1] of linear attention."""
        v = F.pad(v, (0, 1), value=1.0)
        return self.gated(name, a, b, v).split([v.shape[-1] - 1, 1], -1)

    def value_gated(self, name, q, k, v, g):
        heads = q.shape[2]
        k, v, g = repeat(self.seen(k), heads), repeat(self.seen(v), heads), repeat(self.seen(g), heads)
        o, state = value_gated(q, k, v, g, self.get(name))
        self.put(name, state)
        return o

    def delta(self, name, q, k, v, beta, g=None):
        heads = q.shape[2]
        k, v, beta = repeat(k, heads), repeat(v, heads), self.seen(beta)
        g = None if g is None else self.seen(g)
        o, state = delta_rule(q, k, v, beta, g, self.get(name))
        self.put(name, state)
        return o

    def dplr(self, name, q, k, v, a, b, g):
        a, b, k = self.seen(a), self.seen(b), self.seen(k)
        o, state = recurrence(q, k, v, self.seen(g), erase=(a, b, False), state=self.get(name))
        self.put(name, state)
        return o

    def mlstm(self, name, q, k, v, forget, write, eps):
        heads = q.shape[2]
        if self.mask is not None:
            write = write.masked_fill(~self.mask[:, :, None, None], -torch.inf)
        maximum = self.get(name + "_maximum")
        maximum = q.new_zeros(q.shape[0], heads) if maximum is None else maximum
        g, weight, m = stabilise(self.seen(forget), write, maximum)
        k, v = repeat(k, heads) * weight, F.pad(repeat(v, heads), (0, 1), value=1.0)
        o, state = recurrence(q, k, v, g, state=self.get(name))
        self.put(name, state)
        self.put(name + "_maximum", m[:, -1, :, 0])
        num, den = o.split([v.shape[-1] - 1, 1], -1)
        return num / (torch.maximum(den.abs(), (-m).exp()) + eps)

    def sum(self, name, x):
        """Sums of x [B, T, ...] up to each token."""
        before = self.get(name)
        x = self.seen(x).cumsum(1)
        x = x if before is None else x + before.unsqueeze(1)
        self.put(name, x[:, -1])
        return x

    def convolution(self, name, x, weight, bias=None):
        """Depthwise causal convolution of x [B, T, N] with SiLU."""
        taps = weight.shape[1]
        x, before = self.seen(x), self.get(name)
        before = x.new_zeros(x.shape[0], taps - 1, x.shape[2]) if before is None else before
        x = torch.cat([before, x], 1)
        self.put(name, x[:, x.shape[1] - taps + 1 :])
        return F.silu(F.conv1d(x.transpose(1, 2), weight.unsqueeze(1), bias, groups=x.shape[2]).transpose(1, 2))

    def shift(self, name, x):
        """x [B, T, ...] of the token before."""
        x, before = self.seen(x), self.get(name)
        before = torch.zeros_like(x[:, 0]) if before is None else before
        self.put(name, x[:, -1])
        return torch.cat([before.unsqueeze(1), x[:, :-1]], 1)

    def keys(self, name, size, sinks=0, **columns):
        """Key columns, `size` past ones first, and their positions (-1: none there); leaves the last `size` for the
        next call. The first `sinks` tokens of the text are kept besides."""
        joined = SimpleNamespace(sink_k=None, sink_v=None)
        first = next(iter(columns.values()))
        position = self.position if self.mask is None else self.position.masked_fill(~self.mask, -1)
        before = self.get(f"{name}_position")
        if before is None:
            before = position.new_full((position.shape[0], size), -1)
        joined.position = torch.cat([before, position], 1)
        self.put(f"{name}_position", joined.position[:, first.shape[1] :])
        for part, x in columns.items():
            past = self.get(f"{name}_{part}")
            past = x.new_zeros(x.shape[0], size, *x.shape[2:]) if past is None else past
            x = torch.cat([past, x], 1)
            self.put(f"{name}_{part}", x[:, x.shape[1] - size :])
            setattr(joined, part, x)
        if sinks > 0:
            self.pin(name, size, sinks, joined, before)
        return joined

    def pin(self, name, size, sinks, joined, before):
        """Adds the first `sinks` keys and values of the text, and the first query that sees each of them besides its
        window: 0 where it is out of the window already, beyond all queries where there is none yet."""
        numbers = torch.arange(sinks, device=before.device)
        here = joined.position.unsqueeze(1) == numbers[:, None]  # [B, sinks, columns]
        new = here[:, :, size:].float()
        for part in ("k", "v"):
            x = getattr(joined, part)
            kept = self.get(f"{name}_sink_{part}")
            fresh = torch.einsum("bsc,bchk->bshk", new, x[:, size:])
            kept = fresh if kept is None else kept + fresh
            self.put(f"{name}_sink_{part}", kept)
            setattr(joined, f"sink_{part}", kept)
        known = self.get(f"{name}_sink_known")
        known = new.sum(-1) > 0 if known is None else known | (new.sum(-1) > 0)
        self.put(f"{name}_sink_known", known)
        columns = joined.position.shape[1]
        column = torch.where(here.any(-1), here.float().argmax(-1), torch.where(known, -1, columns))
        # The query at column size + i has column i outside of its window, and all before it.
        joined.sink_column = torch.where(column < 0, 0, column)


# --------------------------------------------------------------------------------------------------------------- Window


class Heads:
    """What a layer gives its mixer: its normalised input x [B, T, D], q [B, T, H, K], k and v [B, T, G, K], all f32; q
    and k after the teacher's rotary positions as `rotated`; sizes and depth of the layer."""

    def __init__(self, x, q, k, v, turn, layer, layers, scale, cap):
        self.x, self.q, self.k, self.v, self.turn = x, q, k, v, turn
        self.rotated = turn(q), turn(k)
        self.layer, self.layers, self.scale, self.cap = layer, layers, scale, cap
        self.heads, self.kv_heads, self.width = q.shape[2], k.shape[2], q.shape[3]


def windowed(h, window, carry, **columns):
    """The keys of a window, and its numerator and denominator."""
    keys = carry.keys("window", window["size"], window.get("sinks", 0), k=h.rotated[1], v=h.v, **columns)
    return keys, local_attention(h.rotated[0], keys, window["size"], h.scale, h.cap)


def blend(h, p, window, exact, linear):
    """A window's share of the output and the linear branch's: half and half, or learned for each head."""
    share = torch.sigmoid(p["window_share"])[:, None] if window["combine"] == "learned" else 0.5
    return share * quotient(*exact) + (1 - share) * linear


def scaled(x, p):
    """x times a learned scale per head, where the mixer has one."""
    return x * p["output_scale"] if "output_scale" in p else x


# --------------------------------------------------------------------------------------------------------------- Mixers
# A mixer is a function of heads `h`, its tensors `p`, its options `o` and `carry`; it gives [B, T, H, V]. A kernel is a
# pair of feature maps, to which `kernel` adds normaliser and window.

MIXERS = {}


def mixer(*names):
    """Registers a recurrence; beside a window, its output is blended with the window's."""

    def register(function):
        for name in names:

            def run(h, p, o, window, carry, name=name):
                arguments = (h, p, o, carry) if len(names) == 1 else (h, p, o, carry, name)
                exact = None if window is None else windowed(h, window, carry)[1]
                linear = scaled(function(*arguments), p)
                return linear if window is None else blend(h, p, window, exact, linear)

            MIXERS[name] = run
        return function

    return register


def kernel(*names, eps, unit=False, rotary=lambda o: True):
    """Registers feature maps, `function(side, x, h, p, o)` of q or k -> [B, T, H, F], under a normaliser:
    o_t = phi(q_t)^T S_t / (phi(q_t).z_t + eps).

    Under a joint normaliser the window's keys are its own, and a key enters S and z when it leaves the window: the
    linear branch reads keys `size` columns late. Features that are shares of one (`unit`) let the window weigh at most
    1.
    """

    def register(function):
        for name in names:

            def run(h, p, o, window, carry, name=name):
                def phi(side, x):
                    return function(side, x, h, p, o) if len(names) == 1 else function(side, x, h, p, o, name)

                after = rotary(o)
                q, k = h.rotated if after else (h.q, h.k)
                joint = window is not None and window["combine"] == "joint"
                if not joint:
                    exact = None if window is None else windowed(h, window, carry)[1]
                    num, den = carry.linear("s", phi("q", q), phi("k", k), h.v)
                    linear = scaled(quotient(num, den + eps(h)), p)
                    return linear if window is None else blend(h, p, window, exact, linear)
                keys, exact = windowed(h, window, carry, **({} if after else {"raw": h.k}))
                late = (keys.k if after else keys.raw)[:, : q.shape[1]]
                entering = keys.position[:, : q.shape[1]] >= window.get("sinks", 0)
                b = phi("k", late) * entering[:, :, None, None]
                num, den = Carry(carry.state, None, None).linear("s", phi("q", q), b, keys.v[:, : q.shape[1]])
                factor = p["window_factor"][:, None]
                gamma = torch.sigmoid(factor) if unit else factor.clamp(-30, 30).exp()
                return scaled(quotient(gamma * exact[0] + num, gamma * exact[1] + den), p)

            MIXERS[name] = run
        return function

    return register


def linear_map(x, weight, heads):
    """A linear map of each head, [H, F, K], or of all, [F, K]."""
    if weight.dim() == 2:
        return repeat(F.linear(x, weight), heads)
    return torch.einsum("bthk,hfk->bthf", repeat(x, heads), weight)


def small(h):
    """flash-linear-attention's addition to a normaliser, beside its q divided by sqrt K."""
    return 1e-10 * math.sqrt(h.width)


@kernel("hedgehog", eps=lambda h: 1e-12, unit=True)
def hedgehog(side, x, h, p, o):
    """[softmax(x W), softmax(-x W)]"""
    y = torch.einsum("bthk,hkf->bthf", repeat(x, h.heads), p[f"{side}_map"])
    return torch.cat([y.softmax(-1), (-y).softmax(-1)], -1).clamp(min=1e-12)


@kernel("hedgehog-fla", eps=small)
def hedgehog_fla(side, x, h, p, o):
    """softmax([2y, -2y]), y = W x + b"""
    y = 2 * (linear_map(x, p[f"{side}_map"], h.heads) + p[f"{side}_bias"])
    return torch.cat([y, -y], -1).softmax(-1)


@kernel("t2r", eps=small)
def t2r(side, x, h, p, o):
    """relu(W x + b)"""
    y = linear_map(x, p[f"{side}_map"], h.heads)
    return F.relu(y + p[f"{side}_bias"] if o["bias"] else y)


@kernel("elu-plus-one", eps=small)
def elu_plus_one(side, x, h, p, o):
    return repeat(F.elu(x) + 1, h.heads)


@kernel("squared-relu", eps=small)
def squared_relu(side, x, h, p, o):
    return repeat(F.relu(x).square(), h.heads)


@kernel("slab", eps=lambda h: 1e-6)
def slab(side, x, h, p, o):
    return repeat(F.relu(x), h.heads)


@kernel("performer", eps=lambda h: 1e-6)
def performer(side, x, h, p, o):
    """m^-1/2 (exp(Omega x^ - |x^|^2 / 2 - c) + 1e-4), x^ = x K^-1/4, c the maximum of a query's row"""
    x = x * h.width**-0.25
    exponent = F.linear(x, p["omega"]) - x.square().sum(-1, keepdim=True) / 2
    if side == "q":
        exponent = exponent - exponent.amax(-1, keepdim=True)
    return repeat((exponent.exp() + 1e-4) * p["omega"].shape[0] ** -0.5, h.heads)


@kernel("nalaformer", eps=lambda h: 1e-6, rotary=lambda o: o["rope"])
def nalaformer(side, x, h, p, o):
    """keys [relu(k^3), relu(-k^3)]; queries [relu(u), relu(-u)]^p, u = q / |q|, p = 3 (1/2 + tanh |q|)"""
    if side == "k":
        x = x**3
        return repeat(torch.cat([F.relu(x), F.relu(-x)], -1), h.heads)
    tiny = 1e-30
    length = x.square().sum(-1, keepdim=True)
    unit = x / (length + tiny).sqrt()
    power = 1.5 + 3 * torch.tanh(length.clamp(min=tiny).sqrt())
    signs = torch.cat([F.relu(unit), F.relu(-unit)], -1)
    return repeat((signs.clamp(min=tiny).log() * power).exp(), h.heads)


def products(x):
    """x_i x_j for i < j, row by row."""
    i, j = torch.triu_indices(x.shape[-1], x.shape[-1], 1, device=x.device)
    return x[..., i] * x[..., j]


@mixer("based")
def based(h, p, o, carry):
    """1 + s + s^2 / 2, s = q'.k' / sqrt f"""

    def features(x, weight):
        x = linear_map(x, weight, h.heads)
        f = x.shape[-1]
        parts = [torch.ones_like(x[..., :1]), x * f**-0.25, x.square() * (2 * f) ** -0.5, products(x) * f**-0.5]
        return torch.cat(parts, -1)

    num, den = carry.linear("s", features(h.rotated[0], p["q_map"]), features(h.rotated[1], p["k_map"]), h.v)
    return quotient(num, den + 1e-6)


@mixer("rebased")
def rebased(h, p, o, carry):
    """(q'.k')^2 / f, x' = gamma LayerNorm(W x) + beta"""

    def features(x, weight):
        x = layer_norm(linear_map(x, weight, h.heads), p["gamma"], p["beta"], 1e-5)
        f = x.shape[-1]
        return torch.cat([x.square() * f**-0.5, products(x) * (2 / f) ** 0.5], -1)

    num, den = carry.linear("s", features(h.rotated[0], p["q_map"]), features(h.rotated[1], p["k_map"]), h.v)
    return quotient(num, den + 1e-5)


@mixer("cosformer")
def cosformer(h, p, o, carry):
    """[r sin theta_t, r cos theta_t], r = relu(x), theta_t = pi t / 2M"""
    theta = wide((carry.position + 1).float())[:, :, None, None] * (math.pi / 2 / o["length"])
    sine, cosine = theta.sin().float(), theta.cos().float()

    def features(x):
        r = F.relu(x)
        return repeat(torch.cat([r * sine, r * cosine], -1), h.heads)

    num, den = carry.linear("s", features(h.q), features(h.k), h.v)
    return quotient(num, den.clamp(min=1e-6))


@mixer("transnormer")
def transnormer(h, p, o, carry):
    """Softmax in blocks in the first half of the layers; in the second srms(phi(q)^T sum phi(k) v^T), phi = elu + 1."""
    q, k = h.rotated
    if 2 * h.layer < h.layers:
        keys = carry.keys("block", o["block"], k=k, v=h.v)
        return quotient(*local_attention(q, keys, o["block"], h.width**-0.5, block=True))
    o = carry.gated("s", F.elu(q) + 1, F.elu(k) + 1, h.v)
    return rms_norm(o, None, 1e-16, all_heads=True)


@mixer("flowformer")
def flowformer(h, p, o, carry):
    """Attention as a flow network: flows in and out of queries and keys from prefix sums."""
    eps = 1e-6
    count = (carry.position + 1).float()[:, :, None, None]
    a, b = torch.sigmoid(h.q), repeat(torch.sigmoid(h.k), h.heads)

    def flow(name, x, y):
        return ((x + eps) * (carry.sum(name, y) + eps)).sum(-1, keepdim=True)

    incoming, outgoing = count / flow("b_sum", a, b), count / flow("a_sum", b, a)
    conserved_in = flow("b_flow", a, b * outgoing) / count
    conserved_out = flow("a_flow", b, a * incoming) / count
    strength = conserved_out.clamp(-1, 1).exp()
    competition = strength / carry.sum("strength", strength).clamp(min=0.1) * count
    o = carry.gated("s", a, b, repeat(h.v, h.heads) * competition)
    return o * torch.sigmoid(conserved_in) * incoming / count


@mixer("mala")
def mala(h, p, o, carry):
    """(1 + 1 / z_t) (s / t) a_t^T sum b v^T - z_t mean(v), z_t = s a_t.mean(b)"""
    root, count = h.width**-0.5, (carry.position + 1).float()[:, :, None, None]
    a, b = (F.elu(h.q) + 1) * p["feature_scale"], F.elu(h.k) + 1
    magnitude = (a * repeat(carry.sum("b_sum", b), h.heads)).sum(-1, keepdim=True) * root / count
    mean = repeat(carry.sum("v_sum", h.v) / count, h.heads)
    a, b = (h.turn(a), h.turn(b)) if o["rope"] else (a, b)
    out = carry.gated("s", a * root, b, h.v) * (1 / (magnitude + 1e-6) + 1) / count
    return out - mean * magnitude


@mixer("inline")
def inline(h, p, o, carry):
    """(s / t) q_t^T sum k v^T + (1 - s q_t.mean(k)) mean(v)"""
    count = (carry.position + 1).float()[:, :, None, None]
    q, k = h.rotated if o["rope"] else (h.q, h.k)
    q = q * p["feature_scale"] * h.width**-0.5 / count
    rest = 1 - (q * repeat(carry.sum("k_sum", k), h.heads)).sum(-1, keepdim=True)
    mean = repeat(carry.sum("v_sum", h.v) / count, h.heads)
    return carry.gated("s", q, k, h.v) + mean * rest


# What gated mixers share


def rms_norm(x, weight, eps, all_heads=False):
    """RMSNorm of each head, or of all together; weight [H, V]."""
    dims = (-2, -1) if all_heads else (-1,)
    x = x * (x.square().mean(dims, keepdim=True) + eps).rsqrt()
    return x if weight is None else x * weight


def layer_norm(x, weight, bias, eps):
    x = F.layer_norm(x, x.shape[-1:], eps=eps) * weight
    return x if bias is None else x + bias


def l2_norm(x, eps):
    return x * (x.square().sum(-1, keepdim=True) + eps).rsqrt()


def gate(x, p, name, heads, bias=None):
    """W x + b in heads, [B, T, H, n]; without a bias where the mixer has none."""
    y = F.linear(x, p[f"{name}_weight"])
    bias = p.get(bias or f"{name}_bias")
    y = y if bias is None else y + bias
    return y.unflatten(-1, (heads, -1))


def low_rank(x, p, down, up, bias, heads, inner=None):
    """W2 f(W1 x) + b in heads."""
    y = F.linear(x, p[down])
    y = F.linear(y if inner is None else inner(y), p[up])
    return (y if bias is None else y + p[bias]).unflatten(-1, (heads, -1))


def convolved(h, p, o, carry):
    """q, k, v through short convolutions, where the option says so."""
    if not o["convolution"]:
        return h.q, h.k, h.v

    def one(side, x):
        name = f"{side}_convolution"
        return carry.convolution(name, x.flatten(2), p[name], p.get(name + "_bias")).unflatten(-1, x.shape[2:])

    return one("q", h.q), one("k", h.k), one("v", h.v)


def finish(x, h, p):
    """RMSNorm of each head, times an output gate where there is one."""
    x = rms_norm(x, p["norm_weight"], 1e-5)
    if "output_gate_weight" in p:
        return x * F.silu(gate(h.x, p, "output_gate", h.heads))
    if "output_gate_down" in p:
        names = ("output_gate_down", "output_gate_up", "output_gate_bias")
        return x * torch.sigmoid(low_rank(h.x, p, *names, h.heads))
    return x


def constant_gate(h, p, decays):
    """Log decays of heads that no token changes, [B, T, H, 1]."""
    decays = torch.tensor(decays, dtype=torch.float32, device=h.q.device)[:, None] * p["decay_scale"]
    return decays.expand(*h.q.shape[:2], h.heads, 1)


@mixer("retention")
def retention(h, p, o, carry):
    """S_t = (1 - 2^(-5-h)) S_{t-1} + k_t v_t^T"""
    g = constant_gate(h, p, [math.log1p(-(2.0 ** (-5 - n))) for n in range(h.heads)])
    return finish(carry.gated("s", h.rotated[0] * h.width**-0.5, h.rotated[1], h.v, g), h, p)


@mixer("lightning")
def lightning(h, p, o, carry):
    """S_t = e^(-s_h) S_{t-1} + k_t v_t^T with a slope for each head and layer"""

    def slope(n):
        if o["slopes"] == "geometric":
            return 2.0 ** (-8 * (n + 1) / h.heads) * (1 - h.layer / (h.layers - 1 + 1e-5) + 1e-5)
        return 8 * n / h.heads * (1 - h.layer / h.layers)

    q, k, v = (F.silu(x) if o["activation"] else x for x in (h.q, h.k, h.v))
    g = constant_gate(h, p, [-slope(n) for n in range(h.heads)])
    out = carry.gated("s", q * h.width**-0.5, k, v, g)
    if not o["output_norm"]:
        return out
    out = rms_norm(out, p["norm_weight"], 1e-6, all_heads=True)
    return out * torch.sigmoid(gate(h.x, p, "output_gate", h.heads))


@mixer("simple-gla")
def simple_gla(h, p, o, carry):
    """g = ln sigmoid(W x + b) / 16, one for each head"""
    q, k, v = convolved(h, p, o, carry)
    g = F.logsigmoid(gate(h.x, p, "gate", h.heads)) / 16
    return finish(carry.gated("s", q * h.width**-0.5, k, v, g), h, p)


@mixer("gla")
def gla(h, p, o, carry):
    """g = ln sigmoid(W2 W1 x + b) / 16, one for each channel of a key"""
    q, k, v = convolved(h, p, o, carry)
    g = F.logsigmoid(low_rank(h.x, p, "gate_down", "gate_up", "gate_bias", h.kv_heads)) / 16
    return finish(carry.gated("s", q * h.width**-0.5, k, v, g), h, p)


@mixer("liger-gla", "liger-hgrn2", "liger-gsa")
def liger(h, p, o, carry, name):
    """Gates from the keys themselves."""
    g = F.logsigmoid(h.k)
    if name == "liger-gla":
        return carry.gated("s", h.q.softmax(-1), h.k.softmax(-1), h.v, g / 16)
    if name == "liger-hgrn2":
        return carry.gated("s", h.q.softmax(-1), -torch.expm1(g), h.v, g)
    return slots(carry, h.q, h.k, h.v, g / 16)


@mixer("hgrn2")
def hgrn2(h, p, o, carry):
    """e^g = lb + (1 - lb) sigmoid(k + b); what is written is 1 - e^g"""
    f = h.k + p["forget_bias"]
    g, k = F.logsigmoid(f), torch.sigmoid(-f)
    if "lower_bound_logit" in p:
        lowest, free = torch.sigmoid(p["lower_bound_logit"]), torch.sigmoid(-p["lower_bound_logit"])
        g, k = torch.log(lowest + free * torch.sigmoid(f)), k * free
    out = carry.gated("s", F.silu(h.q) * h.width**-0.5, k, h.v, g)
    return rms_norm(out, p["norm_weight"], 1e-5, all_heads=True)


def slots(carry, q, k, v, g):
    """Both passes of slot attention: softmax over slots of decaying keys, then their decaying values."""
    s = -torch.expm1(g)
    p = carry.value_gated("slot_keys", q, k, s, g).softmax(-1)
    return carry.gated("slot_values", p, s, v, g)


@mixer("gsa")
def gsa(h, p, o, carry):
    """g = ln sigmoid(W x + b) / 8, one for each slot"""
    g = F.logsigmoid(gate(h.x, p, "gate", h.kv_heads)) / 8
    out = F.silu(slots(carry, F.silu(h.q), F.silu(h.k), F.silu(h.v), g))
    return rms_norm(out, p["norm_weight"], 1e-5, all_heads=True)


@mixer("mamba2")
def mamba2(h, p, o, carry):
    """S_t = e^(-e^A dt) S_{t-1} + k_t (dt v_t)^T;  o_t = norm((q_t^T S_t + d v_t) silu(W_z x_t))"""
    q, k, v = convolved(h, p, o, carry)
    v = repeat(v, h.heads)
    dt = F.softplus(gate(h.x, p, "dt", h.heads))
    out = carry.gated("s", q, k, v * dt, -dt * p["a_log"].exp()) + v * p["skip"]
    out = rms_norm(out * F.silu(gate(h.x, p, "output_gate", h.heads)), p["norm_weight"], 1e-5)
    return carry.seen(out)


@mixer("mlstm")
def mlstm(h, p, o, carry):
    """C_t = e^lf C_{t-1} + e^i k_t v_t^T, n_t likewise;  h_t = q_t^T C_t / max(|q_t.n_t|, 1)"""
    of_input = o["gates"] == "input"
    source = h.x if of_input else torch.cat([x.flatten(2) for x in (h.q, h.k, h.v)], -1)
    forget, write = gate(source, p, "forget", h.heads), gate(source, p, "input", h.heads)
    if of_input:
        forget, write = 15 * torch.tanh(forget / 15), 15 * torch.tanh(write / 15)
    out = carry.mlstm("sums", h.q * h.width**-0.5, h.k, h.v, F.logsigmoid(forget), write, 1e-6)
    out = layer_norm(out, p["norm_weight"], None, 1e-6 if of_input else 1e-5)
    return out * torch.sigmoid(gate(h.x, p, "output_gate", h.heads)) if of_input else out


def lerp(x, y, share):
    return x + (y - x) * share


@mixer("rwkv6")
def rwkv6(h, p, o, carry):
    """o_t = q_t^T (S_{t-1} + diag(u) k_t v_t^T); decays and output gate from mixtures of a token with the one before"""
    shifted = carry.shift("last_input", h.x)
    mixed = lerp(h.x, shifted, p["mix_base"])

    def mixture(name):
        low = torch.tanh(F.linear(mixed, p[f"{name}_mix_down"]))
        return lerp(h.x, shifted, F.linear(low, p[f"{name}_mix_up"]) + p[f"{name}_mix_bias"])

    g = -low_rank(mixture("decay"), p, "decay_down", "decay_up", "decay_bias", h.heads, torch.tanh).exp()
    q = lerp(h.q, carry.shift("last_q", h.q), p["q_shift"])
    k = lerp(h.k, carry.shift("last_k", h.k), p["k_shift"])
    v = lerp(h.v, carry.shift("last_v", h.v), p["v_shift"])
    out = layer_norm(carry.gated("s", q, k, v, g, p["bonus"]), p["norm_weight"], p["norm_bias"], 1e-5)
    return carry.seen(out * F.silu(gate(mixture("gate"), p, "output_gate", h.heads)))


def unit_vectors(q, k):
    return l2_norm(q, 1e-6) * q.shape[-1] ** -0.5, l2_norm(k, 1e-6)


def beta(h, p, o):
    return torch.sigmoid(gate(h.x, p, "beta", h.heads)) * (2 if o["negative_eigenvalues"] else 1)


def decay(h, p):
    return -F.softplus(gate(h.x, p, "decay", h.heads, "dt_bias")) * p["a_log"].exp()


@mixer("deltanet", "gated-deltanet")
def deltanet(h, p, o, carry, name):
    """The delta rule, alone or after a decay of each head"""
    q, k, v = convolved(h, p, o, carry)
    q, k = unit_vectors(q, k)
    g = decay(h, p) if name == "gated-deltanet" else None
    return finish(carry.delta("s", q, k, v, beta(h, p, o), g), h, p)


@mixer("kda")
def kda(h, p, o, carry):
    """The delta rule after a decay of each channel of a key"""
    q, k, v = convolved(h, p, o, carry)
    q, k = unit_vectors(q, k)
    logits, rate = low_rank(h.x, p, "gate_down", "gate_up", "dt_bias", h.heads), p["a_log"].exp()
    g = -5 * torch.sigmoid(logits * rate) if o["safe_gate"] else -F.softplus(logits) * rate
    return finish(carry.delta("s", q, k, v, beta(h, p, o), g), h, p)


@mixer("delta-product")
def delta_product(h, p, o, carry):
    """Several delta rules a token: it decays before the first write and is read after the last"""
    n = o["micro_steps"]
    q, k, v = convolved(h, p, o, carry)

    def all_writes(first, side):
        more = F.linear(h.x, p[f"more_{side}_weight"])
        if o["convolution"]:
            name = f"more_{side}_convolution"
            more = carry.convolution(name, more, p[name])
        return torch.cat([first.flatten(2), more], -1).unflatten(-1, (n, *first.shape[2:])).flatten(1, 2)

    k, v = all_writes(k, "k"), all_writes(v, "v")
    q, k = unit_vectors(q, k)
    logits = torch.cat([gate(h.x, p, "beta", 1), gate(h.x, p, "more_beta", 1)], -1).squeeze(2)
    betas = torch.sigmoid(logits).unflatten(-1, (n, h.heads, 1)).flatten(1, 2) * (2 if o["negative_eigenvalues"] else 1)
    g = decay(h, p)
    g = torch.cat([g.unsqueeze(2), g.new_zeros(*g.shape[:2], n - 1, *g.shape[2:])], 2).flatten(1, 2)
    q = torch.cat([q.new_zeros(*q.shape[:2], n - 1, *q.shape[2:]), q.unsqueeze(2)], 2).flatten(1, 2)
    mask = None if carry.mask is None else carry.mask.repeat_interleave(n, 1)
    out = Carry(carry.state, mask, None).delta("s", q, k, v, betas, g)
    return finish(out.unflatten(1, (-1, n))[:, :, -1], h, p)


@mixer("titans")
def titans(h, p, o, carry):
    """S_t = (1 - alpha_t) S_{t-1} - 2 theta_t k_t (S_{t-1}^T k_t - v_t)^T"""
    q, k = (l2_norm(h.q, 1e-6), l2_norm(h.k, 1e-6)) if o["unit_length"] else (h.q, h.k)
    k, v = repeat(k, h.heads), repeat(h.v, h.heads)
    write = k * torch.sigmoid(gate(h.x, p, "theta", h.heads)) * (2 / h.width if o["mean_loss"] else 2)
    g = F.logsigmoid(-gate(h.x, p, "alpha", h.heads))
    return carry.dplr("s", q, write, v, k, -write, g)


@mixer("rwkv7")
def rwkv7(h, p, o, carry):
    """S_t = diag(e^w_t) S_{t-1} - (kappa alpha)_t (kappa_t^T S_{t-1}) + k'_t v_t^T, a bonus for the token itself"""
    x = x_decay = x_rate = x_gate = h.x
    if o["token_shift"]:
        before = carry.shift("x", x)
        x_decay, x_rate, x_gate = (lerp(x, before, p[f"{name}_shift"]) for name in ("decay", "rate", "gate"))
    logits = low_rank(x_decay, p, "decay_down", "decay_up", "decay_bias", h.heads, torch.tanh)
    w = -math.exp(-0.5) * torch.sigmoid(logits)
    rate = torch.sigmoid(low_rank(x_rate, p, "rate_down", "rate_up", "rate_bias", h.heads))
    out_gate = low_rank(x_gate, p, "gate_down", "gate_up", None, h.heads, torch.sigmoid)
    r, k, v = h.q, repeat(h.k, h.heads), repeat(h.v, h.heads)
    kappa = l2_norm(k * p["k_k"], 1e-24)
    k = k + k * (rate - 1) * p["k_a"]
    out = carry.dplr("s", r, k, v, -kappa, kappa * rate, w)
    out = layer_norm(out, p["norm_weight"], p["norm_bias"], 1e-5 * h.width)
    bonus = v * (r * p["r_k"] * k).sum(-1, keepdim=True)
    return carry.seen((out + bonus) * out_gate)


# -------------------------------------------------------------------------------------------------------------- Decoder

ACTIVATIONS = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu-tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
}


class Spec:
    """`subquad_decoder` of config.json: sizes, and which tensors there are. Where transformers changes what it knows
    under a key of its own, that key counts."""

    def __init__(self, config):
        for key, value in config.decoder_block().items():
            setattr(self, key, value)

    def linear(self, layer, target):
        """[out, in] of a linear layer; None where the block has none."""
        q, kv = self.heads * self.head_width, self.kv_heads * self.head_width
        if target in "qkvo":
            return {"q": [q, self.width], "k": [kv, self.width], "v": [kv, self.width], "o": [self.width, q]}[target]
        return None if self.blocks[layer]["experts"] else self.mlp(target, self.ffn)

    def mlp(self, target, ffn):
        if target == "gate" and not self.gated:
            return None
        return [self.width, ffn] if target == "down" else [ffn, self.width]

    def norm_width(self, at):
        if at in ("q", "k"):
            heads = {"head": 1, "full": self.heads if at == "q" else self.kv_heads}
            return None if self.qk_norm is None else heads[self.qk_norm] * self.head_width
        there = {
            "final": True,
            "attention": self.layout != "post",
            "mlp": self.layout in ("pre", "sandwich", "parallel"),
            "after_attention": self.layout in ("post", "sandwich"),
            "after_mlp": self.layout in ("post", "sandwich"),
        }
        return self.width if there[at] else None

    def shape(self, layer, part):
        """Shape of a weight; None where the decoder has none."""
        kind, of = (part, None) if isinstance(part, str) else next(iter(part.items()))
        if kind == "embed":
            return [self.vocab, self.width]
        if kind == "positions":
            return None if self.positions is None else [self.positions["rows"], self.width]
        if kind == "head":
            return [self.vocab, self.width]
        if kind == "weight":
            return self.linear(layer, of)
        if kind == "bias":
            shape = self.linear(layer, of)
            return None if shape is None or of not in self.biases else shape[:1]
        if kind in ("norm", "norm_bias"):
            width = self.norm_width(of)
            plain = kind == "norm_bias" and (self.norm["kind"] != "layer" or of in ("q", "k"))
            return None if width is None or plain else [width]
        if not self.blocks[layer]["experts"]:
            return None
        return [self.experts["count"], self.width] if kind == "router" else self.mlp(of[0], self.experts["ffn"])

    def name(self, template, layer=0):
        base = self.names["base"]
        template = template[len(base) :] if self.bare and template.startswith(base) else template
        return template.replace("{}", str(layer))

    def stored(self, templates, layer=0):
        """Modules of the templates: path -> its tensors, {"weight": (parts, shapes, arrangement), ...}."""
        modules = {}
        for template in templates:
            shapes = [self.shape(layer, part) for part in template["parts"]]
            if None in shapes:
                continue
            expert = isinstance(template["parts"][0], dict) and "expert" in template["parts"][0]
            for copy in range(self.experts["count"] if expert else 1):
                name = self.name(template["name"], layer).replace("{e}", str(copy))
                path, tensor = name.rsplit(".", 1)
                modules.setdefault(path, {})[tensor] = (template["parts"], shapes, template["arrangement"])
        return modules


class Norm(nn.Module):
    def __init__(self, norm, width, biased):
        super().__init__()
        self.kind, self.eps = norm["kind"], norm["eps"]
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if biased else None

    def forward(self, x):
        y = x.float()
        if self.kind == "layer":
            y = y - y.mean(-1, keepdim=True)
        y = y * (y.square().mean(-1, keepdim=True) + self.eps).rsqrt()
        y = y * (self.weight.float() + 1 if self.kind == "rms-plus-one" else self.weight.float())
        return (y if self.bias is None else y + self.bias.float()).to(x.dtype)


class MixerTensors(nn.Module):
    """The tensors that a mixer adds to its layer."""

    def __init__(self, shapes):
        super().__init__()
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.zeros(shape)))

    def forward(self):
        """All of them by name, in f32."""
        return {name: tensor.float() for name, tensor in self.named_parameters()}


def module_of(spec, tensors):
    """The module that holds the tensors of one path."""
    parts, shapes, arrangement = tensors["weight"]
    kind = parts[0] if isinstance(parts[0], str) else next(iter(parts[0]))
    if kind in ("embed", "positions"):
        return nn.Embedding(*shapes[0])
    if kind == "norm":
        return Norm(spec.norm, shapes[0][0], "bias" in tensors)
    out, inner = sum(shape[0] for shape in shapes), shapes[0][1]
    if arrangement == "transposed":
        return Conv1D(out, inner)
    return nn.Linear(inner, out, bias="bias" in tensors)


def place(root, path, module):
    """Puts `module` at `path` below `root`."""
    *parents, name = path.split(".")
    for parent in parents:
        if parent not in root._modules:
            root.add_module(parent, nn.Module())
        root = root._modules[parent]
    root.add_module(name, module)


class Block(GradientCheckpointingLayer):
    """One block. Its modules have the names that they have in the teacher."""

    def __init__(self, config, spec, layer):
        super().__init__()
        self.spec, self.layer = spec, layer
        block = config.subquad
        templates = [template for group in spec.names["block"] for template in group]
        prefix = block_path(spec, layer) + "."
        self.paths = {}
        self.linears = []
        for path, tensors in spec.stored(templates, layer).items():
            path = path.removeprefix(prefix)
            place(self, path, module_of(spec, tensors))
            parts, shapes, arrangement = tensors["weight"]
            keys = [part if isinstance(part, str) else next(iter(part.items())) for part in parts]
            if keys[0][0] == "weight":
                self.linears.append((path, [key[1] for key in keys], [shape[0] for shape in shapes], arrangement))
            elif keys[0][0] == "norm":
                self.paths[keys[0]] = path
            elif keys[0] == "router":
                self.paths["router"] = path
            else:
                self.paths.setdefault(("expert", keys[0][1][0]), []).append(path)
        self.softmax = layer in block["softmax_layers"]
        self.window, self.options, self.mixer_name = block["window"], block["options"], block["mixer"]
        kind = config.subquad_tensors["layers"][layer]
        shapes = {} if kind is None else config.subquad_tensors["kinds"][kind]
        self.mixer_path = spec.name(spec.names["attention"], layer).removeprefix(prefix) + "mixer"
        if not self.softmax:
            place(self, self.mixer_path, MixerTensors(shapes))

    def project(self, x, targets):
        """The linear layers `targets` of x, by name; those that share a tensor are computed together."""
        out = {}
        for path, names, sizes, arrangement in self.linears:
            if names[0] not in targets:
                continue
            y = self.get_submodule(path)(x)
            if arrangement == "grouped" and len(names) > 1:
                groups = self.spec.kv_heads
                parts = y.unflatten(-1, (groups, -1)).split([size // groups for size in sizes], -1)
                out.update(zip(names, (part.flatten(-2) for part in parts)))
            else:
                out.update(zip(names, y.split(sizes, -1)))
        return out

    def normed(self, at, x):
        path = self.paths.get(("norm", at))
        return x if path is None else self.get_submodule(path)(x)

    def forward(self, x, call, state=None):
        spec, call = self.spec, call.on(x.device)
        state = None if state is None else state.on(x.device)
        h = self.normed("attention", x)
        heads = self.project(h, "qkv")
        if spec.qk_norm == "full":
            heads["q"], heads["k"] = self.normed("q", heads["q"]), self.normed("k", heads["k"])
        q, k, v = (heads[name].unflatten(-1, (-1, spec.head_width)) for name in "qkv")
        if spec.qk_norm == "head":
            q, k = self.normed("q", q), self.normed("k", k)
        mixed = (self.attend if self.softmax else self.mix)(h, q, k, v, call, state)
        attended = self.normed("after_attention", self.project(mixed.flatten(2).to(x.dtype), "o")["o"])
        between = x + attended * spec.multipliers["residual"]
        source = x if spec.layout in ("parallel", "parallel-shared") else between
        h = self.normed("attention" if spec.layout == "parallel-shared" else "mlp", source)
        return between + self.normed("after_mlp", self.feed_forward(h)) * spec.multipliers["residual"]

    def mix(self, h, q, k, v, call, state):
        """The mixer's output [B, T, H, V]."""
        block = self.spec.blocks[self.layer]
        h, q, k, v = h.float(), q.float(), k.float(), v.float()
        turn = call.turn(block["rope"])
        heads = Heads(h, q, k, v, turn, self.layer, self.spec.layers, block["scale"], self.spec.score_cap)
        carry = Carry(state, call.mask, call.position)
        tensors = self.get_submodule(self.mixer_path)()
        with torch.autocast(h.device.type, enabled=False):
            return MIXERS[self.mixer_name](heads, tensors, self.options, self.window, carry)

    def attend(self, h, q, k, v, call, state):
        """Softmax attention over all keys, or over the teacher's own window."""
        block = self.spec.blocks[self.layer]
        turn, tokens, window = call.turn(block["rope"]), q.shape[1], block["window"]
        q, k = turn(q), turn(k)
        valid = call.mask if call.mask is not None else torch.ones(q.shape[:2], dtype=torch.bool, device=q.device)
        if state is not None:
            if state.get("k") is not None:
                k, v = torch.cat([state.get("k"), k], 1), torch.cat([state.get("v"), v], 1)
                valid = torch.cat([state.get("valid"), valid], 1)
            kept = slice(None if window is None else max(0, k.shape[1] - window), None)
            for name, x in (("k", k), ("v", v), ("valid", valid)):
                state.put(name, x[:, kept])
        past = k.shape[1] - tokens
        row = torch.arange(past, past + tokens, device=q.device)[:, None]
        column = torch.arange(k.shape[1], device=q.device)[None, :]
        near = column <= row if window is None else (column <= row) & (column > row - window)
        # Padding sees itself, so that no row of scores is empty.
        visible = ((near & valid[:, None, :]) | (column == row)).unsqueeze(1)
        q, k, v = (x.transpose(1, 2) for x in (q, repeat(k, q.shape[2]), repeat(v, q.shape[2])))
        if self.spec.score_cap is None:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=visible, scale=block["scale"])
        else:
            scores, cap = (q @ k.transpose(-1, -2)).float() * block["scale"], self.spec.score_cap
            scores = (cap * torch.tanh(scores / cap)).masked_fill(~visible, -torch.inf)
            out = scores.softmax(-1).to(v.dtype) @ v
        return out.transpose(1, 2)

    def feed_forward(self, h):
        spec, act = self.spec, ACTIVATIONS[self.spec.activation]
        if spec.blocks[self.layer]["experts"]:
            return self.mixture(h)
        parts = self.project(h, ("gate", "up"))
        return self.project(act(parts["gate"]) * parts["up"] if spec.gated else act(parts["up"]), ("down",))["down"]

    def mixture(self, h):
        """A mixture of experts: those that the router gives the largest weights."""
        spec, act = self.spec, ACTIVATIONS[self.spec.activation]
        x = h.flatten(0, 1)
        shares = self.get_submodule(self.paths["router"])(x).float().softmax(-1)
        shares, chosen = shares.topk(spec.experts["per_token"], -1)
        if spec.experts["normalised"]:
            shares = shares / shares.sum(-1, keepdim=True)
        out = torch.zeros_like(x)
        for expert in range(spec.experts["count"]):
            token, slot = (chosen == expert).nonzero(as_tuple=True)
            if token.numel() == 0:
                continue

            def run(target, y, expert=expert):
                return self.get_submodule(self.paths["expert", target][expert])(y)

            y = run("up", x[token])
            y = run("down", act(run("gate", x[token])) * y if spec.gated else act(y))
            out = out.index_add(0, token, y * shares[token, slot, None].to(y.dtype))
        return out.view_as(h)


def block_path(spec, layer):
    """`model.layers.0`"""
    return spec.name(spec.names["attention"].split("{}")[0] + "{}", layer)


def frequencies(rope, tokens):
    """Inverse frequencies of rotary positions in a text of so many tokens, and what multiplies sines and cosines."""
    scaling, width, theta = rope["scaling"], rope["width"], rope["theta"]
    kind, pairs = scaling["kind"], range(width // 2)
    plain = [theta ** (-2 * i / width) for i in pairs]
    if kind == "linear":
        return [f / scaling["factor"] for f in plain], 1.0
    if kind == "dynamic":
        factor, context = scaling["factor"], scaling["context"]
        longer = factor * max(tokens, context) / context - (factor - 1)
        base = theta * longer ** (width / (width - 2))
        return [base ** (-2 * i / width) for i in pairs], 1.0
    if kind == "llama3":
        turns = [scaling["context"] * f / (2 * math.pi) for f in plain]
        share = [(t - scaling["low"]) / (scaling["high"] - scaling["low"]) for t in turns]
        share = [min(max(s, 0.0), 1.0) for s in share]
        return [(1 - s) * f / scaling["factor"] + s * f for s, f in zip(share, plain)], 1.0
    if kind == "yarn":

        def pair(turns):
            return width * math.log(scaling["context"] / (turns * 2 * math.pi)) / (2 * math.log(theta))

        low, high = pair(scaling["fast"]), pair(scaling["slow"])
        if scaling["truncate"]:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, width - 1)
        high = high + 0.001 if low == high else high
        slowed = [min(max((i - low) / (high - low), 0.0), 1.0) for i in pairs]
        return [f * (s / scaling["factor"] + 1 - s) for s, f in zip(slowed, plain)], scaling["attention"]
    if kind == "long":
        factors = scaling["long" if tokens > scaling["context"] else "short"]
        return [f / factor for f, factor in zip(plain, factors)], scaling["attention"]
    return plain, 1.0


class Call:
    """Where the tokens of one call stand: padding, positions in their text, those that are given instead (`rotary`) and
    their angles."""

    def __init__(self, spec, mask, position, rotary):
        self.mask, self.position, self.rotary = mask, position, rotary
        longest = int(rotary.max()) + 1 if any(r["scaling"]["kind"] in ("dynamic", "long") for r in spec.ropes) else 0
        self.angles = []
        for rope in spec.ropes:
            inverse, scale = frequencies(rope, longest)
            inverse = torch.tensor(inverse, dtype=torch.float32, device=rotary.device)
            angle = (rotary.float().unsqueeze(-1) * inverse).unsqueeze(2)
            self.angles.append((angle.cos() * scale, angle.sin() * scale))
        self.elsewhere = {}

    def on(self, device):
        """The same for layers on `device`: hooks move tensors to a layer's device, and this is none."""
        if device == self.position.device:
            return self
        if device not in self.elsewhere:
            there = self.elsewhere[device] = copy.copy(self)
            there.elsewhere = {}  # not itself among them: such a ring would keep its tensors
            there.mask = None if self.mask is None else self.mask.to(device)
            there.position = self.position.to(device)
            there.angles = [(cos.to(device), sin.to(device)) for cos, sin in self.angles]
        return self.elsewhere[device]

    def turn(self, rope):
        """Turns the first channels of heads, halves against each other; nothing without rotary positions."""
        if rope is None:
            return lambda x: x
        cos, sin = self.angles[rope]

        def turned(x):
            first, second, rest = x.split([cos.shape[-1], cos.shape[-1], x.shape[-1] - 2 * cos.shape[-1]], -1)
            c, s = cos.to(x.dtype), sin.to(x.dtype)
            return torch.cat([first * c - second * s, second * c + first * s, rest], -1)

        return turned


# ---------------------------------------------------------------------------------------------------------------- Cache


class StateLayer(CacheLayerMixin):
    """Everything that one layer keeps between calls, batch first, and the tokens seen.

    A block gets this object itself: hooks of accelerate, FSDP and the like rebuild the dicts, lists and dataclasses
    among a module's arguments, and what is written into such a copy is lost. So there is no method `to` either, which
    they would call.
    """

    is_compileable = False
    is_sliding = False
    supports_early_init = False

    def __init__(self):
        super().__init__()
        self.states, self.seen, self.is_initialized = {}, 0, True

    def get(self, name):
        return self.states.get(name)

    def put(self, name, tensor):
        self.states[name] = tensor

    def on(self, device):
        """Itself with all states on the device that its layer computes on: they may have been offloaded, or the layer
        moved."""
        for name, tensor in self.states.items():
            if tensor.device != device:
                self.states[name] = tensor.to(device)
        return self

    def lazy_initialization(self, *args, **kwargs):
        pass

    def update(self, *args, **kwargs):
        raise NotImplementedError("a layer writes its own state")

    def get_seq_length(self, *args):
        return self.seen

    def get_max_length(self):
        return -1

    def get_max_cache_shape(self):
        return -1

    def get_mask_sizes(self, query):
        # A number in transformers 5, a tensor of positions in 4.
        return self.seen + (query if isinstance(query, int) else query.shape[0]), 0

    def reset(self):
        self.states, self.seen = {}, 0

    def _each(self, f):
        self.states = {name: f(tensor) for name, tensor in self.states.items()}

    def offload(self):
        self._each(lambda x: x.to("cpu", non_blocking=True))

    def reorder_cache(self, index):
        self._each(lambda x: x.index_select(0, index.to(x.device)))

    def batch_repeat_interleave(self, n):
        self._each(lambda x: x.repeat_interleave(n, dim=0))

    def batch_select_indices(self, index):
        self._each(lambda x: x[index.to(x.device) if isinstance(index, torch.Tensor) else index])


class StateCache(Cache):
    def __init__(self, layers):
        super().__init__(layers=[StateLayer() for _ in range(layers)])


# --------------------------------------------------------------------------------------------------------------- Models


class SubquadPreTrainedModel(PreTrainedModel):
    config_class = SubquadConfig
    # Names are the teacher's, from the root on.
    base_model_prefix = ""
    supports_gradient_checkpointing = True
    _no_split_modules = ["Block"]
    _supports_sdpa = True
    _keep_in_fp32_modules = ["mixer"]
    _keep_in_fp32_modules_strict = ["mixer"]
    _is_stateful = True
    _can_compile_fullgraph = False

    def __init__(self, config, head=False):
        super().__init__(config.checked())
        self.spec = spec = Spec(config)
        if config.subquad["mixer"] not in MIXERS:
            raise ValueError(f"the mixer `{config.subquad['mixer']}` is not known: export the model again")
        self.outer = {}
        for path, tensors in spec.stored(spec.names["before"] + spec.names["after"]).items():
            part = tensors["weight"][0][0]
            part = part if isinstance(part, str) else next(iter(part.values()))
            if part != "head" or head:
                self.outer[part] = path
                place(self, path, module_of(spec, tensors))
        for layer in range(spec.layers):
            place(self, block_path(spec, layer), Block(config, spec, layer))
        if head and spec.tied:
            self._tied_weights_keys = {f"{self.outer['head']}.weight": f"{self.outer['embed']}.weight"}
        if not any(config.subquad_tensors["kinds"]):
            # transformers 4 refuses names of modules without tensors.
            self._keep_in_fp32_modules = self._keep_in_fp32_modules_strict = None
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module):
        if isinstance(module, (nn.Linear, nn.Embedding, Conv1D)):
            nn.init.normal_(module.weight, std=0.02)
            if getattr(module, "bias", None) is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, Norm):
            nn.init.constant_(module.weight, 0.0 if module.kind == "rms-plus-one" else 1.0)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, MixerTensors):
            for tensor in module.parameters():
                nn.init.zeros_(tensor)

    def get_input_embeddings(self):
        return self.get_submodule(self.outer["embed"])

    def set_input_embeddings(self, module):
        place(self, self.outer["embed"], module)

    def blocks(self):
        return [self.get_submodule(block_path(self.spec, layer)) for layer in range(self.spec.layers)]

    def run(self, input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, use_cache, wanted):
        """Hidden states after the final norm, the cache, and the inputs of all blocks where they are wanted."""
        spec, blocks = self.spec, self.blocks()
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        x = self.get_input_embeddings()(input_ids) if inputs_embeds is None else inputs_embeds
        if spec.multipliers["embedding"] != 1.0:
            x = x * torch.tensor(spec.multipliers["embedding"], dtype=x.dtype, device=x.device)
        use_cache = self.config.use_cache if use_cache is None else use_cache
        if self.training and any(block.gradient_checkpointing for block in blocks):
            use_cache, past_key_values = False, None
        if use_cache and past_key_values is None:
            past_key_values = StateCache(spec.layers)
        if past_key_values is not None and not isinstance(past_key_values, StateCache):
            raise ValueError(
                f"this model keeps states: its cache is a StateCache, not a {type(past_key_values).__name__}"
            )
        layers = [None] * spec.layers if past_key_values is None else past_key_values.layers
        call = self.place_tokens(x, attention_mask, position_ids, layers[0])
        if spec.positions is not None:
            rows = self.get_submodule(self.outer["positions"])
            x = x + rows(call.rotary + spec.positions["offset"]).to(x.device)
        inputs = []
        for block, layer in zip(blocks, layers):
            inputs.append(x)
            x = block(x, call, layer)
            if layer is not None:
                layer.seen += x.shape[1]
        x = self.get_submodule(self.outer["final"])(x)
        wanted = self.config.output_hidden_states if wanted is None else wanted
        return x, past_key_values, (*inputs, x) if wanted else None

    def place_tokens(self, x, mask, position_ids, layer):
        """Positions of a call's tokens, those of their text before it counted."""
        batch, tokens = x.shape[:2]
        if mask is not None:
            if mask.dim() != 2:
                raise ValueError("attention_mask must be [batch, tokens]: states cannot be masked pair by pair")
            past = layer is not None and layer.seen > 0 and tokens == 1
            mask = None if past else mask[:, -tokens:].to(x.device, torch.bool)
        counts = torch.ones(batch, tokens, dtype=torch.long, device=x.device) if mask is None else mask.long()
        position = counts.cumsum(1) - 1
        if layer is not None:
            before = layer.get("count")
            position = position if before is None else position + before[:, None].to(x.device)
            layer.put("count", position[:, -1] + 1)
        position = position.clamp(min=0)
        mask = None if mask is None or bool(mask.all()) else mask
        rotary = position if position_ids is None else position_ids.to(x.device).expand(batch, tokens)
        return Call(self.spec, mask, position, rotary)


class SubquadModel(SubquadPreTrainedModel):
    """The decoder without its head."""

    _keys_to_ignore_on_load_unexpected = [r"^lm_head\.", r"^embed_out\."]

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        inputs_embeds=None,
        use_cache=None,
        output_hidden_states=None,
        return_dict=None,
        **kwargs,
    ):
        arguments = (input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, use_cache)
        x, cache, hidden = self.run(*arguments, output_hidden_states)
        output = BaseModelOutputWithPast(last_hidden_state=x, past_key_values=cache, hidden_states=hidden)
        return output if return_dict is not False else output.to_tuple()


class SubquadForCausalLM(SubquadPreTrainedModel, GenerationMixin):
    _tied_weights_keys = {}

    def __init__(self, config):
        super().__init__(config, head=True)

    def get_output_embeddings(self):
        return self.get_submodule(self.outer["head"])

    def set_output_embeddings(self, module):
        place(self, self.outer["head"], module)

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        inputs_embeds=None,
        labels=None,
        use_cache=None,
        output_hidden_states=None,
        return_dict=None,
        logits_to_keep=0,
        token_type_ids=None,  # tokenizers of transformers 4 add them, and a decoder has no use for them
        **kwargs,
    ):
        arguments = (input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, use_cache)
        x, cache, hidden = self.run(*arguments, output_hidden_states)
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.get_output_embeddings()(x[:, keep] * self.spec.multipliers["logits"])
        if self.spec.logit_cap is not None:
            logits = self.spec.logit_cap * torch.tanh(logits / self.spec.logit_cap)
        loss = None
        if labels is not None:
            items = {name: kwargs[name] for name in ("num_items_in_batch",) if name in kwargs}
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=logits.shape[-1], **items)
        output = CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=cache, hidden_states=hidden)
        return output if return_dict is not False else output.to_tuple()

    def _prepare_cache_for_generation(self, generation_config, model_kwargs, *args, **kwargs):
        if generation_config.use_cache and model_kwargs.get("past_key_values") is None:
            model_kwargs["past_key_values"] = StateCache(self.config.num_hidden_layers)
