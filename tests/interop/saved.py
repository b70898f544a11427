"""Models that one version of transformers saves again are the same in every version and in this crate's program.

python saved.py CASES PROGRAM FOLDER save    saves them to FOLDER/VERSION/NAME/FORM/model, what they say beside it
python saved.py CASES PROGRAM FOLDER         loads what all versions saved
"""

import json
import subprocess
import sys
from pathlib import Path

import torch
import transformers
from check import Failures, load, quiet
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, GenerationConfig

# Tied where that is the family's default and where it is not, untied, heads of other names, with a tokenizer.
NAMES = [
    "mixer-hedgehog-joint",
    "mixer-rwkv7",
    "family-llama",
    "family-mistral-tied",
    "family-falcon",
    "family-gemma2",
    "family-gpt2",
    "family-gpt_neox",
    "family-opt",
    "family-qwen2",
]
PROMPT = "Once upon a time, there was a little girl"
TOKENS = 24


def ids_of(case):
    return load_file(case / "expected.safetensors")["ids"].long()[:, :40]


def greedy(model, ids):
    """Ids, with the cache that config.json says to use or not."""
    model.generation_config = GenerationConfig(max_new_tokens=TOKENS, do_sample=False, pad_token_id=0)
    return model.generate(ids, attention_mask=torch.ones_like(ids))[:, ids.shape[1] :]


def text(program, folder):
    """What the program says after the prompt."""
    command = [program, "generate", folder, "--prompt", PROMPT, "--max-tokens", str(TOKENS)]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout if done.returncode == 0 else done.stderr


def loss(what, model, ids, failures):
    """Of labels is that of the logits, whatever the vocabulary has become."""
    out = model(ids, labels=ids)
    want = torch.nn.functional.cross_entropy(out.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    failures.close(f"{what}: loss", out.loss, want, 1e-5)


def as_it_is(model, tokenizer, to):
    pass


def resized(model, tokenizer, to):
    """Three tokens more, and no cache."""
    vocab = model.config.vocab_size + 3
    if tokenizer is not None:
        tokenizer.add_tokens(["[PAD]", "[USER]", "[END]"], special_tokens=True)
    model.resize_token_embeddings(vocab)
    model.config.use_cache = False


def untold(model, tokenizer, to):
    """Without the key that transformers 4 has dropped of earlier exports."""
    config = json.loads((to / "config.json").read_text())
    config.pop("tie_word_embeddings", None)
    (to / "config.json").write_text(json.dumps(config))


# What is done before and after saving.
FORMS = {"as it is": (as_it_is, as_it_is), "resized": (resized, as_it_is), "untold": (as_it_is, untold)}


@torch.no_grad()
def save(case, folder, failures):
    ids, want = ids_of(case), load_file(case / "expected.safetensors")["logits"][:, :40]
    for form, (before, after) in FORMS.items():
        model, to = load(case / "model"), folder / case.name / form
        has_tokenizer = (case / "model/tokenizer.json").exists()
        tokenizer = AutoTokenizer.from_pretrained(case / "model", trust_remote_code=True) if has_tokenizer else None
        before(model, tokenizer, to / "model")
        what = f"{case.name}, {form}"
        loss(what, model, ids, failures)
        logits = model(ids).logits
        failures.close(f"{what}: logits", logits[..., : want.shape[-1]], want)
        model.save_pretrained(to / "model")
        if has_tokenizer:
            tokenizer.save_pretrained(to / "model")
        expected = {"ids": ids, "logits": logits, "greedy": greedy(model, ids)}
        save_file({name: x.contiguous() for name, x in expected.items()}, to / "expected.safetensors")
        after(model, tokenizer, to / "model")


@torch.no_grad()
def read(case, saved, program, failures):
    """One saved folder: logits and text, in transformers and in the program; what config.json says of it."""
    what, expected = f"{case.name} by {saved.parents[1].name}, {saved.name}", load_file(saved / "expected.safetensors")
    model, ids, was = load(saved / "model"), expected["ids"], json.loads((case / "model/config.json").read_text())
    out = model(ids)
    failures.close(f"{what}: logits", out.logits, expected["logits"], 1e-5)
    loss(what, model, ids, failures)
    failures.true(f"{what}: cache", (out.past_key_values is None) == (saved.name == "resized"))
    failures.true(f"{what}: greedy text", torch.equal(greedy(model, ids), expected["greedy"]))
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    failures.true(f"{what}: tied", tied == was["tie_word_embeddings"])

    config = json.loads((saved / "model/config.json").read_text())
    kept = {"use_cache": saved.name != "resized"} | ({} if saved.name == "untold" else {"tie_word_embeddings": tied})
    failures.true(f"{what}: config.json says {kept}", kept.items() <= config.items())
    vocab = was["vocab_size"] + (3 if saved.name == "resized" else 0)
    said = {config["vocab_size"], config["subquad_decoder"]["vocab"], len(model.get_input_embeddings().weight)}
    failures.true(f"{what}: {said} tokens, not {vocab}", said == {vocab})

    done = subprocess.run([program, "inspect", saved / "model"], capture_output=True, text=True)
    failures.true(f"{what}: inspected: {done.stderr}", done.returncode == 0)
    if (saved / "model/tokenizer.json").exists():
        got, want = text(program, saved / "model"), text(program, case / "model")
        failures.true(f"{what}: the program says {got!r}, not {want!r}", got == want and got.startswith(PROMPT))


def main():
    cases, program, folder, saving = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), sys.argv[4:] == ["save"]
    torch.set_num_threads(1)
    torch.manual_seed(0)
    quiet()
    failures = Failures()
    count = 0
    for name in NAMES:
        places = [folder / transformers.__version__] if saving else sorted(folder.glob(f"*/{name}/*"))
        for place in places:
            count += 1
            try:
                save(cases / name, place, failures) if saving else read(cases / name, place, program, failures)
            except Exception as error:  # the next one may be fine
                failures.true(f"{place} of {name}: {type(error).__name__}: {error}", False)
    failures.true("there are folders", count >= len(NAMES) * (1 if saving else len(FORMS)))
    done = "models saved" if saving else "saved folders"
    failures.end(f"transformers {transformers.__version__}: {count} {done}, {failures.checks} checks")


if __name__ == "__main__":
    main()
