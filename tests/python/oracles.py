"""What operator_fixtures.py and mixer_fixtures.py share: f64 for code that insists on f32, seeded numbers, files.

The packages' reference functions cast to f32 by name (`x.float()`, `torch.float32`). Inside `double_precision` those
names mean f64: the formulas stay the package's, only their precision changes. Leaves are drawn in f32, so that the
stored numbers are exactly the ones that were computed with; outputs and gradients are computed in f64 and stored as
f32.
"""

import contextlib
import json
import zlib
from importlib.metadata import version

import torch
from safetensors.torch import save_file

# By value: inside `double_precision` the name torch.float32 means f64.
SINGLE = torch.float32


@contextlib.contextmanager
def double_precision():
    cast = torch.Tensor.float
    torch.float32 = torch.float = torch.float64
    torch.Tensor.float = torch.Tensor.double
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.float32 = torch.float = SINGLE
        torch.Tensor.float = cast
        torch.set_default_dtype(SINGLE)


class Numbers:
    """Random numbers from the name of a case: a case added or left out moves no other."""

    def __init__(self, name):
        self.generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))

    def normal(self, *shape, scale=1.0, shift=0.0):
        return torch.randn(*shape, generator=self.generator, dtype=SINGLE) * scale + shift

    def uniform(self, *shape, low=0.0, high=1.0):
        return torch.rand(*shape, generator=self.generator, dtype=SINGLE) * (high - low) + low

    def log_gate(self, *shape, spread=2.0):
        """Log decays, some near zero and some far below."""
        return torch.nn.functional.logsigmoid(self.normal(*shape, scale=spread, shift=1.0))

    def unit(self, *shape):
        return torch.nn.functional.normalize(self.normal(*shape), dim=-1)


def leaf(tensor):
    assert tensor.dtype == SINGLE
    return tensor.double().requires_grad_()


def gradients(loss, leaves):
    """dLoss/dNAME as `grad.NAME`; every leaf must matter."""
    found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    missing = [name for name, gradient in zip(leaves, found) if gradient is None]
    assert not missing, f"the output does not depend on {missing}"
    return {f"grad.{name}": gradient for name, gradient in zip(leaves, found)}


def write(path, tensors, script, function, packages):
    tensors = {name: tensor.detach().to(SINGLE).contiguous().clone() for name, tensor in tensors.items()}
    broken = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    assert not broken, f"{path.name}: not finite: {broken}"
    made = {"script": script, "function": function}
    made["versions"] = {package: version(package).split("+")[0] for package in sorted({"torch", *packages})}
    save_file(tensors, path, metadata={"made": json.dumps(made, sort_keys=True)})
    shapes = " ".join(f"{name}{list(tensor.shape)}".replace(" ", "") for name, tensor in tensors.items())
    print(f"{path.name} ({path.stat().st_size} bytes): {shapes}")
