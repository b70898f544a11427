"""flash-linear-attention's kernels in our modelling file, on a GPU: outputs, states and gradients against the chunked
operators in float64, whole models against themselves on the CPU, and times. CI has no GPU.

python kernels.py MODELS [FORM ...] [models]     MODELS: exported folders in a folder; forms: all without names, and a
                                                 process for each compiles side by side
"""

import math
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from check import Failures, load, quiet

DEVICE = "cuda"
# Widths of keys and values: of a tiny model, of usual heads, and of features with a normaliser's column.
WIDTHS = {"plain": [(153, 65)]}
USUAL = [(8, 8), (64, 64)]
TOKENS = [2, 63, 200]
FORMS = ["plain", "scalar", "vector", "bonus", "delta", "delta scalar", "delta vector", "dplr"]


def inputs(form, b, t, h, k, v, kind=torch.float32, seed=0):
    """Arguments of one form of the recurrence, of sizes that mixers give it."""
    random = torch.Generator(DEVICE).manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=random, device=DEVICE, dtype=torch.float32)

    def unit(x):
        return F.normalize(x, dim=-1)

    named = {"q": normal(b, t, h, k) * k**-0.5, "k": normal(b, t, h, k) * 0.5, "v": normal(b, t, h, v)}
    named["state"] = normal(b, h, k, v) * 0.3
    gate = k if form.split()[-1] in ("vector", "bonus", "dplr") else 1
    if form.split()[-1] not in ("plain", "delta"):
        # Some channels forget at once.
        named["g"] = -F.softplus(normal(b, t, h, gate) * 2 - 2)
    if form == "bonus":
        named["bonus"] = normal(h, k)
    if form.startswith("delta"):
        named["k"], named["beta"] = unit(named["k"]), torch.sigmoid(normal(b, t, h, 1))
    if form == "dplr":
        kappa = unit(normal(b, t, h, k))
        named["a"], named["b"] = -kappa, kappa * torch.sigmoid(normal(b, t, h, k))
        named["g"] = -math.exp(-0.5) * torch.sigmoid(normal(b, t, h, k))
    return {name: x.to(kind) for name, x in named.items()}


def run(module, form, named):
    named = dict(named)
    if form.startswith("delta"):
        return module.delta_rule(**named)
    if form == "dplr":
        named["erase"] = (named.pop("a"), named.pop("b"), False)
    return module.recurrence(**named)


def with_gradients(module, form, named):
    """Output, state, and the gradient of each argument."""
    named = {name: x.detach().requires_grad_() for name, x in named.items()}
    o, state = run(module, form, named)
    random = torch.Generator(DEVICE).manual_seed(9)
    weights = [torch.randn(x.shape, generator=random, device=DEVICE).to(x.dtype) for x in (o, state)]
    gradients = torch.autograd.grad((o * weights[0]).sum() + (state * weights[1]).sum(), list(named.values()))
    results = {"o": o, "S": state, **{f"d{name}": x for name, x in zip(named, gradients)}}
    return {name: x.detach() for name, x in results.items()}


def distance(got, want):
    """Root of the squared error's share of the squares."""
    return ((got.double() - want.double()).norm() / want.double().norm().clamp(min=1e-30)).item()


def operators(module, form, failures, fast):
    worst = {}
    for k, v in WIDTHS.get(form, USUAL):
        for t in TOKENS:
            named = inputs(form, 2, t, 3, k, v)
            module.fast = lambda x: False
            want = with_gradients(module, form, {name: x.double() for name, x in named.items()})
            plain = with_gradients(module, form, named)
            module.fast = fast
            got = with_gradients(module, form, named)
            for name in want:
                far, own = distance(got[name], want[name]), distance(plain[name], want[name])
                worst[name] = max(worst.get(name, (0.0, 0.0)), (far, own))
                failures.true(f"{form}, K {k}, V {v}, T {t}: {name} is {far:.1e} away", far < 3e-3)
    print(f"{form}: " + ", ".join(f"{name} {a:.1e} ({b:.1e})" for name, (a, b) in worst.items()), flush=True)


def models(folders, failures, fast):
    for name in sorted(f.name for f in folders.iterdir()):
        model = load(folders / name)
        module = sys.modules[type(model).__module__]
        ids = torch.randint(model.config.vocab_size, (2, 150), generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            want = model(ids).logits
        model, ids = model.to(DEVICE), ids.to(DEVICE)
        far, gradients = {}, {}
        for how, chosen in [("without", lambda x: False), ("with", fast)]:
            module.fast = chosen
            with torch.no_grad():
                first = model(ids[:, :40], use_cache=True)
                second = model(ids[:, 40:], past_key_values=first.past_key_values)
            far[how] = distance(torch.cat([first.logits, second.logits], 1).cpu(), want)
            for checkpointing in (False, True):
                (model.gradient_checkpointing_enable if checkpointing else model.gradient_checkpointing_disable)()
                model.train().zero_grad()
                model(ids, labels=ids, use_cache=False).loss.backward()
                found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
                if checkpointing:
                    worst = max(distance(g, found[n]) for n, g in gradients[how].items())
                    failures.true(f"{name} {how}: a checkpoint changes gradients by {worst:.1e}", worst < 1e-3)
                gradients[how] = found
            model.eval()
        apart = {n: distance(g, gradients["without"][n]) for n, g in gradients["with"].items()}
        worst = max(apart, key=apart.get)
        text = f"{name}: logits {far['with']:.1e} away with kernels, {far['without']:.1e} without; "
        print(f"{text}gradients {apart[worst]:.1e} apart at most ({worst})", flush=True)
        failures.true(f"{name}: logits {far}", far["without"] < 1e-4 and far["with"] < 3e-3)
        failures.true(f"{name}: gradient of {worst}", apart[worst] < 3e-2)


def times(module, form, fast):
    def milliseconds(do):
        for _ in range(2):
            do()
        torch.cuda.synchronize()
        began = time.time()
        for _ in range(5):
            do()
        torch.cuda.synchronize()
        return (time.time() - began) * 200

    k, v = WIDTHS.get(form, USUAL)[-1]
    for t in (2048, 16384):
        named, row = inputs(form, 1, t, 16, k, v), []
        for chosen in (lambda x: False, fast):
            module.fast = chosen
            with torch.no_grad():
                row.append(milliseconds(lambda: run(module, form, named)))
            row.append(milliseconds(lambda: with_gradients(module, form, named)))
        text = f"{form}, T {t}: forward {row[0]:.2f} -> {row[2]:.2f} ms ({row[0] / row[2]:.1f} times)"
        print(f"{text}, with gradients {row[1]:.2f} -> {row[3]:.2f} ms ({row[1] / row[3]:.1f} times)", flush=True)


def main():
    folders, parts = Path(sys.argv[1]), sys.argv[2:] or [*FORMS, "models"]
    quiet()
    # Any exported folder has the file.
    module = sys.modules[type(load(next(folders.iterdir()))).__module__]
    if not module.FLA:
        sys.exit("flash-linear-attention's kernels are not used: install the package, on a machine with a GPU")
    fast, failures = module.fast, Failures()
    for form in FORMS:
        if form in parts:
            began = time.time()
            operators(module, form, failures, fast)
            print(f"{form}: {time.time() - began:.0f} s, compilation included")
            times(module, form, fast)
    if "models" in parts:
        models(folders, failures, fast)
    print({f"{key[0].__name__} {key[1:]}": served for key, served in module.AGREED.items()})
    failures.end(f"{torch.cuda.get_device_name()}: {failures.checks} checks")


if __name__ == "__main__":
    main()
