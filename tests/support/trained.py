"""A small TopK dictionary trained on atlas, once for each process: some of its features are of capitals."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import jmi_models
import jmi_sparse
from jmi_models.embedded.facts import COUNTRIES

SITE = "blocks.4.hook_resid_post"
FEATURES, K, STEPS, BATCH = 384, 10, 600, 128


@functools.cache
def on_atlas() -> jmi_sparse.Dictionary:
    """Trained on the streams of sentences about countries, by Adam, with the auxiliary loss left out."""
    lm = jmi_models.load("atlas")
    x = streams(lm)
    mean, scale = x.mean(0), np.sqrt(np.square(x - x.mean(0)).sum(-1).mean())
    rows = jax.random.normal(jax.random.key(0), (FEATURES, x.shape[1]))
    rows = rows / jnp.linalg.norm(rows, axis=-1, keepdims=True)
    start = {"W_enc": rows.T, "W_dec": rows, "b_enc": jnp.zeros(FEATURES), "b_dec": jnp.asarray(mean / scale)}
    trained = jax.tree.map(np.asarray, _trained(start, jnp.asarray(x / scale)))
    # In the units of the stream: inputs were divided by their scale.
    return jmi_sparse.Dictionary(
        W_enc=jnp.asarray(trained["W_enc"] / scale),
        W_dec=jnp.asarray(trained["W_dec"] * scale),
        b_enc=jnp.asarray(trained["b_enc"]),
        b_dec=jnp.asarray(trained["b_dec"] * scale),
        activation=jmi_sparse.TopK(K),
        apply_b_dec_to_input=True,
        hook_in=SITE,
        hook_out=SITE,
    )


def streams(lm):
    """What flows at the site on all tokens but the first, ``[n, d]``."""
    ways = ("The capital of {} is", "{}'s capital is", "The currency of {} is the", "The language of {} is")
    texts = [way.format(country.name) for way in ways for country in COUNTRIES]
    prompts = lm.prompts(texts)
    values = np.asarray(lm.run(prompts, capture=[SITE])[SITE])
    real = np.array(prompts.mask)
    real[np.arange(len(real)), real.argmax(1)] = False
    return values[real]


@jax.jit
def _trained(params, x):
    zeros = jax.tree.map(jnp.zeros_like, params)

    def loss(p, batch):
        made = jmi_sparse.Dictionary(**p, activation=jmi_sparse.TopK(K), apply_b_dec_to_input=True)
        return jnp.square(made.decode(made.encode(batch)) - batch).sum(-1).mean()

    def step(state, key):
        p, first, second, count = state
        batch = x[jax.random.randint(key, (BATCH,), 0, len(x))]
        grads = jax.grad(loss)(p, batch)
        first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, first, grads)
        second = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, second, grads)
        rate = 4e-3 * jnp.sqrt(1 - 0.999**count) / (1 - 0.9**count)
        p = jax.tree.map(lambda w, m, v: w - rate * m / (jnp.sqrt(v) + 1e-8), p, first, second)
        norms = jnp.linalg.norm(p["W_dec"], axis=-1, keepdims=True)
        return ({**p, "W_dec": p["W_dec"] / norms}, first, second, count + 1), None

    keys = jax.random.split(jax.random.key(1), STEPS)
    return jax.lax.scan(step, (params, zeros, zeros, jnp.float32(1)), keys)[0][0]
