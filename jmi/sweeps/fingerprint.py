"""What decides the numbers of a sweep, as hashes that differ as soon as one of them might.

A program counts as the text that the compiler is given. Whatever tracing found is in it, however deep:
operations, static fields, functions, precisions and, bit by bit, the arrays they close over. It names
neither addresses nor lines of files, so the same experiment has it again in another process. A printed
jaxpr would not do: it abbreviates arrays, leaves out those of inner functions, and shows addresses.
"""

import hashlib
import math
import os
import re
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jmi.engine.programs import compiled
from jmi.errors import ArgumentError

_UNSEEN = re.compile(
    r"stablehlo\.custom_call @\w*(?:callback|CustomSPMDPartitioning)|stablehlo\.(?:send|recv)\b"
)
"""Operations that run Python, of which a program holds no more than an address."""

_HOISTED = re.compile(r"func\.func public @main\([^\n]*jax\.const")
"""A program that is given the arrays its functions close over, instead of holding them."""

_SETTINGS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "NVIDIA_TF32_OVERRIDE")
"""Environment variables that change what a compiled program computes."""


def fingerprint(
    programs: Sequence[jax.stages.Lowered], params: Any, inputs: Any, device: jax.Device
) -> dict[str, str]:
    """Hashes of what a sweep computes, by the parts a user would look for a difference in.

    Args:
      programs: of the base run and of every kind of cells.
      params: weights, of which each tensor counts by 64 bits made on the device.
      inputs: a pytree of all other arrays, which count bit by bit.
      device: what the sweep runs on. Of processors of one kind those of the CPU count as one, though
        they may round differently; compiled code called through `jax.ffi` counts by its name.

    Raises:
      ArgumentError: a program runs Python, so what it computes is not known from its text.
    """
    machine = (
        jax.__version__,
        jax.lib.__version__,
        device.platform,
        device.device_kind,
        device.client.platform_version,
        *(os.environ.get(name, "") for name in _SETTINGS),
    )
    return {
        "programs (model, hooks, metric, base, captures)": _hash(map(_text, programs)),
        "weights": _hash(_bytes(jax.device_get(_checksums(params)))),
        "inputs (tokens, arrays, mask, positions, memory=)": _hash(_bytes(inputs)),
        "machine (versions of jax, device, XLA_FLAGS)": _hash(part.encode() for part in machine),
    }


def _hash(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        # The length tells where a part ends.
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


def _text(program: jax.stages.Lowered) -> bytes:
    text = program.as_text()
    if _UNSEEN.search(text):
        raise ArgumentError(
            "output= cannot keep a sweep whose metric, hooks, base or reducers call Python while they run "
            "(jax.pure_callback, io_callback, jax.debug, custom_partitioning): its program does not tell "
            "what they compute. Leave the callback out, or output="
        )
    if _HOISTED.search(text):
        raise ArgumentError(
            "output= cannot keep a sweep whose program does not hold its arrays: leave the setting "
            "jax_use_simplified_jaxpr_constants off"
        )
    return text.encode()


def _bytes(tree: Any) -> Iterable[bytes]:
    for x in jax.tree.leaves(tree):
        keys = jax.dtypes.issubdtype(getattr(x, "dtype", None), jax.dtypes.prng_key)
        value = np.asarray(jax.random.key_data(x) if keys else x)
        yield f"{x.dtype if keys else value.dtype}{value.shape}".encode()
        yield value.tobytes()


@compiled()
def _checksums(params: Any) -> list[jax.Array]:
    """64 bits of each tensor, uint32 ``[2]``, made where the weights are."""
    return [_checksum(x) for x in jax.tree.leaves(params)]


def _checksum(x: jax.Array) -> jax.Array:
    """Two sums of well mixed numbers, one for each word and its place.

    Sums of products would not do: of two changed signs nothing is left modulo 2^32.
    """
    words = _words(x)
    # Not by flattening, which would gather weights that are spread over devices.
    place = jnp.zeros(words.shape, jnp.uint32)
    for axis in range(words.ndim):
        stride = jnp.uint32(math.prod(words.shape[axis + 1 :]) % 2**32)
        place += jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis) * stride
    seeds = (0x9E3779B9, 0x7F4A7C15)
    sums = [_mixed(words ^ _mixed(place + jnp.uint32(seed))).sum(dtype=jnp.uint32) for seed in seeds]
    return jnp.stack(sums)


def _mixed(h: jax.Array) -> jax.Array:
    """A bijection of 32 bits, each bit of whose result depends on all: the last step of MurmurHash3."""
    h = (h ^ (h >> 16)) * jnp.uint32(0x85EBCA6B)
    h = (h ^ (h >> 13)) * jnp.uint32(0xC2B2AE35)
    return h ^ (h >> 16)


def _words(x: jax.Array) -> jax.Array:
    """Every bit of ``x`` in uint32; numbers of 64 bits make two on a new last axis."""
    info = jnp.iinfo if jnp.issubdtype(x.dtype, jnp.integer) else jnp.finfo
    if x.dtype == bool or info(x.dtype).bits < 8:
        x = x.astype(jnp.float32)
    kind = jnp.dtype(f"uint{min(8 * x.dtype.itemsize, 32)}")
    return jax.lax.bitcast_convert_type(x, kind).astype(jnp.uint32)
