"""`load`: a model folder or file to a LanguageModel."""

import dataclasses
import functools
import os
import sys
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh

from jmi.checks import flag, float_dtype, shown
from jmi.errors import ArgumentError, CheckpointError, ConfigError
from jmi.lm import LanguageModel
from jmi.reading import read_object
from jmi.tokenizers import Tokenizer
from jmi_models import families
from jmi_models.auto import CompatibilityReport, examine, examine_gguf
from jmi_models.auto.remote import headers_of
from jmi_models.disk import words
from jmi_models.disk.tensors import Stored
from jmi_models.families.family import AnyArch, Family
from jmi_models.families.multimodal import Part, text_name, text_part
from jmi_models.gguf.model import Model, open_model
from jmi_models.gguf.vocabulary import tokenizer_of
from jmi_models.weights import adapters, hub, merging
from jmi_models.weights.checkpoint import load_params
from jmi_models.weights.quantised.methods import unquantised
from jmi_models.weights.stored import ADAPTER, read_headers


def load(
    name: str | Path,
    *,
    dtype: Any = jnp.float32,
    revision: str | None = None,
    mesh: Mesh | None = None,
    pytorch_bin: bool = False,
    adapter: bool = True,
    tokenizer: bool = True,
    progress: bool | None = None,
) -> LanguageModel:
    """Load a model ready to run.

    Args:
      name: a Hugging Face hub id, a local folder, a GGUF file (of llama.cpp, Ollama or LM Studio; on the
        hub ``organisation/model/file.gguf``), an embedded model (``"atlas"``), or one that a package brings
        (``"smollm2"``, ``"gemma3-270m"``).
      dtype: of the parameters and so of the computation: float32, bfloat16, float16, or float64
        (under ``jax_enable_x64``). Weights stored otherwise are cast as they stream in.
      revision: branch, tag or commit on the hub.
      mesh: place parameters on these devices: heads, MLP and vocabulary over the mesh axis
        ``model``, the residual axis over ``fsdp``.
      pytorch_bin: read ``pytorch_model.bin`` where a model has no safetensors. The pickle in it is
        read for its tensors only; no code in it can run.
      adapter: merge the LoRA adapter that lies beside the weights, if one does (see `weights.adapters`);
        `adapt` puts one in without merging it. A folder that holds an adapter alone is loaded where its base
        model is a folder, too.
      tokenizer: False leaves it out; the model then runs on token ids alone.
      progress: show progress bars; by default only on a terminal.

    Raises:
      DownloadError, ConfigError, CheckpointError, TokenizerError: before weights are read where that is
        possible.

    Example:
      >>> import jmi_models
      >>> lm = jmi_models.load("atlas")
      >>> lm.run("The capital of France is").logits.shape[-1] == lm.arch.d_vocab
      True
    """
    dtype, pytorch_bin = float_dtype(dtype), flag("pytorch_bin", pytorch_bin)
    source = hub.find(_as_text(name), revision, pytorch_bin=pytorch_bin)
    shown = sys.stderr.isatty() if progress is None else progress
    if source.file is not None:
        return _load_gguf(source, open_model(source.file), dtype, mesh, tokenizer, shown)
    change, given = _adapter(source) if adapter else None, source
    if change is not None and not (source.folder / "config.json").exists():
        source = _base_of(source, change)
    part, errors = _contents(source, pytorch_bin)
    if part.left_out:
        warnings.warn(f"{source.name}: the text model is read; left out are {part.told()}", stacklevel=2)
    if change is not None:
        change = _announced(source, change if part.family is None else adapters.renamed(change, text_name))
    family, arch = _describe(source, part, errors, change)
    if errors:
        raise CheckpointError(errors[0])
    headers = part.headers
    if change is not None:
        keys = family.keys(arch)
        headers = merging.merged(headers, change, keys["embed.W_E"].name, keys["unembed.W_U"].name)
    words_of = None
    if tokenizer:
        # Where tokens were added for an adapter, they are in the tokenizer beside it.
        words_of = Tokenizer.from_folder(given.folder) or Tokenizer.from_folder(source.folder)
    arch, params = load_params(headers, arch, family, dtype, mesh, shown)
    identity = functools.partial(_identity, dict.fromkeys([source, given]), change)
    return LanguageModel(arch, params, words_of, source.name, identity)


def _load_gguf(
    source: hub.Source, model: Model, dtype: Any, mesh: Mesh | None, tokenizer: bool, progress: bool
) -> LanguageModel:
    words_of = tokenizer_of(model.metadata) if tokenizer else None
    arch, params = load_params(model.tensors, model.arch(), model.family, dtype, mesh, progress)
    return LanguageModel(arch, params, words_of, source.name, source.identity)


def architecture(name: str | Path, *, revision: str | None = None, pytorch_bin: bool = False) -> AnyArch:
    """Architecture of a model, from its config alone; arguments and errors as `load`.

    That of an unknown family, or one without a config, is inferred from the headers of its weights, which
    must be on this machine.
    """
    source = hub.find(_as_text(name), revision, config_only=True)
    if source.file is not None:
        return open_model(source.file).arch()
    return _describe(source, *_contents(source, pytorch_bin))[1]


def inspect(
    name: str | Path, *, revision: str | None = None, pytorch_bin: bool = False
) -> CompatibilityReport:
    """Whether a model can be loaded, as what, on which assumptions, and what stands in the way.

    Reads the config and the headers of the weights; of a hub model nothing else is downloaded.

    Args:
      name, revision, pytorch_bin: as `load`.

    Raises:
      DownloadError, ConfigError: there is no such model, or no config that can be read.
    """
    source = hub.find(_as_text(name), revision, config_only=True)
    if source.file is not None:
        return examine_gguf(source.name, source.file)
    try:
        headers, errors = headers_of(source, pytorch_bin), list[str]()
    except CheckpointError as error:
        headers, errors = {}, [str(error)]
    return examine(source.name, _config(source.folder, headers, errors), headers, errors)


def _adapter(source: hub.Source) -> adapters.Adapter | None:
    """The adapter beside the weights."""
    config = adapters.find(source.folder)
    return None if config is None else adapters.read(source.folder, config)


def _announced(source: hub.Source, change: adapters.Adapter) -> adapters.Adapter:
    """``change``, with a warning that says what is done with it."""
    whole = len(change.whole) + len(change.resized)
    also = f" and replaces {whole} tensors whole" if whole else ""
    also += f" ({change.left_out} changes of other parts are left out)" if change.left_out else ""
    warnings.warn(
        f"{source.name}: the LoRA adapter in it is merged into {len(change.pairs)} matrices{also}; "
        "adapter=False leaves it out",
        stacklevel=3,
    )
    return change


def _base_of(source: hub.Source, change: adapters.Adapter) -> hub.Source:
    """The model of an adapter that stands alone."""
    if change.base is None or not Path(change.base).expanduser().is_dir():
        raise ConfigError(
            f"{source.name} holds an adapter alone, of the model {words.value(change.base)}: download that "
            f"model and put {adapters.CONFIG} and {ADAPTER} beside its weights"
        )
    folder = Path(change.base).expanduser()
    return dataclasses.replace(source, folder=folder)


def _identity(sources: Iterable[hub.Source], change: adapters.Adapter | None) -> str:
    """Of the files that were read; an adapter among them says nothing where it was left out."""
    left_out = change is None and any((source.folder / adapters.CONFIG).exists() for source in sources)
    return " + ".join(source.identity() for source in sources) + ", without its adapter" * left_out


def _contents(source: hub.Source, pytorch_bin: bool) -> tuple[Part, list[str]]:
    """What is read of a folder, and why there are no tensors, if there are none."""
    headers, errors = dict[str, Stored](), list[str]()
    try:
        headers = read_headers(source.folder, pytorch_bin)
    except CheckpointError as error:
        errors = [str(error)]
    part = text_part(_config(source.folder, headers, errors), headers)
    plain = unquantised(part.config, part.headers)
    return dataclasses.replace(part, config=plain.config, headers=plain.headers), errors


def _describe(
    source: hub.Source, part: Part, errors: list[str], change: adapters.Adapter | None = None
) -> tuple[Family, AnyArch]:
    """Family and architecture; those of an unknown family are inferred, with a warning."""
    config, headers = part.config, part.headers
    if change is not None:
        config = merging.resized(config, headers, change)
        headers = merging.replaced(headers, change)
    if families.is_known(config, headers):
        return families.described(config, headers)
    report = examine(source.name, config, headers, errors)
    inferred = report.require()
    warnings.warn(report.caution(), stacklevel=3)
    return inferred


def _config(folder: Path, headers: Mapping[str, Stored], errors: list[str]) -> dict[str, Any]:
    """``config.json``; empty where it is absent because the tensors tell everything."""
    if not (folder / "config.json").exists():
        if families.needs_no_config(headers):
            return {}
        if errors and any((*folder.glob("*.pth"), *folder.glob("*.safetensors"))):
            raise CheckpointError(errors[0])
    return read_config(folder)


def read_config(folder: Path) -> dict[str, Any]:
    """``config.json`` of a model folder; ConfigError when it is absent or not an object."""
    file = folder / "config.json"
    if not file.exists():
        raise ConfigError(f"{folder}: no config.json; this is not a model folder")
    return read_object(file, ConfigError)


def _as_text(name: Any) -> str:
    if isinstance(name, (str, os.PathLike)) and str(name):
        return str(name)
    raise ArgumentError(f"name={shown(name)}: give a hub id, a folder, or an embedded model such as 'atlas'")
