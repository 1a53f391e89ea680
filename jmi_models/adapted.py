"""An adapter inside a model, not merged: what it adds at each matrix is a point, so its strength is data.

Each change ``s B A`` of a matrix is a module (`jmi.rewire`) from what the matrix reads to what it writes.
"""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np

from jmi import tree
from jmi.checks import shown
from jmi.engine.rewired import Rewired
from jmi.engine.wired import Here
from jmi.errors import ArgumentError, CheckpointError, ConfigError
from jmi.lm import LanguageModel, check_lm
from jmi.model.sites import Site
from jmi.modules import rewire
from jmi.numerics import wide
from jmi_models.decoder import rounding
from jmi_models.decoder.transformer import Transformer
from jmi_models.disk import words
from jmi_models.disk.layout import disk_shape, from_disk, groups_of
from jmi_models.families import FAMILIES
from jmi_models.families.multimodal import text_name
from jmi_models.params import flat
from jmi_models.weights import adapters, hub
from jmi_models.weights.checkpoint import Target, plan_reads

_CLOSED = {
    "attn.hook_q": ("hook_q_input",),
    "attn.hook_k": ("hook_k_input",),
    "attn.hook_v": ("hook_v_input",),
    "attn.hook_out": ("attn.hook_result",),
}
"""Point that a module writes -> points that only the matrix beside it reads or writes."""


@tree.dataclass
class Change:
    """What an adapter adds to what one matrix writes, in every layer.

    Attributes:
      params: ``A [l, *inputs, r]`` and ``B [l, r, *outputs]``, their factor in B.
      name: of the adapter; the module's point is ``hook_<name>`` after that of what it writes.
    """

    params: Any
    name: str = tree.static()
    per_layer: bool = tree.static(default=True)
    takes_padding: ClassVar[bool] = True

    def sites(self, reads: tuple[Site, ...], writes: Site) -> Mapping[str, Mapping[str, int | None]]:
        """What it adds, with the axes of what it is added to."""
        axes = dict(zip(writes.axes, writes.sizes, strict=True))
        return {f"{writes.point.removeprefix('blocks.*.')}.hook_{self.name}": axes}

    def closes(self, writes: str) -> tuple[str, ...]:
        """Inputs and outputs of single heads, which are those of the matrix alone."""
        return _CLOSED.get(writes, ())

    def __call__(self, read: Any, written: jax.Array, carry: Any, here: Here) -> tuple[jax.Array, Any]:
        """``written`` with the change of it."""
        a, b = self.params["A"], self.params["B"]
        narrow = rounding.product("bshk,hkr->bsr" if a.ndim == 3 else "bsd,dr->bsr", read, a)
        equation = "bsr,rhk->bshk" if b.ndim == 3 else "bsr,rd->bsd"
        change = rounding.product(equation, narrow.astype(read.dtype), b).astype(written.dtype)
        change = here.tap(f"{here.site.point.removeprefix('blocks.*.')}.hook_{self.name}", change)
        return rounding.once(lambda x, y: x + y, written, change), carry


def adapt(
    lm: LanguageModel, source: str | Path, *, name: str = "adapter", revision: str | None = None
) -> LanguageModel:
    """``lm`` with a LoRA adapter inside, for runs at any strength: 0 is the model, 1 the merged one.

    What the adapter adds to a point is a point of its own, ``blocks.5.attn.hook_q.hook_adapter``, shaped
    like the one it is added to. To scale it there is to choose the strength, in all layers or some, for a
    matrix, a head or a position; to capture it is to see the change. `jmi_models.load` merges an adapter
    that lies beside the weights; load those with ``adapter=False``. Several adapters go in one after the
    other, by names of their own.

    Args:
      source: a folder with the adapter's two files, or a hub id; its matrices must lie in the layers.
      name: of the adapter, in the names of its points.
      revision: branch, tag or commit on the hub.

    It adds after the matrix, which is exact where nothing stands between the two. Queries and keys that are
    normalised or clamped there are refused. So are embeddings, heads, experts and modules that were trained
    whole; loading merges all of these. Points of single heads that the matrix reads or writes alone
    (``hook_q_input``, ``hook_result``) are gone, and what decomposes a run by heads or neurons refuses the
    model: the weights that it would read are those of the model without the adapter.

    Raises:
      ArgumentError: what is no model, or one that is not a transformer of a known family.
      ConfigError, CheckpointError: an adapter of another kind or of another model, or a matrix as above.

    Example:
      >>> import jmi, jmi_models
      >>> lm = jmi_models.load("meta-llama/Llama-3.2-1B")                         # doctest: +SKIP
      >>> tuned = jmi_models.adapt(lm, "someone/Llama-3.2-1B-lora")               # doctest: +SKIP
      >>> grid = jmi.Grid(strength=[0.0, 0.5, 1.0])
      >>> hooks = {"*.hook_adapter": jmi.Scale(grid["strength"])}
      >>> prob = jmi.sweep(tuned, "Paris is", hooks, jmi.metrics.Prob(262))       # doctest: +SKIP
    """
    check_lm(lm)
    model = lm.arch.model if isinstance(lm.arch, Rewired) else lm.arch
    if not isinstance(model, Transformer) or model.family not in FAMILIES:
        raise ArgumentError(
            f"{lm.name}: adapters are put into transformers of a known family; jmi_models.load merges others"
        )
    if not isinstance(name, str) or not name.isidentifier():
        raise ArgumentError(f"name={shown(name)}: give a name of letters, digits and _, such as 'adapter'")
    if not isinstance(source, (str, os.PathLike)) or not str(source):
        raise ArgumentError(f"source={shown(source)}: give a folder with an adapter, or a hub id")
    found = hub.find(str(source), revision)
    config = adapters.find(found.folder)
    if config is None:
        raise ConfigError(f"{found.name}: no {adapters.CONFIG}; this is not an adapter")
    adapter = adapters.read(found.folder, config)
    if whole := [*adapter.whole, *adapter.resized]:
        raise ConfigError(
            f"{found.name} holds {words.some(whole)} whole, which has no strength: put the adapter beside "
            "the weights of its model, and jmi_models.load merges it"
        )
    return rewire(lm, _modules(model, adapter, name, lm.dtype))


def _modules(
    model: Transformer, adapter: adapters.Adapter, name: str, dtype: Any
) -> dict[tuple[str | Iterable[str], str], Any]:
    """Each changed matrix as a module, by the points between which it stands."""
    planned = plan_reads(model, FAMILIES[model.family], {})
    factors: dict[str, dict[int, tuple[np.ndarray, np.ndarray]]] = {}
    for module, pair in adapter.pairs.items():
        whole = f"{module}.weight"
        targets = planned.get(whole) or planned.get(text_name(whole) or "", [])
        shape = disk_shape(targets[0].key, model.sizes()) if targets else None
        if shape != pair.shape:
            has = f"has it as {list(shape)}" if shape else "has no such matrix"
            raise ConfigError(
                f"the adapter changes {words.name(module)} by {list(pair.shape)}, but the model {has}; is it "
                f"an adapter of {words.value(adapter.base)}?"
            )
        a, b = (np.asarray(part.read(), wide(dtype)) for part in (pair.a, pair.b))
        if not (np.isfinite(a).all() and np.isfinite(b).all()):
            raise CheckpointError(f"the adapter is not finite (NaN or infinite) at {words.name(module)}")
        for target in targets:
            weight = ".".join(target.path.split(".")[-2:])
            layer = _checked(model, module, weight, target)
            of_matrix = _factors(a, pair.scale * b, target, model, pair.transposed)
            factors.setdefault(weight, {})[layer] = of_matrix
    ends = {weight: _places(model)[weight] for weight in factors}
    return {
        (f"blocks.*.{reads}", f"blocks.*.{writes}"): Change(
            _stacked(factors[weight], model.n_layers, dtype), name
        )
        for weight, (reads, writes) in ends.items()
    }


def _places(model: Transformer) -> dict[str, tuple[str, str]]:
    """Matrix -> the points that it reads and writes."""
    return {
        **{f"attn.W_{x}": ("attn.hook_in", f"attn.hook_{x.lower()}") for x in "QKV"},
        "attn.W_O": ("attn.hook_z", "attn.hook_out"),
        "mlp.W_gate": ("mlp.hook_in", "mlp.hook_pre"),
        "mlp.W_in": ("mlp.hook_in", "mlp.hook_pre_linear" if model.mlp.gated else "mlp.hook_pre"),
        "mlp.W_out": ("mlp.hook_post", "mlp.hook_out"),
    }


def _checked(model: Transformer, module: str, weight: str, target: Target) -> int:
    """The layer of a matrix, after which a change can be added exactly."""
    why, spec = None, model.attn
    if not target.path.startswith("blocks."):
        why = "it is outside of the layers"
    elif weight not in _places(model) or len(target.index) != 1:
        why = "it is of experts"
    elif spec.qk_norm is not None and weight in ("attn.W_Q", "attn.W_K"):
        why = "queries and keys are normalised after it"
    elif spec.clip_qkv is not None and weight in ("attn.W_Q", "attn.W_K", "attn.W_V"):
        why = "what it writes is clamped"
    if why is None:
        return target.index[0] + target.key.start
    raise ConfigError(
        f"the adapter changes {words.name(module)}, and {why}: put the adapter beside the weights of its "
        "model, and jmi_models.load merges it"
    )


def _factors(
    a: np.ndarray, b: np.ndarray, target: Target, model: Transformer, transposed: bool
) -> tuple[np.ndarray, np.ndarray]:
    """A as ``[*inputs, r]`` and B as ``[r, *outputs]``, from ``[r, inputs]`` and ``[outputs, r]``."""
    key, sizes, rank = target.key, model.sizes(), len(a)
    inputs = groups_of(key.layout)[0 if transposed else 1][0]
    # B is the matrix of a model whose inputs are the rank.
    narrow = {**sizes, **dict.fromkeys(inputs, 1), inputs[0]: rank}
    param = flat(model.param_tree())[target.path]
    whole = from_disk(b.T if transposed else b, param, key, narrow)
    by_axis = a.reshape(rank, *(sizes[axis] for axis in inputs))
    return np.moveaxis(by_axis, 0, -1), whole.reshape(rank, *whole.shape[len(inputs) :])


def _stacked(
    layers: Mapping[int, tuple[np.ndarray, np.ndarray]], n_layers: int, dtype: Any
) -> dict[str, jax.Array]:
    """A and B of all layers, of the largest rank; zeros in layers that have none."""
    first_a, first_b = next(iter(layers.values()))
    rank = max(len(b) for _, b in layers.values())
    a = np.zeros((n_layers, *first_a.shape[:-1], rank), dtype)
    b = np.zeros((n_layers, rank, *first_b.shape[1:]), dtype)
    for layer, (of_a, of_b) in layers.items():
        a[layer, ..., : of_a.shape[-1]], b[layer, : len(of_b)] = of_a, of_b
    return {"A": jax.device_put(a), "B": jax.device_put(b)}
