"""Direct logit attribution: what each part of the model gives a logit by writing to the residual stream.

What a part gives is its direct effect (Elhage et al. 2021, "A Mathematical Framework for Transformer
Circuits"): its vector in the final stream times the direction of the logit, the denominator of the
final norm being that of the run. What reaches the logit through later layers is counted there.

Axis letters: b batch, p chosen positions, d model width, h heads, m MLP width.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jmi.captures.output import Output
from jmi.checks import shown, whole_array
from jmi.engine.programs import compiled
from jmi.errors import ArgumentError, HookError
from jmi.hooks.resolve import Hooks, prepare
from jmi.interp.decompose import decomposition
from jmi.interp.decompose.decomposition import Decomposition
from jmi.lm import LanguageModel
from jmi.model.architecture import Architecture, Params, require
from jmi.model.inputs import checked
from jmi.model.sites import part_of
from jmi.numerics import wide

_SCALE = "ln_final.hook_scale"


def direct_logit_attribution(
    lm: LanguageModel,
    prompts: Any,
    target: Any,
    other: Any = None,
    *,
    by: Literal["layer", "head", "neuron"] = "layer",
    positions: Any = -1,
    hooks: Hooks | None = None,
) -> Decomposition:
    """What every part of the model gives a logit, or the logit of ``target`` minus that of ``other``.

    Each part meets only the direction of the logit: nothing of size parts x vocabulary is made, nor
    the vector of any head or neuron.

    Args:
      prompts, positions, hooks: as `decompose`.
      target, other: token ids: one, one for each prompt ``[b]``, or ``[b, p]``.
      by: ``layer``, attention and MLP of each layer; ``head``, every head in place of attention;
        ``neuron``, every neuron in place of the MLP.

    Returns:
      `Decomposition` of ``[b]``, or ``[b, p]`` for several positions, in at least float32. It sums to
      the logit (difference) of the run; in a model that soft-caps logits, to the one before the cap.

    Raises:
      ArgumentError: as `decompose`; a token id outside the vocabulary; a mixture has no neurons.
      HookError: a hook after the final norm, for which no part can stand.

    Example:
      >>> import jmi_models
      >>> from jmi.interp.decompose.direct_logit import direct_logit_attribution
      >>> lm = jmi_models.load("atlas")
      >>> paris, rome = lm.token_id("Paris"), lm.token_id("Rome")
      >>> given = direct_logit_attribution(lm, "The capital of France is", paris, rome, by="head")
      >>> given.parts["heads"].shape == (lm.arch.n_layers, lm.arch.n_heads, 1)
      True
    """
    decomposition.check_splits(lm, by)
    arch, prompts = lm.arch, checked(lm.arch, lm.prompts(prompts))
    after = (p for p in prepare(arch, hooks, prompts.shape) if part_of(arch, p) == "unembed")
    late = [point for point in after if point != _SCALE]
    if late:
        raise HookError(f"{late[0]}: acts after the sum of the parts; drop it, or hook what comes before")
    require(arch, "direction")
    shape = (prompts.shape[0], decomposition.index_of(positions, prompts).shape[-1])
    goals = (_goal(arch, target, shape), None if other is None else _goal(arch, other, shape))
    points = [*decomposition.points_of(arch, by, hooks), _SCALE]
    out = decomposition.run_at(lm, prompts, points, positions, hooks)
    parts = _logit_parts(arch, by, lm.params, out, *goals)
    return jax.tree.map(lambda x: decomposition.squeezed(x, positions, -1), parts)


def _goal(arch: Architecture, token: Any, shape: tuple[int, int]) -> jax.Array:
    """Token ids of ``shape`` ``[b, p]``."""
    d_vocab = getattr(arch, "d_vocab", None)
    if d_vocab is not None and not isinstance(token, jax.core.Tracer):
        given = np.asarray(whole_array("target and other", token))
        if not given.size or given.min() < 0 or given.max() >= d_vocab:
            raise ArgumentError(f"target and other are token ids, 0 to {d_vocab - 1}; got {shown(token)}")
    token = jnp.asarray(token)
    if token.shape not in ((), shape[:1], shape):
        raise ArgumentError(f"target and other are one token, {list(shape[:1])} or {list(shape)} of them")
    return jnp.broadcast_to(token[:, None] if token.ndim == 1 else token, shape)


@compiled(static=(0, 1))
def _logit_parts(
    arch: Any, by: str, params: Params, out: Output, target: jax.Array, other: jax.Array | None
) -> Decomposition:
    vector, constant = arch.direction(params, target, other)
    vector = vector / out[_SCALE]

    def pieces(p: Any, value: jax.Array, denominator: Any) -> tuple[jax.Array, jax.Array]:
        if by == "head":
            effects = arch.head_effects(p, value, vector, denominator)
            return effects, arch.attn_constant(p, denominator)
        return arch.neuron_effects(p, value, vector, denominator), arch.mlp_constant(p, denominator)

    def read(x: jax.Array) -> jax.Array:
        return jnp.einsum("...bpd,bpd->...bp", x.astype(wide(x.dtype)), vector)

    parts = decomposition.parts_of(arch, by, params, out, read, pieces).parts
    return Decomposition({**parts, "constant": constant})
