"""The oracle: Hugging Face transformers with eager attention on CPU, run on `tests.oracles.grid`.

``python -m tests.oracles.hugging_face [family ...]`` (with torch and transformers) writes
``tests/data/<family>.npz`` of the committed configs.

Every model goes through a folder on disk, under the names that published checkpoints have: shapes come
from ``save_pretrained``, tensors from `grid.weight`, and ``from_pretrained`` reads the folder back. Names
in memory differ from those on disk

- in mixtures: transformers 5 fuses the experts (``experts.gate_up_proj [e, 2m, d]``), checkpoints store
  ``experts.0.gate_proj.weight [m, d]`` and so on for each expert; gpt-oss alone is stacked on disk as well;
- in Mixtral: ``mlp`` is ``block_sparse_moe`` on disk, and its experts have ``w1`` (gate), ``w3`` (up) and
  ``w2`` (down);
- in GPT-NeoX: ``lm_head`` is ``embed_out`` on disk.

Published GPT-2 and BLOOM lack the prefix ``transformer.`` that ``save_pretrained`` writes.

Hugging Face rounds through float32 inside norms, rotary tables, softmax and routers even in a float64
model. `true_float64` removes that, and `_OnlyFloat64` proves it: no operation of the run may return a
narrower float.
"""

import contextlib
import functools
import json
import platform
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import safe_open

from tests.oracles import grid
from tests.oracles.grid import Config

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what the libraries warn of while they are imported is theirs
    import torch
    import transformers
    from torch.utils._python_dispatch import TorchDispatchMode
    from transformers import modeling_rope_utils

    from tests.oracles.tapping import Seen, recording, repaired, stacked

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

_EAGER = {"attn_implementation": "eager", "experts_implementation": "eager"}


class Run(NamedTuple):
    """What the oracle says of one config.

    Attributes:
      tensors: name on disk -> float32; a tied head is left out.
      sites: jmi site -> what Hugging Face computes there; sites inside blocks stacked over layers.
    """

    tensors: dict[str, np.ndarray]
    sites: dict[str, np.ndarray]


def run(config: Config, dtype: str) -> Run:
    """The tensors of ``config`` and every site.

    Args:
      dtype: ``"float32"``, as it is, or ``"float64"``, within `true_float64`.
    """
    tensors, double = grid.tensors(shapes(config), config["model_type"]), dtype == "float64"
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        if double:
            stack.enter_context(true_float64(config))
        model = load(config, tensors, getattr(torch, dtype))
        seen: Seen = {}
        stack.enter_context(recording(model, seen))
        if double:
            stack.enter_context(_OnlyFloat64())
        model(torch.from_numpy(grid.tokens(config)).long(), use_cache=False)
    return Run(tensors, stacked(model.config, seen))


def logits(config: Config, tensors: dict[str, np.ndarray], tokens: np.ndarray, dtype: str) -> np.ndarray:
    """Logits ``[b, s, vocab]`` of a model run in ``dtype``, as float32."""
    model = load(config, tensors, getattr(torch, dtype))
    with torch.no_grad(), repaired(model):
        return model(torch.from_numpy(tokens).long(), use_cache=False).logits.float().numpy()


def embedding_gradient(config: Config, weights: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The tensors of ``config``, and the gradient of weighted logits at the token embedding, in float64."""
    tensors = grid.tensors(shapes(config), config["model_type"])
    with true_float64(config):
        model = load(config, tensors, torch.float64)
        tokens = torch.from_numpy(grid.tokens(config)).long()
        embedded = model.get_input_embeddings()(tokens).detach().requires_grad_()
        logits = model(inputs_embeds=embedded, use_cache=False).logits
        (logits * torch.from_numpy(weights)).sum().backward()
    return tensors, embedded.grad.numpy()


def save(config: Config, folder: Path) -> None:
    """Write the model as Hugging Face itself saves it."""
    tensors = grid.tensors(shapes(config), config["model_type"])
    load(config, tensors, torch.float32).save_pretrained(folder)


def shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of the checkpoint, as ``save_pretrained`` writes them."""
    return dict(_shapes(json.dumps(config)))


@functools.cache
def _shapes(config: str) -> dict[str, tuple[int, ...]]:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(config)
        read = transformers.AutoConfig.from_pretrained(folder)
        transformers.AutoModelForCausalLM.from_config(read, **_EAGER).save_pretrained(folder)
        with safe_open(Path(folder) / "model.safetensors", "np") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def load(config: Config, tensors: dict[str, np.ndarray], dtype: torch.dtype) -> Any:
    """The model that Hugging Face reads from a folder of ``tensors``."""
    with tempfile.TemporaryDirectory() as folder:
        grid.write_folder(Path(folder), config, tensors)
        model, info = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, output_loading_info=True, local_files_only=True, **_EAGER
        )
    assert not any(info.values()), info
    assert {value.dtype for value in model.parameters()} == {dtype}
    return model.eval()


class _Float64Torch:
    float32 = float = torch.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


@contextlib.contextmanager
def true_float64(config: Config) -> Iterator[None]:
    """Make Hugging Face compute models of ``config`` in float64 throughout.

    While it is open, the name ``torch`` in the modeling file and in the rotary helpers is a stand-in whose
    ``float32`` and ``float`` are float64; ``Tensor.float`` and ``Tensor.bfloat16`` (Falcon's alibi) are
    ``Tensor.double``; and the default dtype (of a Python float times an integer tensor) is float64. The
    model is to be loaded inside it too, so the rotary frequencies are float64 from the start.
    """
    with float64_in(_modeling_file(config)):
        yield


@contextlib.contextmanager
def float64_in(*files: Any) -> Iterator[None]:
    """The same for the models that these modules of transformers define."""
    modules = (*files, modeling_rope_utils)
    originals = torch.Tensor.float, torch.Tensor.bfloat16
    try:
        for module in modules:
            module.torch = _Float64Torch()
        torch.Tensor.float = torch.Tensor.bfloat16 = torch.Tensor.double
        torch.set_default_dtype(torch.float64)
        yield
    finally:
        for module in modules:
            module.torch = torch
        torch.Tensor.float, torch.Tensor.bfloat16 = originals
        torch.set_default_dtype(torch.float32)


def _modeling_file(config: Config) -> Any:
    """The module in which transformers defines the model of ``config``."""
    kind = transformers.AutoConfig.for_model(config["model_type"])
    return sys.modules[transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(kind)].__module__]


class _OnlyFloat64(TorchDispatchMode):
    """Refuses every operation that returns floats narrower than float64."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, tuple | list) else (out,):
            if isinstance(value, torch.Tensor) and value.is_floating_point():
                assert value.dtype == torch.float64, (func, value.dtype)
        return out


def write(family: str) -> None:
    """Write ``tests/data/<family>.npz``: configs, names and shapes, tokens and float64 sites.

    The tensors themselves are left out, they follow from their names. Sites equal to another are stored
    once; ``twins`` says which.
    """
    arrays: dict[str, np.ndarray] = {"versions": np.array(json.dumps(versions()))}
    for name in grid.COMMITTED:
        if name.startswith(f"{family}/"):
            variant, config = name.split("/")[1], grid.GRID[name]
            sites = run(config, "float64").sites
            twins = _twins(sites)
            arrays |= {f"{variant}/sites/{site}": sites[site] for site in sites if site not in twins}
            arrays[f"{variant}/twins"] = np.array(json.dumps(twins))
            arrays[f"{variant}/tokens"] = grid.tokens(config)
            arrays[f"{variant}/config"] = np.array(json.dumps(config))
            arrays[f"{variant}/shapes"] = np.array(json.dumps(shapes(config)))
    path = grid.DATA / f"{family}.npz"
    path.parent.mkdir(exist_ok=True)
    np.savez_compressed(path, **arrays)
    print(f"{path.name}: {len(arrays)} arrays, {path.stat().st_size / 1e3:.0f} kB")


def _twins(sites: dict[str, np.ndarray]) -> dict[str, str]:
    """Site -> an earlier site that is equal to it."""
    twins: dict[str, str] = {}
    for site, value in sites.items():
        same = (other for other in sites if np.array_equal(sites[other], value, equal_nan=True))
        if (first := next(same)) != site:
            twins[site] = first
    return twins


def versions() -> dict[str, str]:
    libraries = {"torch": torch, "transformers": transformers, "numpy": np}
    return {name: module.__version__ for name, module in libraries.items()} | {
        "python": platform.python_version()
    }


def main() -> None:
    """Write the files of the families named on the command line, by default of all."""
    for family in sys.argv[1:] or grid.FAMILIES:
        write(family)


if __name__ == "__main__":
    main()
