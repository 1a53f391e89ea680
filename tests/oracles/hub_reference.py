"""What Hugging Face transformers computes on published checkpoints, for ``pytest -m hub``.

``python -m tests.oracles.hub_reference MODEL...`` (with torch, and the hub or its cache within reach)
writes ``tests/data/hub/<model>.json``: for each prompt the token ids, the ten largest next-token logits
and the last token's normalised residual, in float32 with eager attention.
"""

import json
import sys
import warnings
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent.parent / "data" / "hub"
MODELS = (
    *("meta-llama/Llama-3.2-1B", "Qwen/Qwen3-1.7B-Base", "google/gemma-2-2b", "openai-community/gpt2"),
    *("EleutherAI/pythia-70m-deduped", "facebook/opt-125m", "bigscience/bloom-560m", "microsoft/phi-1_5"),
    *("HuggingFaceTB/SmolLM2-135M", "allenai/OLMo-2-0425-1B", "ibm-granite/granite-3.1-2b-base"),
)
PROMPTS = ("The capital of France is", "Two plus two equals", "Once upon a time, there was a")


def file_of(model: str) -> Path:
    """Where the reference of a model lies."""
    return FOLDER / f"{model.replace('/', '--')}.json"


def compute(model: str) -> dict[str, Any]:
    """The reference of one model, as plain data."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the libraries warn of while they are imported is theirs
        import torch
        import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    lm = transformers.AutoModelForCausalLM.from_pretrained(
        model, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    cases = []
    for prompt in PROMPTS:
        tokens = tokenizer(prompt, return_tensors="pt").input_ids
        with torch.no_grad():
            out = lm(tokens, output_hidden_states=True, use_cache=False)
        top = out.logits[0, -1].topk(10)
        cases.append(
            {
                "prompt": prompt,
                "tokens": tokens[0].tolist(),
                "top_10": dict(zip(map(str, top.indices.tolist()), top.values.tolist(), strict=True)),
                "last_residual": out.hidden_states[-1][0, -1].tolist(),
            }
        )
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    return {
        "model": model,
        "revision": getattr(lm.config, "_commit_hash", None),
        "versions": versions,
        "cases": cases,
    }


def main() -> None:
    """Write the reference of every model named on the command line."""
    FOLDER.mkdir(exist_ok=True)
    for model in sys.argv[1:] or MODELS:
        file_of(model).write_text(json.dumps(compute(model), indent=1) + "\n")
        print(file_of(model).name)


if __name__ == "__main__":
    main()
