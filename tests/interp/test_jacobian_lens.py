"""The Jacobian lens: against torch's autograd, against its definition, and its files."""

import dataclasses
import functools
import os
import pickle
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jmi
import jmi_models
from jmi.errors import ArgumentError, CheckpointError
from jmi.interp import JacobianLens, fit_jacobian_lens, jacobian_lens, logit_lens
from jmi_models.weights.pickle_writer import write_torch
from tests.core.conftest import lively, tiny
from tests.support import torch_files
from tests.support.tolerances import assert_agree

SHARED = Path(os.environ.get("JMI_SHARED") or Path(__file__).parents[3] / "shared") / "oracles" / "interp"
needs_oracle = pytest.mark.skipif(
    not (SHARED / "jacobian_lens.npz").is_file(), reason="oracles/interp is not here; set JMI_SHARED"
)
TOKENS = np.random.default_rng(5).integers(0, 29, (3, 6)).astype(np.int32)
MASK = np.array([[True] * 6, [False] + [True] * 5, [True] * 5 + [False]])


@functools.cache
def small() -> jmi.LanguageModel:
    with jax.enable_x64(True):
        return jmi.LanguageModel(tiny(n_layers=3), lively(tiny(n_layers=3), jnp.float64), name="tiny")


def fit(prompts: Any = TOKENS, **options: Any) -> JacobianLens:
    with jax.enable_x64(True):
        return fit_jacobian_lens(small(), prompts, **{"skip_first": 1, "progress": False, **options})


@jax.jit
def _whole(tokens: Any, carry: Any, layer: Any) -> jax.Array:
    """Derivatives of what leaves layers 1 and 2 by what enters ``layer``: [target, p', o, p, i]."""

    def later(stream: jax.Array) -> jax.Array:
        lm, points = small(), ["blocks.*.hook_resid_post"]
        out = jmi.forward(lm.arch, lm.params, tokens, {}, points, start_at_layer=layer, carry=stream)
        return out.stack("hook_resid_post")[1:, 0]

    return jax.jacrev(later)(carry)[:, :, :, 0]


@functools.cache
def by_definition(layer: int) -> np.ndarray:
    """The mean over the texts of `MASK`, ``[target, o, i]``, of streams that leave ``layer``."""
    found = []
    for row in range(3):
        tokens = TOKENS[row : row + 1][:, MASK[row]]
        with jax.enable_x64(True):
            carry = small().run(tokens, stop_at_layer=layer + 1, exact=True).carry
            whole = np.asarray(_whole(tokens, carry, layer + 1))
        valid = whole[:, 1:-1, :, 1:-1]
        found.append(valid.sum(1).mean(2))
    return np.mean(found, 0)


def test_it_is_the_mean_over_texts_of_the_mean_over_positions_of_the_sum_over_later_ones() -> None:
    lens = fit(jmi.Prompts(TOKENS, MASK), layers=[-1, 0, 1], batch=2, chunk=5)
    assert (lens.layers, lens.target_layer, lens.n_prompts) == ((-1, 0, 1), 2, 3)
    assert_agree(lens.matrices, np.stack([by_definition(layer)[1] for layer in (-1, 0, 1)]), "gradients")
    earlier = fit(jmi.Prompts(TOKENS, MASK), target_layer=1)
    assert earlier.layers == (0,)
    assert_agree(earlier.matrices[0], by_definition(0)[0], "gradients")


def test_a_linear_layer_is_found_in_its_place() -> None:
    """Where the last layer adds W times the stream, the matrix of the layer before it is I + W exactly."""
    lm, weight = small(), np.random.default_rng(0).normal(size=(16, 16)) / 4

    @jmi.tree.dataclass
    class Linear:
        params: Any
        per_layer: bool = jmi.tree.static(default=False)

        def sites(self, reads: Any, writes: Any) -> dict[str, Any]:
            del reads, writes
            return {}

        def __call__(self, read: Any, written: Any, carry: Any, here: Any) -> Any:
            del written, here
            return read + jnp.einsum("bsi,oi->bso", read, self.params), carry

    ends = "blocks.2.hook_resid_pre", "blocks.2.hook_resid_post"
    with jax.enable_x64(True):
        linear = jmi.rewire(lm, {ends: Linear(jnp.asarray(weight))})
        lens = fit_jacobian_lens(linear, TOKENS, skip_first=1, layers=[1], progress=False)
    assert_agree(lens.matrices[0], np.eye(16) + weight, "gradients")


def test_halves_merge_to_the_whole_and_are_compared() -> None:
    whole, one, two = fit(), fit(TOKENS[:2]), fit(TOKENS[2:])
    merged = one.merge(two)
    assert merged.n_prompts == 3
    assert_agree(merged.matrices, whole.matrices, "gradients")
    a, b = (x.matrices - np.eye(16) for x in (one, two))
    want = [np.sum(x * y) / np.sqrt(np.sum(x**2) * np.sum(y**2)) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(one.agreement(two), want, rtol=1e-12)
    assert np.isnan(dataclasses.replace(one, matrices=np.stack([np.eye(16)] * 2)).agreement(two)).all()
    with pytest.raises(ArgumentError, match=r"lenses of layers \(0, 1\) and \(-1, 0\)"):
        one.merge(fit(target_layer=1, layers=[-1, 0]))


def test_with_identities_it_is_the_logit_lens() -> None:
    same = JacobianLens(np.stack([np.eye(16)] * 2), (0, 1), 2, 1)
    with jax.enable_x64(True):
        lens = jacobian_lens(small(), TOKENS, same, target=3, top=29)
        plain = logit_lens(small(), TOKENS, streams=["0_post", "1_post"], target=3, top=29)
        moved = jacobian_lens(small(), TOKENS, fit(), target=3, top=29, layers=[1])
    assert lens.labels == plain.labels == ("0_post", "1_post", "final_post")
    for name in ("values", "prob", "entropy"):
        assert_agree(getattr(lens, name), getattr(plain, name))
    assert moved.labels == ("1_post", "final_post")
    with jax.enable_x64(True):
        streams = small().run(TOKENS, capture=["blocks.1.hook_resid_post"])["blocks.1.hook_resid_post"]
        ids, values = jmi.interp.lens_of(small(), np.asarray(streams) @ fit().matrices[1].T, top=29)
    np.testing.assert_array_equal(moved.ids[0], ids)
    assert_agree(moved.values[0], values)


@needs_oracle
def test_what_autograd_of_torch_finds_on_atlas() -> None:
    held, lm = np.load(SHARED / "jacobian_lens.npz"), jmi_models.load("atlas")
    want = next(held[name] for name in held.files if name.startswith("J_skip16"))
    lens = fit_jacobian_lens(lm, held["fit_tokens"], layers=range(-1, 5), progress=False)
    for one, other in zip(lens.matrices, want, strict=True):
        assert np.abs(one - other).max() < 1e-5 * max(1, np.abs(other).max())
    stored = jmi_models.load_lens(SHARED / "jacobian_lens_n4.pt")
    assert (stored.layers, stored.target_layer, stored.n_prompts) == ((0, 1, 2, 3, 4), 5, 4)
    np.testing.assert_allclose(stored.matrices, lens.matrices[1:], atol=2e-3)  # float16
    for i in range(4):
        said = jacobian_lens(lm, held[f"{i}.tokens"][None], lens, positions=-1)
        np.testing.assert_array_equal(said.ids[:-1, 0, 0], held[f"{i}.readout_top_ids"])
        np.testing.assert_allclose(said.values[:-1, 0, 0], held[f"{i}.readout_top_logits"], atol=1e-4, rtol=0)
    paris = jacobian_lens(lm, "The capital of France is", lens, target="Paris", positions=-1)
    np.testing.assert_array_equal(paris.rank[:-1, 0, 0], held["0.rank_of_answer"])
    assert paris.labels[paris.first[0, 0]] == "1_post"


def test_files_come_back_as_they_went(tmp_path: Path) -> None:
    lens = fit(layers=[-1, 1], target_layer=2)
    jmi_models.save_lens(lens, tmp_path / "lens.pt")
    back = jmi_models.load_lens(tmp_path / "lens.pt")
    assert (back.layers, back.target_layer, back.n_prompts) == ((-1, 1), 2, 3)
    np.testing.assert_array_equal(back.matrices, lens.matrices.astype(np.float32))
    jmi_models.save_lens(lens, tmp_path / "half.pt", dtype="float16")
    half = jmi_models.load_lens(tmp_path / "half.pt").matrices
    np.testing.assert_array_equal(half, lens.matrices.astype(np.float16).astype(np.float32))
    huge = dataclasses.replace(lens, matrices=lens.matrices * 1e6)
    with pytest.raises(ArgumentError, match="numbers that it cannot hold"):
        jmi_models.save_lens(huge, tmp_path / "huge.pt", dtype="float16")
    assert not (tmp_path / "huge.pt").exists()


@pytest.mark.oracle
def test_torch_reads_what_is_written(tmp_path: Path) -> None:
    torch, lens = pytest.importorskip("torch"), fit()
    jmi_models.save_lens(lens, tmp_path / "lens.pt", dtype="float16")
    held = torch.load(tmp_path / "lens.pt", weights_only=True)
    assert {name: held[name] for name in held if name != "J"} == {
        "n_prompts": 3,
        "source_layers": [0, 1],
        "d_model": 16,
        "metadata": {"target_layer": 2},
    }
    for i, matrix in held["J"].items():
        assert matrix.dtype == torch.float16
        np.testing.assert_array_equal(matrix.numpy(), lens.matrices[i].astype(np.float16))


GOOD = {"J": {0: np.eye(3, dtype=np.float32)}, "n_prompts": 2, "source_layers": [0], "d_model": 3}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"J": {}}, "its J must be a dict of layers"),
        ({"J": [1]}, "its J must be a dict of layers"),
        ({"J": {"0": np.eye(3, dtype=np.float32)}}, "its J must be a dict of layers"),
        ({"J": {0: np.ones((3, 4), np.float32)}}, r"0 has shape \[3, 4\], not \[3, 3\]"),
        ({"J": {0: 5}}, "0 is no tensor of floats"),
        ({"J": {0: np.full((3, 3), np.nan, np.float32)}}, "NaN or infinite"),
        ({"J": {-2: np.eye(3, dtype=np.float32)}, "source_layers": [-2]}, "bad.pt: layers=-2"),
        ({"n_prompts": 0}, "n_prompts 0 .* do not fit"),
        ({"source_layers": [0, 1]}, "do not fit the layers 0"),
        ({"d_model": "3"}, "do not fit"),
        ({"metadata": {"target_layer": 0}}, "rising ones"),
        ({"metadata": {"target_layer": "last"}}, "target_layer='last'"),
    ],
)
def test_bad_files_are_one_clear_error(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    write_torch(tmp_path / "good.pt", GOOD)
    assert jmi_models.load_lens(tmp_path / "good.pt").target_layer == 1
    write_torch(tmp_path / "bad.pt", {**GOOD, **change})
    with pytest.raises(CheckpointError, match=said):
        jmi_models.load_lens(tmp_path / "bad.pt")


def test_no_code_in_a_file_is_run(tmp_path: Path) -> None:
    evil = pickle.dumps({"J": torch_files.Malice(f"touch {tmp_path}/owned")}, protocol=2)
    torch_files.write(tmp_path / "evil.pt", evil, {})
    deep = torch_files.program(b"]" * 12 + b"a" * 11)
    torch_files.write(tmp_path / "deep.pt", deep, {})
    with pytest.raises(CheckpointError, match=r"evil.pt: the pickle asks for"):
        jmi_models.load_lens(tmp_path / "evil.pt")
    with pytest.raises(CheckpointError, match="nested too deeply"):
        jmi_models.load_lens(tmp_path / "deep.pt")
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"skip_first": 5}, "prompt 0 has 6 tokens; with skip_first=5 give 7 or more"),
        ({"target_layer": 3}, "target_layer=3"),
        ({"target_layer": 0}, "no source below the target"),
        ({"layers": [2]}, "layers=2"),
        ({"layers": []}, "no source below"),
        ({"batch": 0}, "batch=0"),
    ],
)
def test_what_cannot_be_fitted_is_said(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ArgumentError, match=said):
        fit(**options)


def test_a_lens_of_another_model_is_refused() -> None:
    for lens, said in (
        (JacobianLens(np.ones((1, 4, 4)), (0,), 1, 1), "the lens is of a model of width 4; this one has 16"),
        (JacobianLens(np.ones((1, 16, 16)), (0,), 3, 1), "the lens is of layer 3; this model has 3"),
        (np.eye(16), "give a JacobianLens"),
    ):
        with pytest.raises(ArgumentError, match=said):
            jacobian_lens(small(), TOKENS, lens)
    with pytest.raises(ArgumentError, match=r"give different ones of \[0, 1\]"):
        jacobian_lens(small(), TOKENS, fit(), layers=[2])
    for layers in ((1, 0), (0, 0), (0, 2)):
        with pytest.raises(ArgumentError, match="rising ones from -1 to 1"):
            JacobianLens(np.ones((2, 4, 4)), layers, 2, 1)
