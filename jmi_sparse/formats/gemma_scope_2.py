"""Gemma Scope 2: SAEs and transcoders of Gemma 3, each a folder with ``params.safetensors``.

``config.json`` is missing in places; then the folders' names say the same.
"""

import re
import warnings
from pathlib import Path
from typing import Any

from jmi.errors import CheckpointError, ConfigError
from jmi.reading import read_if_there
from jmi_models.disk import words
from jmi_sparse.dictionaries.activations import JumpReLU
from jmi_sparse.dictionaries.dictionary import Dictionary
from jmi_sparse.formats.reading import fields, paths, tensors
from jmi_sparse.formats.reading.asked import Asked
from jmi_sparse.formats.reading.fields import Fields
from jmi_sparse.formats.reading.tensors import Part

CONFIG, PARAMS = "config.json", "params.safetensors"
_SAE = {
    "W_enc": Part("w_enc", "if"),
    "W_dec": Part("w_dec", "fo"),
    "b_enc": Part("b_enc", "f"),
    "b_dec": Part("b_dec", "o"),
    "threshold": Part("threshold", "f"),
}
_SKIP = "affine_skip_connection"

_KINDS = {
    "resid_post": "hook_resid_post",
    "attn_out": "attn.hook_z",
    "mlp_out": "hook_mlp_out",
    # After the norm's gain, whatever SAELens calls it.
    "transcoder": "mlp.hook_in",
}
_MODULES = {
    "output": "resid_post",
    "self_attn.o_proj.input": "attn_out",
    "post_feedforward_layernorm.output": "mlp_out",
    "pre_feedforward_layernorm.output": "transcoder",
}
"""What follows ``model.layers.<n>.`` in a config -> the kind of dictionary that reads there."""


def matches(folder: Path) -> bool:
    """Whether a folder looks like one of these; dictionaries of several layers have a third axis."""
    file = folder / PARAMS
    if not file.is_file():
        return False
    try:
        w_dec = tensors.headers(file).get("w_dec")
    except CheckpointError:
        return True
    return w_dec is None or len(w_dec.shape) != 3


def read(folder: Path, asked: Asked) -> Dictionary:
    """The dictionary in a folder; errors as of `jmi_sparse.load`."""
    fields.refuse(asked, "k", "norm_factor")
    config = read_if_there(folder / CONFIG, ConfigError)
    kind, layer, affine = _said(folder, config, asked.hook)
    headers = tensors.headers(folder / PARAMS)
    layout = dict(_SAE)
    if kind in ("transcoder", None) and affine is not False:
        layout["W_skip"] = Part(_SKIP, "io", optional=affine is None)
    square = kind not in ("transcoder", None)
    held: dict[str, Any] = tensors.cast(
        tensors.parts(PARAMS, headers, layout, square=square), asked.dtype, PARAMS
    )
    activation = JumpReLU(held.pop("threshold"))
    reads = asked.hook or (f"blocks.{layer}.{_KINDS[kind]}" if kind and layer else None)
    if reads is None:
        warnings.warn(
            f"{folder}: neither {CONFIG} nor the path says where this dictionary reads; keep the names of "
            "folders (transcoder/layer_3_width_16k_l0_small) or pass hook=",
            stacklevel=3,
        )
    transcoder = kind == "transcoder" or "W_skip" in held or held["W_enc"].shape[0] != held["W_dec"].shape[1]
    return Dictionary(
        activation=activation,
        **held,
        **paths.sites(reads, paths.beside(reads, "hook_mlp_out"), transcoder=transcoder),
        metadata=fields.about(model_name=_model(folder, config)),
    )


def _said(
    folder: Path, config: dict[str, Any], hook: str | None
) -> tuple[str | None, str | None, bool | None]:
    """Kind, layer and whether there is a skip, as config and path say it; None where neither does."""
    problems: list[str] = []
    find, folder = Fields(config, problems), paths.absolute(folder)
    find.word("architecture", ("jump_relu",), "jump_relu")
    named = re.fullmatch(r"layer_(\d+)_.+", folder.name, re.ASCII)
    above = folder.parent.name.removesuffix("_all")
    module = re.fullmatch(r"([\w.]+\.)?layers\.(\d+)\.(.+)", find.text(config, "hf_hook_point_in") or "")
    kinds = {above} & set(_KINDS) | ({_MODULES[module[3]]} if module and module[3] in _MODULES else set())
    layers = {named[1]} if named else set[str]()
    layers |= {module[2]} if module else set()
    by_hook = next((kind for kind, point in _KINDS.items() if (hook or "").endswith(f".{point}")), None)
    if hook is None and max(len(kinds), len(layers)) > 1:
        problems.append(
            f"hf_hook_point_in is {words.value(config['hf_hook_point_in'])}, and the folder "
            f"{words.name(folder.parent.name)}/{words.name(folder.name)}; pass hook= with the right site"
        )
    kind = kinds.pop() if len(kinds) == 1 else by_hook
    affine = None
    if "affine_connection" in config:
        affine = find.flag("affine_connection", False)
    elif kind == "transcoder" and named:
        affine = folder.name.endswith("_affine")
    if affine and kind not in ("transcoder", None):
        problems.append(f"affine_connection of what reads at {kind}: only transcoders have one")
    if problems:
        raise ConfigError(f"{CONFIG}: " + "; ".join(problems))
    return kind, layers.pop() if len(layers) == 1 else None, affine


def _model(folder: Path, config: dict[str, Any]) -> str | None:
    """The model's name at the hub."""
    name = config.get("model_name")
    if not isinstance(name, str):
        repository = paths.said(folder, r"gemma-scope-2-(\w+-[pi]t)")
        name = f"gemma-3-{repository[1]}" if repository else None
    name = name and name.replace("-v3", "-3")
    # The smallest one's name has no ending.
    return name.removesuffix("-pt") if name and "270m" in name else name
