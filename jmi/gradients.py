"""Gradients of a readout of a run with respect to what flows onward at its points.

One forward and one backward pass give the gradients at all points asked for: at each, zeros are added
after the hooks there, and the gradient with respect to those zeros is the gradient at the point.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jmi import tree
from jmi.captures.capture import Capture, Plan, plan
from jmi.captures.output import Output, wrap
from jmi.checks import as_function, as_result, check_architecture, check_model, flag, several
from jmi.engine.forward import forward, precise
from jmi.engine.varying import vary_like
from jmi.errors import ConfigError, HookError
from jmi.hooks.layers import At, PerLayer
from jmi.hooks.resolve import Hooks, prepare
from jmi.hooks.selection import Selective
from jmi.model.architecture import Architecture, Params
from jmi.model.inputs import as_tokens, check_arrays, check_tokens
from jmi.model.sites import PATTERN, Site, table_of


@tree.dataclass
class Gradients:
    """What `value_and_grad_at` returns.

    Attributes:
      value: of the readout, scalar or ``[b]``.
      grads: addressed as captures are: ``grads["blocks.3.hook_resid_post"]`` has the shape and dtype of
        that point, ``grads.stack("hook_resid_post")`` is ``[layers, ...]``. Its logits are None.
      out: the run, with its captures.
    """

    value: jax.Array
    grads: Output
    out: Output


def value_and_grad_at(
    arch: Architecture,
    params: Params,
    tokens: jax.Array,
    readout: Callable[[Output], jax.Array],
    sites: str | Sequence[str],
    *,
    hooks: Hooks | None = None,
    capture: Sequence[str | Capture] = (),
    mask: jax.Array | None = None,
    positions: jax.Array | None = None,
    logits_at: Any = None,
    remat: bool = True,
) -> Gradients:
    """Value of a readout and its gradients at points of the run, in one forward and one backward pass.

    Args:
      readout: pure function of the run's `Output`, its captures included: a real scalar, or ``[b]``,
        one number per row. Rows do not touch each other, so the gradient of the sum, which is what is
        computed, is then that of each row's own number.
      sites: names or patterns, as in captures. The gradient is with respect to the value that flows
        onward from the point, after its hooks; in a layer that nothing reads it from, it is zero.
      hooks, capture, mask, positions, logits_at, remat: as `jmi.forward`. With ``remat`` memory grows by what
        enters a layer and by the gradients asked for, not by the insides of layers.

    Raises:
      HookError: an unknown site, or a derived one, which the model does not read.
      ConfigError: a readout of another shape or not of real numbers.

    Example:
      >>> import jmi_models
      >>> from jmi.gradients import value_and_grad_at
      >>> lm = jmi_models.load("atlas")
      >>> tokens = lm.encode("The capital of France is")
      >>> paris = lambda out: out.logits[:, -1, lm.token_id("Paris")]
      >>> found = value_and_grad_at(lm.arch, lm.params, tokens, paris, ["blocks.*.attn.hook_z"])
      >>> found.grads["blocks.2.attn.hook_z"].shape == (1, tokens.shape[1], lm.arch.n_heads, lm.arch.d_head)
      True
    """
    check_model(arch, params)
    tokens, readout = as_tokens(tokens), as_function("readout", readout)
    check_arrays(tokens, mask, positions)
    check_tokens(arch, tokens)
    shape = jnp.shape(tokens)
    layout = plan_points(arch, sites, shape)
    run = functools.partial(
        forward, arch, params, tokens, mask=mask, positions=positions, logits_at=logits_at, remat=remat
    )
    with precise():
        shapes = jax.eval_shape(lambda: run(hooks=hooks, capture=_names(sites)).captures)
        zeros = [jnp.zeros(shapes[g.label].shape, shapes[g.label].dtype) for g in layout.groups]
        zeros = vary_like(zeros, (params, tokens, hooks, mask, positions))

        def total(zeros: list[jax.Array]) -> Any:
            probed = follow(arch, hooks, shape, layout, [Probe(z) for z in zeros])
            out = run(hooks=probed, capture=capture)
            value = checked(readout(out), shape[0])
            return value.sum(), (value, out)

        grads, (value, out) = jax.grad(total, has_aux=True)(zeros)
    return Gradients(value, wrap(layout, arch.n_layers, None, tuple(grads), None, out.mask), out)


@tree.dataclass
class Detach(Selective):
    """Let no gradient through, where selected; values are untouched.

    Example:
      >>> from jmi.gradients import Detach
      >>> hooks = {"blocks.*.attn.hook_pattern": Detach(heads=3)}
    """

    def is_local(self, site: Site) -> bool:
        """Values stay as they are."""
        return True

    def is_causal(self, site: Site) -> bool:
        """Values stay as they are."""
        return True

    def __call__(self, value: jax.Array, site: Site) -> jax.Array:
        return self.select(jax.lax.stop_gradient(value), value, site)


def frozen(arch: Architecture, *, patterns: bool = False, norms: bool = False) -> dict[str, Detach]:
    """Hooks under which gradients take attention patterns or norm denominators for constants.

    Values stay as they are. With both, what is left between two layers' residual streams is linear but
    for the MLPs (and norms of queries and keys, which only the patterns read).

    Raises:
      ConfigError: the model lacks what is asked for, or nothing is asked for.

    Example:
      >>> import jmi_models
      >>> from jmi.gradients import frozen
      >>> sorted(frozen(jmi_models.load("atlas").arch, patterns=True))
      ['blocks.*.attn.hook_pattern']
    """
    check_architecture(arch)
    patterns, norms = flag("patterns", patterns), flag("norms", norms)
    scales = [point for point in table_of(arch) if point.endswith(".hook_scale")]
    if patterns and PATTERN not in table_of(arch):
        raise ConfigError("patterns=True: this model has no attention patterns to freeze")
    if norms and not scales:
        raise ConfigError("norms=True: this model has no norm denominators to freeze")
    if not (patterns or norms):
        raise ConfigError("name what to freeze: patterns=True, norms=True or both")
    return {point: Detach() for point in [PATTERN] * patterns + scales * norms}


@jax.custom_jvp
def nudge(value: jax.Array, zeros: jax.Array) -> jax.Array:
    """``value + zeros`` for derivatives; the sum itself is not computed, so the zeros take no memory."""
    del zeros
    return value


@nudge.defjvp
def _nudge_jvp(primals: Any, tangents: Any) -> Any:
    return primals[0], tangents[0] + tangents[1]


@tree.dataclass
class Probe:
    """Adds ``zeros``, whose gradient is the one at the point."""

    zeros: Any

    def __call__(self, value: jax.Array, site: Site) -> jax.Array:
        del site
        return nudge(value, self.zeros)


@tree.dataclass
class Rows:
    """An intervention whose arrays have one row for each of some layers; scalars do not.

    Attributes:
      slots: int32 ``[n_layers]``, the row of each layer; other layers are not to run it.
    """

    slots: Any
    hook: Any

    def __call__(self, value: jax.Array, site: Site) -> jax.Array:
        return rows_of(self.hook, self.slots, site)(value, site)


def rows_of(tree: Any, slots: Any, site: Site) -> Any:
    """``tree`` with the row of the running layer in place of each array."""
    row = jax.lax.dynamic_index_in_dim(jnp.asarray(slots), site.layer, keepdims=False)

    def pick(x: Any) -> Any:
        return jax.lax.dynamic_index_in_dim(jnp.asarray(x), row, keepdims=False) if jnp.ndim(x) else x

    return jax.tree.map(pick, tree)


def follow(arch: Architecture, hooks: Hooks | None, shape: Any, layout: Plan, last: Sequence[Any]) -> Hooks:
    """``hooks`` and then, at the point of each group of ``layout``, one more intervention.

    Args:
      last: one for each group; inside the blocks their arrays have one row for each layer of the group.
    """
    followed: dict[str, Any] = dict(prepare(arch, hooks, shape))
    for group, layers, (slots, _), hook in zip(layout.groups, layout.layers, layout.data, last, strict=True):
        if layers is not None:
            hook = At(np.asarray(slots) >= 0, PerLayer(hook) if group.whole else Rows(slots, hook))
        followed[group.point] = (*followed.get(group.point, ()), hook)
    return followed


def plan_points(arch: Architecture, sites: str | Sequence[str], shape: Any) -> Plan:
    """The points and layers that ``sites`` name; HookError for one that no hook can act on."""
    names = _names(sites)
    if not names or not all(isinstance(name, str) for name in names):
        raise ConfigError("sites= takes names: a gradient is that of a whole value, after its hooks")
    layout = plan(arch, names, shape)
    derived = [group.point for group in layout.groups if table_of(arch)[group.point].derived]
    if derived:
        raise HookError(f"{', '.join(derived)}: derived for captures alone, the model does not read it")
    return layout


def checked(value: jax.Array, batch: int) -> jax.Array:
    """``value`` of a readout, found to be a real scalar or one number per row; NaN has NaN as gradient."""
    as_result("the readout", value)
    shape, dtype = jnp.shape(value), jnp.result_type(value)
    if shape not in ((), (batch,)) or not jnp.issubdtype(dtype, jnp.floating):
        raise ConfigError(
            f"the readout gave {dtype}{list(shape)}; it must give a real number, or one per row, [{batch}]"
        )
    value = jnp.asarray(value)
    # NaN may come from a constant or an index: the gradient of what is added to it would look like a number.
    return value * jnp.where(jnp.isnan(value), jnp.nan, 1).astype(value.dtype)


def _names(sites: str | Sequence[str]) -> list[str]:
    return [sites] if isinstance(sites, str) else several("sites", sites, "names")
