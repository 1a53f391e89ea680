"""Small vocabularies as llama.cpp's converter writes them, and what transformers makes of their models.

``python -m tests.oracles.gguf_vocabularies LLAMA_CPP`` (with torch, transformers, sentencepiece, and a
checkout of llama.cpp) converts each of `gguf_folders` with ``convert_hf_to_gguf.py --vocab-only``, and writes
the files to ``tests/data/gguf``, beside the tokens that transformers gives for the models' own folders.
"""

import gzip
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.oracles.gguf_folders import NAMES, made
from tests.support.gguf_vocabularies import DATA, TEXTS

# The converter knows pre-tokenizers by what published vocabularies make of a text, so it is told; and what it
# writes of the shape of a model is left out.
_CONVERT = """
import runpy, sys
root, model, pre, *arguments = sys.argv[1:]
sys.path[:0] = [root, root + "/gguf-py"]
import conversion.base
conversion.base.TextModel.get_vocab_base_pre = lambda self, tokenizer: pre
conversion.get_model_class(model).set_gguf_parameters = lambda self: None
sys.argv = ["convert", *arguments, "--vocab-only"]
runpy.run_path(root + "/convert_hf_to_gguf.py", run_name="__main__")
"""


def recorded(folder: Path) -> dict[str, Any]:
    """What transformers makes of `TEXTS` in a folder: ids, offsets, and the text of the ids."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = [tokenizer(text, return_offsets_mapping=True) for text in TEXTS]
    return {
        "ids": [one["input_ids"] for one in found],
        "bare": [len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in TEXTS],
        "starts": [[start for start, _ in one["offset_mapping"]] for one in found],
        "decoded": [tokenizer.decode(one["input_ids"], skip_special_tokens=True) for one in found],
    }


def main(llama_cpp: str) -> None:
    DATA.mkdir(exist_ok=True)
    expected = {}
    with tempfile.TemporaryDirectory() as temporary:
        for name in NAMES:
            folder, file = Path(temporary) / name, Path(temporary) / f"{name}.gguf"
            folder.mkdir()
            made(folder, name)
            model = json.loads((folder / "config.json").read_text())["architectures"][0]
            arguments = [model, name, str(folder), "--outfile", str(file)]
            subprocess.run([sys.executable, "-c", _CONVERT, llama_cpp, *arguments], check=True)
            (DATA / f"{name}.gguf.gz").write_bytes(gzip.compress(file.read_bytes(), 9, mtime=0))
            if name != "rwkv":
                expected[name] = recorded(folder)
    packed = gzip.compress(json.dumps(expected).encode(), 9, mtime=0)
    (DATA / "expected.json.gz").write_bytes(packed)


if __name__ == "__main__":
    main(*sys.argv[1:])
