"""`inject`: features written into the stream at a fixed strength, whatever the model makes of them."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

import jmi
from jmi import tree
from jmi.checks import real_array, shown, whole_array, whole_number
from jmi.errors import ArgumentError
from jmi.hooks.grid import Swept
from jmi.hooks.selection import Selective
from jmi.lm import LanguageModel, check_lm
from jmi.model.sites import Site, slots
from jmi_sparse.decoders.rows import check_stream, decoders_of
from jmi_sparse.formats.reading.decoders import Decoders


@tree.dataclass
class AddRows(Selective):
    """Add ``scale`` times the weighted sum of some rows of a table, where selected.

    Attributes:
      table: ``[n, d]``.
      index: which rows, int ``[m]``.
      weights: of the rows, ``[m]``.
      scale: of their sum.
    """

    takes_padding: ClassVar[bool] = True
    table: Any
    index: Any
    weights: Any
    scale: Any

    def is_local(self, site: Site) -> bool:
        """Each position by itself."""
        return True

    def is_causal(self, site: Site) -> bool:
        """What is written is fixed."""
        return True

    def __call__(self, value: jax.Array, site: Site) -> jax.Array:
        rows = jnp.asarray(self.table)[jnp.asarray(self.index)].astype(value.dtype)
        vector = jnp.asarray(self.weights).astype(value.dtype) @ rows * jnp.asarray(self.scale, value.dtype)
        return self.select(value + jnp.broadcast_to(vector, value.shape), value, site)


def inject(
    lm: LanguageModel,
    dictionaries: Any,
    features: Any,
    position: Any,
    strength: Any = 1.0,
    *,
    weights: Any = None,
    from_layer: int = 0,
) -> dict[str, Any]:
    """Hooks that write decoder rows of features into all layers that these write into.

    At ``position`` the site that the dictionaries write at, or ``hook_resid_post`` where they do not say it,
    gets ``strength * weight * row`` in each such layer. No encoder is asked: a
    feature is written as strongly whether it is active or not, and twice where it is active already. Rows of
    a normalised dictionary are in the units of its normalised input. Injecting what points at an answer moves
    it there whatever the model computes: compare with random features of the same layer, which is one axis
    of the same sweep.

    Source: the constant-strength steering of candle-mi, ``prepare_hook_injection``.

    Args:
      dictionaries: anything that has decoder rows: a `CrossLayerTranscoder`, a `DictionarySet`, ``{site:
        dictionary}``, or decoders on disk (`open_decoder`), of which only these rows are read.
      features: pairs ``(layer, id)``, one or several; or ``grid[name]``, an axis of pairs ``[n, 2]`` or of
        sets of pairs ``[n, m, 2]``.
      position: one or several; or ``grid[name]``.
      strength: a number; or ``grid[name]``.
      weights: of each feature, such as -1 for what is suppressed and 1 for what is injected; by default 1.
      from_layer: write into this layer and later ones only.

    Raises:
      ArgumentError: a feature that is not there or writes into no such layer, or rows that are no vectors of
        the stream.

    Example:
      >>> import numpy as np, jax, jax.numpy as jnp, jmi, jmi_models, jmi_sparse
      >>> lm = jmi_models.load("atlas")
      >>> rows = jax.random.normal(jax.random.key(0), (512, 128))
      >>> sae = jmi_sparse.Dictionary(rows.T, rows, jnp.zeros(128), jmi_sparse.TopK(8), jnp.zeros(512))
      >>> grid = jmi.Grid(position=range(6), strength=[1.0, 10.0], feature=[[2, 7], [2, 300]])
      >>> saes = {"blocks.2.hook_resid_post": sae}
      >>> hooks = jmi_sparse.inject(lm, saes, grid["feature"], grid["position"], grid["strength"])
      >>> goal = jmi.metrics.Prob(lm.token_id("Paris"))
      >>> jmi.sweep(lm, "The capital of France is", hooks, goal, logits_at=-1, progress=False).shape
      (6, 2, 2, 1)
    """
    check_lm(lm)
    decoders, from_layer = decoders_of(dictionaries), whole_number("from_layer", from_layer, 0)
    point = check_stream(lm.arch, decoders)
    given = features.values if isinstance(features, Swept) else _pairs(features)[None]
    if given.ndim == 2:
        given = given[:, None]
    if given.ndim != 3 or given.shape[-1] != 2 or not np.issubdtype(given.dtype, np.integer):
        raise ArgumentError(f"features={shown(features)}: give pairs (layer, id), or an axis of them")
    pairs, index = np.unique(given.reshape(-1, 2), axis=0, return_inverse=True)
    into = {int(layer): _targets(decoders, int(layer), from_layer) for layer in np.unique(pairs[:, 0])}
    targets = sorted({target for each in into.values() for target in each})
    table = np.zeros((len(targets), len(pairs), decoders.d_out), decoders.dtype)
    for layer, each in into.items():
        here = np.flatnonzero(pairs[:, 0] == layer)
        for target in each:
            table[targets.index(target), here] = decoders.rows(layer, pairs[here, 1], target)
    size = given.shape[1]
    chosen = np.asarray(index, np.int32).reshape(len(given), 1, size).repeat(len(targets), axis=1)
    parts = np.ones(size) if weights is None else np.asarray(real_array("weights", weights), np.float64)
    if parts.shape != (size,):
        raise ArgumentError(f"weights={shown(weights)}: give one for each of {size} features")
    rows = AddRows(
        table,
        Swept(chosen, features.grid) if isinstance(features, Swept) else chosen[0],
        np.tile(parts, (len(targets), 1)),
        _finite(strength),
        positions=_positions(position, len(targets)),
    )
    return {point: jmi.PerLayer(rows, slots(targets, lm.arch.n_layers))}


def _finite(strength: Any) -> Any:
    """A strength, or those of a grid, found to be a finite number."""
    values = strength.values if isinstance(strength, Swept) else real_array("strength", strength)
    if np.ndim(values) != isinstance(strength, Swept) or not np.isfinite(values).all():
        raise ArgumentError(f"strength={shown(strength)}: give a finite number, or an axis of them")
    return strength


def _pairs(features: Any) -> np.ndarray:
    found = np.asarray(whole_array("features", features))
    return found[None] if found.ndim == 1 else found


def _targets(decoders: Decoders, layer: int, first: int) -> list[int]:
    if layer not in decoders.targets:
        raise ArgumentError(f"layer={layer}: there are features of layers {list(decoders.layers)}")
    found = [target for target in decoders.targets[layer] if target >= first]
    if not found:
        raise ArgumentError(f"from_layer={first}: features of layer {layer} write into no such layer")
    return found


def _positions(position: Any, layers: int) -> Any:
    """Positions as `PerLayer` takes them: of several there is a row for each layer."""
    several = "give one, or a list of those that are written together; an axis has one in each cell"
    if isinstance(position, Swept):
        if position.values.ndim != 1:
            raise ArgumentError(f"position={shown(position)}: {several}")
        return position
    places = np.asarray(whole_array("position", position))
    if places.ndim > 1:
        raise ArgumentError(f"position={shown(position)}: {several}")
    return places if places.ndim == 0 else np.tile(places, (layers, 1))
