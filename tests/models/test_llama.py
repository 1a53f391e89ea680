"""Llama against Hugging Face, against its own identities, and against itself in other layouts."""

import dataclasses
import functools
import importlib
import json
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import jmi_models
from jmi.lm import LanguageModel
from jmi_models.families import llama
from tests.oracles import llama_grid

BARS = {"float32": 2e-5, "float64": 1e-10}
IDENTITY_BAR = 1e-12


def relative(got: Any, want: Any) -> float:
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape
    return float(np.abs(got - want).max() / np.abs(want).max())


@functools.cache
def fixture() -> dict[str, np.ndarray]:
    with np.load(llama_grid.FILE, allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


@functools.cache
def load(name: str, dtype: str = "float32") -> LanguageModel:
    with tempfile.TemporaryDirectory() as folder, jax.enable_x64(dtype == "float64"):
        path = llama_grid.write_folder(Path(folder), llama_grid.GRID[name])
        return jmi_models.load(path, dtype=dtype)


def every_site(lm: Any, tokens: Any, **kwargs: Any) -> dict[str, np.ndarray]:
    """Every site of the model; those inside blocks stacked over layers."""
    with jax.enable_x64(lm.dtype == np.float64):
        out = lm.run(tokens, capture=list(lm.arch.sites()), **kwargs)
        return {site: np.asarray(value) for site, value in out.captures.items()}


def assert_agrees(lm: Any, tokens: np.ndarray, oracle: dict[str, np.ndarray], bar: float) -> None:
    """Each site of ``oracle``, each layer on its own, within ``bar``, and the same top-10."""
    got = every_site(lm, tokens)
    assert set(oracle) == set(got) - llama_grid.UNEXPOSED
    errors = {}
    for site, want in oracle.items():
        layers = range(len(want)) if site.startswith("blocks.") else [...]
        errors |= {(site, str(i)): relative(got[site][i], want[i]) for i in layers}
    worst = max(errors, key=lambda key: errors[key])
    assert errors[worst] <= bar, (worst, errors[worst])
    top = [np.argsort(-x["hook_logits"], -1)[..., :10] for x in (got, oracle)]
    np.testing.assert_array_equal(*top)


@pytest.mark.parametrize("dtype", BARS)
@pytest.mark.parametrize("name", llama_grid.COMMITTED)
def test_every_site_equals_the_committed_oracle(name: str, dtype: str) -> None:
    prefix = f"{name}/sites/"
    sites = {key.removeprefix(prefix): value for key, value in fixture().items() if key.startswith(prefix)}
    sites |= {site: sites[twin] for site, twin in llama_grid.TWINS.items()}
    assert_agrees(load(name, dtype), fixture()[f"{name}/tokens"], sites, BARS[dtype])


@pytest.mark.parametrize("name", llama_grid.COMMITTED)
def test_committed_oracle_belongs_to_the_grid(name: str) -> None:
    assert json.loads(str(fixture()[f"{name}/config"])) == llama_grid.GRID[name]
    np.testing.assert_array_equal(fixture()[f"{name}/tokens"], llama_grid.tokens(llama_grid.GRID[name]))
    for key, value in llama_grid.tensors(llama_grid.GRID[name]).items():
        np.testing.assert_array_equal(fixture()[f"{name}/weights/{key}"], value)


@pytest.fixture(scope="module")
def oracle() -> Any:
    pytest.importorskip("torch", reason="the live oracle needs torch")
    pytest.importorskip("transformers", reason="the live oracle needs transformers")
    return importlib.import_module("tests.oracles.llama")


@pytest.mark.oracle
@pytest.mark.parametrize("dtype", BARS)
@pytest.mark.parametrize("name", llama_grid.GRID)
def test_every_site_equals_the_live_oracle(name: str, dtype: str, oracle: Any) -> None:
    config = llama_grid.GRID[name]
    sites = oracle.run(config, dtype)
    assert_agrees(load(name, dtype), llama_grid.tokens(config), sites, BARS[dtype])


@pytest.mark.oracle
@pytest.mark.parametrize("name", llama_grid.GRID)
def test_folder_saved_by_hugging_face_loads_as_the_same_model(name: str, oracle: Any, tmp_path: Path) -> None:
    oracle.save(llama_grid.GRID[name], tmp_path)
    lm = jmi_models.load(tmp_path)
    assert lm.arch == load(name).arch
    jax.tree.map(np.testing.assert_array_equal, lm.params, load(name).params)


@pytest.mark.parametrize("name", llama_grid.GRID)
def test_identities_between_sites(name: str) -> None:
    lm = load(name, "float64")
    x = {site.removeprefix("blocks.*."): v for site, v in every_site(lm, _tokens(name)).items()}
    params = jax.tree.map(np.asarray, lm.params)
    attn, mlp = params["blocks"]["attn"], params["blocks"]["mlp"]
    groups = lm.arch.n_heads // lm.arch.n_kv_heads
    k, v = (np.repeat(x[site], groups, axis=3) for site in ("attn.hook_rot_k", "attn.hook_v"))
    zero = np.zeros((lm.arch.n_layers, 1))
    scores = np.einsum("lbqhk,lbthk->lbhqt", x["attn.hook_rot_q"], k) * lm.arch.d_head**-0.5
    visible = np.broadcast_to(np.tri(llama_grid.LENGTH, dtype=bool), scores.shape)
    assert (np.isneginf(x["attn.hook_attn_scores"]) == ~visible).all()
    weights = np.exp(x["attn.hook_attn_scores"])
    down = np.einsum("lbsm,lmd->lbsd", x["mlp.hook_post"], mlp["W_out"])
    identities = {
        "scores": (x["attn.hook_attn_scores"][visible], scores[visible]),
        "softmax": (x["attn.hook_pattern"], weights / weights.sum(-1, keepdims=True)),
        "pattern @ v": (x["attn.hook_z"], np.einsum("lbhqt,lbthk->lbqhk", x["attn.hook_pattern"], v)),
        "z @ W_O": (x["attn.hook_result"], np.einsum("lbshk,lhkd->lbshd", x["attn.hook_z"], attn["W_O"])),
        "heads": (x["attn.hook_out"], x["attn.hook_result"].sum(3) + _bias(attn, "b_O", zero)),
        "W_out": (x["mlp.hook_out"], down + _bias(mlp, "b_out", zero)),
        "middle": (x["hook_resid_mid"], x["hook_resid_pre"] + x["hook_attn_out"]),
        "layer": (x["hook_resid_post"], x["hook_resid_pre"] + x["hook_attn_out"] + x["hook_mlp_out"]),
        "chain": (x["hook_resid_post"][:-1], x["hook_resid_pre"][1:]) if lm.arch.n_layers > 1 else (1, 1),
        "embed": (x["hook_embed"], x["hook_resid_pre"][0]),
        "norm 1": (x["ln1.hook_normalized"] * x["ln1.hook_scale"], x["hook_resid_pre"]),
        "norm 2": (x["ln2.hook_normalized"] * x["ln2.hook_scale"], x["hook_resid_mid"]),
        "scale 1": (x["ln1.hook_scale"], _rms(x["hook_resid_pre"], lm.arch.eps)),
        "scale 2": (x["ln2.hook_scale"], _rms(x["hook_resid_mid"], lm.arch.eps)),
        "gain 1": (x["attn.hook_in"], _gained(x["ln1.hook_normalized"], params["blocks"]["ln1"]["w"])),
        "gain 2": (x["mlp.hook_in"], _gained(x["ln2.hook_normalized"], params["blocks"]["ln2"]["w"])),
        "final scale": (x["ln_final.hook_scale"], _rms(x["hook_resid_post"][-1], lm.arch.eps)),
        "final norm": (
            x["hook_final_norm"] * x["ln_final.hook_scale"],
            x["hook_resid_post"][-1] * params["ln_final"]["w"],
        ),
        "logits": (x["hook_logits"], x["hook_final_norm"] @ _unembedding(lm.arch, params)),
    }
    errors = {identity: relative(*pair) for identity, pair in identities.items()}
    assert max(errors.values()) <= IDENTITY_BAR, errors


def _bias(tree: dict[str, np.ndarray], name: str, absent: np.ndarray) -> np.ndarray:
    return tree.get(name, absent)[:, None, None]


def _rms(x: np.ndarray, eps: float) -> np.ndarray:
    return np.sqrt((x**2).mean(-1, keepdims=True) + eps)


def _gained(x: np.ndarray, gain: np.ndarray) -> np.ndarray:
    return x * gain[:, None, None]


def _unembedding(arch: Any, params: Any) -> np.ndarray:
    return params["embed"]["W_E"].T if arch.tied else params["unembed"]["W_U"]


def _tokens(name: str) -> np.ndarray:
    return llama_grid.tokens(llama_grid.GRID[name])


LENGTHS, BUFFER = (10, 6), 16


@functools.cache
def unpadded(name: str) -> list[dict[str, np.ndarray]]:
    rows = zip(_tokens(name), LENGTHS, strict=True)
    return [every_site(load(name), row[None, :n]) for row, n in rows]


# Lengths on both sides of the original context of dynamic (8) and longrope (8).
@pytest.mark.parametrize("name", ["all_biases", "llama3", "dynamic_beyond", "longrope_beyond"])
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    offsets=st.tuples(*(st.integers(0, BUFFER - n) for n in LENGTHS)),
    filler=st.integers(0, llama_grid.GRID["grouped"]["vocab_size"] - 1),
)
def test_padding_on_either_side_changes_nothing(name: str, offsets: tuple[int, ...], filler: int) -> None:
    tokens = np.full((2, BUFFER), filler, np.int32)
    mask = np.zeros((2, BUFFER), bool)
    for row, (start, n) in enumerate(zip(offsets, LENGTHS, strict=True)):
        tokens[row, start : start + n] = _tokens(name)[row, :n]
        mask[row, start : start + n] = True
    padded, sites = every_site(load(name), tokens, mask=mask), load(name).arch.sites()
    for row, (start, n) in enumerate(zip(offsets, LENGTHS, strict=True)):
        real = slice(start, start + n)
        for site, want in unpadded(name)[row].items():
            got = padded[site][:, row] if site.startswith("blocks.") else padded[site][row]
            got = got[..., real, real] if "key" in sites[site].axes else _positions(got, site, real)
            want = want.reshape(got.shape)
            finite = np.isfinite(want)
            assert (np.isfinite(got) == finite).all(), site
            assert relative(got[finite], want[finite]) <= 1e-6, site


def _positions(value: np.ndarray, site: str, real: slice) -> np.ndarray:
    return value[:, real] if site.startswith("blocks.") else value[real]


@pytest.mark.parametrize("name", ["all_biases", "multi_head", "wide_heads_one_layer"])
def test_listed_layers_equal_stacked_layers(name: str) -> None:
    lm = load(name, "float64")
    with jax.enable_x64(True):
        blocks = [jax.tree.map(lambda w, i=i: w[i], lm.params["blocks"]) for i in range(lm.arch.n_layers)]
    listed = every_site(dataclasses.replace(lm, params={**lm.params, "blocks": blocks}), _tokens(name))
    for site, want in every_site(lm, _tokens(name)).items():
        got, finite = listed[site], np.isfinite(want)
        assert (np.isfinite(got) == finite).all(), site
        assert relative(got[finite], want[finite]) <= IDENTITY_BAR, site


@pytest.mark.parametrize("name", ["grouped", "all_biases", "yarn_mscale"])
def test_bfloat16_model_computes_in_bfloat16_and_stays_close(name: str) -> None:
    exact, rounded = every_site(load(name), _tokens(name)), every_site(load(name, "bfloat16"), _tokens(name))
    scales = {site for site in exact if site.endswith("hook_scale")}
    assert {site for site, value in rounded.items() if value.dtype == np.float32} == scales
    assert all(rounded[site].dtype == jnp.bfloat16 for site in set(rounded) - scales)
    assert relative(rounded["hook_logits"], exact["hook_logits"]) <= 0.03


def test_from_config_reads_every_size() -> None:
    arch = llama.from_config(llama_grid.GRID["odd_head_dim"])
    sizes = (arch.n_layers, arch.d_model, arch.n_heads, arch.n_kv_heads, arch.d_head, arch.d_mlp)
    assert sizes == (2, 36, 4, 2, 10, 28)
    assert (arch.d_vocab, arch.n_ctx, arch.eps, arch.act_fn, arch.tied) == (61, 64, 1e-5, "silu", False)
