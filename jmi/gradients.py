"""Gradients of a metric of a run with respect to what flows onward at its points.

One forward and one backward pass give the gradients at all points asked for: at each, zeros are added
after the hooks there, and the gradient with respect to those zeros is the gradient at the point.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jmi import tree
from jmi.captures.capture import Capture, Plan
from jmi.captures.output import Output, wrap
from jmi.checks import as_function, as_result
from jmi.engine.forward import forward, precise
from jmi.engine.probe import Probe, follow, names_of, plan_points
from jmi.engine.varying import vary_like
from jmi.errors import ArgumentError
from jmi.hooks.resolve import Hooks
from jmi.lm import LanguageModel, check_lm
from jmi.metrics import Metric
from jmi.model.inputs import checked


@tree.dataclass
class Gradients:
    """What `value_and_grad_at` returns.

    Attributes:
      value: of the metric, scalar or ``[b]``.
      grads: addressed as captures are: ``grads["blocks.3.hook_resid_post"]`` has the shape and dtype of
        that point, ``grads.stack("hook_resid_post")`` is ``[layers, ...]``. Its logits are None.
      out: the run, with its captures.
    """

    value: jax.Array
    grads: Output
    out: Output


def value_and_grad_at(
    lm: LanguageModel,
    prompts: Any,
    metric: Metric,
    sites: str | Sequence[str],
    *,
    hooks: Hooks | None = None,
    capture: Sequence[str | Capture] = (),
    logits_at: Any = None,
    remat: bool = True,
) -> Gradients:
    """Value of a metric and its gradients at points of the run, in one forward and one backward pass.

    Args:
      prompts: as `LanguageModel.prompts` takes them.
      metric: pure function of the run's `Output`, its captures included: a real scalar, or ``[b]``,
        one number per row. Rows do not touch each other, so the gradient of the sum, which is what is
        computed, is then that of each row's own number.
      sites: names or patterns, as in captures. The gradient is with respect to the value that flows
        onward from the point, after its hooks; in a layer that nothing reads it from, it is zero.
      hooks, capture, logits_at, remat: as `jmi.forward`. With ``remat`` memory grows by what
        enters a layer and by the gradients asked for, not by the insides of layers.

    Raises:
      HookError: an unknown site, or a derived one, which the model does not read.
      ArgumentError: a metric of another shape or not of real numbers.

    Example:
      >>> import jmi, jmi_models
      >>> from jmi.gradients import value_and_grad_at
      >>> lm = jmi_models.load("atlas")
      >>> paris = jmi.metrics.LogProb(lm.token_id("Paris"))
      >>> found = value_and_grad_at(lm, "The capital of France is", paris, "blocks.*.attn.hook_z")
      >>> found.grads["blocks.2.attn.hook_z"].shape[-2:] == (lm.arch.n_heads, lm.arch.d_head)
      True
    """
    check_lm(lm)
    prompts, metric = checked(lm.arch, lm.prompts(prompts)), as_function("metric", metric)
    layout = plan_points(lm.arch, sites, prompts.shape)
    run = functools.partial(
        forward, lm.arch, lm.params, prompts, capture=capture, logits_at=logits_at, remat=remat
    )
    with precise():
        zeros = zeros_at(lm, prompts, hooks, sites, layout)

        def total(zeros: list[jax.Array]) -> Any:
            probed = follow(lm.arch, hooks, prompts.shape, layout, [Probe(z) for z in zeros])
            out = run(hooks=probed)
            value = real(metric(out), prompts.shape[0])
            return value.sum(), (value, out)

        grads, (value, out) = jax.grad(total, has_aux=True)(zeros)
    return Gradients(value, wrap(layout, lm.arch.n_layers, None, grads, mask=out.mask), out)


def zeros_at(lm: LanguageModel, prompts: Any, hooks: Any, sites: Any, layout: Plan) -> list[jax.Array]:
    """Zeros of the shape and dtype of what flows at the points of ``layout``."""
    run = functools.partial(forward, lm.arch, lm.params, prompts, hooks=hooks, capture=names_of(sites))
    shapes = jax.eval_shape(lambda: run().captures)
    zeros = [jnp.zeros(shapes[g.label].shape, shapes[g.label].dtype) for g in layout.groups]
    return vary_like(zeros, (lm.params, prompts, hooks))


def real(value: jax.Array, batch: int) -> jax.Array:
    """``value`` of a metric, found to be a real scalar or one number per row; NaN has NaN as gradient."""
    as_result("the metric", value)
    shape, dtype = jnp.shape(value), jnp.result_type(value)
    if shape not in ((), (batch,)) or not jnp.issubdtype(dtype, jnp.floating):
        raise ArgumentError(
            f"the metric gave {dtype}{list(shape)}; it must give a real number, or one per row, [{batch}]"
        )
    value = jnp.asarray(value)
    # NaN may come from a constant or an index: the gradient of what is added to it would look like a number.
    return value * jnp.where(jnp.isnan(value), jnp.nan, 1).astype(value.dtype)
