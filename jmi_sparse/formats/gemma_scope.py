"""Gemma Scope: SAEs and transcoders of Gemma 2, each a folder with ``params.npz``.

The file says nothing of the point that is read. The repository's name and the folders in it do, so keep them.
"""

import re
import warnings
from pathlib import Path
from typing import Any

from jmi.errors import CheckpointError
from jmi_models.disk.tensors import Stored
from jmi_sparse.dictionaries.activations import JumpReLU
from jmi_sparse.dictionaries.dictionary import Dictionary
from jmi_sparse.formats.reading import fields, paths, tensors
from jmi_sparse.formats.reading.asked import Asked
from jmi_sparse.formats.reading.tensors import Part

PARAMS = "params.npz"
SAE = {
    "W_enc": Part("W_enc", "if"),
    "W_dec": Part("W_dec", "fo"),
    "b_enc": Part("b_enc", "f"),
    "b_dec": Part("b_dec", "o"),
    "threshold": Part("threshold", "f"),
}
_LAYOUT = {**SAE, "scaling_factor": Part("scaling_factor", "f", optional=True)}

_REPOSITORY = r"gemma-scope-(?P<size>\d+b)-(?P<kind>pt|it)-(?P<point>res|mlp|att|transcoders)(-.+)?"
_POINTS = {
    "res": "hook_resid_post",
    "mlp": "hook_mlp_out",
    "att": "attn.hook_z",
    # Before the norm's gain, unlike Gemma Scope 2.
    "transcoders": "ln2.hook_normalized",
}
_EMBEDDING, _IN_EMBEDDING = "hook_embed", re.compile(r"/embedding/width_[^/]+(/[^/]+)?$")


def matches(folder: Path) -> bool:
    """Whether a folder looks like one of these."""
    return (folder / PARAMS).is_file()


def read(folder: Path, asked: Asked) -> Dictionary:
    """The dictionary in a folder; errors as of `jmi_sparse.load`."""
    fields.refuse(asked, "k", "norm_factor")
    headers = _renamed(tensors.headers(folder / PARAMS))
    arrays = tensors.parts(PARAMS, headers, _LAYOUT, square=True)
    scale = arrays.pop("scaling_factor", None)
    if scale is not None and (scale != 1).any():
        raise CheckpointError(
            f"{PARAMS}: scaling_factor is not 1 everywhere, and this format does not say what it scales; "
            "multiply the rows of W_dec by it if it was made by finetuning features, and leave it out"
        )
    embedding = (
        asked.hook == _EMBEDDING or _IN_EMBEDDING.search(paths.absolute(folder).as_posix()) is not None
    )
    if embedding:
        # It was trained on embeddings before the model multiplies them by the root of its width.
        root = float(arrays["W_enc"].shape[0]) ** 0.5
        arrays["W_enc"] = tensors.times(arrays["W_enc"], 1 / root, asked.dtype)
        arrays["W_dec"] = tensors.times(arrays["W_dec"], root, asked.dtype)
    held: dict[str, Any] = tensors.cast(arrays, asked.dtype, PARAMS)
    activation = JumpReLU(held.pop("threshold"))
    return Dictionary(activation=activation, **held, **_place(folder, asked.hook, embedding))


def _renamed(headers: dict[str, Stored]) -> dict[str, Stored]:
    """Some files write ``w_enc``; one that has both names keeps the surplus one as it is."""
    names = {name: re.sub("^w_", "W_", name) for name in headers if re.sub("^w_", "W_", name) not in headers}
    return {names.get(name, name): stored for name, stored in headers.items()}


def _place(folder: Path, hook: str | None, embedding: bool) -> dict[str, Any]:
    """Where the dictionary belongs, by the names of folders and of the repository."""
    repository, layer = paths.said(folder, _REPOSITORY), paths.said(folder, r"layer_(\d+)")
    point = repository["point"] if repository else None
    reads = _EMBEDDING if embedding else None
    if point and layer and not embedding:
        reads = f"blocks.{layer[1]}.{_POINTS[point]}"
    reads = hook or reads
    if reads is None:
        warnings.warn(
            f"{folder}: the path does not say where this dictionary reads, nor whether it is a transcoder; "
            "keep the names of repository and folders (gemma-scope-2b-pt-res/layer_20/...) or pass hook=",
            stacklevel=4,
        )
    # Where no repository says it, the hook does: no SAE of these reads there.
    transcoder = point == "transcoders" or (
        point is None and reads is not None and reads.endswith(_POINTS["transcoders"])
    )
    model = f"gemma-2-{repository['size']}" + "-it" * (repository["kind"] == "it") if repository else None
    return {
        **paths.sites(reads, paths.beside(reads, "hook_mlp_out"), transcoder=transcoder),
        "metadata": fields.about(model_name=model),
    }
