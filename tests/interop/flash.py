"""`export --format fla` in flash-linear-attention's own model, on the CPU: its Triton kernels are replaced by the
package's references, or by what they compute. `python flash.py CASES PROGRAM`"""

import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers
from check import Failures, quiet
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

warnings.filterwarnings("ignore")
import fla  # noqa: E402, registers its models
import fla.layers.gla as layer  # noqa: E402
import fla.modules.mlp as mlp  # noqa: E402
from fla.modules.convolution import ShortConvolution  # noqa: E402
from fla.ops.gla.naive import naive_recurrent_gla  # noqa: E402


def gla(q, k, v, gk=None, g=None, initial_state=None, output_final_state=False, **_):
    return naive_recurrent_gla(q, k, v, g if gk is None else gk, output_final_state=output_final_state)


def convolution(self, x, **_):
    y = F.conv1d(F.pad(x.transpose(1, 2), (self.kernel_size[0] - 1, 0)), self.weight, groups=x.shape[2])
    return F.silu(y.transpose(1, 2)), None


def rms_norm(self, x):
    return x * (x.square().mean(-1, keepdim=True) + self.eps).rsqrt() * self.weight


@torch.no_grad()
def main():
    cases, program = Path(sys.argv[1]), sys.argv[2]
    quiet()
    torch.set_num_threads(1)
    layer.chunk_gla = layer.fused_recurrent_gla = gla
    ShortConvolution.forward = convolution
    mlp.swiglu = lambda x, y: F.silu(x) * y
    layer.RMSNorm.forward = rms_norm
    failures, plain = Failures(), {"fuse_norm": False, "fuse_swiglu": False, "fuse_cross_entropy": False}
    for name in ("fla-gla", "fla-gla-convolution"):
        expected = load_file(cases / name / "expected.safetensors")
        with tempfile.TemporaryDirectory() as to:
            command = [program, "export", cases / name / "model", "--to", f"{to}/fla", "--format", "fla"]
            subprocess.run(command, check=True, capture_output=True)
            model = AutoModelForCausalLM.from_pretrained(f"{to}/fla", dtype=torch.float32, **plain).eval()
            failures.true(f"{name}: {type(model)}", type(model).__module__.startswith("fla."))
            got = model(expected["ids"].long(), use_cache=False).logits
            failures.close(f"{name}: logits", got, expected["logits"])
    version = f"transformers {transformers.__version__}, flash-linear-attention {fla.__version__}"
    print(f"{version}: {failures.checks} checks, largest difference {failures.worst:.1e}, {len(failures.messages)} wrong")
    if failures.messages:
        sys.exit(1)


if __name__ == "__main__":
    main()
