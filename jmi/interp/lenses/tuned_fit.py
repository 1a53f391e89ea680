"""Training a tuned lens: one run of the model for each step, and the gradients of one map after the other.

Axis letters: n layers, c positions of all texts of a batch, d width of the stream.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from jmi import metrics
from jmi.captures.capture import Capture
from jmi.checks import flag, real_number, whole_number
from jmi.engine.forward import precise
from jmi.engine.programs import compiled
from jmi.errors import ArgumentError
from jmi.interp.lenses.reading import vocabulary
from jmi.interp.lenses.tuned import Translated, TunedLens
from jmi.interp.lenses.unembedding import logits_of
from jmi.lm import LanguageModel, check_lm
from jmi.model.inputs import checked
from jmi.model.sites import table_of
from jmi.numerics import wide

MOMENTUM, LARGEST_NORM = 0.9, 1.0
"""Nesterov's, and the norm to which the gradient of all maps together is cut."""


def fit_tuned_lens(
    lm: LanguageModel,
    prompts: Any,
    *,
    steps: int = 250,
    batch: int = 16,
    learning_rate: float = 0.1,
    weight_decay: float = 1e-3,
    seed: int = 0,
    progress: bool = True,
) -> TunedLens:
    """Maps for which each stream says what the model says in the end, as nearly as they can.

    The loss of a layer is KL(what the model says || what the stream says), the mean over tokens. Stochastic
    gradient descent as in tuned-lens 0.2.0: Nesterov momentum 0.9, the gradient of all layers cut to norm 1,
    a rate that falls to zero in a line. Weight decay pulls towards the logit lens, where training starts.

    Args:
      prompts: as `LanguageModel.prompts` takes them; drawn anew in each round. tuned-lens uses texts of 2,048
        tokens and 250 steps of 262,144 tokens.
      batch: texts in a step; logits of all their tokens are held, of one layer at a time.
      learning_rate: at the first step.
      seed: of the order of the texts.
      progress: show a bar, if standard error is a terminal.

    Returns:
      `TunedLens` in at least float32, with its losses.

    Raises:
      ArgumentError: numbers that are none; a model that no lens can read; a loss that is not finite.

    Measure it on other text than it was fitted to (``tuned_lens(...).kl``), beside the logit lens.

    Example:
      >>> import jmi, jmi_models
      >>> lm = jmi_models.load("atlas")
      >>> texts = ["The capital of France is Paris.", "The capital of Japan is Tokyo."]
      >>> jmi.interp.fit_tuned_lens(lm, texts, steps=2, progress=False)
      TunedLens(6 layers, width 128)
    """
    vocabulary(check_lm(lm))
    steps, batch, seed = (
        whole_number("steps", steps),
        whole_number("batch", batch),
        whole_number("seed", seed, 0),
    )
    rate = real_number("learning_rate", learning_rate, above=0)
    decay = real_number("weight_decay", weight_decay, above=-1e-30)
    found = checked(lm.arch, lm.prompts(prompts))
    batch, depth = min(batch, found.shape[0]), lm.arch.n_layers
    width = table_of(lm.arch)["blocks.*.hook_resid_post"].sizes[-1] or 0
    zeros = (np.zeros((depth, width, width), wide(lm.dtype)), np.zeros((depth, width), wide(lm.dtype)))
    state = (Translated(*zeros), Translated(*zeros))
    points = [Capture("blocks.*.hook_resid_pre"), Capture(f"blocks.{depth - 1}.hook_resid_post")]
    losses, order = [], _order(found.shape[0], batch, seed)
    for step in tqdm(range(steps), disable=None if flag("progress", progress) else True):
        rows = next(order)
        part = jax.tree.map(lambda x, rows=rows: np.asarray(x)[rows], found)
        out = lm.run(part, None, points, logits_at=-1)
        mask = np.ones(part.shape, bool) if part.mask is None else part.mask
        numbers = np.array([rate * (1 - step / steps), decay], zeros[0].dtype)
        streams = out.stack("hook_resid_pre"), out[points[1].name]
        state, loss = _step(lm.arch, lm.params, state, streams, mask, numbers)
        losses.append(np.asarray(loss))
        if not np.isfinite(losses[-1]).all():
            break
    maps = jax.tree.map(np.asarray, state[0])
    if not all(np.isfinite(x).all() for x in (losses[-1], maps.weights, maps.biases)):
        raise ArgumentError(
            f"the fit diverged at step {len(losses) - 1}; use a smaller learning_rate, or float32"
        )
    return TunedLens(maps.weights, maps.biases, np.stack(losses))


def _order(rows: int, batch: int, seed: int) -> Iterator[np.ndarray]:
    """Batches of rows: each row once in every round, in an order of its own; batches go across rounds."""
    random, left = np.random.default_rng(seed), np.empty(0, int)
    while True:
        while len(left) < batch:
            left = np.concatenate([left, random.permutation(rows)])
        yield left[:batch]
        left = left[batch:]


@compiled(static=0)
def _step(
    arch: Any, params: Any, state: tuple[Any, Any], given: tuple[Any, Any], mask: Any, numbers: Any
) -> tuple[tuple[Any, Any], jax.Array]:
    """Maps and momentum after one step, and the loss of each layer ``[n]`` before it.

    Args:
      given: the stream entering each layer and the final one.
    """
    streams, final = given
    n, d = streams.shape[0], streams.shape[-1]
    share = jnp.asarray(mask).reshape(-1).astype(numbers.dtype)
    share = share / share.sum(keepdims=True)
    with precise():
        said = logits_of(arch, params, final.reshape(-1, d))

        def loss(maps: Any, stream: jax.Array) -> jax.Array:
            one = jax.tree.map(lambda x: x[None], maps)
            moved = one(stream[None].astype(numbers.dtype))[0].astype(stream.dtype)
            logits = logits_of(arch, params, moved)
            return (metrics.kl_divergence(said, logits) * share).sum()

        maps, momentum = state
        found = jax.lax.map(lambda each: jax.value_and_grad(loss)(*each), (maps, streams.reshape(n, -1, d)))
    losses, grads = found
    return descended(maps, momentum, grads, numbers), losses


def descended(maps: Any, momentum: Any, grads: Any, numbers: jax.Array) -> tuple[Any, Any]:
    """Maps and momentum after a step of torch's SGD (Nesterov), ``numbers`` being the rate and the decay."""
    rate, decay = numbers[0], numbers[1]
    norm = jnp.sqrt(sum(jnp.square(g).sum() for g in jax.tree.leaves(grads)))
    cut = jnp.minimum(1, LARGEST_NORM / (norm + 1e-6))
    down = jax.tree.map(lambda g, x: cut * g + decay * x, grads, maps)
    momentum = jax.tree.map(lambda v, g: MOMENTUM * v + g, momentum, down)
    return jax.tree.map(lambda x, g, v: x - rate * (g + MOMENTUM * v), maps, down, momentum), momentum
