"""What torch computes with published dictionaries, for ``pytest -m hub``; nothing of jmi takes part.

``python -m tests.oracles.published_dictionaries [plt] [sae]`` (with torch, transformers, and the hub or its
cache within reach) writes into ``tests/data/hub``:

- ``plt_llama_reference.json``: three transcoders of Llama 3.2 1B, on a prompt's residual stream before the
  MLP and on random vectors;
- ``sae_reference.json``: an SAE of Gemma Scope on a prompt's residual stream after a block of Gemma 2 2B.

Each case holds the vector that is encoded, how many features are active on it, and the ten largest. Models
run in float32; features are computed from these vectors in float64, so that rounding decides no count.
"""

import json
import platform
import sys
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tests.oracles.hub_reference import FOLDER

PROMPT = "The capital of France is"
PLT = {"model": "meta-llama/Llama-3.2-1B", "repo": "mntss/transcoder-Llama-3.2-1B", "layers": (0, 7, 15)}
SAE = {
    "model": "google/gemma-2-2b",
    "repo": "google/gemma-scope-2b-pt-res",
    "path": "layer_20/width_16k/average_l0_71",
    "layer": 20,
}
FILES = {"plt": "plt_llama_reference.json", "sae": "sae_reference.json"}


def file_of(kind: str) -> Path:
    """Where the reference of ``plt`` or ``sae`` lies."""
    return FOLDER / FILES[kind]


def compute(kind: str) -> dict[str, Any]:
    """The reference of one kind, as plain data; OSError where the hub has to be asked and cannot be."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the libraries warn of while they are imported is theirs
        import torch
        import transformers

    about = {
        "methodology": "vectors in float32, features of them in float64",
        "torch_version": torch.__version__,
        "transformers_version": transformers.__version__,
        "platform": platform.platform(),
        "prompt": PROMPT,
    }
    return {**about, **(_plt() if kind == "plt" else _sae())}


def _plt() -> dict[str, Any]:
    import torch
    from huggingface_hub import hf_hub_download

    tokens, lm = _model(PLT["model"])
    before_mlp = residuals(lm, tokens, PLT["layers"], "mid")
    cases = []
    for layer in PLT["layers"]:
        encode = transcoder(hf_hub_download(PLT["repo"], f"layer_{layer}.safetensors"))
        for position, x in enumerate(before_mlp[layer]):
            cases.append({"layer": layer, "position": position, **case(x, encode)})
        for seed in (layer, layer + 100, layer + 200):
            x = torch.randn(lm.config.hidden_size, generator=torch.Generator().manual_seed(seed))
            cases.append({"layer": layer, "seed": seed, **case(x, encode)})
    return {
        "model_repo": PLT["model"],
        "transcoder_repo": PLT["repo"],
        "schema": "PltBundle",
        "encoder_formula": "relu(W_enc x + b_enc)",
        "d_model": lm.config.hidden_size,
        "n_features_per_layer": len(encode(x.double())),
        "hook": "blocks.{layer}.hook_resid_mid",
        "tokens": tokens[0].tolist(),
        "test_cases": cases,
    }


def _sae() -> dict[str, Any]:
    from huggingface_hub import hf_hub_download

    tokens, lm = _model(SAE["model"])
    after_block = residuals(lm, tokens, [SAE["layer"]], "post")[SAE["layer"]]
    encode = gemma_scope(hf_hub_download(SAE["repo"], f"{SAE['path']}/params.npz"))
    return {
        "model_id": SAE["model"],
        "sae_repo": SAE["repo"],
        "sae_npz_path": f"{SAE['path']}/params.npz",
        "hook_layer": SAE["layer"],
        "hook_name": f"blocks.{SAE['layer']}.hook_resid_post",
        "architecture": "jumprelu",
        "d_in": lm.config.hidden_size,
        "d_sae": len(encode(after_block[0].double())),
        "encoder_formula": "p if p > threshold and p > 0 else 0, with p = x W_enc + b_enc",
        "tokens": tokens[0].tolist(),
        "test_cases": [
            {"layer": SAE["layer"], "position": position, **case(x, encode)}
            for position, x in enumerate(after_block)
        ],
    }


def _model(name: str) -> tuple[Any, Any]:
    import torch
    import transformers

    tokens = transformers.AutoTokenizer.from_pretrained(name)(PROMPT, return_tensors="pt").input_ids
    lm = transformers.AutoModelForCausalLM.from_pretrained(
        name, dtype=torch.float32, attn_implementation="eager"
    )
    return tokens, lm.eval()


def residuals(lm: Any, tokens: Any, layers: Iterable[int], point: str) -> dict[int, Any]:
    """The residual stream ``[positions, d]`` of one prompt, by layer.

    Args:
      point: ``mid`` for before the norm of the MLP, ``post`` for after the block.
    """
    import torch

    found = {}

    def keep(layer: int) -> Callable[..., None]:
        def hook(module: Any, args: tuple, out: Any = None) -> None:
            value = args[0] if point == "mid" else out
            found[layer] = (value[0] if isinstance(value, tuple) else value)[0].detach().clone()

        return hook

    handles = []
    for layer in layers:
        block = lm.model.layers[layer]
        handles.append(
            # Llama's name for the norm that the MLP reads through.
            block.post_attention_layernorm.register_forward_pre_hook(keep(layer))
            if point == "mid"
            else block.register_forward_hook(keep(layer))
        )
    with torch.no_grad():
        lm(tokens, use_cache=False)
    for handle in handles:
        handle.remove()
    return found


def transcoder(file: str | Path) -> Callable[[Any], Any]:
    """The encoder of a file of circuit-tracer."""
    import torch
    from safetensors import safe_open

    with safe_open(file, "pt") as held:
        W_enc, b_enc = (held.get_tensor(name).double() for name in ("W_enc", "b_enc"))
    return lambda x: torch.relu(W_enc @ x + b_enc)


def gemma_scope(file: str | Path) -> Callable[[Any], Any]:
    """The encoder of a file of Gemma Scope."""
    import numpy as np
    import torch

    with np.load(file, allow_pickle=False) as held:
        W_enc, b_enc, threshold = (
            torch.from_numpy(held[name]).double() for name in ("W_enc", "b_enc", "threshold")
        )

    def encode(x: Any) -> Any:
        pre = x @ W_enc + b_enc
        return torch.where((pre > threshold) & (pre > 0), pre, 0)

    return encode


def case(x: Any, encode: Callable[[Any], Any]) -> dict[str, Any]:
    """A vector ``[d]`` and the features of it."""
    features = encode(x.double())
    top = features.topk(10)
    return {
        "residual": x.tolist(),
        "n_active": int((features > 0).sum()),
        "top_10": [
            {"index": index, "activation": value}
            for index, value in zip(top.indices.tolist(), top.values.tolist(), strict=True)
        ],
    }


def main() -> None:
    """Write the references named on the command line, or both."""
    FOLDER.mkdir(exist_ok=True)
    for kind in sys.argv[1:] or FILES:
        file_of(kind).write_text(json.dumps(compute(kind)) + "\n")
        print(file_of(kind).name)


if __name__ == "__main__":
    main()
