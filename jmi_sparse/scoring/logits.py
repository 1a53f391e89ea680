"""Tokens whose logits a decoder row raises and lowers: the row times the unembedding, and nothing else.

Axis letters: k features, d width of the stream, v vocabulary, t tokens kept.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jmi.engine.forward import precise
from jmi.engine.programs import compiled
from jmi.lm import LanguageModel
from jmi.model.sites import find
from jmi.numerics import wide
from jmi_sparse.dictionaries.crosslayer import CrossLayerTranscoder
from jmi_sparse.scoring.places import Placed

_ROWS = 64
"""Features whose logits are made at a time."""


def written_rows(place: Placed, source: int, ids: np.ndarray) -> jax.Array:
    """Decoder rows ``[k, d]``; of a cross-layer transcoder, the sum of a feature's rows over its targets."""
    dictionary: Any = place.dictionary
    if isinstance(dictionary, CrossLayerTranscoder):
        own = [pair for pair, (read, _) in enumerate(dictionary.pairs) if read == source]
        return dictionary.W_dec[np.array(own)][:, ids].sum(0)
    return dictionary.W_dec[ids]


def extreme_tokens(
    lm: LanguageModel, place: Placed, source: int, ids: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray] | None:
    """Ids int32 ``[k, t]`` of the tokens with the largest and with the least logits, the extreme ones first.

    None where what is written is no vector of the stream, or the model has no unembedding that is known.
    """
    axes, weights = find(lm.arch, place.writes[0])[0][0].axes, unembedding(lm)
    if weights is None or axes[-1] != "d_model":
        return None
    count = min(count, weights.shape[-1])
    top, bottom = _extremes(written_rows(place, source, ids), weights, jnp.zeros(count))
    return np.asarray(top, np.int32), np.asarray(bottom, np.int32)


def unembedding(lm: LanguageModel) -> jax.Array | None:
    """``W_U`` ``[d, v]``, with the projection before it if there is one; None of a model of another make."""
    own, embed = lm.params.get("unembed", {}), lm.params.get("embed", {})
    tied = getattr(lm.arch, "tied", None)
    if tied is None or ("W_E" if tied else "W_U") not in (embed if tied else own):
        return None
    weights = embed["W_E"].T if tied else own["W_U"]
    if "W_out" not in own:
        return weights
    with precise():
        return own["W_out"] @ weights


@compiled()
def _extremes(rows: jax.Array, weights: jax.Array, places: jax.Array) -> tuple[jax.Array, jax.Array]:
    dtype = np.promote_types(wide(rows.dtype), wide(weights.dtype))

    def of_row(row: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = row.astype(dtype) @ weights.astype(dtype)
        return jax.lax.top_k(logits, len(places))[1], jax.lax.top_k(-logits, len(places))[1]

    with precise():
        return jax.lax.map(of_row, rows, batch_size=_ROWS)
