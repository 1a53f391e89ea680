"""The tuned lens: against tuned-lens on atlas, its training against its formulas, and its folders."""

import functools
import json
import os
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jmi
import jmi_models
from jmi.errors import ArgumentError, CheckpointError, ConfigError, JmiError
from jmi.interp import TunedLens, fit_tuned_lens, logit_lens, tuned_lens
from jmi.interp.lenses.tuned_fit import descended
from tests.core.conftest import lively, tiny
from tests.support.tolerances import assert_agree

SHARED = Path(os.environ.get("JMI_SHARED") or Path(__file__).parents[3] / "shared") / "oracles" / "interp"
needs_oracle = pytest.mark.skipif(
    not (SHARED / "tuned_lens.npz").is_file(), reason="oracles/interp is not here; set JMI_SHARED"
)
TOKENS = np.random.default_rng(6).integers(0, 29, (24, 8)).astype(np.int32)
PRE = [f"{i}_pre" for i in range(3)]


@functools.cache
def small() -> jmi.LanguageModel:
    with jax.enable_x64(True):
        return jmi.LanguageModel(tiny(n_layers=3), lively(tiny(n_layers=3), jnp.float64), name="tiny")


def random_lens(seed: int = 0, dtype: Any = np.float64) -> TunedLens:
    random = np.random.default_rng(seed)
    return TunedLens(random.normal(size=(3, 16, 16)).astype(dtype), random.normal(size=(3, 16)).astype(dtype))


@needs_oracle
def test_what_tuned_lens_says_on_atlas() -> None:
    held, lm = np.load(SHARED / "tuned_lens.npz"), jmi_models.load("atlas")
    lens = jmi_models.load_lens(SHARED / "tuned_lens_folder", lm=lm)  # No warning: the hash is that of atlas.
    for i in range(4):
        said = tuned_lens(lm, held[f"{i}.tokens"][None], lens, positions=-1)
        np.testing.assert_array_equal(said.ids[:-1, 0, 0], held[f"{i}.tuned_top_ids"])
        np.testing.assert_allclose(said.values[:-1, 0, 0], held[f"{i}.tuned_top_logits"], atol=1e-4, rtol=0)
    tokens = held["eval_tokens"]
    tuned = tuned_lens(lm, tokens, lens).kl.mean((1, 2))[:-1]
    np.testing.assert_allclose(tuned, held["mean_kl_tuned_by_hidden_state"], atol=1e-4, rtol=0)
    plain = logit_lens(lm, tokens, streams=[f"{i}_pre" for i in range(6)]).kl.mean((1, 2))[:-1]
    np.testing.assert_allclose(plain, held["mean_kl_logit_by_hidden_state"], atol=1e-4, rtol=0)


@needs_oracle
def test_training_on_atlas_beats_the_logit_lens_on_other_text() -> None:
    tokens, lm = np.load(SHARED / "tuned_lens.npz")["eval_tokens"], jmi_models.load("atlas")
    lens = fit_tuned_lens(lm, tokens[:4, :64], steps=15, batch=4, progress=False)
    tuned, plain = (
        tuned_lens(lm, tokens[4:, :64], lens),
        logit_lens(lm, tokens[4:, :64], streams=[f"{i}_pre" for i in range(6)]),
    )
    assert (tuned.kl.mean((1, 2))[:-1] < plain.kl.mean((1, 2))[:-1] * 0.8).all()


def test_maps_are_residual_and_each_is_of_its_stream() -> None:
    lens = random_lens()
    with jax.enable_x64(True):
        said = tuned_lens(small(), TOKENS[:2], lens, top=29)
        streams = np.asarray(
            small().run(TOKENS[:2], capture=["blocks.*.hook_resid_pre"]).stack("hook_resid_pre")
        )
        moved = streams + np.einsum("loi,lbpi->lbpo", lens.weights, streams) + lens.biases[:, None, None]
        ids, values = jmi.interp.lens_of(small(), moved, top=29)
        plain = logit_lens(small(), TOKENS[:2], streams=PRE, top=29)
        nothing = tuned_lens(small(), TOKENS[:2], TunedLens(lens.weights * 0, lens.biases * 0), top=29)
    np.testing.assert_array_equal(said.ids[:-1], ids)
    assert_agree(said.values[:-1], values)
    assert said.labels == plain.labels == ("0_pre", "1_pre", "2_pre", "final_post")
    assert_agree(said.values[-1], plain.values[-1])
    assert_agree(nothing.values, plain.values)


def test_a_step_is_that_of_torch_with_clipping_and_decay() -> None:
    random = np.random.default_rng(0)
    x, v, rate, decay = random.normal(size=(2, 3)), np.zeros((2, 3)), 0.1, 1e-3
    maps, momentum = {"x": jnp.asarray(x)}, {"x": jnp.zeros((2, 3))}
    for step in range(3):
        g = random.normal(size=(2, 3)) * [5, 0.1, 0.01][step]
        with jax.enable_x64(True):
            given = [
                jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), t) for t in (maps, momentum, {"x": g})
            ]
            maps, momentum = jax.tree.map(np.asarray, descended(*given, jnp.array([rate, decay])))
        g = g * min(1, 1 / (np.sqrt((g**2).sum()) + 1e-6)) + decay * x
        v = 0.9 * v + g
        x = x - rate * (g + 0.9 * v)
        np.testing.assert_allclose(maps["x"], x, rtol=1e-6)


MASK = np.ones((4, 8), bool)
MASK[1, :5] = False
PADDED = jmi.Prompts(TOKENS[:4], MASK)


def slope(weights: np.ndarray, biases: np.ndarray) -> np.float64:
    """By a step to each side: how the loss of layer 1 changes along a direction of its map."""
    lenses = [TunedLens(sign * 1e-4 * weights, sign * 1e-4 * biases) for sign in (1, -1)]
    sides = [tuned_lens(small(), PADDED, lens).kl[1][MASK].mean() for lens in lenses]
    return (sides[0] - sides[1]) / 2e-4


def test_the_loss_is_the_divergence_from_what_the_model_says_over_real_tokens() -> None:
    weights, biases = np.zeros((3, 16, 16)), np.zeros((3, 16))
    one_weight, one_bias = weights.copy(), biases.copy()
    one_weight[1, 3, 5] = one_bias[1, 3] = 1
    with jax.enable_x64(True):
        lens = fit_tuned_lens(small(), PADDED, steps=1, batch=4, progress=False)
        plain = logit_lens(small(), PADDED, streams=PRE)
        slopes = slope(one_weight, biases) / slope(weights, one_bias)
    assert lens.losses is not None
    assert_agree(lens.losses[0], plain.kl[:-1][:, MASK].mean(-1), "oracle")
    # The first step is along the gradient, cut to norm 1: its direction is what can be compared.
    assert_agree(lens.weights[1, 3, 5] / lens.biases[1, 3], slopes, "slopes")


def test_training_helps_on_other_text_in_every_layer() -> None:
    with jax.enable_x64(True):
        lens = fit_tuned_lens(small(), TOKENS[:16], steps=60, batch=8, progress=False)
        again = fit_tuned_lens(small(), TOKENS[:16], steps=60, batch=8, progress=False)
        tuned, plain = tuned_lens(small(), TOKENS[16:], lens), logit_lens(small(), TOKENS[16:], streams=PRE)
    assert (tuned.kl.mean((1, 2))[:-1] < plain.kl.mean((1, 2))[:-1] * 0.8).all()
    assert lens.losses is not None
    assert lens.losses.shape == (60, 3)
    np.testing.assert_array_equal(lens.weights, again.weights)


def test_folders_come_back_as_they_went(tmp_path: Path) -> None:
    lens, lm = random_lens(dtype=np.float32), small()
    jmi_models.save_lens(lens, tmp_path / "lens", lm=lm)
    back = jmi_models.load_lens(tmp_path / "lens", lm=lm)
    np.testing.assert_array_equal(back.weights, lens.weights)
    np.testing.assert_array_equal(back.biases, lens.biases)
    config = json.loads((tmp_path / "lens" / "config.json").read_text())
    assert (config["base_model_name_or_path"], config["num_hidden_layers"], config["d_model"]) == (
        "tiny",
        3,
        16,
    )
    unembed = {**lm.params["unembed"], "W_U": np.asarray(lm.params["unembed"]["W_U"]) * 2}
    other = lm.derived(lm.arch, {**lm.params, "unembed": unembed}, "doubled")
    with pytest.warns(UserWarning, match="another unembedding than that of tiny, doubled"):
        jmi_models.load_lens(tmp_path / "lens", lm=other)
    with pytest.raises(ArgumentError, match="give the model of a tuned lens"):
        jmi_models.save_lens(lens, tmp_path / "more")
    assert not (tmp_path / "more").exists()


@needs_oracle
def test_a_folder_of_tuned_lens_is_written_as_it_was(tmp_path: Path) -> None:
    folder, lm = SHARED / "tuned_lens_folder", jmi_models.load("atlas")
    lens = jmi_models.load_lens(folder)
    jmi_models.save_lens(lens, tmp_path, lm=lm)
    assert json.loads((tmp_path / "config.json").read_text()) == json.loads(
        (folder / "config.json").read_text()
    )
    with np.printoptions(precision=1, threshold=10):  # The hash does not depend on what a session prints.
        jmi_models.load_lens(folder, lm=lm)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"lens_type": "other"}, "lens_type 'other'"),
        ({"dropout": 0.1}, "dropout: only linear_tuned_lens"),
        ({"d_model": 4}, r"0.bias has shape \[16\], not \[4\]"),
        ({"d_model": "16"}, "d_model '16': it must be a whole number"),
        ({"num_hidden_layers": 4}, "3.bias is missing"),
        ({"num_hidden_layers": 2}, "2.bias is surplus"),
        ({"bias": False}, "0.bias is surplus"),
        ({"bias": 1}, "bias 1: it must be true or false"),
    ],
)
def test_bad_folders_are_one_clear_error(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    jmi_models.save_lens(random_lens(dtype=np.float32), tmp_path, lm=small())
    config = tmp_path / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **change}))
    with pytest.raises((ConfigError, CheckpointError), match=said):
        jmi_models.load_lens(tmp_path)


def test_missing_files_are_said(tmp_path: Path) -> None:
    with pytest.raises(JmiError, match=r"none\.pt"):
        jmi_models.load_lens(tmp_path / "none.pt")
    with pytest.raises(ConfigError, match=r"config.json cannot be read"):
        jmi_models.load_lens(tmp_path)
    jmi_models.save_lens(random_lens(dtype=np.float32), tmp_path / "lens", lm=small())
    shutil.copy(tmp_path / "lens" / "config.json", tmp_path)
    with pytest.raises(CheckpointError, match=r"params.pt"):
        jmi_models.load_lens(tmp_path)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"steps": 0}, "steps=0"),
        ({"learning_rate": 0}, "learning_rate=0"),
        ({"weight_decay": -1}, "weight_decay=-1"),
        ({"batch": 0}, "batch=0"),
        ({"learning_rate": 1e300, "steps": 3, "progress": False}, "the fit diverged at step"),
    ],
)
def test_what_cannot_be_trained_is_said(options: dict[str, Any], said: str) -> None:
    with jax.enable_x64(True), pytest.raises(ArgumentError, match=said):
        fit_tuned_lens(small(), TOKENS[:2], **options)


def test_a_lens_of_another_model_is_refused() -> None:
    for lens, said in (
        (
            TunedLens(np.ones((3, 4, 4)), np.ones((3, 4))),
            "the lens is of a model of width 4; this one has 16",
        ),
        (TunedLens(np.ones((2, 16, 16)), np.ones((2, 16))), "a model of 2 layers; this one has 3"),
        (np.eye(16), "give a TunedLens"),
    ):
        with pytest.raises(ArgumentError, match=said):
            tuned_lens(small(), TOKENS[:2], lens)
    with pytest.raises(ArgumentError, match=r"give \[n, d, d\] and \[n, d\]"):
        TunedLens(np.ones((3, 4, 4)), np.ones((2, 4)))
