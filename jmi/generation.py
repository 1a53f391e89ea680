"""Generation: one compiled loop, in which every token is a run of its own that hooks and captures see.

What earlier tokens left behind is a recurrent state, or the keys and values of a transformer.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jmi import tree
from jmi.captures.capture import Capture, as_list
from jmi.captures.output import Output, wrap
from jmi.checks import check_model, real_number, whole_number
from jmi.engine.forward import execute, forward, plan_run
from jmi.engine.past import past_captures
from jmi.engine.recurrence import Recurrent
from jmi.engine.varying import vary_like
from jmi.errors import ConfigError, HookError
from jmi.hooks.resolve import Hooks, prepare
from jmi.metrics import final_logits
from jmi.model.architecture import Architecture, Continuable, Params
from jmi.model.inputs import as_tokens, check_arrays, check_tokens
from jmi.model.sites import part_of, table_of
from jmi.numerics import wide

Read = Callable[[jax.Array, Any], tuple[Output, Any]]
"""(token ``[b, 1]``, what came before it) -> its run, what comes before the next."""


@tree.dataclass
class Generated:
    """What was generated.

    Attributes:
      tokens: int32 ``[b, n]``, without the prompt; -1, which is no token, from where on logits are NaN.
      state: of a recurrent model, after the last of them; give it to `jmi.forward` or `generate` to go
        on. None for a transformer.
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

    Keys, temperature and hooks are data: `jax.vmap` over them samples many texts, or steers by many
    vectors, at once. On a CPU a small batch is decoded faster with listed layers (`jmi_models.listed`).

    Args:
      tokens: the prompt, int32 ``[b, s]``.
      n: how many; static.
      key: of the random choice; without one the most likely token is taken.
      temperature: divides the logits before a random choice.
      hooks: run on the prompt.
      step_hooks: run on every generated token when it is read, a run of one token; positions in it
        are 0, and `Noise` draws the same for each.
      capture: what to return of those runs. Scores and patterns of a transformer have a key for each of
        the ``s + n`` tokens. Without captures a transformer does not read the last token.
      mask: bool ``[b, s]``, True at real tokens of the prompt.
      state: of a recurrent model, what came before the prompt; nothing, if None.

    Raises:
      ConfigError: the model cannot continue a text, or not one of this length; ``state`` is given to a
        transformer; ``n`` is less than 1 or ``temperature`` not above 0; as `jmi.forward`.
      HookError, InterventionError: as `jmi.forward`; ``step_hooks`` cannot edit scores or patterns of
        a transformer, whose keys are those of all tokens.

    Example:
      >>> import jax, jax.numpy as jnp, jmi, jmi_models
      >>> lm = jmi_models.load("atlas")
      >>> tokens = lm.to_tokens("The capital of France is")
      >>> keys = jax.random.split(jax.random.key(0), 8)
      >>> sample = lambda key: jmi.generate(lm.arch, lm.params, tokens, 4, key=key).tokens
      >>> jax.vmap(sample)(keys).shape
      (8, 1, 4)
    """
    check_model(arch, params)
    n, temperature = whole_number("n", n), real_number("temperature", temperature, above=0)
    tokens = as_tokens(tokens)
    mask, _ = check_arrays(tokens, mask, None)
    check_tokens(arch, tokens)
    capture = as_list(capture)
    # The last token is read for what it leaves behind, or for captures.
    reads = n if isinstance(arch, Recurrent) or capture else n - 1
    if isinstance(arch, Recurrent):
        logits, before, read = _with_state(arch, params, tokens, hooks, step_hooks, capture, mask, state)
    elif state is not None:
        raise ConfigError("state=: this model carries no state; give generate the whole text before")
    elif isinstance(arch, Continuable):
        logits, before, read = _with_cache(arch, params, tokens, reads, hooks, step_hooks, capture, mask)
    else:
        raise ConfigError("generate: this model can neither carry a state nor keep keys and values")
    # Not `split`, whose keys depend on their number: a longer text begins like a shorter one.
    keys = None if key is None else jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(reads + 1))
    first = _choose(logits, None if keys is None else keys[0], temperature)
    first, before = vary_like((first, before), (first, before, params, step_hooks, keys, temperature))

    def step(carry: tuple[jax.Array, Any], key: Any) -> tuple[tuple[jax.Array, Any], Any]:
        token, before = carry
        out, after = read(token[:, None], before)
        return (_choose(out.logits[:, 0], key, temperature), after), (token, out.captures)

    (last, after), (chosen, captures) = jax.lax.scan(
        step, (first, before), None if keys is None else keys[1:], length=reads
    )
    chosen = jnp.concatenate([chosen, last[None]])[:n]
    return Generated(chosen.T, after if isinstance(arch, Recurrent) else None, captures)


def _with_state(
    arch: Any, params: Any, tokens: Any, hooks: Any, step_hooks: Any, capture: Any, mask: Any, state: Any
) -> tuple[jax.Array, Any, Read]:
    """Logits behind the prompt, the state there, and how a token is read."""
    if state is None:
        state = arch.initial_state(tokens.shape[0], jax.tree.leaves(params)[0].dtype)
    logits, prompt = _prompt(arch, params, tokens, hooks, mask, state=state)

    def read(token: jax.Array, state: Any) -> tuple[Output, Any]:
        out = forward(arch, params, token, hooks=step_hooks, capture=capture, state=state)
        return out, out.state

    return logits, prompt.state, read


def _with_cache(
    arch: Any, params: Any, tokens: Any, reads: int, hooks: Any, step_hooks: Any, capture: Any, mask: Any
) -> tuple[jax.Array, Any, Read]:
    """As `_with_state`; what comes before a token are keys and values of all tokens, and its place."""
    length = tokens.shape[1]
    arch.check_continued(length + reads)
    kept = past_captures(arch)
    logits, prompt = _prompt(arch, params, tokens, hooks, mask, capture=list(kept.values()))

    def with_room(x: Any, axis: int, fill: Any = 0) -> jax.Array:
        return jnp.pad(x, [(0, reads * (i == axis)) for i in range(x.ndim)], constant_values=fill)

    past = tuple(with_room(prompt.captures[label], 2) for label in kept)
    everywhere = None if mask is None else with_room(mask, 1, True)
    context = arch.context(params, with_room(tokens, 1), everywhere, None)
    wanted = [*capture, *kept.values()]
    prepared = prepare(arch, step_hooks, (tokens.shape[0], 1))
    for point in prepared:
        if "key" in table_of(arch)[point].axes:
            raise HookError(
                f"{point}: step_hooks cannot edit it, they are made for one token and it has more keys"
            )

    def read(token: jax.Array, before: Any) -> tuple[Output, Any]:
        past, place = before
        static, (inputs, edits, reducers, *_), layout = plan_run(arch, token, prepared, wanted)
        here = arch.after(context, place, past)
        logits, rows, _ = execute(static, params, inputs, edits, reducers, None, None, context=here)
        out = wrap(layout, arch.n_layers, logits, rows, None)
        new = [out.captures.pop(label) for label in kept]
        write = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=place, axis=2)
        return out, (tuple(map(write, past, new)), place + 1)

    return logits, (past, jnp.int32(length)), read


def _prompt(arch: Any, params: Any, tokens: Any, hooks: Any, mask: Any, **options: Any) -> Any:
    """Logits ``[b, vocab]`` behind the last real token of each row, and the run of the prompt."""
    hooks = prepare(arch, hooks, tokens.shape, mask)
    behind = any(part_of(arch, point) == "readout" for point in hooks)
    at = None if behind else -1
    out = forward(arch, params, tokens, hooks=hooks, mask=mask, logits_at=at, **options)
    return final_logits(out), out


def _choose(logits: jax.Array, key: jax.Array | None, temperature: Any) -> jax.Array:
    """One token for each row, int32 ``[b]``; -1, which is none, where logits are NaN."""
    none = jnp.isnan(logits).any(-1)
    if key is None:
        return jnp.where(none, -1, logits.argmax(-1).astype(jnp.int32))
    # In bfloat16 the noise that makes the choice would have so few values that the lowest ids win.
    dtype = wide(logits.dtype)
    scaled = logits.astype(dtype) / jnp.asarray(temperature, dtype)
    return jnp.where(none, -1, jax.random.categorical(key, scaled).astype(jnp.int32))
