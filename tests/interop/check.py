"""Exported folders in transformers: what cases.rs wrote is loaded, and held to what this crate computed.

python check.py CASES PROGRAM [NAME ...]     every case whose name begins with one of these; all without names
"""

import sys
import time
import warnings
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GenerationConfig

# Largest difference of logits, for all of them; draw.rs sees to it that rounding alone does not reach it.
TOLERANCE = 1e-4
# Tokens that are read one by one, beyond every window.
STEPS = 24


def load(folder, **arguments):
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32, **arguments).eval()


def quiet():
    """Nothing but what the checks say."""
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


class Failures:
    """Every failing check, not the first alone."""

    def __init__(self):
        self.checks, self.messages, self.worst = 0, [], 0.0

    def close(self, what, got, want, tolerance=TOLERANCE):
        """Compares numbers; NaN and infinities are far."""
        difference = (got - want).abs().max().item() if got.shape == want.shape else float("nan")
        self.worst = max(self.worst, difference)
        self.true(f"{what}: {difference:.1e}", difference <= tolerance)

    def true(self, what, holds):
        self.checks += 1
        if not holds:
            self.messages.append(what)
            print(f"  WRONG {what}", flush=True)

    def end(self, what):
        """The last line of a script; fails where a check has."""
        print(f"{what}, {len(self.messages)} wrong")
        if self.messages:
            sys.exit(1)


def left_padded(prompts, pad=0):
    longest = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), longest), pad)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = prompt
        mask[row, longest - len(prompt) :] = 1
    return ids, mask


@torch.no_grad()
def parity(folder, failures):
    """Logits of many tokens at once, in two parts and one by one; greedy text of a left-padded batch with cache and
    without."""
    expected = load_file(folder / "expected.safetensors")
    model = load(folder / "model")
    name, ids, logits = folder.name, expected["ids"].long(), expected["logits"]
    failures.close(f"{name}: logits", model(ids).logits, logits)

    cut = min(40, ids.shape[1] // 2)
    first = model(ids[:, :cut], use_cache=True)
    second = model(ids[:, cut:], past_key_values=first.past_key_values, use_cache=True)
    failures.close(f"{name}: in two parts", torch.cat([first.logits, second.logits], 1), logits)
    cache, steps = None, []
    for t in range(min(STEPS, ids.shape[1])):
        out = model(ids[:, t : t + 1], past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        steps.append(out.logits)
    failures.close(f"{name}: one by one", torch.cat(steps, 1), logits[:, : len(steps)])

    greedy = expected["greedy"].long()
    prompts = [row[:n] for row, n in zip(expected["prompt"].long(), expected["lengths"].tolist())]
    ids, mask = left_padded(prompts)
    # Ours goes on beyond ends of text; what the model's own settings say would be taken for None.
    model.generation_config = GenerationConfig(max_new_tokens=greedy.shape[1], do_sample=False, pad_token_id=0)
    text = model.generate(ids, attention_mask=mask)[:, ids.shape[1] :]
    failures.true(f"{name}: greedy text of a padded batch", torch.equal(text, greedy))
    whole, mask = left_padded([torch.cat(pair) for pair in zip(prompts, greedy)])
    again = model(whole, attention_mask=mask, use_cache=False).logits.argmax(-1)[:, -greedy.shape[1] - 1 : -1]
    failures.true(f"{name}: greedy text without cache", torch.equal(again, greedy))


def main():
    cases, names = Path(sys.argv[1]), tuple(sys.argv[3:]) or ("",)
    torch.set_num_threads(1)
    quiet()
    failures, began = Failures(), time.time()
    # Those with an adapter are adapters.py's.
    folders = sorted(f for f in cases.iterdir() if f.name.startswith(names) and not f.name.startswith("adapter-"))
    for folder in folders:
        try:
            parity(folder, failures)
        except Exception as error:  # the next case may be fine
            failures.true(f"{folder.name}: {type(error).__name__}: {error}", False)
    failures.true("there are folders", bool(folders))
    counts = f"{len(folders)} folders, {failures.checks} checks, largest difference {failures.worst:.1e}"
    failures.end(f"transformers {transformers.__version__}: {counts}, {time.time() - began:.0f} s")


if __name__ == "__main__":
    main()
