"""Every family against Hugging Face, against its own identities, and against itself in other layouts."""

import importlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import jmi
import jmi_models
from jmi.errors import ConfigError
from jmi.lm import LanguageModel
from jmi_models.families import FAMILIES, family_of
from tests.oracles import grid
from tests.oracles.recording import UNEXPOSED
from tests.support.committed import arch_of, each, every_site, load, put_together, run
from tests.support.random_params import random_params
from tests.support.tolerances import BARS, assert_agree

MIXED = ["qwen2_moe/sparse_step", "qwen2_moe/dense_first_window", "qwen3_moe/dense_last"]
"""Configs in which some layers are mixtures and others have an MLP."""

COPIES = {f"blocks.*.hook_{reader}" for reader in ("q_input", "k_input", "v_input", "mlp_in")}
"""What readers see of the stream: the stream itself, as `test_identities_between_sites` asserts."""

POST_NORM_POINTS = {f"blocks.*.ln{i}_post.{p}" for i in (1, 2) for p in ("hook_scale", "hook_normalized")}


def assert_agrees(family: str, got: dict[str, np.ndarray], oracle: dict[str, np.ndarray], dtype: str) -> None:
    """Each site of ``oracle``, each layer on its own, and the same top-10."""
    assert set(oracle) == set(got) - UNEXPOSED[family] - POST_NORM_POINTS - COPIES
    for site, want in oracle.items():
        if not site.startswith("blocks."):
            assert_agree({site: got[site]}, {site: want.astype(dtype)}, "oracle")
            continue
        # The oracle has NaN in layers that lack a point, jmi has nothing.
        has = [i for i, layer in enumerate(want) if not np.isnan(layer).all()]
        assert len(got[site]) == len(has), site
        for row, i in zip(got[site], has, strict=True):
            assert_agree({(site, i): row}, {(site, i): want[i].astype(dtype)}, "oracle")
    top = [np.argsort(-x["hook_logits"], -1)[..., :10] for x in (got, oracle)]
    np.testing.assert_array_equal(*top)


def test_every_family_is_in_the_grid_and_committed() -> None:
    # The recurrent families have an oracle of their own (test_rwkv_oracle).
    transformers = {name for name in FAMILIES if not name.startswith("rwkv")}
    assert transformers == set(grid.FAMILIES) == {name.split("/")[0] for name in grid.COMMITTED}


@pytest.mark.parametrize("dtype", BARS["oracle"])
@each(grid.COMMITTED)
def test_every_site_equals_the_committed_oracle(name: str, dtype: str) -> None:
    oracle = grid.committed(name).sites
    assert_agrees(name.split("/")[0], every_site(name, dtype), oracle, dtype)


@each(grid.COMMITTED)
def test_committed_oracle_belongs_to_the_grid(name: str) -> None:
    assert grid.committed(name).config == grid.GRID[name]
    np.testing.assert_array_equal(grid.committed(name).tokens, grid.tokens(grid.GRID[name]))


@each(grid.COMMITTED)
def test_a_folder_loads_as_the_key_map_of_its_family_says(name: str, tmp_path: Path) -> None:
    """Which is how the other tests put their models together, without files."""
    held, want = grid.committed(name), load(name)
    lm = jmi_models.load(grid.write_folder(tmp_path, held.config, held.tensors))
    assert lm.arch == want.arch
    jax.tree.map(np.testing.assert_array_equal, lm.params, want.params)


@pytest.fixture(scope="module")
def oracle() -> Any:
    pytest.importorskip("torch", reason="the live oracle needs torch")
    pytest.importorskip("transformers", reason="the live oracle needs transformers")
    return importlib.import_module("tests.oracles.hugging_face")


@pytest.mark.oracle
@pytest.mark.parametrize("dtype", BARS["oracle"])
@each(grid.GRID)
def test_every_site_equals_the_live_oracle(name: str, dtype: str, oracle: Any) -> None:
    tensors, sites = oracle.run(grid.GRID[name], dtype)
    lm = put_together(grid.GRID[name], tensors, dtype)
    assert_agrees(name.split("/")[0], run(lm, grid.tokens(grid.GRID[name])), sites, dtype)


@pytest.mark.oracle
@each(grid.GRID)
def test_folders_of_hugging_face_load_and_are_written_back_bit_by_bit(
    name: str, oracle: Any, tmp_path: Path
) -> None:
    config = grid.GRID[name]
    oracle.save(config, tmp_path / "theirs")
    lm = jmi_models.load(tmp_path / "theirs")
    jmi_models.save(tmp_path / "ours", lm.arch, lm.params, config)
    again = put_together(config, grid.tensors(oracle.shapes(config), config["model_type"]))
    back = jmi_models.load(tmp_path / "ours")
    assert lm.arch == again.arch == back.arch
    jax.tree.map(np.testing.assert_array_equal, lm.params, again.params)
    jax.tree.map(np.testing.assert_array_equal, lm.params, back.params)


@pytest.mark.oracle
@each(MIXED)
def test_gradients_and_sweeps_of_mixtures_in_some_layers_equal_the_live_oracle(
    name: str, oracle: Any
) -> None:
    """The gradient of a sum of logits at the embedding, by torch; cells of a sweep, by runs of their own."""
    config = grid.GRID[name]
    tokens = grid.tokens(config)
    weigh = np.random.default_rng(0).normal(size=(*tokens.shape, arch_of(name).d_vocab))
    tensors, slopes = oracle.embedding_gradient(config, weigh)
    lm = put_together(config, tensors, "float64")
    with jax.enable_x64(True):
        metric = lambda out: (out.logits * weigh).sum()
        found = jmi.value_and_grad_at(lm, tokens, metric, "hook_embed").grads["hook_embed"]
        assert_agree(found, slopes, "gradients")
        grid_ = jmi.Grid(layer=range(lm.arch.n_layers), position=[0, -1])
        hooks = {"blocks.*.mlp.hook_out": jmi.At(grid_["layer"], jmi.Zero(positions=grid_["position"]))}
        cells = jmi.sweep(lm, tokens, hooks, lambda out: out.logits, logits_at=-1, progress=False)
        for layer, place in np.ndindex(*grid_.shape):
            hook = {f"blocks.{layer}.mlp.hook_out": jmi.Zero(positions=[0, -1][place])}
            assert_agree(cells[layer, place], lm.run(tokens, hook, logits_at=-1).logits)


@pytest.mark.parametrize(
    "dense", [{"mlp_only_layers": [0, 1]}, {"decoder_sparse_step": 3}, {"mlp_only_layers": 1}]
)
def test_a_mixture_needs_a_layer(dense: dict[str, Any]) -> None:
    config = grid.GRID["qwen3_moe/normalised"] | dense
    with pytest.raises(ConfigError, match=r"no layer is left|must be a list"):
        family_of(config).from_config(config)


@each(grid.COMMITTED)
def test_identities_between_sites(name: str) -> None:
    lm, sites = load(name, "float64"), every_site(name, "float64")
    arch = lm.arch
    x = {site.removeprefix("blocks.*."): value for site, value in sites.items()}
    params = jax.tree.map(np.asarray, lm.params)
    attn = params["blocks"]["attn"]
    groups = arch.n_heads // arch.n_kv_heads
    values = np.repeat(x["attn.hook_v"], groups, axis=3)
    zero = np.zeros((arch.n_layers, 1))
    identities = {
        "pattern @ v": (x["attn.hook_z"], np.einsum("lbhqt,lbthk->lbqhk", x["attn.hook_pattern"], values)),
        "z @ W_O": (x["attn.hook_result"], np.einsum("lbshk,lhkd->lbshd", x["attn.hook_z"], attn["W_O"])),
        "heads": (x["attn.hook_out"], x["attn.hook_result"].sum(3) + _bias(attn, "b_O", zero)),
        "softmax": (x["attn.hook_pattern"], _softmax(x["attn.hook_attn_scores"], attn.get("sinks"))),
        **_residual_identities(arch, x),
        **_mlp_identities(params["blocks"]["mlp"], x, zero),
        **_readout_identities(arch, params, x),
    }
    for identity, (one, other) in identities.items():
        assert_agree({identity: one}, {identity: other})


def _residual_identities(arch: Any, x: dict[str, np.ndarray]) -> dict[str, tuple[Any, Any]]:
    identities = {"chain": (x["hook_resid_post"][:-1], x["hook_resid_pre"][1:])}
    for reader in ("q", "k", "v"):
        seen = x[f"hook_{reader}_input"]
        identities[reader] = (seen, np.broadcast_to(x["hook_resid_pre"][:, :, :, None], seen.shape))
    streams = {"stream": "mlp.hook_in"} | dict.fromkeys(("pre", "post", "both"), "hook_resid_mid")
    identities["mlp"] = (
        x["hook_mlp_in"],
        x["hook_resid_pre" if arch.parallel else streams[arch.norms.where]],
    )
    if not arch.parallel:
        identities["middle"] = (x["hook_resid_mid"], x["hook_resid_pre"] + x["hook_attn_out"])
    if not arch.norms.in_stream:
        added = x["hook_resid_pre"] + x["hook_attn_out"] + x["hook_mlp_out"]
        identities["layer"] = (x["hook_resid_post"], added)
    if not arch.norms.written:
        identities["attn added"] = (x["hook_attn_out"], arch.residual_scale * x["attn.hook_out"])
        identities["mlp added"] = (x["hook_mlp_out"], arch.residual_scale * x["mlp.hook_out"])
    entry = x["hook_embed"] + x.get("hook_pos_embed", 0)
    return {**identities, "embed": (x["hook_resid_pre"][0], entry)}


def _mlp_identities(p: Any, x: dict[str, np.ndarray], zero: np.ndarray) -> dict[str, tuple[Any, Any]]:
    if "mlp.hook_post" not in x:
        return {}
    down = np.einsum("lbsm,lmd->lbsd", x["mlp.hook_post"], p["W_out"])
    return {"W_out": (x["mlp.hook_out"], down + _bias(p, "b_out", zero))}


def _readout_identities(arch: Any, params: Any, x: dict[str, np.ndarray]) -> dict[str, tuple[Any, Any]]:
    """Each point after the layers, from those right before it."""
    identities, p, head = {}, params.get("ln_final", {}), params.get("unembed", {})
    final = x.get("hook_final_norm", x["hook_resid_post"][-1])
    if not arch.norms.in_stream:
        gain = p.get("w", 1) + (arch.norms.norm.gain == "1 + w")
        identities["gain"] = (final, x["ln_final.hook_normalized"] * gain + p.get("b", 0))
    read = final @ head["W_out"] if "W_out" in head else final
    unembedding = params["embed"]["W_E"].T if arch.tied else head["W_U"]
    logits = x["unembed.hook_out"] * arch.logit_scale
    if arch.logit_softcap is not None:
        logits = arch.logit_softcap * np.tanh(logits / arch.logit_softcap)
    return {
        **identities,
        "read": (x["unembed.hook_in"], read),
        "unembed": (x["unembed.hook_out"], x["unembed.hook_in"] @ unembedding + head.get("b_U", 0)),
        "logits": (x["hook_logits"], logits),
    }


def _softmax(scores: np.ndarray, sinks: np.ndarray | None) -> np.ndarray:
    weights = np.exp(scores)
    total = weights.sum(-1, keepdims=True)
    if sinks is not None:
        total = total + np.exp(sinks)[:, None, :, None, None]
    return weights / total


def _bias(tree: dict[str, np.ndarray], name: str, absent: np.ndarray) -> np.ndarray:
    return tree.get(name, absent)[:, None, None]


@each(name for name in grid.COMMITTED if not arch_of(name).norms.in_stream)
def test_normalised_streams_have_the_scale_they_say(name: str) -> None:
    x, arch = every_site(name, "float64"), load(name).arch
    streams = {"ln_final": x["blocks.*.hook_resid_post"][-1]}
    if arch.norms.read:
        streams["blocks.*.ln1"] = x["blocks.*.hook_resid_pre"]
    for norm, stream in streams.items():
        centred = stream - stream.mean(-1, keepdims=True) if arch.norms.norm.kind == "layer" else stream
        scale = np.sqrt((centred**2).mean(-1, keepdims=True) + arch.norms.norm.eps)
        assert_agree(x[f"{norm}.hook_scale"], scale)
        assert_agree(x[f"{norm}.hook_normalized"], centred / scale)


@each(grid.COMMITTED)
def test_sites_have_the_shapes_of_their_table(name: str) -> None:
    arch, x = arch_of(name), every_site(name, "float64")
    for point, site in arch.sites().items():
        layers = () if site.n_layers is None else (site.n_layers,)
        assert x[point].shape == (*layers, *site.shape(*grid.tokens(grid.GRID[name]).shape)), point
    width = ("d_model", arch.d_model) if arch.d_embed is None else ("d_embed", arch.d_embed)
    read = arch.sites()["unembed.hook_in"]
    assert (read.axes[-1], read.sizes[-1]) == width


@pytest.mark.parametrize("name", [name for name in grid.GRID if any(arch_of(name).attn.windows)])
def test_windows_end_at_the_last_key(name: str) -> None:
    arch = arch_of(name)
    lm = LanguageModel(arch, random_params(arch, 0, 0.1))
    out = lm.run(grid.tokens(grid.GRID[name]), capture=["blocks.*.attn.hook_pattern"])
    pattern = np.asarray(out.stack("attn.hook_pattern"))
    distance = np.arange(grid.LENGTH)[:, None] - np.arange(grid.LENGTH)[None]
    windows = arch.attn.windows * (arch.n_layers // len(arch.attn.windows))
    for layer, window in enumerate(windows):
        seen = (distance >= 0) & (distance < (window or grid.LENGTH))
        assert (pattern[layer][..., seen] > 0).all()
        assert (pattern[layer][..., ~seen] == 0).all()


def test_scores_are_divided_by_the_number_of_their_layer() -> None:
    """Of a GPT-2 that asks for it, which no committed config does: counted from one."""
    arch = arch_of("gpt2/by_layer_untied")
    lm = LanguageModel(arch, random_params(arch, 0, 0.3))
    x = run(lm, grid.tokens(grid.GRID["gpt2/by_layer_untied"]))
    q, k, scores = (x[f"blocks.*.attn.hook_{name}"] for name in ("q", "k", "attn_scores"))
    want = np.einsum("lbqhk,lbthk->lbhqt", q, k) * np.float32(arch.attn.scale)
    want /= np.arange(1, arch.n_layers + 1, dtype=np.float32)[:, None, None, None, None]
    seen = np.isfinite(scores)
    assert arch.n_layers == 3
    assert_agree(scores[seen], want[seen])


@each(name for name in grid.COMMITTED if arch_of(name).experts)
def test_each_token_is_given_its_experts(name: str) -> None:
    x, experts = every_site(name, "float64"), arch_of(name).experts
    weights = x["blocks.*.mlp.hook_expert_weights"]
    assert ((weights > 0).sum(-1) == experts.top_k).all()
    chosen = np.argsort(-x["blocks.*.mlp.hook_router_logits"], -1)[..., : experts.top_k]
    assert (np.take_along_axis(weights, chosen, -1) > 0).all()
    if experts.normalise:
        assert_agree(weights.sum(-1), np.ones(weights.shape[:-1]))


@each(grid.COMMITTED)
def test_random_initialisation_fits_every_family(name: str) -> None:
    shapes = jax.eval_shape(lambda: jmi_models.init(arch_of(name), 0))
    assert jax.tree.map(np.shape, shapes) == jax.tree.map(np.shape, load(name).params)


def test_random_initialisation_follows_from_the_seed() -> None:
    arch = arch_of("gpt2/plain")
    one, again, other = jmi_models.init(arch, 0), jmi_models.init(arch, 0), jmi_models.init(arch, 1)
    jax.tree.map(np.testing.assert_array_equal, one, again)
    assert not np.array_equal(one["embed"]["W_E"], other["embed"]["W_E"])
    assert np.asarray(one["blocks"]["mlp"]["W_in"]).std() == pytest.approx(0.02, rel=0.1)
