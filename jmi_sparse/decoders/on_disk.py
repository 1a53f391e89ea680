"""Dictionaries that stay on disk: decoder rows as they are asked for, encoders a layer at a time."""

from pathlib import Path
from typing import Any, cast

from jmi.checks import choice, float_dtype
from jmi.errors import ArgumentError
from jmi_sparse.formats.reading.asked import Asked
from jmi_sparse.formats.reading.decoders import Decoders, Openable
from jmi_sparse.formats.reading.recognising import recognised
from jmi_sparse.load import FORMATS
from jmi_sparse.registry.hub import located


def open_decoder(
    source: str | Path, *, revision: str | None = None, format: str | None = None, dtype: Any = "float32"
) -> Decoders:
    """Open dictionaries without reading them: their headers are checked, and no more is read.

    Use it where the decoders of a cross-layer transcoder do not fit into memory, or where rows of few
    features are asked for: ten rows of 2 GB cost what ten rows are.

    Args:
      source, revision, format: as of `load`; formats ``"saelens"``, ``"circuit-tracer"``,
        ``"circuit-tracer-clt"`` and ``"gemma-scope-2-sets"``.
      dtype: of what is given: float32, bfloat16, float16, or float64.

    Raises:
      ArgumentError, DownloadError, ConfigError, CheckpointError: as of `load`.

    Example:
      >>> import tempfile, jax.numpy as jnp, jmi_sparse
      >>> eye = jnp.eye(4)
      >>> sae = jmi_sparse.Dictionary(eye, 2 * eye, jnp.zeros(4), jmi_sparse.ReLU(), jnp.zeros(4))
      >>> folder = tempfile.mkdtemp()
      >>> jmi_sparse.save(sae, folder)
      >>> jmi_sparse.open_decoder(folder).rows(0, [2])
      array([[0., 0., 2., 0.]], dtype=float32)
    """
    can = {name: each for name, each in FORMATS.items() if hasattr(each, "on_disk")}
    wanted = FORMATS if format is None else {format: can[choice("format", format, can)]}
    found = located(source, revision)
    name, place = recognised(found.path, wanted)
    if name not in can:
        raise ArgumentError(
            f"{place}: decoders of the format {name!r} cannot stay on disk; use jmi_sparse.load"
        )
    return cast(Openable, can[name]).on_disk(place, found.completed(Asked(dtype=float_dtype(dtype))))
