"""What transformers computes with an embedded teacher: tests/fixtures/teacher_NAME.safetensors.

    python tests/python/teacher_fixtures.py assets/stories260K tests/fixtures
    python tests/python/teacher_fixtures.py assets/books-llama-7m tests/fixtures

Weights upcast to f32, eager attention, CPU, one thread. NAME is the name of the teacher's folder.

tensor            type, shape        meaning
ids               u32 [96]           a real text
logits            f32 [96, C]        of `ids`, the columns `stride * c` of the vocabulary
stride            u32 [1]            1 up to 512 words, otherwise 16
logsumexp         f32 [96]           of each row of the full logits
argmax            u32 [96]           of each row of the full logits
token_nll         f32 [95]           -log p(ids[t + 1] | ids[..t])
nll               f32 [1]            mean of `token_nll`
positions         u32 [P]            where hidden states were read
hidden            f32 [L + 1, P, D]  the embedding, then the residual stream after each layer (before the final norm)
final_norm        f32 [P, D]         after the final norm
batch_ids         u32 [2, 16]        two other texts
batch_logits      f32 [2, 16, C]     of `batch_ids`, the same columns
prompt            u32 [16]           start of greedy generation
generated         u32 [64]           the tokens after `prompt`; an end-of-text token does not stop it
generated_margin  f32 [64]           logit of the winner minus logit of the second, each step
"""

import argparse
import json
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file

LENGTH, BATCH_LENGTH, PROMPT, NEW = 96, 16, 16, 64
POSITIONS = [0, 1, 64, 95]

STORY = (
    "Once upon a time, there was a little girl named Lily. She loved to play in the park with her dog, Max. "
    "One day, Lily saw a big red ball near the tree. She wanted to share it with her friend Tom. "
    'Tom said, "Thank you, Lily! Let us play together." They ran and laughed all day. When the sun went down, '
    "Lily's mom said it was time to go home. Lily was happy, and she gave the ball to Tom."
)
# Robert W. Chambers, The Messenger, 1897, and Jane Austen, Persuasion, 1817: public domain.
BOOK = (
    '"The bullet entered here," said Max Fortin, and he placed his middle finger over a smooth hole exactly in '
    "the center of the forehead.\n\nI sat down upon a mound of dry seaweed and unslung my fowling piece.\n\n"
    "The little chemist cautiously felt the edges of the shot-hole, first with his middle finger, and then with "
    'his thumb.\n\n"Let me see the skull again," said I.\n\nMax Fortin picked it up from the sod.\n\n'
    '"It\'s like all the others," he repeated, wiping his glasses on his handkerchief.'
)
BATCH = [
    "Tom and his mom went to the store to buy a big cake, and Tom was very happy about it.",
    "Sir Walter Elliot, of Kellynch Hall, in Somersetshire, was a man who, for his own amusement, never took up "
    "any book but the Baronetage.",
]
PROMPTS = {
    "stories260K": "Once upon a time, there was a little boy named Tim who liked to play with his",
    "books-llama-7m": "Elizabeth looked at her sister with surprise, and after a pause of a few minutes",
}


def u32(ids):
    return torch.tensor(ids, dtype=torch.int64).to(torch.uint32)


@torch.no_grad()
def greedy(model, prompt):
    """The plain loop: the whole sequence again for every token, no cache. Tokens and margins."""
    ids, margins = list(prompt), []
    for _ in range(NEW):
        top = model(torch.tensor([ids]), use_cache=False).logits[0, -1].topk(2)
        ids.append(int(top.indices[0]))
        margins.append(float(top.values[0] - top.values[1]))
    return ids[len(prompt) :], margins


@torch.no_grad()
def fixture(folder):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()

    def encode(text, length):
        ids = tokenizer(text)["input_ids"]
        assert len(ids) >= length, f"{len(ids)} tokens, {length} wanted: {text}"
        return ids[:length]

    ids = encode(STORY if folder.name.startswith("stories") else BOOK, LENGTH)
    batch = [encode(text, BATCH_LENGTH) for text in BATCH]
    prompt = encode(PROMPTS.get(folder.name, STORY), PROMPT)

    stream = {}
    hooks = [model.model.embed_tokens.register_forward_hook(lambda _m, _i, out: stream.__setitem__(0, out))]
    for index, layer in enumerate(model.model.layers):
        keep = lambda _m, _i, out, at=index + 1: stream.__setitem__(at, out[0] if isinstance(out, tuple) else out)
        hooks.append(layer.register_forward_hook(keep))
    hooks.append(model.model.norm.register_forward_hook(lambda _m, _i, out: stream.__setitem__("norm", out)))
    logits = model(torch.tensor([ids]), use_cache=False).logits[0]
    for hook in hooks:
        hook.remove()
    layers = len(model.model.layers)
    hidden = torch.stack([stream[i][0, POSITIONS] for i in range(layers + 1)])
    token_nll = -logits.double().log_softmax(-1)[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0]

    generated, margin = greedy(model, prompt)
    model.generation_config.eos_token_id = None
    library = model.generate(torch.tensor([prompt]), do_sample=False, min_new_tokens=NEW, max_new_tokens=NEW)
    assert library[0, PROMPT:].tolist() == generated, "generate() and the plain loop disagree"

    stride = 1 if logits.shape[-1] <= 512 else 16
    tensors = {
        "ids": u32(ids),
        "logits": logits[:, ::stride],
        "stride": u32([stride]),
        "logsumexp": logits.double().logsumexp(-1).float(),
        "argmax": logits.argmax(-1).to(torch.uint32),
        "token_nll": token_nll.float(),
        "nll": token_nll.mean().float()[None],
        "positions": u32(POSITIONS),
        "hidden": hidden,
        "final_norm": stream["norm"][0, POSITIONS],
        "batch_ids": u32(batch),
        "batch_logits": model(torch.tensor(batch), use_cache=False).logits[:, :, ::stride],
        "prompt": u32(prompt),
        "generated": u32(generated),
        "generated_margin": torch.tensor(margin),
    }
    print(f"{folder.name}: nll {float(token_nll.mean()):.6f}, smallest greedy margin {min(margin):.5f}")
    print(f"  {tokenizer.decode(prompt + generated)!r}")
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher", type=Path, help="folder with config.json, model.safetensors, tokenizer.json")
    parser.add_argument("output", type=Path, help="folder for teacher_NAME.safetensors")
    args = parser.parse_args()
    torch.set_num_threads(1)
    tensors = fixture(args.teacher)
    made = {"script": "tests/python/teacher_fixtures.py", "torch": torch.__version__.split("+")[0], "transformers": transformers.__version__}
    path = args.output / f"teacher_{args.teacher.name}.safetensors"
    save_file(tensors, path, metadata={"made": json.dumps(made, sort_keys=True)})
    print(f"  {path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
