"""Goodfire's SAEs of Llama: one pickled file, ``<model>-SAE-l<layer>.pth`` or ``.pt``."""

import re
from pathlib import Path
from typing import Any

from jmi_sparse.dictionaries.activations import ReLU
from jmi_sparse.dictionaries.dictionary import Dictionary
from jmi_sparse.formats.reading import fields, paths, tensors
from jmi_sparse.formats.reading.asked import Asked
from jmi_sparse.formats.reading.tensors import Part

NAME = re.compile(r"(?P<model>.+)-SAE-l(?P<layer>\d+)\.pth?", re.ASCII)
_LAYOUT = {
    "W_enc": Part("encoder_linear.weight", "fi"),
    "W_dec": Part("decoder_linear.weight", "of"),
    "b_enc": Part("encoder_linear.bias", "f"),
    "b_dec": Part("decoder_linear.bias", "o"),
}


def matches(file: Path) -> bool:
    """Whether a file looks like one of these: by its tensors, or by its name where it is damaged."""
    if file.suffix not in (".pt", ".pth") or not file.is_file():
        return False
    names = tensors.names(file)
    if names is None:
        return NAME.fullmatch(file.name) is not None and not file.name.startswith("DeepSeek")
    return "encoder_linear.weight" in names


def read(file: Path, asked: Asked) -> Dictionary:
    """The dictionary in a file; errors as of `jmi_sparse.load`."""
    return linear(file, asked, _LAYOUT)


def linear(file: Path, asked: Asked, layout: dict[str, Part]) -> Dictionary:
    """An SAE of two linear layers, with ReLU, of the residual stream after the layer that its name says."""
    fields.refuse(asked, "k", "norm_factor")
    name = NAME.fullmatch(file.name)
    arrays = tensors.parts(file.name, tensors.headers(file), layout, square=True)
    held: dict[str, Any] = tensors.cast(arrays, asked.dtype, file.name)
    hook = asked.hook or (f"blocks.{name['layer']}.hook_resid_post" if name else None)
    return Dictionary(
        activation=ReLU(),
        **held,
        **paths.sites(hook),
        metadata=fields.about(model_name=name and name["model"]),
    )
