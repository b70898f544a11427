"""lm-eval's `hf` model on an exported folder: a task that this file makes, and this crate's own perplexity of the same
text. `python evaluation.py CASES PROGRAM`"""

import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path

import lm_eval
import torch
import transformers
from check import Failures, quiet
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoTokenizer

TEXT = """Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she saw
a big dog with a red ball. The dog was very happy, and it ran to her. Lily threw the ball, and the dog brought it back.
They played all day until the sun went down. Then her mom called her, and Lily said goodbye to her new friend."""
TASK = """task: one_text
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: loglikelihood
doc_to_text: "{{{{first}}}}"
doc_to_target: "{{{{rest}}}}"
target_delimiter: ""
metric_list: [{{metric: perplexity}}]
"""


def main():
    cases, program = Path(sys.argv[1]), sys.argv[2]
    quiet()
    torch.set_num_threads(1)
    failures = Failures()
    text = TEXT.replace("\n", " ")
    with tempfile.TemporaryDirectory() as to:
        to = Path(to)
        (to / "text.txt").write_text(text)
        (to / "data.jsonl").write_text(json.dumps({"first": "Once", "rest": text.removeprefix("Once")}) + "\n")
        (to / "one_text.yaml").write_text(TASK.format(data=to / "data.jsonl"))
        for name in ("mixer-hedgehog-joint", "mixer-gated-deltanet"):
            folder = cases / name / "model"
            tokens = len(
                AutoTokenizer.from_pretrained(folder, trust_remote_code=True)(text, add_special_tokens=False).input_ids
            )
            model = HFLM(
                pretrained=str(folder),
                trust_remote_code=True,
                dtype="float32",
                device="cpu",
                batch_size=2,
                add_bos_token=False,
            )
            manager = TaskManager(include_path=str(to), include_defaults=False)
            results = lm_eval.simple_evaluate(model, tasks=["one_text"], task_manager=manager)["results"]["one_text"]
            # Of the whole text but its first token, "Once"; ours is one window.
            nats = math.log(results["perplexity,none"])
            command = [program, "evaluate", folder, "--text", to / "text.txt", "--sequence", str(tokens), "--json"]
            report = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
            failures.true(f"{name}: {report['tokens']} tokens of {tokens}", report["tokens"] == tokens - 1)
            ratio = math.exp(nats / (tokens - 1)) / report["perplexity"]
            failures.true(f"{name}: perplexity is {ratio} of ours", abs(ratio - 1) < 1e-3)

            requests = [
                lm_eval.api.instance.Instance("loglikelihood", {}, (text[:n], text[n : 2 * n]), i)
                for i, n in enumerate((40, 90, 17))
            ]
            together = torch.tensor([answer[0] for answer in model.loglikelihood(requests)])
            alone = torch.tensor([model.loglikelihood([request])[0][0] for request in requests])
            failures.close(f"{name}: batches of 2 and of 1", together, alone)
    version = f"transformers {transformers.__version__}, lm-eval {lm_eval.__version__}"
    failures.end(f"{version}: {failures.checks} checks")


if __name__ == "__main__":
    main()
