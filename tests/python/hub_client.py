"""Python's client of the Hub against `subquad`, through the server of tests/hub. Run by `scripts/hub`.

Both ways: what we push, Python downloads and transformers loads, teachers and converted models; what Python uploads, we
inspect and convert. And either reads from the cache what the other fetched.
"""

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path

import huggingface_hub
import torch
from huggingface_hub import HfApi, snapshot_download
from transformers import AutoModelForCausalLM, AutoTokenizer

SUBQUAD, ASSETS = os.environ["SUBQUAD"], Path(os.environ["ASSETS"])
CACHE = Path(os.environ["HF_HOME"]) / "hub"
PROMPT = "Once upon a time, there was a little girl"


def subquad(*arguments, **variables):
    done = subprocess.run([SUBQUAD, *arguments], env={**os.environ, **variables}, capture_output=True, text=True)
    assert done.returncode == 0, f"subquad {' '.join(arguments)}\n{done.stderr}"
    return done.stdout


def sums(folder):
    files = [path for path in Path(folder).iterdir() if path.is_file() and path.name != ".gitattributes"]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def fresh():
    shutil.rmtree(CACHE, ignore_errors=True)


def greedy_text(name, tokens, **options):
    """The text that transformers continues the prompt with."""
    model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32, **options).eval()
    tokenizer = AutoTokenizer.from_pretrained(name, **options)
    ids = tokenizer(PROMPT, return_tensors="pt")
    out = model.generate(**ids, max_new_tokens=tokens, do_sample=False)[0]
    return tokenizer.decode(out[ids["input_ids"].shape[1] :], skip_special_tokens=True)


def we_push_python_downloads(api):
    source = ASSETS / "stories260K"
    address = subquad("push", str(source), "--repo", "me/ours", "--message", "From Rust").strip()
    info = api.model_info("me/ours")
    assert info.private and address.endswith(f"/me/ours/commit/{info.sha}"), (address, info.sha)
    folder = snapshot_download("me/ours")
    assert sums(folder) == sums(source)
    # We read what Python fetched, without the network.
    ours = subquad("generate", "me/ours", "--prompt", PROMPT, "--max-tokens", "12", "--temperature", "0", "--offline")
    theirs = greedy_text("me/ours", 12)
    assert theirs.strip() and ours.strip().endswith(theirs.strip()), (ours, theirs)
    print("what we push, Python downloads; transformers loads it, and writes the same text")


def python_uploads_we_read(api):
    source = ASSETS / "stories260K"
    api.create_repo("me/theirs", private=True)
    api.upload_folder(repo_id="me/theirs", folder_path=source, commit_message="From Python")
    fresh()
    read = json.loads(subquad("inspect", "me/theirs", "--json"))
    assert read["family"] == "llama" and read["layers"] == 5, read
    assert not any(path.stat().st_size > 500_000 for path in CACHE.rglob("*") if path.is_file()), "weights were fetched"

    Path("stories").mkdir()
    shutil.copy(ASSETS / "text" / "tinystories-valid.txt", "stories/valid.txt")
    # Longer than a megabyte: a large file.
    text = Path("stories/valid.txt").read_bytes()
    Path("stories/train.txt").write_bytes(text * (1 + 1_200_000 // len(text)))
    api.create_repo("me/stories", repo_type="dataset", private=True)
    api.upload_folder(repo_id="me/stories", repo_type="dataset", folder_path="stories")
    sets = ["teacher.model=me/theirs", "data.source=me/stories/train.txt", "stage.3.text=me/stories/valid.txt"]
    sets += ["stage.0.tokens=4K", "stage.1.tokens=4K", "stage.3.tokens=2K"]
    model = subquad("convert", "smoke", "--out", "run", *[word for key in sets for word in ("--set", key)]).strip()
    print("what Python uploads, we convert")

    # Python reads what we fetched, without the network.
    folder = snapshot_download("me/theirs", local_files_only=True)
    assert sums(folder).items() <= sums(source).items() and "model.safetensors" in sums(folder)
    print("either reads the cache of the other")

    # The converted model goes there and back, through both clients.
    subquad("push", "run", "--repo", "me/linear")
    assert sums(snapshot_download("me/linear")) == sums(model)
    assert subquad("push", "run", "--repo", "me/linear") == ""
    fresh()
    here = subquad("generate", "run", "--prompt", PROMPT, "--max-tokens", "8", "--temperature", "0")
    there = subquad("generate", "me/linear", "--prompt", PROMPT, "--max-tokens", "8", "--temperature", "0")
    assert here == there
    theirs = greedy_text("me/linear", 8, trust_remote_code=True)
    assert theirs.strip() and here.strip().endswith(theirs.strip()), (here, theirs)
    print("a converted model goes to the Hub and comes back the same; transformers loads it, and writes the same text")


if __name__ == "__main__":
    print(f"huggingface_hub {huggingface_hub.__version__}")
    api = HfApi()
    we_push_python_downloads(api)
    python_uploads_we_read(api)
