"""Whole mixers against other people's layers: tests/fixtures/mixer_CASE.safetensors.

    python tests/python/mixer_fixtures.py tests/fixtures

Layers of packages as they are (mixer_layers.py: which references stand in for kernels) and formulas as masked matrices
(mixer_formulas.py), on the CPU in f64 (oracles.py). flash-linear-attention is `fla`. B = 1, T = 17, D = 16, H = 2 heads
of K = V = 8, all parameters random. A case is written only if the first half of its output does not depend on the
second half of x.

tensor           shape          meaning
x                [1, T, D]      the layer's input
output           [1, T, H V]    what enters the output projection: after norm and gate, heads side by side
core             [1, T, H, V]   what the operator returned, before norm and gate; absent where `output` is that
output_gradient  [1, T, H V]    the upstream gradient
grad.NAME        as NAME        for x and each of the mixer's own parameters; not for q_proj, k_proj, v_proj (nor
                                HGRN2's i_proj, RWKV's r_proj, mLSTM's q, k, v, MiniMax's qkv_proj)
PARAMETER        as in torch    weights [out, in]: y = x W^T + b; names are the package's. *conv1d.weight [C, 1, 4]:
                                depthwise, causal, the last tap meets the token itself; then SiLU

case               whose layer                              what to know (K^-1/2: q is multiplied by it)
hedgehog_fla       fla LinearAttention(hedgehog)            softmax over (2y, -2y), y = W x + b, W shared by heads, q
                                                            and k apart; K^-1/2; denominator + 1e-10 after that scale
t2r                fla LinearAttention(t2r)                 relu(W x); scale and eps as above
elu                fla LinearAttention(elu)                 elu + 1; as above
squared_relu       the same, SquaredReLUFeatureMap          relu^2; as above
based              fla BasedLinearAttention                 q, k of width 4 a head; 1 + s + s^2/2, s = q.k 4^-1/2; +
                                                            1e-6
rebased            fla ReBasedLinearAttention               LayerNorm (eps 1e-5) with gamma, beta shared by q, k and
                                                            heads; (q.k)^2 / 4; + 1e-5
retention          fla MultiScaleRetention                  RoPE on q, k (base 10000, halves); K^-1/2; g = ln(1 -
                                                            2^(-5-h)); RMSNorm per head (1e-5) * swish(g_proj x)
lightning          fla chunk_lightning_attn, no layer       layer 1 of 4; K^-1/2; nothing after it
lightning_minimax  transformers MiniMaxLightningAttention   layer 1 of 4; decay exp(-slope), `slope` [H]; q, k, v = SiLU
                                                            of qkv_proj, one head's q, k, v side by side; scale 1;
                                                            RMSNorm over D (1e-6) * sigmoid(output_gate x)
simple_gla         fla SimpleGatedLinearAttention           convolutions; g = logsigmoid(gk_proj x) / 16; K^-1/2; after
                                                            it as retention
mlstm              transformers xLSTMLayer                  gates i, f through 15 tanh(y / 15); K^-1/2; LayerNorm per
                                                            head (1e-6, no bias) * sigmoid(ogate_preact x)
mlstm_cell         xlstm mLSTMCell on q, k, v projections   gates from (q, k, v) side by side; K^-1/2; LayerNorm per
                                                            head (1e-5) with weight 1 + cell.outnorm.weight; no output
                                                            gate
mamba2             transformers Mamba2Mixer                 in_proj -> z | x | B | C | dt; convolution with bias over x
                                                            | B | C; one B, C for all heads; scale 1; core holds the
                                                            skip D x; RMSNorm (1e-5) of core * silu(z) over D
mamba2_grouped     the same, n_groups = H                   B, C per head; RMSNorm over each GROUP, here each head, as
                                                            in MambaInLlama
gla                fla GatedLinearAttention                 g = logsigmoid(gk_proj.1 gk_proj.0 x) / 16; K^-1/2; after it
                                                            as retention
hgrn2              fla HGRN2Attention                       g = logsigmoid(f_proj x), k = 1 - exp(g), v = i_proj x,
                                                            swish on q; K^-1/2; RMSNorm over D (1e-5)
hgrn2_bounded      the same, layer 1                        with `lower_bound` [H K] in (0, 1)
gsa                fla GatedSlotAttention                   6 slots; swish on q, k; SiLU on v; gate / 8; scale 1;
                                                            silu(core), then RMSNorm over D (1e-5)
rwkv6              fla RWKV6Attention                       low ranks 4; rows of x_bias: r, w, k, v, g; scale 1;
                                                            GroupNorm with bias (1e-5) * swish(g); the token before the
                                                            first is 0
deltanet           fla DeltaNet                             convolutions; l2norm x / sqrt(sum x^2 + 1e-6) on q, k after
                                                            SiLU; K^-1/2; RMSNorm per head (1e-5); no gate
deltanet_negative  the same, allow_neg_eigval               beta = 2 sigmoid
gated_deltanet     fla GatedDeltaNet                        as deltanet; g = -exp(A_log) softplus(a_proj x + dt_bias);
                                                            RMSNorm per head (1e-5) * swish(g_proj x)
kda                fla KimiDeltaAttention                   as deltanet; f_proj, g_proj of low rank V; RMSNorm per head
                                                            (1e-5) * sigmoid(g_proj x)
kda_safe_gate      the same, safe_gate                      g = -5 sigmoid(exp(A_log) (f_proj x + dt_bias))
delta_product      fla GatedDeltaProduct                    n_h = 2; rows of k_proj, v_proj, b_proj: n_h outer, heads
                                                            inner; convolutions over all of them; beta = 2 sigmoid; else
                                                            as gated_deltanet
rwkv7_unshifted    fla RWKV7Attention, layer 0 of 4,        r, k, v of x itself; w, a, g shifted; low ranks 4; kk =
                   x_r = x_k = x_v = 0                      x / max(norm, 1e-12), not l2norm; scale 1; GroupNorm with
                                                            bias, eps K * 1e-5; then the bonus, then the gate
performer          formula                                  omega [m, K]; stabiliser of a query: the maximum of its row,
                                                            differentiated; of keys: 0, so causal; + 1e-6
cosformer          formula                                  `length` is M; denominator clamped at 1e-6; scale 1
norm_attention     formula (TransNormer)                    elu + 1, scale 1, no denominator; then x / (norm(x) D^-1/2 +
                                                            1e-8) over D
diag_attention     formula (TransNormer)                    softmax in blocks of `block` tokens; K^-1/2 once
flowformer         formula                                  causal; eps 1e-6 added to every element
liger_gla          formula; linear branch also fla's naive  window 5 with RoPE (tables cos, sin [T, K/2]) and K^-1/2,
                                                            linear branch without RoPE and with scale 1; 0.5 / 0.5; gate
                                                            logsigmoid(k) / 16; no feature map on v
liger_hgrn2        the same                                 gate logsigmoid(k), not divided; softmax on q only
liger_gsa          the same                                 K slots; gate logsigmoid(k) / 16; q, k, v raw
titans             formula; also fla dplr_recurrence        autograd's inner gradient; theta, alpha = sigmoid of
                                                            theta_proj, alpha_proj; q, k raw; scale 1; read after the
                                                            write
mala               formula                                  causal; q, k without RoPE; no convolution, no output gate
mala_rope          formula                                  RoPE on the features of the numerator's product only
inline             formula                                  as mala
nalaformer         formula                                  as mala, and without its LayerNorm; + 1e-6
slab               formula                                  as mala; relu, scale 1, + 1e-6
"""

import argparse
from pathlib import Path

import mixer_formulas
import mixer_layers
import torch
from mixer_layers import CORE, D, H, T, W
from oracles import SINGLE, Numbers, double_precision, gradients, leaf, write

# Of the teacher: stored, but their gradients follow from those of x.
TEACHER = {f"{name}.weight" for name in ("q_proj", "k_proj", "v_proj", "i_proj", "r_proj", "q", "k", "v", "qkv_proj")}
TEACHER |= {f"{name}_proj.linear.weight" for name in "rkv"}


def fixture(name, case):
    n = Numbers(f"mixer_{name}")
    with double_precision():
        layer, run, function, packages, *given = case(n)
        given = given[0] if given else {}
        parameters = {key: value for key, value in layer.named_parameters() if value.requires_grad}
        x, upstream = leaf(n.normal(1, T, D)), n.normal(1, T, H * W)
        leaves = {"x": x, **{key: value for key, value in parameters.items() if key not in TEACHER}}
        leaves |= {key: value for key, value in given.items() if value.requires_grad}
        assert all(torch.equal(value, value.to(SINGLE).double()) for value in leaves.values()), "stored rounded"
        CORE.clear()
        output = run(x)
        (core,) = CORE
        assert output.dtype == core.dtype == torch.float64 and output.shape == (1, T, H * W)
        assert core.shape == (1, T, H, W)
        found = gradients((output * upstream.double()).sum(), leaves)
        with torch.no_grad():
            later = x.clone()
            later[:, T // 2 :] += 1
        # A mixer that looks ahead is no oracle of a causal one.
        assert torch.equal(run(later)[:, : T // 2], output[:, : T // 2]), f"{name} is not causal"
    tensors = {"x": x, **parameters, **given}
    if not torch.equal(core.flatten(2), output):
        tensors["core"] = core
    return tensors | {"output": output, "output_gradient": upstream} | found, function, packages


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="folder for mixer_CASE.safetensors")
    args = parser.parse_args()
    torch.set_num_threads(1)
    mixer_layers.on_the_cpu()
    for name, case in (mixer_layers.CASES | mixer_formulas.CASES).items():
        tensors, function, packages = fixture(name, case)
        path = args.output / f"mixer_{name}.safetensors"
        write(path, tensors, "tests/python/mixer_fixtures.py", function, packages)


if __name__ == "__main__":
    main()
