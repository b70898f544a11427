"""Core operators by other people's reference code: tests/fixtures/operator_CASE.safetensors.

    python tests/python/operator_fixtures.py tests/fixtures

Each case calls one function of a package (versions in requirements.txt), in f64 (see oracles.py), with a nonzero
initial state. Loss = <output, output_gradient> + sum over final states <final, final_gradient>; all gradients by
torch autograd through that function. flash-linear-attention is `fla`; `S'` is the decayed state.

case                whose code                                        recurrence; o is read after the write
scalar_decay        fla naive_recurrent_simple_gla                    S = exp(g) S + k v^T; o = scale q^T S
constant_decay      the same with g [H] repeated over tokens; also    g_h = ln(1 - 2^(-5-h)), RetNet's
                    held to fla naive_retention
vector_decay        fla naive_recurrent_gla                           S = diag(exp g) S + k v^T; o = scale q^T S
bonus               fla naive_recurrent_rwkv6                         o = scale q^T (S + diag(u) k v^T), read BEFORE
                                                                      S = diag(exp g) S + k v^T
slots               fla naive_recurrent_gsa                           Hk = Hk * exp(g)[None, :] + k s^T;
                                                                      p = softmax(scale q^T Hk) over slots;
                                                                      Hv = diag(exp g) Hv + s v^T; o = p^T Hv
delta               fla delta_rule_recurrence                         S += beta k (v - S^T k)^T; o = scale q^T S
gated_delta         fla naive_recurrent_gated_delta_rule              S' = exp(g) S, then as delta
kda                 fla naive_recurrent_kda                           S' = diag(exp g) S, then as delta
dplr                fla dplr_recurrence                               S = diag(exp g) S + b (a^T S)^T + k v^T with S on
                                                                      the right BEFORE the decay; o = scale q^T S
rwkv7               fla dplr_recurrence (fla has no naive RWKV-7)     dplr with a = -kk, b = kk * alpha; scale 1
delta_product       fla naive_recurrent_gated_delta_product, n_h = 2  S' = exp(g) S once a token, then n_h delta
                                                                      writes; read after the last
linear              fla naive_recurrent_linear_attn                   S += k v^T; o = scale q^T S
linear_normalised   the same, normalize=True                          z += k; o = scale q^T S / (scale q.z + 1e-10)
mlstm               transformers mlstm_recurrent_sequence_native;     m' = max(logsigmoid(f) + m, i);
                    also held to xlstm's parallel_stabilized_simple   C = exp(lf + m - m') C + exp(i - m') k v^T; n too;
                                                                      o = scale q^T C / (max(|scale q.n|, e^-m') + 1e-6)
mlstm_state         the same with an initial state C, n, m

tensor              shape             meaning
q, k, v             [B, T, H, K], [B, T, H, K], [B, T, H, V]; delta_product: k, v over T n_h micro-steps, the n_h of one
                                      token side by side; rwkv7: `r` instead of q
g                   log decay, <= 0: [B, T, H] scalar_decay, gated_delta, delta_product; [H] constant_decay;
                    [B, T, H, K] vector_decay, bonus, kda, dplr, rwkv7; [B, T, H, M] slots
u                   [H, K]            bonus
s                   [B, T, H, M]      what slots take in
beta                [B, T, H]         delta: up to 2; delta_product: [B, T n_h, H], up to 2
a, b                [B, T, H, K]      dplr
kk, alpha           [B, T, H, K]      rwkv7: unit vectors, rates in [0, 1]
i, f                [B, T, H]         mlstm: pre-activations of the input gate (exponential) and the forget gate
scale               [1]               what q is multiplied with
initial             [B, H, K, V]      state before the first token, key first. slots: initial_k [B, H, K, M] and
                                      initial_v [B, H, M, V]. linear_normalised: also initial_z [B, H, K].
                                      mlstm: zero, not stored; mlstm_state: initial_c [B, H, K, V], initial_n [B, H, K],
                                      initial_m [B, H] (no gradient is stored for m)
output              [B, T, H, V]
final*              as initial*       state after the last token. mlstm: final_c, final_n, final_m: stabilised, the
                                      true state is exp(m) times it
output_gradient     as output         the upstream gradient; final*_gradient that of the final state (mlstm and
                                      mlstm_state have none: how C and n share their scale with m is a convention)
grad.NAME           as NAME           dLoss/dNAME of every input and initial state
"""

import argparse
from pathlib import Path
from unittest import mock

import torch
from fla.ops.delta_rule.naive import delta_rule_recurrence
from fla.ops.gated_delta_product.naive import naive_recurrent_gated_delta_product
from fla.ops.gated_delta_rule.naive import naive_recurrent_gated_delta_rule
from fla.ops.generalized_delta_rule.dplr.naive import dplr_recurrence
from fla.ops.gla.naive import naive_recurrent_gla
from fla.ops.gsa.naive import naive_recurrent_gsa
from fla.ops.kda.naive import naive_recurrent_kda
from fla.ops.linear_attn.naive import naive_recurrent_linear_attn
from fla.ops.retention.naive import naive_retention
from fla.ops.rwkv6.recurrent_naive import naive_recurrent_rwkv6
from fla.ops.simple_gla.naive import naive_recurrent_simple_gla
from oracles import Numbers, double_precision, gradients, leaf, write
from xlstm.blocks.mlstm.backends import parallel_stabilized_simple

# transformers takes its mLSTM from the package xlstm where it finds that installed; its own is wanted here.
with mock.patch("transformers.utils.is_xlstm_available", lambda: False):
    from transformers.models.xlstm.modeling_xlstm import mlstm_recurrent_sequence_native

B, T, H, K, V, M = 1, 17, 2, 5, 4, 3
STEPS = 2
ROOT = K**-0.5
FLA = ("flash-linear-attention", "fla-core")


def heads_first(*tensors):
    return (tensor.transpose(1, 2) for tensor in tensors)


def qkv(n, tokens=T):
    return {"q": n.normal(B, T, H, K), "k": n.normal(B, tokens, H, K), "v": n.normal(B, tokens, H, V)}


def unit_qkv(n, tokens=T):
    """Unit keys: what keeps the delta rule's product of transitions bounded."""
    return qkv(n, tokens) | {"k": n.unit(B, tokens, H, K)}


def scalar_decay(n):
    inputs = qkv(n) | {"g": n.log_gate(B, T, H), "initial": n.normal(B, H, K, V)}

    def run(q, k, v, g, initial):
        o, final = naive_recurrent_simple_gla(q, k, v, g, scale=1.0, initial_state=initial)
        return o, {"final": final}

    return inputs, run, 1.0, "fla.ops.simple_gla.naive.naive_recurrent_simple_gla(scale=1)"


def constant_decay(n):
    g = torch.log1p(-(2.0 ** (-5.0 - torch.arange(H, dtype=torch.float32))))
    inputs = qkv(n) | {"g": g, "initial": n.normal(B, H, K, V)}

    def run(q, k, v, g, initial):
        gates = g.expand(B, T, H)
        alone = naive_recurrent_simple_gla(q, k, v, gates)[0]
        retained = naive_retention(*heads_first(q, k, v)).transpose(1, 2)
        # The two packages' constants differ by the rounding of g to f32.
        assert (alone - retained).abs().max() < 1e-5
        o, final = naive_recurrent_simple_gla(q, k, v, gates, scale=ROOT, initial_state=initial)
        return o, {"final": final}

    name = "fla.ops.simple_gla.naive.naive_recurrent_simple_gla, held to fla.ops.retention.naive.naive_retention"
    return inputs, run, ROOT, name


def vector_decay(n):
    inputs = qkv(n) | {"g": n.log_gate(B, T, H, K), "initial": n.normal(B, H, K, V)}

    def run(q, k, v, g, initial):
        o, final = naive_recurrent_gla(q, k, v, g, initial_state=initial, output_final_state=True)
        return o, {"final": final}

    return inputs, run, ROOT, "fla.ops.gla.naive.naive_recurrent_gla"


def bonus(n):
    inputs = qkv(n) | {"g": n.log_gate(B, T, H, K), "u": n.normal(H, K), "initial": n.normal(B, H, K, V)}

    def run(q, k, v, g, u, initial):
        arguments = {"scale": 1.0, "initial_state": initial, "output_final_state": True}
        o, final = naive_recurrent_rwkv6(*heads_first(q, k, v, g), u, **arguments)
        return o.transpose(1, 2), {"final": final}

    return inputs, run, 1.0, "fla.ops.rwkv6.recurrent_naive.naive_recurrent_rwkv6(scale=1)"


def slots(n):
    inputs = qkv(n) | {"s": n.uniform(B, T, H, M), "g": n.log_gate(B, T, H, M)}
    inputs |= {"initial_k": n.normal(B, H, K, M), "initial_v": n.normal(B, H, M, V)}

    def run(q, k, v, s, g, initial_k, initial_v):
        state = {"initial_state": (initial_k, initial_v), "output_final_state": True}
        o, (final_k, final_v) = naive_recurrent_gsa(q, k, v, s, g, scale=1.0, **state)
        return o, {"final_k": final_k, "final_v": final_v}

    return inputs, run, 1.0, "fla.ops.gsa.naive.naive_recurrent_gsa(scale=1)"


def delta(n):
    inputs = unit_qkv(n) | {"beta": n.uniform(B, T, H, high=2.0), "initial": n.normal(B, H, K, V)}

    def run(q, k, v, beta, initial):
        o, final = delta_rule_recurrence(*heads_first(q, k, v, beta), initial_state=initial)
        return o.transpose(1, 2), {"final": final}

    return inputs, run, ROOT, "fla.ops.delta_rule.naive.delta_rule_recurrence"


def gated_delta(n):
    inputs = unit_qkv(n) | {"beta": n.uniform(B, T, H), "g": n.log_gate(B, T, H), "initial": n.normal(B, H, K, V)}

    def run(q, k, v, beta, g, initial):
        state = {"initial_state": initial, "output_final_state": True}
        o, final = naive_recurrent_gated_delta_rule(q, k, v, beta, g, scale=1.0, **state)
        return o, {"final": final}

    return inputs, run, 1.0, "fla.ops.gated_delta_rule.naive.naive_recurrent_gated_delta_rule(scale=1)"


def kda(n):
    inputs = unit_qkv(n) | {"beta": n.uniform(B, T, H), "g": n.log_gate(B, T, H, K), "initial": n.normal(B, H, K, V)}

    def run(q, k, v, beta, g, initial):
        state = {"initial_state": initial, "output_final_state": True}
        o, final = naive_recurrent_kda(q, k, v, g, beta, scale=1.0, **state)
        return o, {"final": final}

    return inputs, run, 1.0, "fla.ops.kda.naive.naive_recurrent_kda(scale=1)"


def dplr(n):
    inputs = qkv(n) | {"a": n.unit(B, T, H, K), "b": n.normal(B, T, H, K, scale=0.4)}
    inputs |= {"g": n.log_gate(B, T, H, K), "initial": n.normal(B, H, K, V)}

    def run(q, k, v, a, b, g, initial):
        o, final = dplr_recurrence(*heads_first(q, k, v, a, b, g), initial_state=initial)
        return o.transpose(1, 2), {"final": final}

    return inputs, run, ROOT, "fla.ops.generalized_delta_rule.dplr.naive.dplr_recurrence"


def rwkv7(n):
    inputs = qkv(n) | {"kk": n.unit(B, T, H, K), "alpha": n.uniform(B, T, H, K)}
    inputs["r"] = inputs.pop("q")
    inputs["g"] = -0.6065306597126334 * n.normal(B, T, H, K, scale=2.0).sigmoid()
    inputs["initial"] = n.normal(B, H, K, V)

    def run(k, v, kk, alpha, r, g, initial):
        # The function always multiplies its query by K^-1/2; RWKV's scale is 1.
        tokens = heads_first(r / ROOT, k, v, -kk, kk * alpha, g)
        o, final = dplr_recurrence(*tokens, initial_state=initial)
        return o.transpose(1, 2), {"final": final}

    name = "fla.ops.generalized_delta_rule.dplr.naive.dplr_recurrence(r K^1/2, k, v, -kk, kk alpha, g)"
    return inputs, run, 1.0, name


def delta_product(n):
    inputs = unit_qkv(n, T * STEPS) | {"beta": n.uniform(B, T * STEPS, H, high=2.0)}
    inputs |= {"g": n.log_gate(B, T, H), "initial": n.normal(B, H, K, V)}

    def run(q, k, v, beta, g, initial):
        state = {"initial_state": initial, "output_final_state": True}
        o, final = naive_recurrent_gated_delta_product(q, k, v, g, beta, 1.0, num_householder=STEPS, **state)
        return o, {"final": final}

    name = "fla.ops.gated_delta_product.naive.naive_recurrent_gated_delta_product(scale=1, num_householder=2)"
    return inputs, run, 1.0, name


def linear(n):
    inputs = qkv(n) | {"initial": n.normal(B, H, K, V)}

    def run(q, k, v, initial):
        o, final = naive_recurrent_linear_attn(q, k, v, scale=1.0, initial_state=initial, output_final_state=True)
        return o, {"final": final}

    return inputs, run, 1.0, "fla.ops.linear_attn.naive.naive_recurrent_linear_attn(scale=1)"


def linear_normalised(n):
    inputs = {"q": n.normal(B, T, H, K).exp(), "k": n.normal(B, T, H, K).exp(), "v": n.normal(B, T, H, V)}
    inputs |= {"initial": n.normal(B, H, K, V), "initial_z": n.normal(B, H, K).exp()}

    def run(q, k, v, initial, initial_z):
        arguments = {"scale": 1.0, "normalize": True, "output_final_state": True}
        state = (initial, initial_z[:, None])
        o, (final, z) = naive_recurrent_linear_attn(q, k, v, initial_state=state, **arguments)
        return o, {"final": final, "final_z": z[:, 0]}

    return inputs, run, 1.0, "fla.ops.linear_attn.naive.naive_recurrent_linear_attn(scale=1, normalize=True)"


def mlstm_inputs(n):
    # Large enough that either argument of the maximum in the denominator wins somewhere.
    return qkv(n) | {"i": n.normal(B, T, H, scale=2.0), "f": n.normal(B, T, H, scale=2.0, shift=2.0)}


def mlstm(n):
    def run(q, k, v, i, f):
        tokens = list(heads_first(q, k, v, i, f))
        o, (c, norm, m) = mlstm_recurrent_sequence_native(*tokens, return_last_states=True, dtype_state=torch.float64)
        parallel = parallel_stabilized_simple(*tokens[:3], *(gate[..., None] for gate in tokens[3:]))
        # They choose another m where the initial m = 0 wins, which changes what the eps is added to.
        assert (parallel - o).abs().max() < 1e-4
        return o.transpose(1, 2), {"final_c": c, "final_n": norm, "final_m": m[..., 0]}

    name = "transformers.models.xlstm.modeling_xlstm.mlstm_recurrent_sequence_native"
    return mlstm_inputs(n), run, ROOT, name


def mlstm_state(n):
    inputs = mlstm_inputs(n) | {"initial_c": n.normal(B, H, K, V), "initial_n": n.normal(B, H, K)}
    level = n.normal(B, H)

    def run(q, k, v, i, f, initial_c, initial_n):
        state = {"c_initial": initial_c, "n_initial": initial_n, "m_initial": level.double()[..., None]}
        tokens = heads_first(q, k, v, i, f)
        arguments = {"return_last_states": True, "dtype_state": torch.float64}
        o, (c, norm, m) = mlstm_recurrent_sequence_native(*tokens, **state, **arguments)
        return o.transpose(1, 2), {"final_c": c, "final_n": norm, "final_m": m[..., 0]}

    name = "transformers.models.xlstm.modeling_xlstm.mlstm_recurrent_sequence_native(c_initial, n_initial, m_initial)"
    return inputs, run, ROOT, name, {"initial_m": level}


CASES = [scalar_decay, constant_decay, vector_decay, bonus, slots, delta, gated_delta, kda, dplr, rwkv7, delta_product]
CASES += [linear, linear_normalised, mlstm, mlstm_state]


def fixture(case):
    name = case.__name__
    n = Numbers(f"operator_{name}")
    inputs, run, scale, function, *given = case(n)
    upstream = {"output_gradient": n.normal(B, T, H, V)}
    leaves = {key: leaf(tensor) for key, tensor in inputs.items()}
    with double_precision():
        output, finals = run(**leaves)
        assert output.dtype == torch.float64 and output.shape == (B, T, H, V)
        loss = (output * upstream["output_gradient"].double()).sum()
        if not name.startswith("mlstm"):
            for key, state in finals.items():
                upstream[f"{key}_gradient"] = n.normal(*state.shape)
                loss = loss + (state * upstream[f"{key}_gradient"].double()).sum()
        found = gradients(loss, leaves)
    tensors = {**leaves, **(given[0] if given else {}), "scale": torch.tensor([scale]), "output": output, **finals}
    return tensors | upstream | found, function


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="folder for operator_CASE.safetensors")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for case in CASES:
        tensors, function = fixture(case)
        packages = ("transformers", "xlstm") if case.__name__.startswith("mlstm") else FLA
        path = args.output / f"operator_{case.__name__}.safetensors"
        write(path, tensors, "tests/python/operator_fixtures.py", function, packages)


if __name__ == "__main__":
    main()
