"""Many cotangents through one run: `vjp_at` linearises it once."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jmi.captures.output import Output
from jmi.checks import as_arrays, real_array, shown, whole_number
from jmi.engine.forward import forward, precise
from jmi.engine.probe import Probe, follow, names_of, plan_points
from jmi.engine.programs import compiled
from jmi.engine.varying import vary_like
from jmi.errors import ArgumentError
from jmi.hooks.resolve import Hooks, as_data, prepare
from jmi.lm import LanguageModel, check_lm
from jmi.model.inputs import Prompts, checked

Pull = Callable[[Mapping[str, Any]], Any]
"""``{name: [n, *shape]} -> {name: [n, *shape]}``: cotangents at points of the run, pulled back to others."""


def vjp_at(
    lm: LanguageModel,
    prompts: Any,
    of: str | Sequence[str],
    wrt: str | Sequence[str],
    *,
    hooks: Hooks | None = None,
    chunk: int = 16,
    reduce: Callable[[dict[str, jax.Array]], Any] | None = None,
) -> tuple[Output, Pull]:
    """A run, linearised once, and what pulls any number of cotangents back through it.

    Jacobians and attribution graphs are this: rows of ``d of / d wrt``. With `jmi.frozen` among the hooks,
    patterns and norms count as constants.

    Args:
      prompts: as `LanguageModel.prompts` takes them.
      of: sites at which cotangents are given, names or patterns, as captures; in a model's logits,
        ``hook_logits``.
      wrt: sites at which gradients are wanted, after the hooks there; what ``of`` does not depend on has
        zeros.
      hooks: of the run.
      chunk: so many cotangents are pulled back together. The insides of the run are kept, as one backward
        pass keeps them without ``remat``; each chunk adds that many times the memory of what flows backward.
      reduce: pure function of the gradients of one cotangent, ``{name: shape}``, to a pytree: only what it
        returns is kept for each of them. A plain function is compiled once per object.

    Returns:
      The run with its captures at ``of``, and ``pull({name: [n, *shape]}) -> {name: [n, *shape]}``, or
      ``reduce``'s pytree with ``[n, ...]`` arrays. Names are those that were given: a pattern has the layers
      on an axis, ``[n, layers, *shape]``. Names of ``of`` that are left out count as zero.

    Raises:
      HookError, InterventionError: an unknown site, or one that no gradient reaches.
      ArgumentError: cotangents of another shape.

    Example:
      >>> import jax.numpy as jnp, jmi, jmi_models
      >>> lm = jmi_models.load("atlas")
      >>> last, early = "blocks.-1.hook_resid_post", "blocks.1.hook_resid_post"
      >>> out, pull = jmi.vjp_at(lm, "The capital of France is", last, early)
      >>> rows = jnp.zeros((3, *out[last].shape)).at[:, 0, -1, :3].set(jnp.eye(3))
      >>> pull({last: rows})[early].shape == rows.shape
      True
    """
    check_lm(lm)
    found, chunk = checked(lm.arch, lm.prompts(prompts)), whole_number("chunk", chunk)
    names = _different("of", of), _different("wrt", wrt)
    for name in (n for each in names for n in each):
        if len(plan_points(lm.arch, name, found.shape).groups) != 1:
            raise ArgumentError(
                f"{name}: name one point of the model each, of one layer or of all (blocks.*)"
            )
    prepared = prepare(lm.arch, hooks, found.shape, found.mask)
    out, back = _linearised(names, lm, found, prepared)
    shapes = {name: (out[name].shape, out[name].dtype) for name in names[0]}
    return out, functools.partial(_pull, back, shapes, chunk, None if reduce is None else as_data(reduce))


def _different(which: str, names: str | Sequence[str]) -> tuple[str, ...]:
    given = names_of(names)
    if not given or len(set(given)) != len(given):
        raise ArgumentError(f"{which}={shown(given)}: give one or more different names")
    return tuple(given)


@compiled(static=0)
def _linearised(
    names: tuple[tuple[str, ...], tuple[str, ...]], lm: LanguageModel, prompts: Prompts, hooks: Any
) -> tuple[Output, Any]:
    """A run with captures at the first names, and its pullback to the others."""
    of, wrt = names
    layouts = {name: plan_points(lm.arch, name, prompts.shape) for name in wrt}

    def run(hooks: Any, names: tuple[str, ...]) -> tuple[dict[str, jax.Array], Output]:
        # All that the way back needs is kept: each cotangent would else compute the run anew.
        out = forward(lm.arch, lm.params, prompts, hooks, list(names), remat=False)
        return {name: out[name] for name in names}, out

    def probed(zeros: dict[str, jax.Array]) -> tuple[dict[str, jax.Array], Output]:
        followed = hooks
        for name, at in layouts.items():
            # A capture of one layer alone has no axis of layers, a probe has one.
            one = at.groups[0].count is not None and "*" not in name
            probe = Probe(zeros[name][None] if one else zeros[name])
            followed = follow(lm.arch, followed, prompts.shape, at, [probe])
        return run(followed, of)

    with precise():
        shapes = jax.eval_shape(lambda: run(hooks, wrt)[0])
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        _, back, out = jax.vjp(probed, vary_like(zeros, (lm.params, prompts, hooks)), has_aux=True)
    return out, back


def _pull(
    back: Any, shapes: Mapping[str, Any], chunk: int, reduce: Any, cotangents: Mapping[str, Any]
) -> Any:
    if not isinstance(cotangents, Mapping) or not cotangents or not set(cotangents) <= set(shapes):
        raise ArgumentError(f"pull takes a dict of cotangents [n, *shape] at {', '.join(shapes)}")
    given = {name: jnp.asarray(real_array(name, x, 1)) for name, x in cotangents.items()}
    counts = {x.shape[0] for x in given.values()}
    for name, x in given.items():
        if x.shape[1:] != shapes[name][0] or len(counts) != 1 or 0 in counts:
            wanted = ["n", *shapes[name][0]]
            raise ArgumentError(
                f"{name}: cotangents of shape {list(x.shape)}; give {wanted}, one n for all names"
            )
    whole = {
        name: given[name].astype(dtype) if name in given else jnp.zeros((*counts, *shape), dtype)
        for name, (shape, dtype) in shapes.items()
    }
    return _pulled(min(chunk, *counts), back, reduce, whole)


@compiled(static=0)
def _pulled(chunk: int, back: Any, reduce: Any, cotangents: dict[str, jax.Array]) -> Any:
    def one(cotangent: dict[str, jax.Array]) -> Any:
        (found,) = back(cotangent)
        return found if reduce is None else as_arrays("reduce", reduce(found))

    with precise():
        return jax.lax.map(one, cotangents, batch_size=chunk)
