"""Files of lenses: folders of tuned-lens, and the ``.pt`` of Jacobian lenses. Read without running them.

Sources: tuned-lens 0.2.0 and anthropics/jacobian-lens.
"""

import hashlib
import json
import warnings
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jmi.artefacts import replacing
from jmi.checks import choice, shown
from jmi.errors import ArgumentError, CheckpointError, ConfigError
from jmi.interp.lenses.jacobian import JacobianLens
from jmi.interp.lenses.tuned import TunedLens
from jmi.lm import LanguageModel, check_lm
from jmi.reading import read_object
from jmi_models.disk import words
from jmi_models.weights.pickle_writer import write_torch
from jmi_models.weights.pickled import PickledTensor, read_headers, read_nested, read_tensor

_CONFIG, _PARAMS, _KIND = "config.json", "params.pt", "linear_tuned_lens"
_KEYS = {
    "base_model_name_or_path",
    "base_model_revision",
    "bias",
    "d_model",
    "lens_type",
    "num_hidden_layers",
    "unembed_hash",
}


def load_lens(path: str | Path, *, lm: LanguageModel | None = None) -> TunedLens | JacobianLens:
    """A lens from disk: a folder of tuned-lens, or a ``.pt`` of a Jacobian lens. No code in them is run.

    Args:
      path: the folder (``config.json`` and ``params.pt``), or the file.
      lm: the model it is for: a tuned lens of another unembedding is warned of (`unembed_hash`). Jacobian
        lenses do not say which model they are of.

    Returns:
      `TunedLens` or `JacobianLens`, in float32. A Jacobian lens whose file does not say its target is taken
      to be of the layer after its last source, as published ones are.

    Raises:
      ConfigError, CheckpointError: files that are missing, damaged, or not what they say.

    Example:
      >>> import jmi_models
      >>> jmi_models.load_lens("lens.pt")  # doctest: +SKIP
      JacobianLens(5 layers from 0 to 4, of layer 5, width 128, 4 prompts)
    """
    path, lm = _path(path), None if lm is None else check_lm(lm)
    return _tuned(path, lm) if path.is_dir() else _jacobian(path)


def save_lens(
    lens: TunedLens | JacobianLens,
    path: str | Path,
    *,
    lm: LanguageModel | None = None,
    dtype: Literal["float32", "float16"] = "float32",
) -> None:
    """Write a lens as its makers do: a folder that tuned-lens loads, or a ``.pt`` as Jacobian lenses have.

    Args:
      path: a folder for a `TunedLens`, made if it is not there; a file for a `JacobianLens`.
      lm: the model of a tuned lens, whose name and `unembed_hash` are in its config.
      dtype: of a Jacobian lens; published ones have float16.

    Raises:
      ArgumentError: no lens; a tuned one without ``lm``, or of another shape; matrices beyond float16.
      OutputError: a file cannot be written.

    Example:
      >>> import numpy as np, tempfile, jmi, jmi_models
      >>> lens = jmi.interp.JacobianLens(np.ones((1, 4, 4), np.float32), (0,), 1, 10)
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     jmi_models.save_lens(lens, f"{folder}/lens.pt")
      ...     print(jmi_models.load_lens(f"{folder}/lens.pt"))
      JacobianLens(1 layers from 0 to 0, of layer 1, width 4, 10 prompts)
    """
    path, dtype = _path(path), choice("dtype", dtype, ("float32", "float16"))
    lm = None if lm is None else check_lm(lm)
    if isinstance(lens, JacobianLens):
        _save_jacobian(lens, path, dtype)
    elif isinstance(lens, TunedLens):
        _save_tuned(lens, path, lm)
    else:
        raise ArgumentError(f"lens={shown(lens)}: give a TunedLens or a JacobianLens")


def unembed_hash(lm: LanguageModel) -> str:
    """The hash by which tuned-lens tells unembeddings apart.

    SHA-256 of numpy's print of the matrix ``[vocab, d]`` in float32 with one digit: of a matrix of more than
    1,000 numbers that shows its corners alone, so nearly equal models may have equal ones.
    """
    unembed = lm.params.get("unembed", {})
    weight = np.asarray(unembed["W_U"]).T if "W_U" in unembed else np.asarray(lm.params["embed"]["W_E"])
    with np.printoptions(
        threshold=1000,
        edgeitems=3,
        linewidth=75,
        suppress=False,
        sign="-",
        floatmode="maxprec",
        formatter=None,
    ):
        text = np.array_str(weight.astype(np.float32), precision=1)
    return hashlib.sha256(text.encode()).hexdigest()


def _path(given: Any) -> Path:
    if isinstance(given, (str, Path)) and str(given):
        return Path(given)
    raise ArgumentError(f"path={shown(given)}: give the path of a file or folder")


def _tuned(folder: Path, lm: LanguageModel | None) -> TunedLens:
    config = read_object(folder / _CONFIG, ConfigError)
    unknown = sorted(config.keys() - _KEYS)
    if unknown or config.get("lens_type", _KIND) != _KIND:
        said = words.some(unknown) if unknown else f"lens_type {words.value(config['lens_type'])}"
        raise ConfigError(f"{_CONFIG}: {said}: only {_KIND} of tuned-lens 0.2 with its own keys can be read")
    depth, width = _size(config, "num_hidden_layers"), _size(config, "d_model")
    bias = config.get("bias")
    if type(bias) is not bool:
        raise ConfigError(f"{_CONFIG}: bias {words.value(bias)}: it must be true or false")
    held = read_headers(folder / _PARAMS)
    wanted: dict[str, tuple[int, ...]] = {f"{i}.weight": (width, width) for i in range(depth)}
    wanted |= {f"{i}.bias": (width,) for i in range(depth) if bias}
    _check_tensors(_PARAMS, dict(held), wanted)
    if lm is not None and config.get("unembed_hash") not in (None, unembed_hash(lm)):
        warnings.warn(
            f"this lens was trained with another unembedding than that of {lm.name}: unembed_hash differs",
            stacklevel=3,
        )
    weights = np.stack([_read(held[f"{i}.weight"]) for i in range(depth)])
    biases = [_read(held[f"{i}.bias"]) if bias else np.zeros(width, np.float32) for i in range(depth)]
    return TunedLens(weights, np.stack(biases))


def _size(config: dict[str, Any], name: str) -> int:
    value = config.get(name)
    if type(value) is not int or not 0 < value < 2**20:
        raise ConfigError(f"{_CONFIG}: {name} {words.value(value)}: it must be a whole number, 1 or more")
    return value


def _jacobian(file: Path) -> JacobianLens:
    value = read_nested(file)
    found = value.get("J") if isinstance(value, dict) else None
    if not isinstance(found, dict) or not found or any(type(i) is not int for i in found):
        raise CheckpointError(f"{words.name(file.name)}: no Jacobian lens: its J must be a dict of layers")
    layers = tuple(sorted(found))
    width, count, said = (value.get(name) for name in ("d_model", "n_prompts", "source_layers"))
    fits = said is None or (
        isinstance(said, list) and len(said) == len(layers) and set(layers) <= _whole(said)
    )
    if type(width) is not int or width < 1 or type(count) is not int or count < 1 or not fits:
        raise CheckpointError(
            f"{words.name(file.name)}: d_model {words.value(width)}, n_prompts {words.value(count)} and "
            f"source_layers {words.value(said)} do not fit the layers {words.some(map(str, layers))}"
        )
    _check_tensors(file.name, {str(i): found[i] for i in layers}, {str(i): (width, width) for i in layers})
    extra = value.get("metadata")
    target = extra.get("target_layer") if isinstance(extra, dict) else None
    target = layers[-1] + 1 if target is None else target
    try:
        return JacobianLens(np.stack([_read(found[i]) for i in layers]), layers, target, count)
    except ArgumentError as error:
        raise CheckpointError(f"{words.name(file.name)}: {error}") from None


def _whole(values: list[Any]) -> set[int]:
    return {i for i in values if type(i) is int}


def _check_tensors(file: str, held: dict[str, Any], wanted: dict[str, tuple[int, ...]]) -> None:
    """Raise CheckpointError with everything that is missing, surplus, or no tensor of floats of its shape."""
    wrong = [f"{name} is missing" for name in wanted if name not in held]
    wrong += [f"{words.name(name)} is surplus" for name in held if name not in wanted]
    for name in wanted.keys() & held.keys():
        x = held[name]
        if not isinstance(x, PickledTensor) or x.dtype not in ("F16", "BF16", "F32", "F64"):
            wrong.append(f"{name} is no tensor of floats")
        elif x.shape != wanted[name]:
            wrong.append(f"{name} has shape {list(x.shape)}, not {list(wanted[name])}")
    if wrong:
        raise CheckpointError(f"{words.name(file)}: {'; '.join(sorted(wrong)[:8])}; {len(wrong)} in all")


def _read(tensor: PickledTensor) -> np.ndarray:
    values = read_tensor(tensor).astype(np.float32)
    if not np.isfinite(values).all():
        raise CheckpointError(f"{words.name(tensor.file.name)}: a tensor has NaN or infinite numbers")
    return values


def _save_jacobian(lens: JacobianLens, file: Path, dtype: str) -> None:
    with np.errstate(over="ignore"):
        matrices = lens.matrices.astype(dtype)
    if not np.isfinite(matrices).all():
        raise ArgumentError(f"dtype={dtype}: the matrices have numbers that it cannot hold; use float32")
    value = {
        "J": dict(zip(lens.layers, matrices, strict=True)),
        "n_prompts": lens.n_prompts,
        "source_layers": list(lens.layers),
        "d_model": matrices.shape[-1],
        "metadata": {"target_layer": lens.target_layer},
    }
    with replacing(file) as temporary:
        write_torch(temporary, value)


def _save_tuned(lens: TunedLens, folder: Path, lm: LanguageModel | None) -> None:
    if lm is None:
        raise ArgumentError(
            "lm=None: give the model of a tuned lens; its config says its name and unembed_hash"
        )
    depth, width = lens.biases.shape
    if (depth, width) != (lm.arch.n_layers, getattr(lm.arch, "d_model", width)):
        raise ArgumentError(f"a lens of {depth} layers of width {width} is not one of {lm.name}")
    config = {
        "base_model_name_or_path": lm.name,
        "d_model": width,
        "num_hidden_layers": depth,
        "bias": True,
        "base_model_revision": None,
        "unembed_hash": unembed_hash(lm),
        "lens_type": _KIND,
    }
    tensors = {f"{i}.weight": np.asarray(w, np.float32) for i, w in enumerate(lens.weights)}
    tensors |= {f"{i}.bias": np.asarray(b, np.float32) for i, b in enumerate(lens.biases)}
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / _PARAMS) as temporary:
        write_torch(temporary, tensors)
    with replacing(folder / _CONFIG) as temporary:
        temporary.write_text(json.dumps(config) + "\n")
