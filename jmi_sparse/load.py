"""`load` and `save`: dictionaries from and to the folders of others."""

from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from jmi.checks import choice, float_dtype, real_number, shown, text, whole_number
from jmi.errors import ArgumentError
from jmi_models.disk import words
from jmi_sparse.formats import saelens
from jmi_sparse.formats.asked import Asked
from jmi_sparse.formats.recognising import Format, recognised
from jmi_sparse.kinds import AnyDictionary
from jmi_sparse.placement import placed

FORMATS: dict[str, Format] = {"saelens": saelens}
"""How a format is told from others, and read: the first that matches."""

WRITERS = {"saelens": saelens.write}


def load(
    source: str | Path,
    *,
    format: str | None = None,
    hook: str | None = None,
    k: int | None = None,
    norm_factor: float | None = None,
    dtype: Any = "float32",
    mesh: Mesh | None = None,
) -> AnyDictionary:
    """Load a dictionary from a folder, whose format is recognised from its files.

    Formats: ``"saelens"``, folders for inference and training checkpoints, of any version. A training
    checkpoint encodes as its trainer's class does when it does not train: one of BatchTopK or Matryoshka
    selects over the whole batch that it is given, and `at_threshold` turns it into what decides position by
    position.

    Args:
      source: the folder, or its file of weights; a folder below which there is only one dictionary.
      format: its format, where the files alone do not say it.
      hook: the site it reads, instead of what its files say.
      k: how many features are kept, instead of what its files say.
      norm_factor: what inputs were multiplied by in training, where its files do not hold the number
        (``expected_average_only_in``); it is folded into the weights. Without it inputs are read as they are,
        and a warning says so.
      dtype: of the weights and so of the computation: float32, bfloat16, float16, or float64.
      mesh: features are split over its axis ``model``.

    Raises:
      ArgumentError: no such folder or format, or an argument that does not fit the dictionary.
      ConfigError: everything in its config that is missing, absurd or not known, in one message.
      CheckpointError: everything about its weights that does not fit, in one message; read from headers.

    Example:
      >>> import tempfile, jax.numpy as jnp, jmi_sparse
      >>> eye = jnp.eye(4)
      >>> sae = jmi_sparse.Dictionary(eye, eye, jnp.zeros(4), jmi_sparse.TopK(2), jnp.zeros(4))
      >>> folder = tempfile.mkdtemp()
      >>> jmi_sparse.save(sae, folder)
      >>> jmi_sparse.load(folder)
      Dictionary(sae, TopK, 4 -> 4 -> 4, float32, None -> None)
    """
    if not isinstance(source, (str, Path)) or not str(source):
        raise ArgumentError(f"source={shown(source)}: give the path of a folder")
    asked = Asked(
        dtype=float_dtype(dtype),
        k=None if k is None else whole_number("k", k),
        hook=None if hook is None else text("hook", hook),
        norm_factor=None if norm_factor is None else real_number("norm_factor", norm_factor, above=0),
    )
    path = _path(Path(source).expanduser())
    wanted = FORMATS if format is None else {format: FORMATS[choice("format", format, FORMATS)]}
    name, place = recognised(path, wanted)
    return placed(wanted[name].read(place, asked), mesh)


def save(dictionary: AnyDictionary, folder: str | Path, *, format: str = "saelens") -> None:
    """Write a dictionary to a folder, bit for bit in its own dtype; `load` reads it back.

    Args:
      dictionary: of a kind that the format has.
      folder: is made where it is not there; files of the same names are replaced.
      format: ``"saelens"``: a folder for inference, as version 6 writes it.

    Raises:
      ArgumentError: the format cannot hold this dictionary.
      OutputError: a file cannot be written; one that was there stays.
    """
    if not isinstance(dictionary, AnyDictionary):
        raise ArgumentError(f"dictionary={shown(dictionary)}: give a dictionary")
    WRITERS[choice("format", format, WRITERS)](dictionary, Path(folder).expanduser())


def _path(path: Path) -> Path:
    try:
        if path.is_dir() or path.is_file():
            return path
    except (OSError, ValueError):
        pass
    raise ArgumentError(
        f"source={words.value(str(path))}: no such folder or file; download the dictionary first"
    )
