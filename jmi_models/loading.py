"""`load` and `save`: a model folder to a LanguageModel and back."""

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from safetensors.numpy import save_file

from jmi.artefacts import replacing
from jmi.errors import ConfigError
from jmi.lm import LanguageModel
from jmi.tokenizers import Tokenizer
from jmi_models import hub
from jmi_models.checkpoint import load_params
from jmi_models.families import FAMILIES, family_of
from jmi_models.families.family import Family
from jmi_models.layout import to_disk
from jmi_models.params import flat
from jmi_models.transformer import Transformer


def load(
    name: str | Path,
    *,
    dtype: Any = jnp.float32,
    revision: str | None = None,
    mesh: Mesh | None = None,
    progress: bool | None = None,
) -> LanguageModel:
    """Load a model ready to run.

    Args:
      name: a Hugging Face hub id, a local folder, or an embedded model (``"atlas"``).
      dtype: of the parameters and so of the computation: float32, bfloat16, float16, or float64
        (under ``jax_enable_x64``). Weights stored otherwise are cast as they stream in.
      revision: branch, tag or commit on the hub.
      mesh: place parameters on these devices: heads, MLP and vocabulary over the mesh axis
        ``model``, the residual axis over ``fsdp``.
      progress: show progress bars; by default only on a terminal.

    Raises:
      DownloadError, ConfigError, CheckpointError: before weights are read where that is possible.

    Example:
      >>> import jmi_models
      >>> lm = jmi_models.load("atlas")
      >>> lm.run("The capital of France is").logits.shape[-1] == lm.arch.d_vocab
      True
    """
    dtype = _check_dtype(dtype)
    source = hub.find(str(name), revision)
    family, arch = _describe(source.folder)
    tokenizer = Tokenizer.from_folder(source.folder)
    shown = sys.stderr.isatty() if progress is None else progress
    arch, params = load_params(source.folder, arch, family, dtype, mesh, shown)
    return LanguageModel(arch, params, tokenizer, source.name, source.identity)


def architecture(name: str | Path, *, revision: str | None = None) -> Transformer:
    """Architecture of a model, from its config alone; arguments and errors as `load`."""
    return _describe(hub.find(str(name), revision, config_only=True).folder)[1]


def _describe(folder: Path) -> tuple[Family, Transformer]:
    config = read_config(folder)
    family = family_of(config)
    return family, family.from_config(config)


def read_config(folder: Path) -> dict[str, Any]:
    """``config.json`` of a model folder; ConfigError when it is absent or not an object."""
    file = folder / "config.json"
    if not file.is_file():
        raise ConfigError(f"{folder}: no config.json; this is not a model folder")
    try:
        config = json.loads(file.read_text())
    except ValueError as error:
        raise ConfigError(f"{file.name} is not valid JSON: {error}") from None
    if not isinstance(config, dict):
        raise ConfigError(f"{file.name} must hold an object")
    return config


def save(folder: str | Path, arch: Transformer, params: Any, config: dict[str, Any]) -> None:
    """Write ``params`` as a Hugging Face folder: ``config.json`` and ``model.safetensors``.

    Args:
      config: the Hugging Face config; it must describe ``arch``.

    Raises:
      ConfigError: ``config`` describes another architecture, or parameters are missing or surplus.
    """
    family = FAMILIES[arch.family]
    if family.from_config(config) != arch:
        raise ConfigError("save: this config describes another architecture than the parameters have")
    if isinstance(params["blocks"], (list, tuple)):
        params = {**params, "blocks": jax.tree.map(lambda *rows: np.stack(rows), *params["blocks"])}
    wrong = sorted(set(flat(params)) ^ set(flat(arch.param_tree())))
    if wrong:
        raise ConfigError(f"save: parameters missing or surplus: {', '.join(wrong)}")
    tensors: dict[str, np.ndarray] = {}
    tree = flat(arch.param_tree())
    for path, value in flat(params).items():
        key, param, host = family.keys[path], tree[path], np.asarray(jax.device_get(value))
        if param.axes[0] == "n_layers":
            for i, row in enumerate(host):
                tensors[key.name.format(i=i)] = to_disk(row, param, key.layout)
        else:
            tensors[key.name] = to_disk(host, param, key.layout)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / "model.safetensors") as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})
    with replacing(folder / "config.json") as temporary:
        temporary.write_text(json.dumps(config, indent=2) + "\n")


def _check_dtype(dtype: Any) -> Any:
    try:
        dtype = jnp.dtype(dtype)
    except TypeError:
        raise ConfigError(
            f"dtype={dtype!r} is not a dtype; use float32, bfloat16, float16 or float64"
        ) from None
    if not jnp.issubdtype(dtype, jnp.floating) or dtype.itemsize == 1:
        raise ConfigError(f"dtype={dtype.name}: use float32, bfloat16, float16 or float64")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if jnp.zeros((), dtype).dtype != dtype:
            raise ConfigError("dtype=float64 needs jax.config.update('jax_enable_x64', True) first")
    return dtype
