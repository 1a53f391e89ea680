"""Generation: one compiled loop, in which every token is a run of its own that hooks and captures see.

What earlier tokens left behind, keys and values and the states of recurrences, is the memory of the model
(`jmi.engine.memory`). The text with all that is still to come is one array from the start: a run of a token
is a run of one place of it.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jmi import tree
from jmi.captures.capture import CARRY, Capture, Plan, as_list, plan
from jmi.captures.output import wrap
from jmi.checks import check_model, real_number, whole_number
from jmi.engine.forward import execute, finished, precise
from jmi.engine.memory import Memory, declared, grown, leaving, written
from jmi.engine.run import Run, Static, plan_run
from jmi.engine.varying import vary_like
from jmi.errors import ArgumentError
from jmi.hooks.resolve import Hooks, prepare
from jmi.metrics import final_logits
from jmi.model.architecture import Architecture, Params
from jmi.model.inputs import Prompts, checked
from jmi.model.padding import place_of
from jmi.model.sites import part_of, table_of
from jmi.numerics import wide
from jmi.tree import classes


@tree.dataclass
class Generated:
    """What was generated.

    Attributes:
      tokens: int32 ``[b, n]``, without the prompt; -1, which is no token, from where on logits are NaN.
      captures: under the names asked for, ``[n, ...]``, what was captured while each token was read.
      memory: of a run with ``memory=``, all that was read, the last token included; give it to `jmi.forward`
        or `generate` to go on. Else None.
    """

    tokens: jax.Array
    captures: dict[str, Any]
    memory: Memory | None

    def __repr__(self) -> str:
        names = ", ".join(list(self.captures)[:6]) or "nothing"
        return f"Generated({list(jnp.shape(self.tokens))} tokens, captured: {names})"


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


def _reads(count: int, names: tuple[str, ...], keeps: bool) -> int:
    """How many of ``count`` tokens are read: the last one only for captures, or for what it leaves behind."""
    return count if names or keeps else count - 1


def generate(
    arch: Architecture,
    params: Params,
    prompts: Prompts | jax.Array,
    max_new_tokens: int = 20,
    *,
    key: jax.Array | None = None,
    temperature: Any = 1.0,
    hooks: Hooks | None = None,
    prompt_hooks: Hooks | None = None,
    step_hooks: Hooks | None = None,
    capture: Sequence[str | Capture] = (),
    memory: bool | Memory = False,
) -> Generated:
    """Continue ``prompts``: a pure function, one compiled loop.

    Keys, temperature and hooks are data: `jax.vmap` over them samples many texts, or steers by many
    vectors, at once. On a CPU listed layers are decoded faster; `LanguageModel.generate` lists them itself.

    Args:
      prompts: int32 ``[b, s]``, or `Prompts`.
      max_new_tokens: how many; static.
      key: of the random choice; without one the most likely token is taken.
      temperature: divides the logits before a random choice.
      hooks: run on the prompt and on every generated token when it is read. An intervention that acts
        position by position (`jmi.hooks.reach`) counts them from the start of the text, negative ones from
        the token that is read: it does what it would in one run of the whole text. Any other sees what is
        run alone, the prompt or one token; a site of attention has a key for every place of the text.
      prompt_hooks, step_hooks: run after these, on the prompt or on the generated tokens alone.
      capture: what to return of the runs of one token. Scores and patterns have a key for each place of the
        text, those to come included. Without captures or ``memory`` the last token is not read.
      memory: True returns what all that was read left behind; given that of an earlier run, ``prompts`` go on
        where it ended.

    Raises:
      ArgumentError: the model cannot continue a text, or not one of this length; ``max_new_tokens`` is less
        than 1 or ``temperature`` not above 0; as `jmi.forward`.
      HookError, InterventionError: as `jmi.forward`.

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
    work = plan_generation(
        arch,
        prompts,
        max_new_tokens,
        hooks=hooks,
        prompt_hooks=prompt_hooks,
        step_hooks=step_hooks,
        capture=capture,
        memory=memory,
    )
    return run_generation(work, params, key, real_number("temperature", temperature, above=0))


def plan_generation(
    arch: Architecture,
    prompts: Any,
    max_new_tokens: int,
    *,
    hooks: Hooks | None,
    prompt_hooks: Hooks | None,
    step_hooks: Hooks | None,
    capture: Sequence[str | Capture],
    memory: bool | Memory,
    room: int | None = None,
) -> Generation:
    """Validate the arguments of `generate` but key and temperature.

    Args:
      room: for how many tokens; up to it all numbers share a program. None for those asked for.
    """
    asked, wanted = as_list(capture), whole_number("max_new_tokens", max_new_tokens)
    count = wanted if room is None else room
    declared(arch)
    own = checked(arch, prompts)
    if own.positions is not None:
        raise ArgumentError("positions=: generated tokens are counted by the model; leave it out")
    run, _ = plan_run(arch, own, prompt_hooks, memory=True if isinstance(memory, bool) else memory)
    names = tuple(_name(each) for each in asked)
    batch, length = run.prompts.shape
    whole = (batch, length + _reads(count, names, memory is not False))
    arch.check_continued(whole[1])  # type: ignore[attr-defined]
    mask = None if run.prompts.mask is None else _padded(jnp.asarray(run.prompts.mask), whole[1], True)
    both = prepare(arch, hooks, whole, mask)
    prompt, steps = _followed(both, run.hooks), _followed(both, prepare(arch, step_hooks, whole, mask))
    at = -1 if own.mask is None else place_of(-1, own.mask)
    behind = any(part_of(arch, point) == "unembed" for point in prompt)
    layout = plan(arch, asked, (batch, 1))
    kept = layout + plan(arch, leaving(arch), (batch, 1))
    static = Static(arch, kept.groups, length=1, classes=classes((steps, kept.data)))
    return Generation(
        dataclasses.replace(run, hooks=prompt, logits_at=None if behind else at),
        Run(own, steps, kept.data, static=static),
        None if room is None else np.int32(_reads(wanted, names, memory is not False)),
        names=names,
        layers=layout.layers,
        count=count,
        keeps=memory is not False,
    )


def _name(asked: str | Capture) -> str:
    if isinstance(asked, str):
        return asked
    return asked.label or asked.name + ("@before" if asked.when == "before" else "")


def _followed(first: dict[str, Any], then: dict[str, Any]) -> dict[str, Any]:
    return {point: (*first.get(point, ()), *then.get(point, ())) for point in {**first, **then}}


def _padded(x: jax.Array, length: int, fill: Any) -> jax.Array:
    return jnp.pad(x, ((0, 0), (0, length - x.shape[1])), constant_values=fill)


def run_generation(
    work: Generation, params: Params, key: Any, temperature: Any, blocks: Any = None
) -> Generated:
    """The traced part of `generate`; new tokens read the layers where ``blocks`` have them, if given."""
    arch, count = work.prompt.static.arch, _reads(work.count, work.names, work.keeps)
    logits, rows, _ = execute(_of_whole_text(work.prompt, params, count), params)
    out = finished(work.prompt, Plan((), (), ()), logits, rows, None)
    # Not `split`, whose keys depend on their number: a longer text begins like a shorter one.
    keys = None if key is None else jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(count + 1))
    first = _choose(final_logits(out), None if keys is None else keys[0], temperature)
    read, length = out.memory.prompts, out.memory.prompts.shape[1]
    whole = length + count
    tokens = _padded(jnp.asarray(read.tokens), whole, 0)
    mask = None if read.mask is None else _padded(jnp.asarray(read.mask), whole, True)
    context = _context(arch, params, Prompts(tokens, mask))
    start = (first, tokens, grown(arch, out.memory.parts, whole), jnp.int32(length))
    start = vary_like(start, (start, params, work, keys, temperature))
    for_token = params if blocks is None else {**params, "blocks": blocks}

    def step(state: tuple[Any, ...], key: Any) -> tuple[tuple[Any, ...], Any]:
        token, tokens, parts, place = state
        tokens = jax.lax.dynamic_update_slice_in_dim(tokens, token[:, None].astype(tokens.dtype), place, 1)
        # For hooks the text ends with the token that is read.
        known = jnp.broadcast_to(jnp.arange(whole, dtype=jnp.int32)[None] <= place, tokens.shape)
        prompts = Prompts(tokens, known if mask is None else known & mask)
        run = dataclasses.replace(work.token, prompts=prompts, memory=parts, first=place, context=context)
        logits, rows, _ = execute(run, for_token)
        parts = written(arch, parts, rows[len(work.layers) :], place)
        return (_choose(logits[:, 0], key, temperature), tokens, parts, place + 1), work.captured(rows)

    def body(i: Any, carry: tuple[Any, ...]) -> tuple[Any, ...]:
        state, chosen, captures = carry
        chosen = chosen.at[i].set(state[0])
        state, rows = step(state, None if keys is None else keys[i + 1])
        put = lambda kept, row: jax.lax.dynamic_update_index_in_dim(kept, row, i, 0)  # noqa: E731
        return state, chosen, jax.tree.map(put, captures, rows)

    _, shapes = jax.eval_shape(step, start, None if keys is None else keys[0]) if work.names else (None, {})
    captures = jax.tree.map(lambda x: jnp.zeros((count, *x.shape), x.dtype), shapes)
    room = vary_like((jnp.zeros((count + 1, *first.shape), first.dtype), captures), start)
    steps = count if work.steps is None else work.steps
    (last, tokens, parts, _), chosen, captures = jax.lax.fori_loop(0, steps, body, (start, *room))
    chosen = chosen.at[steps].set(last)[: work.count]
    memory = Memory(Prompts(tokens, mask), parts) if work.keeps else None
    return Generated(chosen.T, captures, memory)


def _of_whole_text(run: Run, params: Params, count: int) -> Run:
    """The run of a prompt, in which hooks see the places of ``count`` more tokens, none of them there yet."""
    if not run.hooks:
        return run
    length = run.prompts.shape[1]
    tokens = _padded(jnp.asarray(run.prompts.tokens), length + count, 0)
    real = (
        jnp.ones((tokens.shape[0], length), bool)
        if run.prompts.mask is None
        else jnp.asarray(run.prompts.mask)
    )
    seen = Prompts(tokens, _padded(real, length + count, False))
    known = run.prompts if run.memory is None else seen
    static = dataclasses.replace(run.static, length=run.own.shape[1])
    context = _context(run.static.arch, params, known)
    return dataclasses.replace(run, prompts=seen, context=context, static=static)


def _context(arch: Architecture, params: Params, prompts: Prompts) -> Any:
    with precise():
        return arch.context(params, prompts)


def _choose(logits: jax.Array, key: jax.Array | None, temperature: Any) -> jax.Array:
    """One token for each row, int32 ``[b]``; -1, which is none, where logits are NaN."""
    none = jnp.isnan(logits).any(-1)
    if key is None:
        return jnp.where(none, -1, logits.argmax(-1).astype(jnp.int32))
    # In bfloat16 the noise that makes the choice would have so few values that the lowest ids win.
    dtype = wide(logits.dtype)
    scaled = logits.astype(dtype) / jnp.asarray(temperature, dtype)
    return jnp.where(none, -1, jax.random.categorical(key, scaled).astype(jnp.int32))
