"""Adapters that this crate writes in PEFT: of every layout of projections, and of a run, which goes on from one.

python adapters.py CASES PROGRAM
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import peft
import torch
import transformers
from check import Failures, load, quiet
from peft import PeftModel
from safetensors.torch import load_file, save_file


@torch.no_grad()
def written(folder, failures):
    """Base and adapter give our logits, merged too; without the adapter they are others."""
    expected = load_file(folder / "expected.safetensors")
    ids, logits = expected["ids"].long(), expected["logits"]
    base = load(folder / "model")
    failures.true(f"{folder.name}: the adapter matters", (base(ids).logits - logits).abs().max() > 1e-2)
    adapted = PeftModel.from_pretrained(base, folder / "model/adapter").eval()
    failures.close(f"{folder.name}: adapted", adapted(ids).logits, logits)
    failures.close(f"{folder.name}: merged", adapted.merge_and_unload()(ids).logits, logits)
    names = set(load_file(folder / "model/adapter/adapter_model.safetensors"))
    ours = {
        n.replace(".default.", ".")
        for n, _ in PeftModel.from_pretrained(load(folder / "model"), folder / "model/adapter").named_parameters()
        if "lora_" in n
    }
    failures.true(f"{folder.name}: names {names ^ ours}", names == ours)


RECIPE = """
[teacher]
model = "builtin:stories260K"
[student]
mixer = "hedgehog"
window = { size = 16, combine = "joint" }
[data]
source = "builtin:tinystories"
sequence = 64
[[stage]]
kind = "lora"
tokens = "4096"
lora = { rank = 4, alpha = 8, on = ["q", "v", "up"]MORE }
optimizer = { lr = 1e-3 }
schedule = { kind = "constant" }
batch = { size = 4, accumulate = 1 }
[[stage]]
kind = "merge"
[export]
dtype = "f32"
"""


@torch.no_grad()
def of_a_run(program, failures):
    """`export --adapter` of a run is its model; a stage of another run goes on from it, and from what PEFT saved."""

    def run(*arguments, fails=False):
        done = subprocess.run([program, *arguments], capture_output=True, text=True, cwd=to)
        failures.true(f"{arguments}: {done.stderr}", (done.returncode != 0) == fails)
        return done.stderr

    with tempfile.TemporaryDirectory() as to:
        to = Path(to)
        (to / "first.toml").write_text(RECIPE.replace("MORE", ""))
        run("convert", "first.toml", "--out", "first")
        run("export", "first", "--to", "copied")
        run("export", "first", "--to", "base", "--adapter")
        ids = torch.arange(3, 90)[None]
        merged = load(to / "first/model")(ids).logits
        failures.close("a copy", load(to / "copied")(ids).logits, merged, 0.0)
        adapted = PeftModel.from_pretrained(load(to / "base"), to / "base/adapter").eval()
        failures.close("a run's adapter", adapted(ids).logits, merged)
        base = json.loads((to / "base/adapter/adapter_config.json").read_text())["base_model_name_or_path"]
        failures.true(f"base is {base}", base == "base")

        adapted.save_pretrained(to / "saved")
        for start in ("base/adapter", "saved"):
            name = start.replace("/", "-")
            (to / f"{name}.toml").write_text(RECIPE.replace("MORE", f', from = "{start}"').replace("4096", "256"))
            said = run("convert", f"{name}.toml", "--out", f"from-{name}")
            failures.true(f"{start}: {said}", "LoRA" in said)
        same = [load(to / f"from-{name}/model")(ids).logits for name in ("base-adapter", "saved")]
        failures.close("from ours and from PEFT's", same[0], same[1], 0.0)
        near, far = (same[0] - merged).abs().max().item(), (load(to / "base")(ids).logits - merged).abs().max().item()
        failures.true(f"one step from {merged.shape}: {near}, and {far} without", near < far / 2)

        # What does not fit is refused.
        (to / "rank.toml").write_text(RECIPE.replace("MORE", ', from = "saved"').replace("rank = 4", "rank = 2"))
        failures.true("rank", "rank = 4, alpha = 8" in run("convert", "rank.toml", "--out", "rank", fails=True))
        tensors = load_file(to / "saved/adapter_model.safetensors")
        renamed = {name.replace("v_proj", "w_proj"): tensor for name, tensor in tensors.items()}
        save_file(renamed, to / "saved/adapter_model.safetensors")
        (to / "name.toml").write_text(RECIPE.replace("MORE", ', from = "saved"'))
        failures.true("name", "w_proj" in run("convert", "name.toml", "--out", "name", fails=True))
        failures.true(
            "gguf", "softmax attention" in run("export", "first", "--to", "x", "--format", "gguf", fails=True)
        )
        failures.true("fla", "window of 16 keys" in run("export", "first", "--to", "x", "--format", "fla", fails=True))


def main():
    cases, program = Path(sys.argv[1]), str(Path(sys.argv[2]).resolve())
    quiet()
    torch.set_num_threads(1)
    failures = Failures()
    for folder in sorted(cases.glob("adapter-*")):
        written(folder, failures)
    of_a_run(program, failures)
    version = f"transformers {transformers.__version__}, PEFT {peft.__version__}"
    failures.end(f"{version}: {failures.checks} checks of adapters")


if __name__ == "__main__":
    main()
