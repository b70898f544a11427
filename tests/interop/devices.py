"""Layers on several devices and on disk, as accelerate places them: logits and texts are those of the whole model. With
GPUs, layers are on those too. `python devices.py CASES`"""

import json
import sys
import tempfile
from pathlib import Path
from unittest import mock

import torch
import transformers
from check import Failures, left_padded, load, quiet
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

# Every kind of state, every way to hand it on.
CASES = [
    "mixer-hedgehog-joint",
    "mixer-hedgehog-sinks",
    "mixer-transnormer-learned",
    "mixer-gla-learned",
    "mixer-mlstm",
    "mixer-flowformer",
    "mixer-rwkv7",
    "mixer-delta-product",
    "family-gpt2",
    "family-opt",
    "family-mixtral",
    "family-gemma2",
    "family-phi3-long",
]

BEAMS = {"max_new_tokens": 12, "num_beams": 3}


def placements(model):
    """Device maps by name: layers in turn on two places. The rest stays together, since the embedding and the head may be
    one tensor, which transformers 4 does not find on a disk."""
    gpus = torch.cuda.device_count()
    main = 0 if gpus else "cpu"
    blocks = [name for name, module in model.named_modules() if type(module).__name__ == "Block"]
    rest = dict.fromkeys(model.outer.values(), main)
    others = ["disk", "cpu", 1][: 1 + min(gpus, 2)]
    maps = {f"some on {other}": rest | {block: (main, other)[i % 2] for i, block in enumerate(blocks)} for other in others}
    if gpus:
        maps["all on a GPU, the rest on cpu"] = dict.fromkeys(rest, "cpu") | dict.fromkeys(blocks, 0)
    return maps


@torch.no_grad()
def logits(what, model, expected, failures):
    """Of the second part of two texts, with the states before it as they are, repeated, chosen, reordered, offloaded."""
    ids, want = expected["ids"].long(), expected["logits"]
    cut = min(40, ids.shape[1] // 2)

    def second_part(how, change, rows):
        cache = model(ids[:, :cut], use_cache=True).past_key_values
        change(cache)
        got = model(ids[rows, cut:], past_key_values=cache, use_cache=True).logits
        failures.close(f"{what}: {how}", got.cpu(), want[rows, cut:])

    second_part("in two parts", lambda cache: None, [0, 1])
    second_part("states repeated", lambda cache: cache.batch_repeat_interleave(2), [0, 0, 1, 1])
    second_part("a state chosen", lambda cache: cache.batch_select_indices(torch.tensor([1])), [1])
    second_part("states reordered", lambda cache: cache.reorder_cache(torch.tensor([1, 0])), [1, 0])
    second_part("states offloaded", lambda cache: [layer.offload() for layer in cache.layers], [0, 1])


@torch.no_grad()
def texts(what, model, whole, expected, failures):
    """Greedy text of a padded batch, and what beam search finds in the whole model."""
    greedy = expected["greedy"].long()
    prompts = [row[:n] for row, n in zip(expected["prompt"].long(), expected["lengths"].tolist())]
    ids, mask = left_padded(prompts)
    found = []
    for m, arguments in ((model, {"max_new_tokens": greedy.shape[1]}), (model, BEAMS), (whole, BEAMS)):
        # Ours goes on beyond ends of text; what the model's own settings say would be taken for None.
        m.generation_config = GenerationConfig(do_sample=False, pad_token_id=0, **arguments)
        found.append(m.generate(ids, attention_mask=mask)[:, ids.shape[1] :].cpu())
    failures.true(f"{what}: greedy text of a padded batch", torch.equal(found[0], greedy))
    failures.true(f"{what}: beams", torch.equal(found[1], found[2]))


@torch.no_grad()
def elsewhere(folder, failures):
    """Blocks on another device than their call and their states, in two parts with padding: both follow. The device holds
    no numbers; it refuses whatever stays behind."""
    config = AutoConfig.from_pretrained(folder / "model", trust_remote_code=True)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=True)
    cache = sys.modules[type(model).__module__].StateCache(config.num_hidden_layers)
    for tokens in (30, 1):
        x = torch.zeros(2, tokens, config.hidden_size)
        mask = torch.ones(2, tokens).tril(tokens - 2) if tokens > 1 else None
        call = model.place_tokens(x, mask, None, cache.layers[0])
        for i, (block, layer) in enumerate(zip(model.blocks(), cache.layers)):
            with mock.patch.object(torch, "autocast"):  # which knows no such device
                out = block(x.to("meta"), call, layer)
            layer.seen += tokens
            there = {tensor.device.type for tensor in (out, *layer.states.values())}
            failures.true(f"{folder.name}: layer {i} after {tokens} tokens is on {there}", there == {"meta"})
            layer.states = {name: torch.zeros(x.shape, dtype=x.dtype) for name, x in layer.states.items()}
    if all(rope["scaling"]["kind"] not in ("dynamic", "long") for rope in model.spec.ropes):  # theirs is a number
        place = model.place_tokens(x.to("meta"), None, None, cache.layers[0]).position.device.type
        failures.true(f"{folder.name}: positions after those of another device are on {place}", place == "meta")


def main():
    cases = Path(sys.argv[1])
    torch.set_num_threads(1)
    quiet()
    failures = Failures()
    for name in CASES:
        folder = cases / name
        whole, expected = load(folder / "model"), load_file(folder / "expected.safetensors")
        for place, places in placements(whole).items():
            with tempfile.TemporaryDirectory() as to:
                model = load(folder / "model", device_map=places, offload_folder=to)
                failures.true(f"{name}, {place}: is split", len(model.hf_device_map) == len(places))
                logits(f"{name}, {place}", model, expected, failures)
                texts(f"{name}, {place}", model, whole, expected, failures)
    for folder in sorted(f for f in cases.iterdir() if f.name.startswith(("mixer-", "family-"))):
        if json.loads((folder / "model/config.json").read_text())["subquad_decoder"]["experts"] is not None:
            continue  # which experts a token goes to is asked of numbers
        try:
            elsewhere(folder, failures)
        except Exception as error:  # the next one may be fine
            failures.true(f"{folder.name} elsewhere: {type(error).__name__}: {error}", False)
    failures.end(f"transformers {transformers.__version__}: {failures.checks} checks of devices")


if __name__ == "__main__":
    main()
