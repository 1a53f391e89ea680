"""Factored matrices and circuits against numpy on the whole products."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jmi
import jmi_models
from jmi.errors import ArgumentError
from jmi.interp.decompose.factored import (
    FactoredMatrix,
    composition_scores,
    full_ov_circuit,
    full_qk_circuit,
    ov_circuits,
    qk_circuits,
)
from tests.core.conftest import lively, tiny
from tests.support.committed import each, every_site, listed, load
from tests.support.tolerances import assert_agree

GROUPED = "cohere/qk_norm_untied"


@pytest.fixture
def float64() -> Any:
    with jax.enable_x64(True):
        yield


def factors(*shape: int, rank: int = 3, seed: int = 0) -> tuple[FactoredMatrix, np.ndarray]:
    """Random factored matrices of ``shape``, and their product by numpy."""
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(*shape[:-1], rank)), rng.normal(size=(*shape[:-2], rank, shape[-1]))
    return FactoredMatrix(jnp.asarray(a), jnp.asarray(b)), a @ b


def sorted_complex(values: np.ndarray) -> np.ndarray:
    return np.take_along_axis(values, np.lexsort((values.imag, values.real), axis=-1), -1)


@pytest.mark.usefixtures("float64")
def test_products_equal_those_of_the_whole() -> None:
    fm, whole = factors(2, 4, 7, 5)
    other, other_whole = factors(5, 6, rank=2, seed=1)
    rng = np.random.default_rng(2)
    right, left, vector, covector = (rng.normal(size=s) for s in ((5, 8), (3, 7), (5,), (7,)))
    assert fm.shape == (2, 4, 7, 5)
    assert_agree(fm.full(), whole)
    assert_agree(fm.T.full(), whole.swapaxes(-1, -2))
    assert_agree((fm @ right).full(), whole @ right)
    assert_agree((left @ fm).full(), left @ whole)
    assert_agree((jnp.asarray(left) @ fm).full(), left @ whole)
    assert_agree(fm @ vector, whole @ vector)
    assert_agree(covector @ fm, covector @ whole)
    assert_agree(fm[1, 2].full(), whole[1, 2])
    for product, want in (
        (fm @ other, whole @ other_whole),
        (other.T @ fm.T, (whole @ other_whole).swapaxes(-1, -2)),
    ):
        assert product.A.shape[-1] == 2
        assert_agree(product.full(), want)


@pytest.mark.parametrize("shape", [(2, 9, 7), (7, 7), (2, 4)])
@pytest.mark.usefixtures("float64")
def test_norms_and_singular_values_equal_numpy(shape: tuple[int, ...]) -> None:
    fm, whole = factors(*shape)
    assert_agree(fm.norm(), np.linalg.norm(whole, axis=(-2, -1)))
    rank = min(3, *shape[-2:])
    u, s, vh = fm.svd()
    assert_agree(s, np.linalg.svd(whole, compute_uv=False)[..., :rank])
    assert_agree(np.einsum("...mr,...r,...rn->...mn", u, s, vh), whole)
    identity = np.broadcast_to(np.eye(rank), (*shape[:-2], rank, rank))
    assert_agree(np.swapaxes(u, -1, -2) @ u, identity)
    assert_agree(vh @ np.swapaxes(vh, -1, -2), identity)
    assert_agree(s, fm.singular_values())


@pytest.mark.usefixtures("float64")
def test_eigenvalues_and_traces_equal_numpy() -> None:
    fm, whole = factors(2, 7, 7)
    want = np.linalg.eigvals(whole)
    want = np.take_along_axis(want, np.argsort(-np.abs(want), -1)[..., :3], -1)
    assert np.abs(sorted_complex(np.asarray(fm.eigenvalues())) - sorted_complex(want)).max() <= 1e-11
    assert_agree(fm.trace(), np.trace(whole, axis1=-2, axis2=-1))


def test_norms_keep_their_digits_where_factors_cancel() -> None:
    """|AB| is a thousandth of |A| |B|: of the trace of A^T A B B^T, float32 would keep one digit."""
    x, z, w = np.random.default_rng(0).normal(size=(3, 50))
    a, b = np.stack([x, x], 1).astype(np.float32), np.stack([z, 1e-3 * w - z]).astype(np.float32)
    want = np.linalg.norm(a.astype(np.float64) @ b.astype(np.float64))
    by_trace = np.sqrt(np.sum((a.T @ a) * (b @ b.T)))
    assert abs(by_trace / want - 1) > 0.02
    np.testing.assert_allclose(FactoredMatrix(jnp.asarray(a), jnp.asarray(b)).norm(), want, rtol=1e-3)


def test_a_factored_matrix_is_a_pytree_that_never_makes_its_product() -> None:
    def measured(fm: FactoredMatrix) -> Any:
        return fm.norm(), fm.svd(), fm.eigenvalues(), fm.trace(), (fm @ fm).norm(), fm.T @ jnp.ones(300)

    fm = FactoredMatrix(jnp.ones((300, 2)), jnp.ones((2, 300)))
    made = jax.make_jaxpr(measured)(fm)
    assert max(v.aval.size for eqn in made.jaxpr.eqns for v in eqn.outvars) < 300 * 300
    stacked = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), fm)
    np.testing.assert_allclose(jax.vmap(lambda m: m.norm())(stacked), [300 * 2, 300 * 8], rtol=1e-6)
    with pytest.raises(ArgumentError, match="leading axes"):
        stacked[0, 1]


@each([GROUPED, "gpt2/plain"])
def test_circuits_are_the_products_of_the_weights(name: str) -> None:
    lm = load(name, "float64")
    attn = jax.tree.map(np.asarray, lm.params["blocks"]["attn"])
    with jax.enable_x64(True):
        for given in (lm, listed(lm)):
            ov, qk = (np.asarray(f(given).full()) for f in (ov_circuits, qk_circuits))
            for layer, head in np.ndindex(lm.arch.n_layers, lm.arch.n_heads):
                shared = head * lm.arch.n_kv_heads // lm.arch.n_heads
                want = attn["W_V"][layer, :, shared] @ attn["W_O"][layer, head]
                assert_agree(ov[layer, head], want)
                want = attn["W_Q"][layer, :, head] @ attn["W_K"][layer, :, shared].T
                assert_agree(qk[layer, head], want)


def test_what_a_head_adds_is_its_circuit_times_what_it_attends_to() -> None:
    lm, x = load("gpt2/plain", "float64"), every_site("gpt2/plain", "float64")
    with jax.enable_x64(True):
        ov = np.asarray(ov_circuits(lm).full())
    attn = jax.tree.map(np.asarray, lm.params["blocks"]["attn"])
    seen = np.einsum("lbhqt,lbtd->lbqhd", x["blocks.*.attn.hook_pattern"], x["blocks.*.attn.hook_in"])
    of_bias = np.einsum("lhk,lhkd->lhd", attn["b_V"], attn["W_O"])[:, None, None]
    result = np.einsum("lbqhd,lhde->lbqhe", seen, ov) + of_bias
    assert_agree(x["blocks.*.attn.hook_result"], result)


@each([GROUPED, "bloom/six_heads_untied", "opt/post_norm"])
def test_full_circuits_go_from_tokens_to_logits_and_scores(name: str) -> None:
    lm = load(name, "float64")
    layer, head, width = lm.arch.n_layers - 1, 1, lm.arch.d_model
    with jax.enable_x64(True):
        vocabulary = np.arange(lm.arch.d_vocab, dtype=np.int32)[:, None]
        embedding = np.asarray(lm.run(vocabulary, capture=["hook_embed"])["hook_embed"][:, 0])
        each_dimension = jnp.eye(width)[None], jnp.ones((1, width, 1))
        unembedding = np.asarray(lm.arch.to_logits(lm.params, *each_dimension))[0]
        ov, qk = (np.asarray(f(lm)[layer, head].full()) for f in (ov_circuits, qk_circuits))
        full_ov = np.asarray(full_ov_circuit(lm, layer, head).full())
        full_qk = np.asarray(full_qk_circuit(lm, -1, head - lm.arch.n_heads).full())
    assert_agree(full_ov, embedding @ ov @ unembedding)
    assert_agree(full_qk, embedding @ qk @ embedding.T)


@pytest.mark.parametrize("kind", ["Q", "K", "V"])
@each([GROUPED, "gpt2/plain"])
def test_composition_scores_equal_the_formula_for_every_pair(name: str, kind: Any) -> None:
    lm = load(name, "float64")
    with jax.enable_x64(True):
        scores = np.asarray(composition_scores(lm, kind))
        ov, qk = (np.asarray(f(lm).full()) for f in (ov_circuits, qk_circuits))
    reading = {"Q": qk, "K": qk.swapaxes(-1, -2), "V": ov}[kind]
    n_layers, n_heads = lm.arch.n_layers, lm.arch.n_heads
    assert scores.shape == (n_layers, n_heads, n_layers, n_heads)
    want = np.zeros(scores.shape)
    for pair in np.ndindex(scores.shape):
        m, n = ov[pair[:2]], reading[pair[2:]]
        if pair[0] < pair[2]:
            want[pair] = np.linalg.norm(m @ n) / (np.linalg.norm(m) * np.linalg.norm(n))
    assert_agree(scores, want)


def test_one_head_that_reads_what_another_writes_scores_one() -> None:
    """Closed form: with one direction written and the same read the score is 1, with orthogonal ones 0."""
    arch = tiny(n_layers=2, n_kv_heads=4)
    params = lively(arch)
    attn = jax.tree.map(np.zeros_like, params["blocks"]["attn"])
    attn["W_V"][0, 3, 2, 0], attn["W_O"][0, 2, 0, 5] = 2, 3
    for head, direction in ((0, 5), (1, 6)):
        attn["W_Q"][1, direction, head, 0], attn["W_K"][1, 7, head, 0] = 4, 5
    params["blocks"]["attn"] = jax.tree.map(jnp.asarray, attn)
    scores = np.asarray(composition_scores(jmi.LanguageModel(arch, params), "Q"))
    want = np.zeros((2, 4, 2, 4), np.float32)
    want[0, 2, 1, 0] = 1
    assert_agree(scores, want)


def test_traced_layers_and_heads_compile_once() -> None:
    lm, traces = load("gpt2/plain"), []

    @jax.jit
    def size(params: Any, layer: Any, head: Any) -> jax.Array:
        traces.append(layer)
        return full_ov_circuit(dataclasses.replace(lm, params=params), layer, head).norm()

    every = [
        [np.asarray(size(lm.params, i, j)) for j in range(lm.arch.n_heads)] for i in range(lm.arch.n_layers)
    ]
    assert len(traces) == 1
    want = full_ov_circuit(lm, 1, 2).norm()
    assert_agree(every[1][2], want)
    assert len(np.unique(every)) == np.size(every)


def test_what_has_no_circuits_says_why() -> None:
    rwkv = jmi_models.Rwkv(6, 2, 24, 2, 12, 40, 31, (("rank_mix", 4), ("rank_decay", 5)))
    with pytest.raises(ArgumentError, match=r"attention_weights\(\)"):
        ov_circuits(jmi.LanguageModel(rwkv, jmi_models.init(rwkv, 0)))
    lm = jmi.LanguageModel(tiny(), lively(tiny()))
    with pytest.raises(ArgumentError, match=r"head=4: .*at most 3"):
        full_qk_circuit(lm, 0, 4)
    with pytest.raises(ArgumentError, match="layer=-5: "):
        full_ov_circuit(lm, -5, 0)
    with pytest.raises(ArgumentError, match="kind='O'"):
        composition_scores(lm, "O")  # type: ignore[arg-type]
