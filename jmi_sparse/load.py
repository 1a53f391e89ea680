"""`load` and `save`: dictionaries from and to the folders of others."""

from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from jmi.checks import choice, float_dtype, real_number, shown, text, whole_number
from jmi.errors import ArgumentError
from jmi_sparse.dictionaries.kinds import AnyDictionary
from jmi_sparse.formats import (
    deepseek,
    dictionary_learning,
    gemma_scope,
    gemma_scope_2,
    goodfire,
    hook_z,
    llama_scope,
    qwen_scope,
    sparsify,
)
from jmi_sparse.formats.reading.asked import Asked
from jmi_sparse.formats.reading.recognising import Format, recognised
from jmi_sparse.formats.saelens import folder as saelens
from jmi_sparse.formats.sets import (
    circuit_tracer,
    circuit_tracer_clt,
    circuit_tracer_writing,
    clt_training,
    crosslayer_transcoder,
    gemma_scope_2_sets,
    llamascopium,
)
from jmi_sparse.placement import placed
from jmi_sparse.registry.applied import checked
from jmi_sparse.registry.hub import located

FORMATS: dict[str, Format] = {
    "saelens": saelens,
    "circuit-tracer": circuit_tracer,
    "circuit-tracer-clt": circuit_tracer_clt,
    "gemma-scope-2-sets": gemma_scope_2_sets,
    "gemma-scope": gemma_scope,
    "gemma-scope-2": gemma_scope_2,
    "llama-scope": llama_scope,
    "qwen-scope": qwen_scope,
    "goodfire": goodfire,
    "deepseek": deepseek,
    "hook-z": hook_z,
    "dictionary-learning": dictionary_learning,
    "sparsify": sparsify,
    "clt-training": clt_training,
    "crosslayer-transcoder": crosslayer_transcoder,
    "llamascopium": llamascopium,
}
"""How a format is told from others, and read: the first that matches."""

WRITERS = {"saelens": saelens.write, "circuit-tracer": circuit_tracer_writing.write}


def load(
    source: str | Path,
    *,
    revision: str | None = None,
    format: str | None = None,
    hook: str | None = None,
    k: int | None = None,
    norm_factor: float | None = None,
    dtype: Any = "float32",
    mesh: Mesh | None = None,
) -> AnyDictionary:
    """Load a dictionary from a folder or the hub; its format is recognised from its files.

    Formats: ``"saelens"``, folders for inference and training checkpoints, of any version. A training
    checkpoint encodes as its trainer's class does when it does not train: one of BatchTopK or Matryoshka
    selects over the whole batch that it is given, and `at_threshold` turns it into what decides position by
    position. Of one dictionary in the layouts of others: ``"gemma-scope"``, ``"gemma-scope-2"``,
    ``"llama-scope"``, ``"qwen-scope"``, ``"goodfire"``, ``"deepseek"``, ``"hook-z"``,
    ``"dictionary-learning"``, ``"sparsify"``. Of several layers: ``"circuit-tracer"`` (a `DictionarySet`; of
    one ``layer_<i>.safetensors`` a `Dictionary`), ``"circuit-tracer-clt"``, ``"gemma-scope-2-sets"``,
    ``"clt-training"``, ``"crosslayer-transcoder"`` and ``"llamascopium"``, which has dictionaries of one
    layer, too. ``docs/dictionary_formats.md`` says what to know of each.

    Args:
      source: the folder, or its file of weights; a folder below which there is only one dictionary. Else a
        name of `releases`, such as ``gemma-scope-2b-pt-res-canonical/layer_12/width_16k/canonical``, or
        ``organisation/repository`` of the Hugging Face hub, with a path inside. What is not in the cache is
        downloaded, and nothing that is not needed. Of a published dictionary that `releases` knows, the site
        and the factor of its inputs are filled in where its files lack them.
      revision: branch, tag or commit of a repository of the hub.
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
      DownloadError: the hub has no such dictionary, or cannot be reached; the message says what to do.
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
    asked = Asked(
        dtype=float_dtype(dtype),
        k=None if k is None else whole_number("k", k),
        hook=None if hook is None else text("hook", hook),
        norm_factor=None if norm_factor is None else real_number("norm_factor", norm_factor, above=0),
    )
    wanted = FORMATS if format is None else {format: FORMATS[choice("format", format, FORMATS)]}
    found = located(source, revision)
    name, place = recognised(found.path, wanted)
    made = wanted[name].read(place, found.completed(asked))
    if found.entry is not None:
        made = checked(made, found.entry, asked.hook)
    return placed(made, mesh)


def save(dictionary: AnyDictionary, folder: str | Path, *, format: str = "saelens") -> None:
    """Write a dictionary to a folder, bit for bit in its own dtype; `load` reads it back.

    Args:
      dictionary: of a kind that the format has.
      folder: is made where it is not there; files of the same names are replaced.
      format: ``"saelens"``: a folder for inference, as version 6 writes it; ``"circuit-tracer"``: a
        `DictionarySet` of transcoders, or a `CrossLayerTranscoder`, skips included. Circuit-tracer itself
        does not read the skips of the latter.

    Raises:
      ArgumentError: the format cannot hold this dictionary.
      OutputError: a file cannot be written; one that was there stays.
    """
    if not isinstance(dictionary, AnyDictionary):
        raise ArgumentError(f"dictionary={shown(dictionary)}: give a dictionary")
    WRITERS[choice("format", format, WRITERS)](dictionary, Path(folder).expanduser())
