"""The Llama oracle: Hugging Face transformers with eager attention, run on the grid.

``python -m tests.oracles.llama`` (with torch and transformers) writes ``tests/data/llama_oracle.npz``.

Hugging Face rounds through float32 inside its norms, rotary tables and softmax even in a float64
model, so a float64 run of it is good to about 1e-7 only. `true_float64` removes that: while it is
open, the name ``torch`` in the two modules that compute them is a stand-in whose ``float32`` and
``float`` are float64, ``Tensor.float`` is ``Tensor.double``, and the default dtype (of a Python float
times an integer tensor, in dynamic scaling) is float64. The model is built inside it too, so
the rotary frequencies are float64 from the start.
"""

import contextlib
import json
import platform
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tests.oracles import llama_grid

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what the libraries warn of while they are imported is theirs
    import torch
    import transformers
    from transformers import modeling_rope_utils
    from transformers.models.llama import modeling_llama


class _Float64Torch:
    float32 = float = torch.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


@contextlib.contextmanager
def true_float64() -> Iterator[None]:
    """Make Hugging Face's Llama compute in float64 throughout."""
    modules, original = (modeling_llama, modeling_rope_utils), torch.Tensor.float
    try:
        for module in modules:
            module.torch = _Float64Torch()
        torch.Tensor.float = torch.Tensor.double
        torch.set_default_dtype(torch.float64)
        yield
    finally:
        for module in modules:
            module.torch = torch
        torch.Tensor.float = original
        torch.set_default_dtype(torch.float32)


def build(config: dict[str, Any]) -> Any:
    """``LlamaForCausalLM`` of ``config`` with the tensors of the grid, in torch's default dtype."""
    given = {key: value for key, value in config.items() if key != "model_type" and value is not None}
    model = modeling_llama.LlamaForCausalLM(
        transformers.LlamaConfig(**json.loads(json.dumps(given)), attn_implementation="eager")
    )
    weights = {name: torch.from_numpy(value) for name, value in llama_grid.tensors(config).items()}
    missing, surplus = model.load_state_dict(weights, strict=False)
    tied = ["lm_head.weight"] if config["tie_word_embeddings"] else []
    assert (missing, surplus) == (tied, []), (missing, surplus)
    return model.eval()


def save(config: dict[str, Any], folder: Path) -> None:
    """Write the model as Hugging Face itself saves it."""
    build(config).save_pretrained(folder)


def run(config: dict[str, Any], dtype: str) -> dict[str, np.ndarray]:
    """jmi site (layers open and stacked) -> what Hugging Face computes there, ``hook_logits`` included.

    Args:
      dtype: ``"float32"``, as it is, or ``"float64"``, within `true_float64`.
    """
    with true_float64() if dtype == "float64" else contextlib.nullcontext(), torch.no_grad():
        model = build(config).to(getattr(torch, dtype))
        seen: dict[str, list[Any]] = {}
        with _recording(model, seen):
            tokens = torch.from_numpy(llama_grid.tokens(config)).long()
            out = model(tokens, output_hidden_states=True, output_attentions=True, use_cache=False)
    seen["blocks.*.hook_resid_pre"] = list(out.hidden_states[:-1])
    seen["hook_final_norm"] = [out.hidden_states[-1]]
    seen["blocks.*.attn.hook_pattern"] = list(out.attentions)
    seen["hook_logits"] = [out.logits]
    return {site: _site_array(site, values, model.config) for site, values in seen.items()}


@contextlib.contextmanager
def _recording(model: Any, seen: dict[str, list[Any]]) -> Iterator[None]:
    """Append to ``seen`` what enters and leaves the modules of ``model``, layer after layer."""

    def keep(site: str, value: Any) -> None:
        seen.setdefault(site, []).append(value[0] if isinstance(value, tuple) else value)

    def output(*sites: str) -> Callable[..., None]:
        return lambda module, args, result: [keep(site, result) for site in sites] and None

    def entry(*sites: str) -> Callable[..., None]:
        return lambda module, args: [keep(site, args) for site in sites] and None

    model.model.embed_tokens.register_forward_hook(output("hook_embed"))
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        layer.input_layernorm.register_forward_hook(output("blocks.*.attn.hook_in"))
        for letter in "qkv":
            module = getattr(attention, f"{letter}_proj")
            module.register_forward_hook(output(f"blocks.*.attn.hook_{letter}"))
        attention.o_proj.register_forward_pre_hook(entry("blocks.*.attn.hook_z"))
        attention.o_proj.register_forward_hook(output("blocks.*.attn.hook_out"))
        attention.register_forward_hook(output("blocks.*.hook_attn_out"))
        layer.post_attention_layernorm.register_forward_pre_hook(entry("blocks.*.hook_resid_mid"))
        layer.post_attention_layernorm.register_forward_hook(output("blocks.*.mlp.hook_in"))
        mlp.gate_proj.register_forward_hook(output("blocks.*.mlp.hook_pre"))
        mlp.up_proj.register_forward_hook(output("blocks.*.mlp.hook_pre_linear"))
        mlp.down_proj.register_forward_pre_hook(entry("blocks.*.mlp.hook_post"))
        mlp.down_proj.register_forward_hook(output("blocks.*.mlp.hook_out"))
        mlp.register_forward_hook(output("blocks.*.hook_mlp_out"))
        layer.register_forward_hook(output("blocks.*.hook_resid_post"))

    rotary = modeling_llama.apply_rotary_pos_emb

    def recorded(*args: Any, **kwargs: Any) -> Any:
        q, k = rotary(*args, **kwargs)
        keep("blocks.*.attn.hook_rot_q", q.transpose(1, 2))
        keep("blocks.*.attn.hook_rot_k", k.transpose(1, 2))
        return q, k

    modeling_llama.apply_rotary_pos_emb = recorded
    try:
        yield
    finally:
        modeling_llama.apply_rotary_pos_emb = rotary


def _site_array(site: str, values: list[Any], config: Any) -> np.ndarray:
    stacked = np.stack([value.detach().numpy() for value in values])
    if site.endswith(("hook_q", "hook_k", "hook_v", "hook_z")):
        # Projections leave heads flattened: [layers, b, s, h * k] -> [layers, b, s, h, k].
        stacked = stacked.reshape(*stacked.shape[:3], -1, config.head_dim)
    return stacked if site.startswith("blocks.") else stacked[0]


def main() -> None:
    """Write the committed fixture: configs, float32 weights, float64 outputs, versions."""
    arrays: dict[str, np.ndarray] = {}
    for name in llama_grid.COMMITTED:
        config = llama_grid.GRID[name]
        arrays |= {f"{name}/weights/{key}": value for key, value in llama_grid.tensors(config).items()}
        sites = run(config, "float64")
        assert all(np.array_equal(sites[site], sites[twin]) for site, twin in llama_grid.TWINS.items())
        arrays |= {
            f"{name}/sites/{site}": value for site, value in sites.items() if site not in llama_grid.TWINS
        }
        arrays[f"{name}/tokens"] = llama_grid.tokens(config)
        arrays[f"{name}/config"] = np.array(json.dumps(config))
    versions = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
    llama_grid.FILE.parent.mkdir(exist_ok=True)
    np.savez_compressed(llama_grid.FILE, versions=np.array(json.dumps(versions)), **arrays)
    size = llama_grid.FILE.stat().st_size / 1e6
    print(f"{llama_grid.FILE.name}: {len(arrays)} arrays, {size:.2f} MB, {versions}")


if __name__ == "__main__":
    main()
