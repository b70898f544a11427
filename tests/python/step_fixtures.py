"""Three LoLCATs training steps on an embedded teacher: tests/fixtures/step_NAME_MODE.safetensors.

    python tests/python/step_fixtures.py assets/stories260K tests/fixtures

The model and the losses are those of benches/pytorch/lolcats_step.py (its docstring fixes the initial student, the
adapters and the optimiser), here in f64, stored as f32. MODE is `attention-transfer` or `lora`. Window 16, the same
batch in each step, one step per optimiser update.

tensor                      shape     meaning
ids                         u32 [2, 64]
window                      u32 [1]   16
losses                      [3]       before each of three updates
attention-transfer, layer l:
initial|grad|final.l.w_q    [H, K, K] before training, gradient of the first loss, after three updates; also w_k
initial|grad|final.l.factor [H]
lora, layer l, P one of q_proj, k_proj, v_proj, o_proj:
initial|grad|final.l.P.a    [8, in]   y = x W^T + 2 (x A^T) B^T; `.b` [out, 8]
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benches" / "pytorch"))
import lolcats_step as bench

BATCH, SEQUENCE, WINDOW, STEPS = 2, 64, 16, 3


def fixture(folder, mode):
    model = bench.Llama(folder, WINDOW, SEQUENCE)
    model.weights = {name: tensor.double() for name, tensor in model.weights.items()}
    model.cos, model.sin = model.cos.double(), model.sin.double()
    ids = bench.read_ids(None, BATCH, SEQUENCE, model.vocabulary)
    trained = {}
    for layer, student in enumerate(model.students):
        student.double().requires_grad_(mode != "lora")
        if mode != "lora":
            trained |= {f"{layer}.{name}": parameter for name, parameter in student.named_parameters()}
    if mode == "lora":
        model.add_lora()
        for (layer, name), pair in model.adapters.items():
            pair = tuple(tensor.detach().double().requires_grad_() for tensor in pair)
            model.adapters[layer, name] = pair
            trained |= {f"{layer}.{name}.a": pair[0], f"{layer}.{name}.b": pair[1]}
    lr, loss_of = (
        (bench.LORA_LR, model.label_loss) if mode == "lora" else (bench.TRANSFER_LR, model.attention_transfer_loss)
    )
    optimizer = torch.optim.AdamW(trained.values(), lr=lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)

    tensors = {f"initial.{name}": tensor.detach().clone() for name, tensor in trained.items()}
    losses = []
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = loss_of(ids)
        loss.backward()
        if step == 0:
            tensors |= {f"grad.{name}": tensor.grad.clone() for name, tensor in trained.items()}
        optimizer.step()
        losses.append(float(loss.detach()))
    tensors |= {f"final.{name}": tensor.detach() for name, tensor in trained.items()}
    tensors = {
        name: (tensor.flatten() if name.endswith("factor") else tensor).float().contiguous()
        for name, tensor in tensors.items()
    }
    tensors |= {
        "ids": ids.to(torch.uint32),
        "window": torch.tensor([WINDOW]).to(torch.uint32),
        "losses": torch.tensor(losses),
    }
    return tensors


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher", type=Path, help="a Llama folder: config.json and *.safetensors")
    parser.add_argument("output", type=Path, help="folder for step_NAME_MODE.safetensors")
    args = parser.parse_args()
    torch.set_num_threads(1)
    made = {"script": "tests/python/step_fixtures.py", "torch": torch.__version__.split("+")[0]}
    for mode in ("attention-transfer", "lora"):
        tensors = fixture(args.teacher, mode)
        path = args.output / f"step_{args.teacher.name}_{mode}.safetensors"
        save_file(tensors, path, metadata={"made": json.dumps(made, sort_keys=True)})
        print(f"{path.name}: {path.stat().st_size} bytes, losses {tensors['losses'].tolist()}")


if __name__ == "__main__":
    main()
