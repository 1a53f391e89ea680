"""Qwen Scope: TopK SAEs of the residual stream, one pickled file for each layer, ``layer<n>.sae.pt``.

How many features are kept is said by the repository's name alone.
"""

import re
from pathlib import Path
from typing import Any

from jmi.errors import ArgumentError
from jmi_sparse.dictionaries.activations import TopK
from jmi_sparse.dictionaries.dictionary import Dictionary
from jmi_sparse.formats.reading import fields, paths, tensors
from jmi_sparse.formats.reading.asked import Asked
from jmi_sparse.formats.reading.tensors import Part

_FILE = re.compile(r"layer(\d+)\.sae\.pt", re.ASCII)
_REPOSITORY = r"SAE-Res-(?P<model>.+)-W\d+K-L0_(?P<k>\d+)"
_LAYOUT = {
    "W_enc": Part("W_enc", "fi"),
    "W_dec": Part("W_dec", "of"),
    "b_enc": Part("b_enc", "f"),
    "b_dec": Part("b_dec", "o"),
}


def matches(file: Path) -> bool:
    """Whether a file looks like one of these."""
    return _FILE.fullmatch(file.name) is not None and file.is_file()


def read(file: Path, asked: Asked) -> Dictionary:
    """The dictionary in a file; errors as of `jmi_sparse.load`."""
    fields.refuse(asked, "norm_factor")
    named, repository = _FILE.fullmatch(file.name), paths.said(file, _REPOSITORY)
    k = asked.k or (int(repository["k"]) if repository else None)
    if k is None:
        raise ArgumentError(
            f"{file}: nothing in this path says how many features are kept; keep the repository's name "
            "(SAE-Res-Qwen3-8B-Base-W64K-L0_50) or pass k="
        )
    arrays = tensors.parts(file.name, tensors.headers(file), _LAYOUT, square=True)
    if not 1 <= k <= len(arrays["b_enc"]):
        raise ArgumentError(f"k={k}: {file.name} has {len(arrays['b_enc'])} features; give as many or fewer")
    held: dict[str, Any] = tensors.cast(arrays, asked.dtype, file.name)
    return Dictionary(
        activation=TopK(k),
        **held,
        **paths.sites(asked.hook or (named and f"blocks.{named[1]}.hook_resid_post")),
        metadata=fields.about(model_name=repository and repository["model"]),
    )
