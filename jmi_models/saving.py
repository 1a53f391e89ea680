"""`save`: a model to a folder as Hugging Face has them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from jmi.artefacts import replacing
from jmi.errors import ArgumentError, OutputError, printable
from jmi.tokenizers import Tokenizer
from jmi_models.disk.layout import to_disk
from jmi_models.families import FAMILIES
from jmi_models.families.family import AnyArch, Family
from jmi_models.families.multimodal import text_part
from jmi_models.params import flat, stacked
from jmi_models.weights.checkpoint import plan_reads
from jmi_models.weights.quantised.methods import unquantised
from jmi_models.weights.stored import INDEX


def save(
    folder: str | Path,
    arch: AnyArch,
    params: Any,
    config: Mapping[str, Any],
    tokenizer: Tokenizer | None = None,
) -> None:
    """Write a Hugging Face folder: ``config.json``, ``model.safetensors`` and the tokenizer's files.

    Args:
      config: the Hugging Face config; it must describe ``arch``. Of a multimodal one its text model is
        written, of a quantised one the weights in full. Whether the head is tied is taken
        from ``arch``: a checkpoint may hold a head of its own although its config ties it.

    Raises:
      ArgumentError: ``config`` describes another architecture; parameters are missing, surplus or of
        another shape; or the folder holds a sharded checkpoint.
      OutputError: a file cannot be written, such as on a full disk; one that was there stays.
    """
    if arch.family not in FAMILIES:
        raise ArgumentError(f"save: how a model of family {arch.family!r} names its tensors is not known")
    family = FAMILIES[arch.family]
    whole = unquantised(text_part(config, {}).config, {}).config
    config = {**whole, "tie_word_embeddings": arch.tied}
    described, tensors = family.from_config(config), stored_tensors(arch, family, params)
    if family.fit is not None:
        described = family.fit(described, family.keys(described), tensors)
    if described != arch:
        raise ArgumentError("save: this config describes another architecture than the parameters have")
    folder = Path(folder)
    if (folder / INDEX).exists():
        raise ArgumentError(f"save: {folder} holds a sharded checkpoint; give an empty folder")
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / "model.safetensors") as temporary:
        try:
            save_file(tensors, temporary, metadata={"format": "pt"})
        except SafetensorError as error:
            raise OutputError(
                f"{folder}: model.safetensors could not be written: {printable(error)}"
            ) from None
    with replacing(folder / "config.json") as temporary:
        temporary.write_text(json.dumps(config, indent=2) + "\n")
    if tokenizer is not None:
        tokenizer.save(folder)


def stored_tensors(arch: AnyArch, family: Family, params: Any) -> dict[str, np.ndarray]:
    """``params`` by the names and in the axis order of a checkpoint."""
    params = stacked(arch, params)
    tree, given = flat(arch.param_tree()), flat(params)
    wrong = sorted(set(given) ^ set(tree))
    wrong += [f"{p} {given[p].shape}" for p in given if p in tree and given[p].shape != tree[p].shape]
    if wrong:
        raise ArgumentError(f"save: parameters missing, surplus or of another shape: {', '.join(wrong)}")
    host = {path: np.asarray(jax.device_get(value)) for path, value in given.items()}
    return {
        name: to_disk([(t.key, tree[t.path], host[t.path][t.index]) for t in targets], arch.sizes())
        for name, targets in plan_reads(arch, family, {}).items()
    }
