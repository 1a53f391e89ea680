"""The module that puts a cross-layer transcoder into a model (`jmi.rewire`).

Axis letters: b batch, s sequence, d width, L layers, P pairs of layers.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jmi import tree
from jmi.engine.wired import Here
from jmi.model.inputs import Prompts
from jmi.model.sites import Site, slots
from jmi_sparse.dictionaries.activations import over
from jmi_sparse.dictionaries.crosslayer import CrossLayerTranscoder
from jmi_sparse.dictionaries.dictionary import Dictionary
from jmi_sparse.splicing.modules import apart, place_of, special_places, transcoder_sites


@tree.dataclass
class SplicedCLT:
    """Each layer's features write into its output and into those of later layers, through what is carried.

    Attributes:
      params: for each layer what encodes, as a `Dictionary` whose decoder is not read, and ``b_dec``.
      W_dec: ``[P, features, d]`` of all pairs of layers.
      special, error, closed: as of `SplicedTranscoder`.
      layers: in which it stands.
      pairs: of each matrix of ``W_dec``, places in ``layers`` of where it reads and writes.
      n_layers: of the model.
    """

    params: Mapping[str, Any]
    W_dec: jax.Array
    special: Any
    error: bool = tree.static()
    layers: tuple[int, ...] = tree.static()
    pairs: tuple[tuple[int, int], ...] = tree.static()
    n_layers: int = tree.static()
    per_layer: bool = tree.static(default=True)
    closed: tuple[str, ...] = tree.static(default=())
    takes_padding = True

    def sites(self, reads: tuple[Site, ...], writes: Site) -> Mapping[str, Mapping[str, int | None]]:
        """Features of the layer that is read, and what all that write into the layer miss of it."""
        return transcoder_sites(writes, self.W_dec.shape[1], self.error)

    def closes(self, writes: str) -> Iterable[str]:
        """What lies between its input and its output, where it stands for all of that."""
        return self.closed

    def start(self, carry: Any, prompts: Prompts) -> dict[str, Any]:
        """Nothing is written into any layer ``[b, s, L, d]`` yet: by features, and by them before hooks."""
        written = jnp.zeros((*prompts.shape, len(self.layers), self.W_dec.shape[-1]), self.W_dec.dtype)
        special = None if self.special is None else special_places(self.special, prompts)
        return {"written": written, "clean": written if self.error else None, "special": special}

    def __call__(self, read: jax.Array, written: jax.Array, carry: Any, here: Here) -> Any:
        """What was written into this layer by it and by earlier ones, in place of its own output."""
        name, row = place_of(here.site), jnp.asarray(slots(self.layers, self.n_layers))[here.site.layer]
        encoder: Dictionary = self.params["encoder"]
        own = encoder.encode_through(read, lambda pre: here.tap(f"{name}.hook_features_pre", pre))
        features = here.tap(f"{name}.hook_features", own)
        total = self._wrote(carry["written"], features, row)
        carry = {**carry, "written": total}
        rest = encoder.skipped(read)
        rest = rest + over(encoder.b_dec, rest)
        output = total[:, :, row] + rest
        if self.error:
            hooked = [here.tap.hooked(f"{name}.hook_features{end}") for end in ("_pre", "")]
            clean = self._wrote(carry["clean"], encoder.encode(read), row) if any(hooked) else total
            carry = {**carry, "clean": clean}
            y = clean[:, :, row] + rest
            missed = (written.astype(y.dtype) - y).astype(written.dtype)
            output = output + here.tap(f"{name}.hook_error", missed).astype(y.dtype)
        return apart(carry["special"], output.astype(written.dtype), written), carry

    def _wrote(self, total: jax.Array, features: jax.Array, row: jax.Array) -> jax.Array:
        """``total`` ``[b, s, L, d]`` with what the features of one layer write into it and later ones."""
        table = np.full((len(self.layers), len(self.layers)), -1, np.int32)
        for pair, (source, target) in enumerate(self.pairs):
            table[source, target] = pair

        def into(target: jax.Array, pair: jax.Array) -> jax.Array:
            # A conditional: an earlier layer costs nothing.
            return lax.cond(pair >= 0, lambda: target + features @ self.W_dec[pair], lambda: target)

        by_target = jnp.moveaxis(total, 2, 0), jnp.asarray(table)[row]
        return jnp.moveaxis(lax.scan(lambda _, each: (None, into(*each)), None, by_target)[1], 0, 2)


def module_of(clt: CrossLayerTranscoder, **options: Any) -> SplicedCLT:
    """The module of a transcoder that reads and writes the same layers."""
    return SplicedCLT({"encoder": clt.encoders}, clt.W_dec, layers=clt.layers, pairs=clt.pairs, **options)
