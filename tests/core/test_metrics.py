import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import log_softmax, rel_entr, softmax

from jmi import metrics
from tests.support.tolerances import assert_agree

RNG = np.random.default_rng(0)
P, Q = RNG.normal(0, 3, (2, 4, 11)).astype(np.float32)


def test_kl_divergence_is_scipys():
    expected = rel_entr(softmax(P, -1), softmax(Q, -1)).sum(-1)
    np.testing.assert_allclose(metrics.kl_divergence(jnp.asarray(P), jnp.asarray(Q)), expected, rtol=2e-5)


def test_kl_divergence_to_itself_is_zero_and_impossible_tokens_do_not_make_nan():
    logits = jnp.asarray(P).at[:, 3].set(-jnp.inf)
    np.testing.assert_array_equal(metrics.kl_divergence(logits, logits), 0)
    assert jnp.isfinite(metrics.kl_divergence(logits, jnp.asarray(Q))).all()


def test_kl_divergence_has_finite_gradients_where_tokens_are_impossible():
    masked = jnp.asarray(P).at[:, 3].set(-jnp.inf)
    for baseline in (masked, jnp.asarray(P)):
        other = masked if baseline is masked else jnp.asarray(Q)
        grads = jax.grad(lambda p, q: metrics.kl_divergence(p, q).sum(), argnums=(0, 1))(baseline, other)
        assert all(jnp.isfinite(grad).all() for grad in grads)
    got = jax.grad(lambda q: metrics.kl_divergence(masked, q).sum())(jnp.asarray(Q))
    assert_agree(got, (softmax(Q, -1) - softmax(np.asarray(masked), -1)).astype(np.float32), "gradients")


def test_kl_divergence_of_nearly_equal_logits_is_never_negative():
    near = jnp.asarray(P * (1 + 1e-7), jnp.float32)
    found = metrics.kl_divergence(jnp.asarray(P), near)
    assert (found >= 0).all()
    exact = rel_entr(softmax(P.astype(float), -1), softmax(np.asarray(near, float), -1)).sum(-1)
    np.testing.assert_allclose(found, exact, rtol=0.3, atol=1e-13)


def test_probabilities_ranks_and_differences():
    tokens = jnp.asarray([0, 3, 5, 10])
    rows = np.arange(4)
    np.testing.assert_allclose(metrics.prob(jnp.asarray(P), tokens), softmax(P, -1)[rows, tokens], rtol=2e-6)
    expected = log_softmax(P, -1)[rows, tokens]
    np.testing.assert_allclose(metrics.log_prob(jnp.asarray(P), tokens), expected, rtol=2e-6)
    order = np.argsort(np.argsort(-P, -1), -1)
    np.testing.assert_array_equal(metrics.rank(jnp.asarray(P), tokens), order[rows, tokens])
    np.testing.assert_allclose(metrics.logit_diff(jnp.asarray(P), tokens, 1), P[rows, tokens] - P[:, 1])


def test_top_changes_are_the_largest_changes_of_probability():
    found = metrics.top_changes(jnp.asarray(P), jnp.asarray(Q), 4)
    change = np.abs(softmax(P, -1) - softmax(Q, -1))
    np.testing.assert_array_equal(found.tokens, np.argsort(-change, -1)[:, :4])
    np.testing.assert_allclose(
        np.abs(found.baseline - found.other), -np.sort(-change, -1)[:, :4], rtol=1e-4, atol=1e-7
    )


def test_bfloat16_logits_are_summed_in_float32():
    logits = jnp.asarray(P, jnp.bfloat16)
    value = metrics.kl_divergence(logits, jnp.asarray(Q, jnp.bfloat16))
    assert value.dtype == jnp.float32
