"""What every writer of the edge graph added to the residual stream in a run.

Axis letters: l layers, b batch, s sequence, d model width, h heads, k head width, w writers.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jmi import tree
from jmi.captures.output import Output
from jmi.checks import shown
from jmi.engine.forward import forward
from jmi.engine.layers import over_layers
from jmi.engine.programs import compiled
from jmi.errors import ArgumentError
from jmi.interp.edges.graph import edge_graph
from jmi.lm import LanguageModel
from jmi.model.architecture import Architecture
from jmi.model.inputs import Prompts, checked
from jmi.model.sites import table_of
from jmi.numerics import wide

_INPUTS = ("hook_embed", "hook_pos_embed")
_Z, _SCALE, _MLPS = "blocks.*.attn.hook_z", "blocks.*.ln1_post.hook_scale", "blocks.*.hook_mlp_out"
_POINTS = (*_INPUTS, _Z, _SCALE, _MLPS)


@tree.dataclass
class Written:
    """What every writer added in a run, or is to add in its place; a pytree of at least float32.

    What a head adds is linear in what is kept of it, so means and differences of these are means and
    differences of what was added. Biases added after the heads belong to no writer.

    Attributes:
      input: ``[b, s, d]``, token and position embedding.
      heads: ``[l, b, s, h, k]``, ``attn.hook_z``, over ``ln1_post.hook_scale`` in models that normalise
        what attention adds.
      mlps: ``[l, b, s, d]``, ``hook_mlp_out``.

    Example:
      >>> import jmi_models
      >>> from jmi.interp.edges.written import Written, written
      >>> lm = jmi_models.load("atlas")
      >>> run = written(lm, "The capital of France is")
      >>> zeros = Written(0.0, 0.0, 0.0)
      >>> over_examples = lambda x, axis: x.mean(axis, keepdims=True)
      >>> means = Written(*map(over_examples, (run.input, run.heads, run.mlps), (0, 1, 1)))
    """

    input: Any
    heads: Any
    mlps: Any


def written(lm: LanguageModel, prompts: Any) -> Written:
    """What every writer adds in a run.

    Raises:
      ArgumentError: a model without edges, see `edge_graph`; prompts that it cannot read.
    """
    edge_graph(lm)
    return _run(lm, checked(lm.arch, lm.prompts(prompts)))


@compiled()
def _run(lm: LanguageModel, prompts: Prompts) -> Written:
    return of_run(forward(lm.arch, lm.params, prompts, capture=points(lm.arch)))


def check_written(given: Any) -> None:
    """Raise ArgumentError for what is no `Written`."""
    if not isinstance(given, Written):
        raise ArgumentError(
            f"ablated={shown(given)}: give a Written, such as jmi.interp.written(...) of a run"
        )


def points(arch: Architecture) -> list[str]:
    """Points from whose values `of_run` reads what was written."""
    return [point for point in _POINTS if point in table_of(arch)]


def of_run(out: Output) -> Written:
    """What every writer added in a run that captured `points`."""
    held = {name: x.astype(wide(x.dtype)) for name, x in out.captures.items() if name in _POINTS}
    start = functools.reduce(jnp.add, (held[name] for name in _INPUTS if name in held))
    heads = held[_Z] / held[_SCALE][..., None] if _SCALE in held else held[_Z]
    return Written(start, heads, held[_MLPS])


def head_outputs(arch: Any, layer_params: Any, heads: jax.Array) -> jax.Array:
    """What the heads of a layer add, ``[b, s, h, d]``, from its part ``[b, s, h, k]`` of `Written`."""
    return arch.head_outputs(layer_params, heads, jnp.ones((1, 1, 1), heads.dtype))


def outputs(lm: LanguageModel, run: Written) -> jax.Array:
    """What every writer adds, ``[b, w, s, d]``."""
    heads = over_layers(lm.arch, functools.partial(head_outputs, lm.arch), lm.params["blocks"], run.heads)
    inside = jnp.concatenate([jnp.moveaxis(heads, 3, 2), run.mlps[:, :, None]], axis=2)
    inside = jnp.moveaxis(inside, 0, 1)
    inside = inside.reshape(inside.shape[0], -1, *inside.shape[3:])
    return jnp.concatenate([run.input[:, None], inside], axis=1)
