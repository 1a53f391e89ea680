"""sparsify (EleutherAI): ``cfg.json`` with ``sae.safetensors``, in a folder named after a module.

An autoencoder reads the module's output; with ``transcode`` the module's input stands for its output.
"""

import contextlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jmi.errors import CheckpointError, ConfigError
from jmi.reading import read_if_there, read_object
from jmi_models.disk import words
from jmi_sparse.dictionaries.activations import Activation, GroupMax, TopK
from jmi_sparse.dictionaries.dictionary import Dictionary
from jmi_sparse.formats.reading import fields, paths, tensors
from jmi_sparse.formats.reading.asked import Asked
from jmi_sparse.formats.reading.fields import Fields
from jmi_sparse.formats.reading.tensors import Part

CONFIG, WEIGHTS = "cfg.json", "sae.safetensors"
_LAYOUT = {
    "W_enc": Part("encoder.weight", "fi"),
    "W_dec": Part("W_dec", "fo"),
    "b_enc": Part("encoder.bias", "f"),
    "b_dec": Part("b_dec", "o"),
}
_SKIP = {"W_skip": Part("W_skip", "oi")}

_FOLDER = r"((model|transformer|gpt_neox|base_model)\.)*(layers|h)[._](?P<layer>\d+)(\.(?P<module>[\w.]+))?"
_MODULES: dict[str | None, tuple[str, str]] = {
    None: ("hook_resid_pre", "hook_resid_post"),
    "mlp": ("mlp.hook_in", "mlp.hook_out"),
    **dict.fromkeys(("attn", "self_attn", "attention"), ("attn.hook_in", "attn.hook_out")),
}
"""Module -> the points of its input and output."""

_READ = (
    "d_in",
    "expansion_factor",
    "num_latents",
    "k",
    "activation",
    "signed",
    "transcode",
    "skip_connection",
)
_TRAINING = ("normalize_decoder", "multi_topk")
"""Fields that only training reads. What others do is not known."""


def matches(folder: Path) -> bool:
    """Whether a folder looks like one of these."""
    return (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file()


def read(folder: Path, asked: Asked) -> Dictionary:
    """The dictionary in a folder; errors as of `jmi_sparse.load`."""
    fields.refuse(asked, "norm_factor")
    problems: list[str] = []
    find = Fields({"k": 32, **read_object(folder / CONFIG, ConfigError)}, problems)
    d_in, transcode = find.whole("d_in"), find.flag("transcode", False)
    # 0 and nothing both mean that the factor says it.
    by_factor = find.given.get("num_latents") in (None, 0)
    features = d_in * find.whole("expansion_factor", 32) if by_factor else find.whole("num_latents")
    skip = find.flag("skip_connection", False)
    activation = _activation(find, features, asked.k)
    if problems:
        raise ConfigError(f"{CONFIG}: " + "; ".join(problems))
    arrays = tensors.parts(
        WEIGHTS,
        tensors.headers(folder / WEIGHTS),
        {**_LAYOUT, **(_SKIP if skip else {})},
        square=True,
        sizes={"i": d_in, "f": features},
    )
    reads, writes = _points(folder)
    held: dict[str, Any] = tensors.cast(arrays, asked.dtype, WEIGHTS)
    return Dictionary(
        activation=activation,
        apply_b_dec_to_input=not transcode,
        **held,
        **paths.sites(asked.hook or (reads if transcode else writes), writes, transcoder=transcode),
        metadata=_metadata(folder),
    )


def _activation(find: Fields, features: int, k: int | None) -> Activation:
    unknown = sorted(set(find.given) - set(_READ) - set(_TRAINING))
    if unknown:
        find.problems.append(f"fields whose effect is not known: {words.some(unknown)}")
    name = find.word("activation", ("topk", "groupmax"), "topk")
    kept = int(find.k("topk", features, k) or 1)
    if name == "groupmax":
        if features % kept:
            find.problems.append(f"{features} features do not make up {kept} groups of one size")
        return GroupMax(kept)
    # Versions of 2024 could keep the largest by magnitude, with their signs.
    return TopK(kept, "magnitude" if find.flag("signed", False) else "before")


def _points(folder: Path) -> tuple[str | None, str | None]:
    """The sites of the module's input and output, where its name is one that is known."""
    folder = paths.absolute(folder)
    # Of several seeds each has a folder of its own in that of the module.
    name = folder.parent.name if re.fullmatch(r"seed\d+", folder.name) else folder.name
    named = re.fullmatch(_FOLDER, name, re.ASCII)
    if named is None or named["module"] not in _MODULES:
        return None, None
    reads, writes = _MODULES[named["module"]]
    return f"blocks.{named['layer']}.{reads}", f"blocks.{named['layer']}.{writes}"


def _metadata(folder: Path) -> str:
    """What the folder above says of the training."""
    said: Mapping[str, Any] = {}
    # It may be another program's.
    with contextlib.suppress(CheckpointError):
        said = read_if_there(folder.parent / "config.json", CheckpointError)
    return fields.about(
        model_name=said.get("model"), dataset_path=said.get("dataset"), context_size=said.get("ctx_len")
    )
