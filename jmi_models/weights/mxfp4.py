"""MXFP4 weights, as gpt-oss checkpoints store their experts, decoded exactly.

The format is OCP Microscaling (MX) v1.0: 32 values share one scale. A value is four bits, e2m1 (sign,
two bits of exponent, one of fraction: 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives); the scale is one
byte, e8m0: ``2 ** (byte - 127)``, and 255 is NaN. On disk a matrix is two uint8 tensors,
``<name>_blocks`` with two values per byte, the earlier in the low four bits, and ``<name>_scales``.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jmi.errors import CheckpointError, ConfigError

BLOCK = 32  # values per scale
_BYTES = BLOCK // 2

_INFINITY = 0x7F80_0000
_NAN = 0x7FC0_0000


def decoded_shape(blocks: tuple[int, ...], scales: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of what `decode` returns, from the shapes of the two stored tensors alone.

    Raises:
      CheckpointError: the shapes do not belong together.
    """
    if not scales or blocks != (*scales, _BYTES):
        raise CheckpointError(
            f"MXFP4 blocks {list(blocks)} do not fit scales {list(scales)}: expected blocks of "
            f"[..., groups, {_BYTES}] and scales of [..., groups], all other axes equal"
        )
    return (*scales[:-1], scales[-1] * BLOCK)


def decode(blocks: jax.Array | np.ndarray, scales: jax.Array | np.ndarray, dtype: Any) -> jax.Array:
    """The weights that ``blocks`` and ``scales`` stand for. A pure function, to be jitted by the caller.

    bfloat16 and float32 hold every value exactly, subnormal ones too, except those from ``2 ** 128`` on
    (scale bytes 253 and 254), which become infinite. Other dtypes are converted from float32, and there
    XLA flushes what is below ``2 ** -126`` to zero, float64 included.

    The axes stay in the order of the disk, output before input as in every stored linear layer, because
    blocks run along the input axis and because axis order is the business of `disk.layout`. Hugging Face
    transformers swaps the last two axes right after decoding, to [experts, in, out].

    Args:
      blocks: uint8 [experts, rows, groups, 16]; any number of axes may stand before groups.
      scales: uint8 [experts, rows, groups].
      dtype: of the result, floating.

    Returns:
      dtype [experts, rows, groups * 32].

    Raises:
      CheckpointError: shapes that do not belong together, or tensors that are not uint8.
      ConfigError: ``dtype`` is not floating.

    Source: OCP Microscaling Formats (MX) Specification v1.0, element type FP4 (E2M1) and scale type
    E8M0; the packing as in ``transformers.integrations.mxfp4``.
    """
    shape = decoded_shape(blocks.shape, scales.shape)
    for name, stored in (("blocks", blocks), ("scales", scales)):
        if stored.dtype != np.uint8:
            raise CheckpointError(f"MXFP4 {name} are {stored.dtype}; expected uint8")
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ConfigError(f"dtype={np.dtype(dtype).name}: MXFP4 weights decode to a floating dtype")
    # Shifting by a broadcast 0 and 4 fuses with all that follows; stacking two halves would not.
    nibble = jax.lax.broadcasted_iota(jnp.uint8, (*blocks.shape, 2), blocks.ndim) * 4
    codes = (jnp.asarray(blocks)[..., None] >> nibble) & 15
    bits = _float32_bits(codes.astype(jnp.int32), jnp.asarray(scales)[..., None, None].astype(jnp.int32))
    return _as(bits, dtype).reshape(shape)


def _float32_bits(code: jax.Array, scale: jax.Array) -> jax.Array:
    """uint32 patterns of ``code`` (0 to 15) times the power of two of ``scale`` (0 to 255).

    Integers throughout: XLA flushes subnormal floats to zero, in arithmetic as in conversions.
    """
    exponent, fraction = (code >> 1) & 3, code & 1
    # Without an exponent the fraction is the leading digit, of one half.
    significand = jnp.where(exponent > 0, 2 + fraction, 2 * fraction) << 22
    biased = exponent - 1 + scale
    normal = (jnp.clip(biased - 1, 0, 253) << 23) + significand
    bits = jnp.where(biased > 0, normal, significand >> jnp.clip(1 - biased, 0, 2))
    bits = jnp.where(biased > 254, _INFINITY, bits)
    bits = jnp.where(significand == 0, 0, bits)
    bits = jnp.where(scale == 255, _NAN, bits)
    return bits.astype(jnp.uint32) | ((code.astype(jnp.uint32) >> 3) << 31)


def _as(bits: jax.Array, dtype: Any) -> jax.Array:
    if np.dtype(dtype) == jnp.bfloat16:
        # The upper half of a float32 is a bfloat16, and no value here has a digit in the lower half.
        return jax.lax.bitcast_convert_type((bits >> 16).astype(jnp.uint16), jnp.bfloat16)
    return jax.lax.bitcast_convert_type(bits, jnp.float32).astype(dtype)
