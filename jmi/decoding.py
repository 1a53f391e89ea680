"""The loop of generation: compiled once, every token is a run of its own.

Axis letters: b batch, s places of the whole text, v vocabulary.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jmi import tree
from jmi.captures.capture import CARRY, Plan
from jmi.captures.output import wrap
from jmi.engine.forward import execute, finished, precise
from jmi.engine.memory import Memory, declared, grown, written
from jmi.engine.run import Run
from jmi.engine.varying import vary_like
from jmi.generated import Generated
from jmi.metrics import final_logits
from jmi.model.architecture import Architecture, Params, State
from jmi.model.inputs import Prompts
from jmi.model.sites import table_of
from jmi.numerics import wide
from jmi.sampling.options import Sampling
from jmi.sampling.steps import warped


@tree.dataclass
class Generation:
    """A validated generation.

    Attributes:
      prompt: the run of the prompt, which returns its memory.
      token: a run of one token, without what differs between tokens: its captures, and then its memory.
      names: of the captures, as they were asked for. Static.
      steps: how many tokens are read, where that is less than there is room for; None for all.
      layers: which layers the captures keep. Static.
      count: for how many tokens there is room. Static.
      keeps: whether the memory is returned. Static.
    """

    prompt: Run
    token: Run
    steps: Any
    names: tuple[str, ...] = tree.static()
    layers: tuple[tuple[int, ...] | None, ...] = tree.static()
    count: int = tree.static()
    keeps: bool = tree.static()

    @property
    def more(self) -> int:
        """How many tokens are chosen but not read: the last one is, for captures or what it leaves behind."""
        return 0 if self.names or self.keeps else 1

    @property
    def captures_keys(self) -> bool:
        """Whether something captured has an entry for each place of the text."""
        static = self.token.static
        own = static.groups[: len(self.layers)]
        return any("key" in table_of(static.arch)[g.point].axes for g in own if g.point != CARRY)

    def captured(self, rows: tuple[Any, ...]) -> dict[str, Any]:
        """What was captured of one token, under the names that were asked for."""
        split, static = len(self.layers), self.token.static
        layout = Plan(static.groups[:split], (), self.layers)
        out = wrap(layout, static.arch.n_layers, None, rows[:split])
        return {name: out[name] for name in self.names}


def run_generation(
    work: Generation, params: Params, key: Any, sampling: Sampling, blocks: Any = None
) -> Generated:
    """The traced part of `generate`; new tokens read the layers where ``blocks`` have them, if given."""
    arch, count = work.prompt.static.arch, work.count - work.more
    logits, rows, _ = execute(_of_whole_text(work.prompt, params, count), params)
    out = finished(work.prompt, Plan((), (), ()), logits, rows, None)
    read, length = out.memory.prompts, out.memory.prompts.shape[1]
    whole = length + count
    tokens = padded(jnp.asarray(read.tokens), whole, 0)
    mask = None if read.mask is None else padded(jnp.asarray(read.mask), whole, True)
    known = padded(_real(read), whole, False)
    context = _context(arch, params, Prompts(tokens, mask))
    first = _choose(final_logits(out), key, sampling, tokens, known, 0)
    alive = jnp.ones(len(tokens), bool)
    start = (first, tokens, known, alive, grown(arch, out.memory.parts, whole), jnp.int32(length))
    start = vary_like(start, (start, params, work, key, sampling))
    for_token = params if blocks is None else {**params, "blocks": blocks}
    ends = sampling.eos_token_id

    def step(state: tuple[Any, ...]) -> tuple[tuple[Any, ...], Any]:
        (token, _), tokens, known, alive, parts, place = state
        token = token if ends is None else jnp.where(alive, token, sampling.pad_token_id)
        tokens = _written_at(tokens, token.astype(tokens.dtype), place)
        # For hooks the text ends with the token that is read.
        known = _written_at(known, alive, place)
        prompts = Prompts(tokens, known)
        run = dataclasses.replace(work.token, prompts=prompts, memory=parts, first=place, context=context)
        logits, rows, _ = execute(run, for_token)
        left = written(arch, parts, rows[len(work.layers) :], place)
        if ends is not None:
            left, alive = _of_living(arch, parts, left, alive), alive & ~_among(token, ends)
        said = _choose(logits[:, 0], key, sampling, tokens, known, place + 1 - length)
        return (said, tokens, known, alive, left, place + 1), work.captured(rows)

    def body(i: Any, carry: tuple[Any, ...]) -> tuple[Any, ...]:
        state, chosen, captures = carry
        chosen = _put(chosen, state[0], i)
        state, rows = step(state)
        return state, chosen, _put(captures, rows, i)

    _, shapes = jax.eval_shape(step, start) if work.names else (None, {})
    captures = jax.tree.map(lambda x: jnp.zeros((count, *x.shape), x.dtype), shapes)
    chosen = jax.tree.map(lambda x: jnp.zeros((count + 1, *x.shape), x.dtype), first)
    carry = (start, *vary_like((chosen, captures), start))
    steps = count if work.steps is None else work.steps
    if ends is None:
        done, carry = steps, jax.lax.fori_loop(0, steps, body, carry)
    else:
        done, carry = jax.lax.while_loop(
            lambda at: (at[0] < steps) & at[1][0][3].any(),
            lambda at: (at[0] + 1, body(*at)),
            (jnp.int32(0), carry),
        )
    (last, tokens, known, _, parts, _), chosen, captures = carry
    marked = None if read.mask is None and ends is None else known
    memory = Memory(Prompts(tokens, marked), parts) if work.keeps else None
    tokens, log_probs = jax.tree.map(lambda x: x[: work.count].T, _put(chosen, last, done))
    tokens, lengths, log_probs = _ended(tokens, log_probs, sampling, steps + work.more)
    return Generated(tokens, lengths, log_probs, captures, memory)


def _ended(tokens: jax.Array, log_probs: jax.Array, sampling: Sampling, wanted: Any) -> tuple[jax.Array, ...]:
    """Tokens ``[b, n]`` with padding after the end of each row, lengths of rows, and log-probabilities."""
    batch, count = tokens.shape
    lengths = jnp.broadcast_to(jnp.asarray(wanted, jnp.int32), batch)
    if sampling.eos_token_id is None:
        return tokens, lengths, log_probs
    ends = _among(tokens, sampling.eos_token_id)
    first = jnp.where(ends.any(-1), ends.argmax(-1).astype(jnp.int32), count)
    lengths = jnp.minimum(first + 1, lengths)
    inside = jnp.arange(count, dtype=jnp.int32)[None] < lengths[:, None]
    pad = jnp.asarray(sampling.pad_token_id, tokens.dtype)
    return jnp.where(inside, tokens, pad), lengths, jnp.where(inside, log_probs, 0)


def _of_living(arch: Any, before: dict[str, Any], after: dict[str, Any], alive: jax.Array) -> dict[str, Any]:
    """Memory in which states of rows that have ended stay; of their keys and values the mask says so."""

    def kept(name: str, part: Any) -> Any:
        if not isinstance(part, State):
            return after[name]
        rows = alive.reshape(1, -1, *(1,) * (after[name].ndim - 2))
        return jnp.where(rows, after[name], before[name])

    return {name: kept(name, part) for name, part in declared(arch).items()}


def _among(tokens: jax.Array, ids: Any) -> jax.Array:
    """Whether each token is one of ``ids``."""
    ids = jnp.asarray(ids, tokens.dtype)
    return (tokens[..., None] == ids.reshape((1,) * tokens.ndim + ids.shape)).any(-1)


def _written_at(x: jax.Array, column: jax.Array, place: Any) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(x, column[:, None], place, 1)


def _put(kept: Any, rows: Any, i: Any) -> Any:
    return jax.tree.map(lambda x, row: jax.lax.dynamic_update_index_in_dim(x, row, i, 0), kept, rows)


def padded(x: jax.Array, length: int, fill: Any) -> jax.Array:
    """``x`` ``[b, s]`` with more places at the end."""
    return jnp.pad(x, ((0, 0), (0, length - x.shape[1])), constant_values=fill)


def _real(prompts: Prompts) -> jax.Array:
    return jnp.ones(prompts.shape, bool) if prompts.mask is None else jnp.asarray(prompts.mask)


def _of_whole_text(run: Run, params: Params, count: int) -> Run:
    """The run of a prompt, in which hooks see the places of ``count`` more tokens, none of them there yet."""
    if not run.hooks:
        return run
    length = run.prompts.shape[1]
    tokens = padded(jnp.asarray(run.prompts.tokens), length + count, 0)
    seen = Prompts(tokens, padded(_real(run.prompts), length + count, False))
    known = run.prompts if run.memory is None else seen
    static = dataclasses.replace(run.static, length=run.own.shape[1])
    context = _context(run.static.arch, params, known)
    return dataclasses.replace(run, prompts=seen, context=context, static=static)


def _context(arch: Architecture, params: Params, prompts: Prompts) -> Any:
    with precise():
        return arch.context(params, prompts)


def _choose(
    logits: jax.Array, key: Any, sampling: Sampling, tokens: jax.Array, known: jax.Array, step: Any
) -> tuple[jax.Array, jax.Array]:
    """One token for each row, int32 ``[b]``, and its log-probability; -1, which is none, where there is none.

    Keys are one, or one for each row. A longer text begins like a shorter one.
    """
    # In bfloat16 the noise that makes the choice would have so few values that the lowest ids win.
    logits = logits.astype(wide(logits.dtype))
    allowed = warped(sampling, logits, tokens, known, step)
    if not sampling.do_sample:
        token = allowed.argmax(-1)
    elif key.ndim:
        draw = lambda key, row: jax.random.categorical(jax.random.fold_in(key, step), row)  # noqa: E731
        token = jax.vmap(draw)(key, allowed)
    else:
        token = jax.random.categorical(jax.random.fold_in(key, step), allowed)
    given = jnp.take_along_axis(logits, token[:, None], -1)[:, 0] - jax.nn.logsumexp(logits, -1)
    none = jnp.isnan(logits).any(-1) | (allowed.max(-1) == -jnp.inf)
    return jnp.where(none, -1, token.astype(jnp.int32)), given
