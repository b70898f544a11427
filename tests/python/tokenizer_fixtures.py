#!/usr/bin/env python3
"""Makes tests/fixtures/tokenizer_*.json: ids and decoded text by the Python package `tokenizers` (0.23.3 was used).

    python3 tests/python/tokenizer_fixtures.py        (in the repository's root)
"""

import json
from pathlib import Path

from tokenizers import Tokenizer

TEXTS = [
    "Once upon a time, there was a little girl named Lily.",
    "  Two  spaces,\n\nnew lines,\ttabs and 1,234 numbers; don't they're \"quoted\"--dashes. ",
    "Ærø – naïve café, “curly”, 日本語, 🦀🙂!",
]

for name in ["stories260K", "books-llama-7m"]:
    tokenizer = Tokenizer.from_file(f"assets/{name}/tokenizer.json")
    cases = []
    for text in TEXTS:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        cases.append({"text": text, "ids": ids, "decoded": tokenizer.decode(ids)})
    lines = ",\n".join(json.dumps(case, ensure_ascii=False) for case in cases)
    Path(f"tests/fixtures/tokenizer_{name}.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")
