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
from jmi_sparse.splicing.modules import apart, place_of, special_places, transcoder_sites, with_error


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
        more = self._written(features, row)
        total = carry["written"] + more
        carry = {**carry, "written": total}
        rest = encoder.skipped(read)
        rest = rest + over(encoder.b_dec, rest)
        output = (total[:, :, row] + rest).astype(written.dtype)
        if self.error:
            hooked = [here.tap.hooked(f"{name}.hook_features{end}") for end in ("_pre", "")]
            plain = self._written(encoder.encode(read), row) if any(hooked) else more
            # Not the total: what is carried here may come from a run with other hooks.
            carry = {**carry, "clean": carry["clean"] + plain}
            y = (carry["clean"][:, :, row] + rest).astype(written.dtype)
            output = with_error(output, y, written, lambda e: here.tap(f"{name}.hook_error", e))
        return apart(carry["special"], output, written), carry

    def _written(self, features: jax.Array, row: jax.Array) -> jax.Array:
        """What the features of one layer write into it and later ones, ``[b, s, L, d]``."""
        table = np.full((len(self.layers), len(self.layers)), -1, np.int32)
        for pair, (source, target) in enumerate(self.pairs):
            table[source, target] = pair

        nothing = jnp.zeros((*features.shape[:-1], self.W_dec.shape[-1]), self.W_dec.dtype)

        def into(_: None, pair: jax.Array) -> tuple[None, jax.Array]:
            # A conditional: an earlier layer costs nothing.
            return None, lax.cond(pair >= 0, lambda: features @ self.W_dec[pair], lambda: nothing)

        return jnp.moveaxis(lax.scan(into, None, jnp.asarray(table)[row])[1], 0, 2)


def module_of(clt: CrossLayerTranscoder, **options: Any) -> SplicedCLT:
    """The module of a transcoder that reads and writes the same layers."""
    return SplicedCLT({"encoder": clt.encoders}, clt.W_dec, layers=clt.layers, pairs=clt.pairs, **options)
