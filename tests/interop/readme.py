"""The commands of docs/interoperability.md, run as they stand there. `python readme.py CASES PROGRAM`"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import transformers
from check import Failures, quiet
from evaluation import TASK

PAGE = Path(__file__).parents[2] / "docs" / "interoperability.md"


def main():
    program = str(Path(sys.argv[2]).resolve())
    quiet()
    torch.set_num_threads(1)
    blocks = re.findall(r"```(sh|python)\n(.*?)```", PAGE.read_text(), re.DOTALL)
    failures, scope = Failures(), {}
    with tempfile.TemporaryDirectory() as to:
        (Path(to) / "data.jsonl").write_text(
            json.dumps({"first": "Once", "rest": " upon a time there was a cat."}) + "\n"
        )
        (Path(to) / "one_text.yaml").write_text(TASK.format(data=f"{to}/data.jsonl"))
        lm_eval = f"{sys.executable} -m lm_eval --include_path {to} --device cpu"
        scope["__name__"] = "page"
        for kind, text in blocks:
            if kind == "python":
                # Relative paths are those of the folder that the commands wrote to.
                exec(compile(text.replace('"out/', f'"{to}/out/'), PAGE.name, "exec"), scope)
                continue
            for command in text.strip().splitlines():
                words = command.replace("TASKS", "one_text").split()
                words[:1] = {"subquad": [program], "lm_eval": lm_eval.split()}[words[0]]
                done = subprocess.run(words, cwd=to, capture_output=True, text=True)
                failures.true(f"{command}: {done.stderr[-500:]}", done.returncode == 0)
    gradients = [p.grad for name, p in scope["fresh"].named_parameters() if p.requires_grad]
    failures.true("gradients of adapter and mixer", len(gradients) > 0 and all(g is not None for g in gradients))
    failures.true("an adapter", any("lora_A" in name for name, _ in scope["tuned"].named_parameters()))
    failures.end(f"transformers {transformers.__version__}: {len(blocks)} blocks of {PAGE.name}")


if __name__ == "__main__":
    main()
