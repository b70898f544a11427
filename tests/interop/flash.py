"""flash-linear-attention on the CPU, its Triton kernels replaced by the package's references or by what they compute:
`export --format fla` in its own model, and its kernels in ours, called as on a GPU. `python flash.py CASES PROGRAM`"""

import inspect
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers
from check import Failures, load, quiet
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

warnings.filterwarnings("ignore")
import fla  # noqa: E402, registers its models
import fla.layers.delta_net  # noqa: E402
import fla.layers.gated_deltanet  # noqa: E402
import fla.layers.gated_deltaproduct  # noqa: E402
import fla.layers.gla  # noqa: E402
import fla.layers.kda  # noqa: E402
import fla.modules.mlp  # noqa: E402
from fla.modules import FusedRMSNormGated, RMSNorm  # noqa: E402
from fla.modules.convolution import ShortConvolution  # noqa: E402
from fla.ops.gated_delta_rule import chunk_gated_delta_rule  # noqa: E402
from fla.ops.gated_delta_rule.naive import naive_recurrent_gated_delta_rule  # noqa: E402
from fla.ops.generalized_delta_rule import chunk_dplr_delta_rule  # noqa: E402
from fla.ops.generalized_delta_rule.dplr.naive import dplr_recurrence  # noqa: E402
from fla.ops.gla import chunk_gla  # noqa: E402
from fla.ops.gla.naive import naive_recurrent_gla  # noqa: E402
from fla.ops.kda import chunk_kda  # noqa: E402
from fla.ops.kda.naive import naive_recurrent_kda  # noqa: E402
from fla.ops.rwkv6 import chunk_rwkv6  # noqa: E402
from fla.ops.rwkv6.recurrent_naive import naive_recurrent_rwkv6  # noqa: E402
from fla.ops.simple_gla import chunk_simple_gla  # noqa: E402
from fla.ops.simple_gla.naive import naive_recurrent_simple_gla  # noqa: E402


# What the kernels of its layers compute, by its references and their settings.


def gla(q, k, v, gk=None, g=None, initial_state=None, output_final_state=False, **_):
    return naive_recurrent_gla(q, k, v, g if gk is None else gk, output_final_state=output_final_state)


def delta(reference):
    """The delta rule of a layer's projections."""

    def call(q, k, v, beta, g=None, A_log=None, dt_bias=None, allow_neg_eigval=False, lower_bound=None, **named):
        assert named["use_qk_l2norm_in_kernel"]
        q, k = (x * (x.square().sum(-1, keepdim=True) + 1e-6).rsqrt() for x in (q, k))
        if named.get("use_beta_sigmoid_in_kernel"):
            beta = beta.sigmoid() * (2 if allow_neg_eigval else 1)
        if named.get("use_gate_in_kernel"):
            rate = A_log.exp() if g.dim() == 3 else A_log.exp()[:, None]
            logits = g + dt_bias.view(g.shape[2:])
            g = -rate * F.softplus(logits) if lower_bound is None else lower_bound * (rate * logits).sigmoid()
        g = torch.zeros_like(beta) if g is None else g
        return reference(q, k, v, g=g, beta=beta)

    return call


def product(q, k, v, g, beta, num_householder, **named):
    """Each token decays before its first write and is read after its last."""
    n = num_householder
    g = torch.stack([g, *[torch.zeros_like(g)] * (n - 1)], 2).flatten(1, 2)
    q = torch.stack([*[torch.zeros_like(q)] * (n - 1), q], 2).flatten(1, 2)
    o, state = delta(naive_recurrent_gated_delta_rule)(q, k, v, beta, g, **named)
    return o[:, n - 1 :: n], state


def depthwise(x, weight, **_):
    y = F.conv1d(F.pad(x.transpose(1, 2), (weight.shape[-1] - 1, 0)), weight.view(x.shape[-1], 1, -1), groups=x.shape[2])
    return F.silu(y.transpose(1, 2)), None


def rms_norm(self, x):
    return x * (x.square().mean(-1, keepdim=True) + self.eps).rsqrt() * self.weight


def in_layers():
    """Puts them in their places."""
    layers = fla.layers
    layers.gla.chunk_gla = layers.gla.fused_recurrent_gla = gla
    layers.delta_net.chunk_delta_rule = delta(naive_recurrent_gated_delta_rule)
    layers.gated_deltanet.chunk_gated_delta_rule = delta(naive_recurrent_gated_delta_rule)
    layers.gated_deltanet.causal_conv1d = depthwise
    layers.gated_deltaproduct.chunk_gated_delta_product = product
    layers.kda.chunk_kda = delta(naive_recurrent_kda)
    ShortConvolution.forward = lambda self, x, **_: depthwise(x, self.weight)
    RMSNorm.forward = rms_norm
    FusedRMSNormGated.forward = lambda self, x, g: rms_norm(self, x) * g.sigmoid()
    fla.modules.mlp.swiglu = lambda x, y: F.silu(x) * y


def heads_first(reference, *names):
    """A reference of the layout [B, H, T, K], its arguments under other names."""

    def call(q, k, v, initial_state, output_final_state, **rest):
        rest = {n: x if x.dim() == 2 else x.transpose(1, 2) for n, x in rest.items()}
        tokens = (x.transpose(1, 2) for x in (q, k, v))
        o, state = reference(*tokens, *(rest[n] for n in names), initial_state=initial_state, output_final_state=True)
        return o.transpose(1, 2), state

    return call


REFERENCES = {
    chunk_gla: lambda q, k, v, g, **rest: naive_recurrent_gla(q, k, v, gk=g, **rest),
    chunk_simple_gla: lambda q, k, v, g, **rest: naive_recurrent_simple_gla(
        q, k, v, g=torch.zeros(q.shape[:3]) if g is None else g, **rest
    ),
    chunk_gated_delta_rule: naive_recurrent_gated_delta_rule,
    chunk_kda: naive_recurrent_kda,
    chunk_rwkv6: heads_first(naive_recurrent_rwkv6, "w", "u"),
    chunk_dplr_delta_rule: heads_first(dplr_recurrence, "a", "b", "gk"),
}


def called(kernel, calls):
    """The reference of `kernel` under its signature."""

    def call(*arguments, **named):
        bound = inspect.signature(kernel).bind(*arguments, **named).arguments
        calls.append(kernel.__name__)
        q, scale = bound.pop("r" if kernel is chunk_rwkv6 else "q"), bound.pop("scale")
        # The references divide by sqrt K themselves.
        return REFERENCES[kernel](q * scale * q.shape[-1] ** 0.5, **bound)

    return call


def in_ours(cases, failures):
    """Our modelling file with these kernels: texts in two parts, so that states are handed over."""
    calls = []
    for mixer in ("gla", "simple-gla", "deltanet", "gated-deltanet", "kda", "based", "mlstm", "rwkv6", "rwkv7", "titans"):
        name = f"mixer-{mixer}"
        expected = load_file(cases / name / "expected.safetensors")
        model = load(cases / name / "model")
        module = sys.modules[type(model).__module__]
        module.fast = lambda x: x.shape[1] > 1
        for kernel in REFERENCES:
            setattr(module, kernel.__name__, called(kernel, calls))
        ids = expected["ids"].long()
        first = model(ids[:, :40], use_cache=True)
        second = model(ids[:, 40:], past_key_values=first.past_key_values)
        got = torch.cat([first.logits, second.logits], 1)
        failures.close(f"{name}: with kernels", got, expected["logits"])
        failures.true(f"{name}: kernels agree, {module.AGREED}", module.AGREED and all(module.AGREED.values()))
    failures.true(f"kernels {set(calls)}", len(set(calls)) == len(REFERENCES))


@torch.no_grad()
def main():
    cases, program = Path(sys.argv[1]), sys.argv[2]
    quiet()
    torch.set_num_threads(1)
    in_layers()
    failures, plain = Failures(), {"fuse_norm": False, "fuse_swiglu": False, "fuse_cross_entropy": False}
    names = sorted(f.name for f in cases.iterdir() if f.name.startswith("fla-"))
    failures.true(f"forms {names}", len(names) >= 8)
    for name in names:
        expected = load_file(cases / name / "expected.safetensors")
        with tempfile.TemporaryDirectory() as to:
            command = [program, "export", cases / name / "model", "--to", f"{to}/fla", "--format", "fla"]
            subprocess.run(command, check=True, capture_output=True)
            model = AutoModelForCausalLM.from_pretrained(f"{to}/fla", dtype=torch.float32, **plain).eval()
            failures.true(f"{name}: {type(model)}", type(model).__module__.startswith("fla."))
            got = model(expected["ids"].long(), use_cache=False).logits
            failures.close(f"{name}: logits", got, expected["logits"])
    in_ours(cases, failures)
    version = f"transformers {transformers.__version__}, flash-linear-attention {fla.__version__}"
    failures.end(f"{version}: {failures.checks} checks, largest difference {failures.worst:.1e}")


if __name__ == "__main__":
    main()
