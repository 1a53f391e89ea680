"""Generation with a recurrent state: memory per token does not grow with what came before."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jmi import pytrees
from jmi.architecture import Architecture, Params
from jmi.captures import Capture
from jmi.engine import forward
from jmi.errors import ConfigError
from jmi.hooks import Hooks
from jmi.recurrence import Recurrent


@pytrees.dataclass
class Generated:
    """What was generated.

    Attributes:
      tokens: int32 ``[b, n]``, without the prompt.
      state: after the last of them; give it to `jmi.forward` or `generate` to go on.
      captures: label -> array ``[n, ...]`` of what was captured while each token was read.
    """

    tokens: jax.Array
    state: Any
    captures: dict[str, jax.Array]


def generate(
    arch: Architecture,
    params: Params,
    tokens: jax.Array,
    n: int,
    *,
    key: jax.Array | None = None,
    temperature: Any = 1.0,
    hooks: Hooks | None = None,
    step_hooks: Hooks | None = None,
    capture: Sequence[str | Capture] = (),
    mask: jax.Array | None = None,
    state: Any = None,
) -> Generated:
    """Continue ``tokens`` by ``n`` tokens: a pure function, one compiled loop.

    On a CPU a small batch is decoded faster with listed layers (`jmi_models.listed`).

    Args:
      tokens: the prompt, int32 ``[b, s]``.
      n: how many; static.
      key: of the random choice; without one the most likely token is taken.
      temperature: divides the logits before a random choice.
      hooks: run on the prompt.
      step_hooks: run on every generated token when it is read, a run of one token; positions in it
        are 0.
      capture: what to return of those runs.
      mask: bool ``[b, s]``, True at real tokens of the prompt.
      state: what came before the prompt; nothing, if None.

    Raises:
      ConfigError: the model carries no state, ``n`` is less than 1 or ``temperature`` not above 0.
      HookError, InterventionError: as `jmi.forward`.
    """
    if not isinstance(arch, Recurrent):
        raise ConfigError("generate needs a recurrent model, which carries a state from token to token")
    if n < 1:
        raise ConfigError(f"n={n}: generate at least one token")
    if not isinstance(temperature, jax.core.Tracer) and not temperature > 0:
        raise ConfigError(f"temperature={temperature}: must be above 0; without a key the likeliest is taken")
    if state is None:
        state = arch.initial_state(tokens.shape[0], jax.tree.leaves(params)[0].dtype)
    read = forward(arch, params, tokens, hooks=hooks, mask=mask, state=state)
    keys = None if key is None else jax.random.split(key, n + 1)
    first = _choose(_last(read.logits, mask), None if keys is None else keys[0], temperature)

    def step(carry: tuple[jax.Array, Any], key: Any) -> tuple[tuple[jax.Array, Any], Any]:
        token, state = carry
        out = forward(arch, params, token[:, None], hooks=step_hooks, capture=capture, state=state)
        return (_choose(out.logits[:, 0], key, temperature), out.state), (token, out.captures)

    (_, state), (chosen, captures) = jax.lax.scan(
        step, (first, read.state), None if keys is None else keys[1:], length=n
    )
    return Generated(chosen.T, state, captures)


def _last(logits: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Logits ``[b, vocab]`` at the last real token of each row."""
    if mask is None:
        return logits[:, -1]
    last = jnp.where(mask, jnp.arange(mask.shape[1])[None], 0).max(1)
    return jnp.take_along_axis(logits, last[:, None, None], 1)[:, 0]


def _choose(logits: jax.Array, key: jax.Array | None, temperature: Any) -> jax.Array:
    """One token for each row, int32 ``[b]``."""
    if key is None:
        return logits.argmax(-1).astype(jnp.int32)
    scaled = logits / jnp.asarray(temperature, logits.dtype)
    return jax.random.categorical(key, scaled).astype(jnp.int32)
