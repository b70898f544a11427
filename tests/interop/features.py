"""What users do with an exported folder: batches with padding, beams, training with and without PEFT, saving again,
evaluation by lm-eval. `python features.py CASES`"""

import json
import sys
import tempfile
from pathlib import Path

import torch
import transformers
from check import Failures, left_padded, load, quiet
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, GenerationConfig

CASES = [
    "mixer-hedgehog-joint",
    "mixer-hedgehog-sinks",
    "mixer-transnormer-learned",
    "mixer-gla-learned",
    "mixer-mlstm",
    "mixer-rwkv6",
    "mixer-rwkv7",
    "mixer-delta-product",
    "mixer-flowformer",
    "mixer-liger-gsa-fixed",
]
FAMILIES = ["family-gpt2", "family-phi3", "family-mixtral", "family-gemma2", "family-llama"]


def prompts_of(folder):
    expected = load_file(folder / "expected.safetensors")
    return [row[:n] for row, n in zip(expected["prompt"].long(), expected["lengths"].tolist())]


@torch.no_grad()
def padding(folder, model, failures):
    """Left padding changes nothing, at any size of the batch; nor does right padding without a mask."""
    prompts = prompts_of(folder)
    alone = [model(prompt[None]).logits[0, -1] for prompt in prompts]
    ids, mask = left_padded(prompts, pad=3)
    together = model(ids, attention_mask=mask).logits[:, -1]
    failures.close(f"{folder.name}: left padding", together, torch.stack(alone))
    one = model(ids[:1], attention_mask=mask[:1]).logits[:, -1]
    failures.close(f"{folder.name}: left padding of one text", one[0], alone[0])
    right = torch.nn.functional.pad(prompts[1], (0, 11), value=5)[None]
    got = model(right).logits[0, len(prompts[1]) - 1]
    failures.close(f"{folder.name}: right padding without a mask", got, alone[1])
    masked = model(right, attention_mask=(torch.arange(right.shape[1]) < len(prompts[1])).long()[None]).logits
    failures.close(f"{folder.name}: right padding", masked[0, len(prompts[1]) - 1], alone[1])


@torch.no_grad()
def beams(folder, model, failures):
    """Beam search with cache finds what it finds without."""
    prompt = prompts_of(folder)[1][None]
    arguments = {"max_new_tokens": 12, "num_beams": 3, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    texts = []
    for use_cache in (True, False):
        config = GenerationConfig(use_cache=use_cache, **arguments)
        texts.append(model.generate(prompt, attention_mask=torch.ones_like(prompt), generation_config=config))
    failures.true(f"{folder.name}: beams", torch.equal(*texts))


def training(folder, model, failures):
    """Gradients with checkpointing are those without, and none is missing."""
    ids = load_file(folder / "expected.safetensors")["ids"].long()[:, :70]
    gradients = []
    for checkpointing in (False, True):
        model.train()
        (model.gradient_checkpointing_enable if checkpointing else model.gradient_checkpointing_disable)()
        model.zero_grad()
        model(ids, labels=ids).loss.backward()
        named = dict(model.named_parameters())
        missing = [name for name, tensor in named.items() if tensor.grad is None and ".experts." not in name]
        failures.true(f"{folder.name}: no gradient of {missing}", not missing)
        gradients.append({name: tensor.grad.clone() for name, tensor in named.items() if tensor.grad is not None})
    model.gradient_checkpointing_disable()
    model.eval()
    for name, gradient in gradients[0].items():
        failures.close(f"{folder.name}: checkpointed gradient of {name}", gradients[1][name], gradient, 1e-5)


def contract(folder, failures):
    """What config.json and the weights must say."""
    config = json.loads((folder / "model/config.json").read_text())
    failures.true(f"{folder.name}: model_type", config["model_type"] == "subquad")
    failures.true(f"{folder.name}: auto_map", {"AutoConfig", "AutoModelForCausalLM"} <= config["auto_map"].keys())
    failures.true(f"{folder.name}: layer_types", len(config["layer_types"]) == config["num_hidden_layers"])
    failures.true(f"{folder.name}: dtype", config["dtype"] == config["torch_dtype"] == "float32")
    index = json.loads((folder / "model/model.safetensors.index.json").read_text())
    headers = {}
    for shard in (folder / "model").glob("model-*.safetensors"):
        with safe_open(shard, "pt") as file:
            failures.true(f"{shard}: format", file.metadata()["format"] == "pt")
            for name in file.keys():
                failures.true(f"{name} twice", name not in headers)
                headers[name] = shard.name
    failures.true(f"{folder.name}: weight_map", index["weight_map"] == headers)
    try:
        AutoConfig.from_pretrained(folder / "model", trust_remote_code=False)
        failures.true(f"{folder.name}: loads without trust", False)
    except ValueError:
        failures.true("refused without trust", True)


@torch.no_grad()
def saving(folder, model, failures):
    """save_pretrained, then load that; tied weights stay tied; AutoModel gives the body."""
    ids = load_file(folder / "expected.safetensors")["ids"].long()[:1, :30]
    with tempfile.TemporaryDirectory() as to:
        model.save_pretrained(to)
        again = load(to)
        failures.close(f"{folder.name}: saved and loaded", again(ids).logits, model(ids).logits, 0.0)
        failures.true(f"{folder.name}: code is copied", (Path(to) / "modeling_subquad.py").exists())
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    failures.true(f"{folder.name}: tied", tied == model.config.tie_word_embeddings)
    body = AutoModel.from_pretrained(folder / "model", trust_remote_code=True, dtype=torch.float32).eval()
    hidden = body(ids).last_hidden_state
    want = model(ids, output_hidden_states=True).hidden_states[-1]
    failures.close(f"{folder.name}: AutoModel", hidden, want, 1e-6)


def peft(folder, failures):
    """LoRA on the projections and a trained mixer: loss falls, the base stays, and the saved adapter gives it again."""
    from peft import LoraConfig, PeftModel, get_peft_model

    model = load(folder / "model")
    ids = load_file(folder / "expected.safetensors")["ids"].long()[:, :60]
    linear = {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    targets = sorted({"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"} & linear)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=targets or ["c_attn", "c_fc"], modules_to_save=["mixer"])
    adapted = get_peft_model(model, config)
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for _ in range(6):
        loss = adapted(ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    failures.true(f"{folder.name}: LoRA losses {losses}", losses[-1] < losses[0])
    with torch.no_grad(), tempfile.TemporaryDirectory() as to:
        want = adapted.eval()(ids).logits
        adapted.save_pretrained(to)
        again = PeftModel.from_pretrained(load(folder / "model"), to).eval()
        failures.close(f"{folder.name}: adapter loaded", again(ids).logits, want, 1e-6)
        failures.true(
            f"{folder.name}: the mixer was trained",
            any("mixer" in n for n in load_file(f"{to}/adapter_model.safetensors")),
        )


def main():
    cases = Path(sys.argv[1])
    torch.set_num_threads(1)
    torch.manual_seed(0)
    quiet()
    failures = Failures()
    for name in CASES + FAMILIES:
        folder = cases / name
        model = load(folder / "model")
        padding(folder, model, failures)
        beams(folder, model, failures)
        training(folder, model, failures)
    for name in ["mixer-hedgehog-joint", "mixer-rwkv7", "family-gpt2", "family-llama"]:
        folder = cases / name
        saving(folder, load(folder / "model"), failures)
        peft(folder, failures)
    contract(cases / "mixer-hedgehog-joint", failures)
    half = AutoModelForCausalLM.from_pretrained(cases / "mixer-gla/model", trust_remote_code=True, dtype=torch.bfloat16)
    kinds = {tensor.dtype for name, tensor in half.named_parameters() if ".mixer." in name}
    failures.true(f"mixers stay f32 in a bf16 model: {kinds}", kinds == {torch.float32})
    failures.true("bf16 logits", half(torch.tensor([[1, 2, 3]])).logits.isfinite().all().item())
    failures.end(f"transformers {transformers.__version__}: {failures.checks} checks of use")


if __name__ == "__main__":
    main()
