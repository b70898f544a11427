"""The cases of mixer_fixtures.py that are packages' own layers: the class, run on the CPU in f64.

flash-linear-attention's layers call Triton kernels. Each name that a layer calls is replaced, in the layer's module, by
the same package's reference: `naive_*` operators, `*_ref` norms, gates and shifts. What the package has no reference
for is written here, from its kernels: swish, sigmoid, elu + 1, relu^2, l2norm (x / sqrt(sum x^2 + 1e-6)) and the short
convolution (causal, zeros before the first token). Projections, feature maps, gates, order and defaults are the
layers'. Output projections are set to the identity, so that a layer returns what stands before it.
"""

import importlib
import warnings
from unittest import mock

import fla.modules.feature_map as maps
import fla.modules.norm.layernorm as norms
import fla.ops.lightning_attn.chunk as lightning_op
import torch
import torch.nn.functional as F
from einops import rearrange
from fla.modules.norm.fused_norm_gate import FusedRMSNormGated
from fla.modules.rotary.ops import RotaryEmbedding, rotary_embedding_ref
from fla.modules.token_shift import token_shift_ref
from fla.ops.based.naive import naive_parallel_based
from fla.ops.delta_rule.naive import delta_rule_recurrence
from fla.ops.gated_delta_product.naive import naive_recurrent_gated_delta_product
from fla.ops.gated_delta_rule.gate import naive_gdn_gate
from fla.ops.gated_delta_rule.naive import naive_recurrent_gated_delta_rule
from fla.ops.generalized_delta_rule.dplr.naive import dplr_recurrence
from fla.ops.gla.naive import naive_recurrent_gla
from fla.ops.gsa.naive import naive_recurrent_gsa
from fla.ops.kda.gate import naive_kda_gate, naive_kda_lowerbound_gate
from fla.ops.kda.naive import naive_recurrent_kda
from fla.ops.linear_attn.naive import naive_recurrent_linear_attn
from fla.ops.rebased.naive import naive_parallel_rebased
from fla.ops.retention.naive import naive_retention
from fla.ops.rwkv6.recurrent_naive import naive_recurrent_rwkv6
from fla.ops.rwkv7.fused_addcmul import torch_addcmul_rwkv7
from fla.ops.rwkv7.fused_k_update import k_update_ref
from fla.ops.rwkv7.gate_output_correction import gate_output_correction_ref
from fla.ops.simple_gla.naive import naive_recurrent_simple_gla
from transformers import Mamba2Config, MiniMaxConfig
from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer
from transformers.models.minimax.modeling_minimax import MiniMaxLightningAttention
from xlstm.blocks.mlstm.cell import mLSTMCell, mLSTMCellConfig

# transformers takes its mLSTM from the package xlstm where it finds that installed; its own is wanted here.
with mock.patch("transformers.utils.is_xlstm_available", lambda: False):
    from transformers import xLSTMConfig
    from transformers.models.xlstm.modeling_xlstm import mlstm_recurrent_sequence_native, xLSTMLayer

FLA = ("flash-linear-attention", "fla-core")
D, H, W, T = 16, 2, 8, 17
# What the replaced operators returned, [B, T, H, V]: the last one belongs to the last call of a layer.
CORE = []


def core(o):
    CORE.append(o)
    return o, None


def l2norm(x):
    return x / torch.sqrt((x * x).sum(-1, keepdim=True) + 1e-6)


def heads_first(*tensors):
    return (tensor.transpose(1, 2) for tensor in tensors)


def retention(q, k, v, **_):
    return core(naive_retention(*heads_first(q, k, v)).transpose(1, 2))


def simple_gla(q, k, v, g=None, g_gamma=None, scale=None, **_):
    gates = g_gamma.double().expand(q.shape[:3]) if g is None else g
    return core(naive_recurrent_simple_gla(q, k, v, gates, scale=scale)[0])


def gla(q, k, v, gk, **_):
    return core(naive_recurrent_gla(q, k, v, gk)[0])


def gsa(q, k, v, s, g, scale, **_):
    return core(naive_recurrent_gsa(q, k, v, s, g, scale=scale)[0])


def rwkv6(r, k, v, w, u, scale, **_):
    return core(naive_recurrent_rwkv6(*heads_first(r, k, v, w), u, scale=scale)[0].transpose(1, 2))


def rwkv7(r, w, k, v, a, b, scale, **_):
    # The reference always multiplies its query by K^-1/2.
    tokens = heads_first(r * scale * r.shape[-1] ** 0.5, k, v, a, b, w)
    return core(dplr_recurrence(*tokens)[0].transpose(1, 2))


def delta_rule(q, k, v, beta, use_qk_l2norm_in_kernel, **_):
    assert use_qk_l2norm_in_kernel
    return core(delta_rule_recurrence(*heads_first(l2norm(q), l2norm(k), v, beta))[0].transpose(1, 2))


def gated_delta_rule(q, k, v, g, beta, A_log, dt_bias, allow_neg_eigval, **_):
    beta = beta.sigmoid() * (2 if allow_neg_eigval else 1)
    g = naive_gdn_gate(g, A_log, dt_bias, output_dtype=torch.float64)
    return core(naive_recurrent_gated_delta_rule(l2norm(q), l2norm(k), v, beta, g)[0])


def kda(q, k, v, g, beta, A_log, dt_bias, allow_neg_eigval, safe_gate, lower_bound, **_):
    beta = beta.sigmoid() * (2 if allow_neg_eigval else 1)
    arguments = {"output_dtype": torch.float64} | ({"lower_bound": lower_bound} if safe_gate else {})
    g = (naive_kda_lowerbound_gate if safe_gate else naive_kda_gate)(g, A_log, dt_bias, **arguments)
    return core(naive_recurrent_kda(l2norm(q), l2norm(k), v, g, beta)[0])


def delta_product(q, k, v, g, beta, num_householder, use_qk_l2norm_in_kernel, **_):
    assert use_qk_l2norm_in_kernel
    arguments = {"scale": q.shape[-1] ** -0.5, "num_householder": num_householder}
    return core(naive_recurrent_gated_delta_product(l2norm(q), l2norm(k), v, g, beta, **arguments)[0])


def linear_attn(q, k, v, normalize, scale=None, **_):
    return core(naive_recurrent_linear_attn(q, k, v, scale=scale, normalize=normalize)[0])


def based(q, k, v, scale, use_norm):
    return core(naive_parallel_based(*heads_first(q, k, v), scale=scale, use_norm=use_norm).transpose(1, 2))[0]


def rebased(q, k, v, eps, use_scale, use_normalize):
    # The reference's own eps is 1e-6 whatever the layer asks for; numerator and denominator apart take the layer's.
    assert use_scale and use_normalize
    q, k, v = heads_first(q, k, v)
    numerator, total = (naive_parallel_rebased(q, k, x, use_norm=False) for x in (v, torch.ones_like(v)))
    return core((numerator / (total + eps)).transpose(1, 2))[0]


def convolution(x, weight, bias=None, activation=None, **_):
    taps = weight.shape[-1]
    y = F.conv1d(F.pad(x.transpose(1, 2), (taps - 1, 0)), weight[:, None], bias, groups=x.shape[-1]).transpose(1, 2)
    return (y if activation is None else F.silu(y)), None


def rms_norm_gated(self, x, g):
    gate = g.sigmoid() if self.activation == "sigmoid" else F.silu(g)
    return norms.rms_norm_ref(x, self.weight, self.bias, eps=self.eps) * gate


def rms_norm_linear(x, norm_weight, norm_bias, linear_weight, linear_bias, eps=1e-5):
    return F.linear(norms.rms_norm_ref(x, norm_weight, norm_bias, eps=eps), linear_weight, linear_bias)


def rotate(self, q, k, **_):
    self._update_cos_sin_cache(q.shape[1], device=q.device, dtype=q.dtype)
    return (rotary_embedding_ref(x, self._cos_cached, self._sin_cached, self.interleaved) for x in (q, k))


def shift(x, cu_seqlens=None, cache=None, output_cache=False):
    return (token_shift_ref(x), None) if output_cache else token_shift_ref(x)


def on_the_cpu():
    """Puts references where flash-linear-attention's layers call kernels."""
    replaced = {
        "multiscale_retention": {"chunk_retention": retention},
        "simple_gla": {"chunk_simple_gla": simple_gla},
        "gla": {"fused_recurrent_gla": gla},
        "hgrn2": {"fused_recurrent_gla": gla, "swish": F.silu, "rms_norm_linear": rms_norm_linear},
        "gsa": {"fused_recurrent_gsa": gsa, "rms_norm_linear": rms_norm_linear},
        "delta_net": {"fused_recurrent_delta_rule": delta_rule},
        "gated_deltanet": {"chunk_gated_delta_rule": gated_delta_rule, "causal_conv1d": convolution},
        "kda": {"chunk_kda": kda},
        "gated_deltaproduct": {"chunk_gated_delta_product": delta_product},
        "rwkv6": {"fused_recurrent_rwkv6": rwkv6, "token_shift": shift, "ACT2FN": {"swish": F.silu}},
        "rwkv7": {
            "chunk_rwkv7": rwkv7,
            "token_shift": shift,
            "fused_addcmul_rwkv7": torch_addcmul_rwkv7,
            "fused_k_rwkv7": k_update_ref,
            "gate_output_correction": gate_output_correction_ref,
        },
        "linear_attn": {"chunk_linear_attn": linear_attn, "elu_p1": lambda x: F.elu(x) + 1},
        "based": {"parallel_based": based},
        "rebased": {"parallel_rebased": rebased},
    }
    for module, names in replaced.items():
        module = importlib.import_module(f"fla.layers.{module}")
        for name, function in names.items():
            assert hasattr(module, name), f"{module.__name__} no longer calls {name}"
            setattr(module, name, function)
    importlib.import_module("fla.modules.causal_conv1d.ops").causal_conv1d = convolution
    lightning_op.chunk_simple_gla = simple_gla
    maps.swish, maps.sqrelu, maps.layer_norm = F.silu, lambda x: x.relu() ** 2, norms.layer_norm_ref
    FusedRMSNormGated.forward = rms_norm_gated
    norms.RMSNorm.forward = lambda self, x: norms.rms_norm_ref(x, self.weight, self.bias, eps=self.eps)
    norms.GroupNorm.forward = lambda self, x: norms.group_norm_ref(
        x, self.weight, self.bias, self.num_groups, eps=self.eps, is_rms_norm=self.is_rms_norm
    )
    RotaryEmbedding.forward = rotate


def randomise(layer, n):
    """Numbers of every parameter from `n`, in the order of the names, so that no package's defaults matter."""
    for name, parameter in sorted(layer.named_parameters()):
        shape = parameter.shape
        if "norm" in name and name.endswith("weight") or name in ("D", "k_a", "k_k", "feature_map.gamma"):
            value = n.normal(*shape, scale=0.2, shift=0.0 if "outnorm" in name else 1.0)
        elif name.startswith("x_") and len(shape) == 3:
            value = n.uniform(*shape)
        elif "conv1d.weight" in name or len(shape) == 1 or name in ("x_bias", "bonus", "r_k"):
            value = n.normal(*shape, scale=0.5)
        else:
            value = n.normal(*shape, scale=shape[-1] ** -0.5)
        parameter.data = value.double()
    for name, module in layer.named_modules():
        if name in ("o_proj", "out_proj"):
            module.weight.data = torch.eye(*module.weight.shape, dtype=torch.float64)
            module.weight.requires_grad_(False)
    return layer.double()


def fla_layer(module, class_name, n, call=lambda layer, x: layer(x)[0], change=lambda layer: None, **options):
    """A layer of fla as a case: its parameters by their names, and how to run it."""
    made = getattr(importlib.import_module(f"fla.layers.{module}"), class_name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layer = made(hidden_size=D, **options)
    change(layer)
    randomise(layer, n)
    shown = ", ".join(f"{key}={value}" for key, value in options.items())
    return layer, lambda x: call(layer, x), f"fla.layers.{module}.{class_name}({shown})", FLA


def plain(n, **own):
    """q, k, v projections and what a case adds, for feature maps and operators that no layer of the package wraps."""
    layer = torch.nn.Module()
    for name in ("q_proj", "k_proj", "v_proj"):
        layer.add_module(name, torch.nn.Linear(D, H * W, bias=False))
    for name, module in own.items():
        layer.add_module(name, module)
    return randomise(layer, n)


def split(*tensors):
    return [rearrange(tensor, "b t (h d) -> b t h d", h=H) for tensor in tensors]


def lightning(n):
    layer = plain(n)

    def run(x):
        q, k, v = split(layer.q_proj(x), layer.k_proj(x), layer.v_proj(x))
        return lightning_op.chunk_lightning_attn(q, k, v, layer_idx=1, num_layers=4)[0].flatten(2)

    return layer, run, "fla.ops.lightning_attn.chunk_lightning_attn(layer_idx=1, num_layers=4)", FLA


def before_norm(layer):
    """Of layers whose operator is a part of `forward`: what enters the norm after it."""

    def note(_, inputs):
        core(inputs[0].unflatten(-1, (H, W)))

    layer.norm.register_forward_pre_hook(note)


def lightning_minimax(n):
    heads = {"num_attention_heads": H, "num_key_value_heads": H, "head_dim": W}
    options = {"hidden_size": D, "num_hidden_layers": 4, "layer_types": ["linear_attention"] * 4}
    config = MiniMaxConfig(**heads, **options, block_size=8, hidden_act="silu")
    layer = MiniMaxLightningAttention(config, layer_idx=1)
    slopes = layer.get_slope_rate().double()
    layer = randomise(layer, n)
    # The decay tables of the class are rounded to f32.
    layer.slope_rate, tables = slopes, layer.decay_factors(slopes)
    layer.query_decay, layer.key_decay, layer.diagonal_decay = tables
    before_norm(layer)
    run = lambda x: layer(x, position_embeddings=None, attention_mask=None)[0]
    name = "transformers MiniMaxLightningAttention(layer_idx=1, num_hidden_layers=4, block_size=8)"
    return layer, run, name, ("transformers",), {"slope": slopes.flatten()}


def mlstm(n):
    options = {"hidden_size": D, "num_heads": H, "qk_dim_factor": 1.0, "v_dim_factor": 1.0, "weight_mode": "single"}
    layer = randomise(xLSTMLayer(xLSTMConfig(**options, num_hidden_layers=1)), n)

    def sequence(query, key, value, igate, fgate, **_):
        tokens = (query, key, value, igate, fgate)
        h, _ = mlstm_recurrent_sequence_native(*tokens, return_last_states=True, dtype_state=torch.float64)
        return core(h.transpose(1, 2))[0].transpose(1, 2), None

    layer.mlstm_backend.forward = sequence
    name = "transformers xLSTMLayer(qk_dim_factor=1, v_dim_factor=1) with mlstm_recurrent_sequence_native"
    return layer, lambda x: layer(x)[0], name, ("transformers",)


def mlstm_cell(n):
    layer = plain(n, cell=mLSTMCell(mLSTMCellConfig(context_length=T, embedding_dim=D, num_heads=H)))

    def backend(**arguments):
        step = layer.cell.stabilized(**arguments)
        core(step.transpose(1, 2))
        return step

    layer.cell.stabilized, layer.cell.backend_fn = layer.cell.backend_fn, backend
    run = lambda x: layer.cell(layer.q_proj(x), layer.k_proj(x), layer.v_proj(x))
    return layer, run, "xlstm.blocks.mlstm.cell.mLSTMCell", ("xlstm",)


def mamba2(n, groups=1):
    options = {"hidden_size": D, "num_heads": H, "head_dim": W, "state_size": W, "expand": 1, "n_groups": groups}
    config = Mamba2Config(**options, conv_kernel=4, chunk_size=8, num_hidden_layers=1, use_bias=False)
    layer = randomise(Mamba2Mixer(config, layer_idx=0), n).eval()
    before_norm(layer)
    return layer, lambda x: layer(x), f"transformers Mamba2Mixer(n_groups={groups}, expand=1)", ("transformers",)


def bounded(n):
    bound = n.uniform(D, low=0.1, high=0.6).double().requires_grad_()
    call = lambda layer, x: layer(x, lower_bound=bound)[0]
    return *fla_layer("hgrn2", "HGRN2Attention", n, call, expand_ratio=W, layer_idx=1), {"lower_bound": bound}


def squared_relu(layer):
    layer.feature_map_q = layer.feature_map_k = maps.SquaredReLUFeatureMap()


def linear(feature_map, change=lambda layer: None):
    options = {"num_heads": H, "do_feature_map_norm": True, "output_norm": "identity", "feature_map": feature_map}
    return lambda n: fla_layer("linear_attn", "LinearAttention", n, change=change, **options)


def rwkv7_unshifted(n):
    options = {"decay_low_rank_dim": 4, "gate_low_rank_dim": 4, "a_low_rank_dim": 4}
    made = fla_layer("rwkv7", "RWKV7Attention", n, head_dim=W, layer_idx=0, num_hidden_layers=4, **options)
    for shift in "rkv":
        getattr(made[0], f"x_{shift}").data.zero_()
    return made


def based_layer(module, class_name):
    bare = lambda layer, x: layer(x)
    options = {"feature_dim": 4, "num_heads": H, "num_key_value_heads": H}
    return lambda n: fla_layer(module, class_name, n, bare, **options)


GLA = {"num_heads": H, "expand_k": 1.0, "expand_v": 1.0}
DELTA = {"num_heads": H, "head_dim": W, "expand_v": 1}
CASES = {
    "hedgehog_fla": linear("hedgehog"),
    "t2r": linear("t2r"),
    "elu": linear("elu"),
    "squared_relu": linear("relu", squared_relu),
    "based": based_layer("based", "BasedLinearAttention"),
    "rebased": based_layer("rebased", "ReBasedLinearAttention"),
    "retention": lambda n: fla_layer("multiscale_retention", "MultiScaleRetention", n, **GLA),
    "lightning": lightning,
    "lightning_minimax": lightning_minimax,
    "simple_gla": lambda n: fla_layer("simple_gla", "SimpleGatedLinearAttention", n, **GLA),
    "mlstm": mlstm,
    "mlstm_cell": mlstm_cell,
    "mamba2": mamba2,
    "mamba2_grouped": lambda n: mamba2(n, groups=H),
    "gla": lambda n: fla_layer("gla", "GatedLinearAttention", n, gate_low_rank_dim=4, **GLA),
    "hgrn2": lambda n: fla_layer("hgrn2", "HGRN2Attention", n, expand_ratio=W),
    "hgrn2_bounded": bounded,
    "gsa": lambda n: fla_layer("gsa", "GatedSlotAttention", n, num_slots=6, layer_idx=0, **GLA),
    "rwkv6": lambda n: fla_layer("rwkv6", "RWKV6Attention", n, proj_low_rank_dim=4, gate_low_rank_dim=4, **GLA),
    "deltanet": lambda n: fla_layer("delta_net", "DeltaNet", n, num_heads=H),
    "deltanet_negative": lambda n: fla_layer("delta_net", "DeltaNet", n, num_heads=H, allow_neg_eigval=True),
    "gated_deltanet": lambda n: fla_layer("gated_deltanet", "GatedDeltaNet", n, **DELTA),
    "kda": lambda n: fla_layer("kda", "KimiDeltaAttention", n, **DELTA),
    "kda_safe_gate": lambda n: fla_layer("kda", "KimiDeltaAttention", n, safe_gate=True, lower_bound=-5.0, **DELTA),
    "delta_product": lambda n: fla_layer("gated_deltaproduct", "GatedDeltaProduct", n, **DELTA),
    "rwkv7_unshifted": rwkv7_unshifted,
}
