"""What PyTorch's AdamW, clipping and schedules do: tests/fixtures/optimizer.json.

    python tests/python/optimizer_fixtures.py tests/fixtures

Everything in f64. Parameters and gradients are multiples of 1/256, hence exact in f32 too.

adamw: a list of trajectories of two tensors (`weight` [3, 4], `bias` [4]; flat, row major).
    name, betas, eps, clip (largest gradient norm over both tensors, or null),
    groups      per tensor: lr, weight_decay
    initial     per tensor
    gradients   [step] per tensor, before clipping
    norms       [step] total norm before clipping; torch scales by min(1, clip / (norm + 1e-6))
    parameters  [step] per tensor, after the step
    first_moment, second_moment  per tensor, after the last step
plateau: a list of ReduceLROnPlateau runs (mode min, relative threshold, cooldown 0).
    name, lr, factor, patience, min_lr, threshold, losses, lrs [i] the rate after losses[..=i]
cosine: a list of runs of the formula, step counted from 0:
    name, lr, min_lr, warmup, steps, lrs [steps + 3]
    step < warmup: lr (step + 1) / warmup
    otherwise:     min_lr + (lr - min_lr) (1 + cos(pi x)) / 2,  x = (step - warmup) / (steps - warmup), 1 from `steps` on
"""

import argparse
import json
import math
from pathlib import Path

import torch

SHAPES = {"weight": (3, 4), "bias": (4,)}
STEPS = 6


def grid(random, shape, scale):
    return torch.round(torch.randn(shape, generator=random, dtype=torch.float64) * scale * 256) / 256


def flat(tensors):
    return {name: tensor.detach().flatten().tolist() for name, tensor in zip(SHAPES, tensors)}


def adamw(name, lr, weight_decay, clip, betas=(0.9, 0.999), eps=1e-8):
    random = torch.Generator().manual_seed(7)
    parameters = [torch.nn.Parameter(grid(random, shape, 1.0)) for shape in SHAPES.values()]
    groups = [{"params": [p], "lr": lr[i], "weight_decay": weight_decay[i]} for i, p in enumerate(parameters)]
    optimizer = torch.optim.AdamW(groups, betas=betas, eps=eps)
    case = {
        "name": name,
        "betas": betas,
        "eps": eps,
        "clip": clip,
        "groups": {key: {"lr": lr[i], "weight_decay": weight_decay[i]} for i, key in enumerate(SHAPES)},
        "initial": flat(parameters),
        "gradients": [],
        "norms": [],
        "parameters": [],
    }
    for step in range(STEPS):
        # Norms on both sides of 1; at step 3 the second tensor's gradient is zero.
        gradients = [grid(random, shape, 0.1 if step % 2 else 1.0) for shape in SHAPES.values()]
        if step == 3:
            gradients[1].zero_()
        case["gradients"].append(flat(gradients))
        for parameter, gradient in zip(parameters, gradients):
            parameter.grad = gradient.clone()
        norm = torch.nn.utils.clip_grad_norm_(parameters, clip if clip is not None else math.inf)
        case["norms"].append(float(norm))
        optimizer.step()
        case["parameters"].append(flat(parameters))
    case["first_moment"] = flat([optimizer.state[p]["exp_avg"] for p in parameters])
    case["second_moment"] = flat([optimizer.state[p]["exp_avg_sq"] for p in parameters])
    return case


def plateau(name, lr, losses, factor=0.1, patience=2, min_lr=0.0, threshold=1e-4):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, mode="min", factor=factor, patience=patience, min_lr=min_lr, threshold=threshold
    )
    lrs = []
    for loss in losses:
        schedule.step(loss)
        lrs.append(optimizer.param_groups[0]["lr"])
    return {
        "name": name,
        "lr": lr,
        "factor": factor,
        "patience": patience,
        "min_lr": min_lr,
        "threshold": threshold,
        "losses": losses,
        "lrs": lrs,
    }


def cosine(name, lr, min_lr, warmup, steps):
    def rate(step):
        if step < warmup:
            return lr * (step + 1) / warmup
        x = 1.0 if step >= steps else (step - warmup) / (steps - warmup)
        return min_lr + (lr - min_lr) * (1 + math.cos(math.pi * x)) / 2

    return {
        "name": name,
        "lr": lr,
        "min_lr": min_lr,
        "warmup": warmup,
        "steps": steps,
        "lrs": [rate(step) for step in range(steps + 3)],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="folder for optimizer.json")
    args = parser.parse_args()
    falling = [5.0, 4.0, 3.0, 3.0, 3.1, 2.9, 2.9, 2.8999, 2.95, 2.9, 2.89]
    flat_loss = [1.0] * 14
    fixture = {
        "made": {"script": "tests/python/optimizer_fixtures.py", "torch": torch.__version__.split("+")[0]},
        "adamw": [
            adamw("plain", (0.01, 0.01), (0.0, 0.0), None),
            adamw("clipped", (0.01, 0.01), (0.0, 0.0), 1.0),
            adamw("decay", (0.01, 0.01), (0.1, 0.1), 1.0),
            adamw("groups", (0.01, 0.001), (0.1, 0.0), 1.0, betas=(0.9, 0.95), eps=1e-6),
        ],
        "plateau": [
            plateau("falling", 0.01, falling),
            plateau("flat, to the minimum", 0.01, flat_loss, min_lr=1e-5),
            # Improvements smaller than the relative threshold of 1e-4 do not count.
            plateau("small improvements", 0.001, [1.0 - 0.00003 * i for i in range(9)]),
            plateau("no patience", 0.1, [2.0, 2.5, 1.0, 1.0, 0.5], factor=0.5, patience=0),
        ],
        "cosine": [
            cosine("warm-up and minimum", 0.01, 0.0001, 4, 20),
            cosine("no warm-up", 0.001, 0.0, 0, 10),
            cosine("all warm-up", 0.001, 0.0001, 5, 5),
        ],
    }
    path = args.output / "optimizer.json"
    # One case a line.
    lists = ",\n".join(
        f'"{key}": [\n' + ",\n".join(json.dumps(case) for case in fixture[key]) + "\n]" for key in fixture if key != "made"
    )
    path.write_text(f'{{"made": {json.dumps(fixture["made"])},\n{lists}}}\n')
    assert json.loads(path.read_text()) == json.loads(json.dumps(fixture))
    for case in fixture["plateau"] + fixture["cosine"]:
        print(case["name"], [f"{lr:.3g}" for lr in case["lrs"]])
    for case in fixture["adamw"]:
        print(case["name"], "norms", [f"{norm:.3f}" for norm in case["norms"]])
    print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
