"""Virtual weights: what features of one dictionary say to those of another through the stream alone."""

from typing import Any

import jax
import jax.numpy as jnp

from jmi.checks import real_array
from jmi.engine.forward import precise
from jmi.errors import ArgumentError


@precise()
def virtual_weights(writer: Any, reader: Any, *, gain: Any = None) -> jax.Array:
    """How much a feature of one dictionary adds to the pre-activation of one that reads later: ``[m, n]``.

    ``rows_writer (gain * W_enc_reader)``: what passes by the residual stream alone, without attention and
    MLPs between and without the denominator of a norm before the reader, which scales all of a row alike only
    where it is the same. Large weights between features that are never active together mean nothing.

    Source: virtual weights of Elhage et al. (2021) between features, as in circuit-tracer's graphs.

    Args:
      writer: decoder rows ``[m, d]``, or a dictionary whose rows all are taken.
      reader: encoder columns ``[d, n]``, or a dictionary.
      gain: ``[d]``, of the norm before the point that the reader reads; None where it reads the stream, or
        before the gain.

    Raises:
      ArgumentError: widths that differ.

    Example:
      >>> import jax.numpy as jnp, jmi_sparse
      >>> rows = jnp.eye(3)
      >>> float(jmi_sparse.virtual_weights(rows, rows * 2.0)[1, 1])
      2.0
    """
    rows = jnp.asarray(real_array("writer", getattr(writer, "W_dec", writer)))
    columns = jnp.asarray(real_array("reader", getattr(reader, "W_enc", reader))).astype(rows.dtype)
    scale = jnp.ones(rows.shape[-1], rows.dtype) if gain is None else jnp.asarray(real_array("gain", gain))
    shapes = rows.shape, columns.shape, scale.shape
    if rows.ndim != 2 or columns.ndim != 2 or rows.shape[1] != len(columns) or scale.shape != rows.shape[1:]:
        raise ArgumentError(
            f"virtual_weights: writer, reader and gain have shapes {shapes}; give [m, d], [d, n], [d]"
        )
    return rows @ (columns * jnp.broadcast_to(scale.astype(rows.dtype)[:, None], columns.shape))
