"""Folders in the layouts of others, made by hand: what they are read as, and where they belong."""

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jmi_sparse
from jmi.errors import CheckpointError, JmiError
from tests.sparse.foreign import (
    FOLDERS,
    HELD,
    LEFT_OUT,
    LEVELS,
    WEIGHTS,
    K,
    files_with,
    source,
    written,
)
from tests.sparse.made import D, F, points


def chosen(pre, k):
    """The k largest of each row, and 0 for the others."""
    kept = np.zeros_like(pre)
    for row, out in zip(pre, kept, strict=True):
        ids = np.argsort(-row, kind="stable")[:k]
        out[ids] = np.maximum(row[ids], 0)
    return kept


def grouped(pre):
    """The largest of each of K groups of neighbours."""
    kept = np.zeros_like(pre)
    for start in range(0, F, F // K):
        for row, out in zip(pre, kept, strict=True):
            best = start + np.argmax(row[start : start + F // K])
            out[best] = max(row[best], 0)
    return kept


def jumped(pre, threshold):
    return np.where((pre > threshold) & (pre > 0), pre, 0)


def expected(name, x):
    """Features and output of a good folder, from the definitions of each library."""
    w = {field: array.astype(np.float64) for field, array in HELD.items()}
    root, scale = D**0.5, D**0.5 / 1.7
    centred = name in ("hook-z", "auto-encoder", "gated", "topk", "batchtopk", "matryoshka", "sparsify")
    pre = (x - w["b_dec"] * centred) @ w["W_enc"] + w["b_enc"]
    match name:
        case "gemma-scope-embedding":
            acts = jumped(x / root @ w["W_enc"] + w["b_enc"], w["threshold"])
            return acts, acts @ w["W_dec"] * root + w["b_dec"]
        case "gemma-scope-2":
            acts = jumped(pre, w["threshold"])
            return acts, acts @ w["W_dec"] + w["b_dec"] + x @ w["W_skip"].T
        case "llama-scope":
            acts = jumped(scale * x @ w["W_enc"] + w["b_enc"], 0.3 * scale)
            return acts, (acts @ w["W_dec"] + w["b_dec"]) / scale
        case "llama-scope-later":
            acts = jumped(pre, LEVELS.astype(np.float64))[:, :18]
            return acts, acts @ w["W_dec"][:18] + w["b_dec"]
        case "gated":
            linear = (x - w["b_dec"]) @ w["W_enc"]
            value = linear * np.exp(0.5 * w["b_enc"]) + w["threshold"]
            acts = np.where(linear + w["b_enc"] > 0, np.maximum(value, 0), 0)
        case "qwen-scope" | "topk" | "sparsify":
            acts = chosen(pre, K)
        case "gemma-scope" | "jumprelu":
            acts = jumped(pre, w["threshold"])
        case "batchtopk" | "matryoshka":
            acts = jumped(pre, np.float32(0.4))
        case "sparsify-transcoder":
            acts = grouped(pre)
            return acts, acts @ w["W_dec"] + w["b_dec"] + x @ w["W_skip"].T
        case _:
            acts = np.maximum(pre, 0)
    return acts, acts @ w["W_dec"] + w["b_dec"]


@pytest.mark.parametrize("name", FOLDERS)
def test_good_ones_give_the_numbers_of_their_definitions(tmp_path, name):
    with jax.enable_x64(True):
        one = jmi_sparse.load(source(tmp_path, name), dtype="float64")
        x = points()
        given = x.reshape(-1, 2, D // 2) if one.hook_z else x
        acts, out = expected(name, x)
        # What is stored in float32 and made of logarithms there is right to its precision.
        tolerance = 1e-6 if name in ("llama-scope-later", "gated") else 1e-9
        np.testing.assert_allclose(one.encode(given), acts, rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(
            one.reconstruct(given), out.reshape(given.shape), rtol=1e-5, atol=tolerance
        )


@pytest.mark.parametrize("name", FOLDERS)
def test_how_they_are_stored_does_not_matter(tmp_path, name):
    def change(held):
        return {
            key: array.astype(np.float64) if array.dtype == np.float32 else array
            for key, array in held.items()
        }

    one = jmi_sparse.load(source(tmp_path / "a", name))
    other = jmi_sparse.load(source(tmp_path / "b", name, files_with(name, "weights", change)))
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for ours, theirs in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert ours.dtype == theirs.dtype == np.float32
        np.testing.assert_allclose(ours, theirs, rtol=2e-7)


def test_lower_case_names_are_the_same_and_twice_is_refused(tmp_path):
    lower = files_with(
        "gemma-scope", "weights", lambda held: {name.replace("W_", "w_"): held[name] for name in held}
    )
    one, other = (
        jmi_sparse.load(source(tmp_path / str(i), "gemma-scope", each))
        for i, each in enumerate([None, lower])
    )
    np.testing.assert_array_equal(one.W_dec, other.W_dec)
    both = files_with("gemma-scope", "weights", lambda held: {**held, "w_enc": held["W_enc"]})
    with pytest.raises(CheckpointError, match="surplus: w_enc"):
        jmi_sparse.load(source(tmp_path / "both", "gemma-scope", both))


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("llama-scope", {"unheard_of": 1, "dtype": "torch.bfloat16"}),
        ("hook-z", {"l1_coeff": 8e-4, "model_name": ["x"]}),
        ("gemma-scope-2", {"l0": 30, "width": "16k", "hf_hook_point_out": 3}),
        ("sparsify", {"multi_topk": True, "normalize_decoder": False}),
        ("topk", {"notes": "x" * 1000}),
    ],
)
def test_fields_that_change_nothing_do_not(tmp_path, name, config):
    files = files_with(name, "config", lambda held: {**held, **config})
    one, other = (
        jmi_sparse.load(source(tmp_path / str(i), name, each)) for i, each in enumerate([None, files])
    )
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for ours, theirs in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_threshold_that_was_never_set_is_warned_of(tmp_path):
    never = files_with("batchtopk", "weights", lambda held: {**held, "threshold": np.array(-1, np.float32)})
    with pytest.warns(UserWarning, match="never set") as told:
        one = jmi_sparse.load(source(tmp_path, "batchtopk", never))
    assert told[0].filename == __file__
    x = points().astype(np.float32)
    pre = (x - HELD["b_dec"]) @ HELD["W_enc"] + HELD["b_enc"]
    np.testing.assert_allclose(one.encode(x), np.maximum(pre, 0), rtol=1e-5, atol=1e-5)


def test_a_factor_that_is_missing_is_an_argument(tmp_path):
    files = files_with("llama-scope-later", "config", lambda c: {**c, "norm_activation": "dataset-wise"})
    path = source(tmp_path, "llama-scope-later", files)
    with pytest.warns(UserWarning, match="pass norm_factor=") as told:
        plain = jmi_sparse.load(path)
    assert told[0].filename == __file__
    assert plain.normalisation == jmi_sparse.Outside("dataset-wise")
    given, x = jmi_sparse.load(path, norm_factor=2.0), points()
    np.testing.assert_allclose(given.encode(x), plain.encode(2 * x), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(given.reconstruct(x), plain.reconstruct(2 * x) / 2, rtol=1e-4, atol=1e-5)


def test_mean_norms_may_lie_among_the_weights(tmp_path):
    """Those that are no norms say nothing: some were never set."""
    files = files_with("llama-scope-later", "config", lambda c: {**c, "norm_activation": "dataset-wise"})
    place = source(tmp_path, "llama-scope-later", files)
    with pytest.warns(UserWarning, match="pass norm_factor="):
        plain = jmi_sparse.load(place)
    name = f"dataset_average_activation_norm.{plain.hook_in}"
    for norm, factor in ((2.5, D**0.5 / 2.5), (0.0, None)):
        more = {name: np.array([norm], np.float32)}
        weights = tmp_path / WEIGHTS["llama-scope-later"]
        save_file({**load_file(weights), **more}, weights)
        if factor is None:
            with pytest.warns(UserWarning, match="pass norm_factor="):
                found = jmi_sparse.load(place)
        else:
            found = jmi_sparse.load(place)
        x = points()
        want = plain.encode((factor or 1) * x)
        np.testing.assert_allclose(found.encode(x), want, rtol=1e-4, atol=1e-5)


def test_groups_are_those_of_the_definition():
    pre = np.random.default_rng(3).normal(size=(2, 3, F)).astype(np.float32)
    found = jmi_sparse.GroupMax(K)(pre)
    np.testing.assert_array_equal(found.reshape(6, F), grouped(pre.reshape(6, F)))
    for wrong in (lambda: jmi_sparse.GroupMax(3)(pre), lambda: jmi_sparse.GroupMax(0)):
        with pytest.raises(JmiError, match="k="):
            wrong()
    with pytest.raises(JmiError, match="fold_norms"):
        jmi_sparse.GroupMax(K).scaled(np.ones(F))


def changed(tmp_path, name, **config):
    """What is loaded from a folder with other fields."""
    return jmi_sparse.load(
        source(tmp_path, name, files_with(name, "config", lambda held: {**held, **config}))
    )


def test_what_old_configs_of_sparsify_say(tmp_path):
    signed = changed(tmp_path / "a", "sparsify", signed=True, transcode=LEFT_OUT, activation=LEFT_OUT)
    assert signed.activation == jmi_sparse.TopK(K, "magnitude")
    assert signed.apply_b_dec_to_input
    for number, value in enumerate([0, None, LEFT_OUT]):
        with pytest.raises(CheckpointError, match=rf"not \[{2 * D}, {D}\]"):
            changed(tmp_path / str(number), "sparsify", num_latents=value, expansion_factor=2)
    with pytest.raises(JmiError, match=r"k must be .* not 32"):
        changed(tmp_path / "b", "sparsify", k=LEFT_OUT)


@pytest.mark.parametrize(
    ("folder", "inner", "outer"),
    [
        ("layers.3.mlp", "blocks.3.mlp.hook_in", "blocks.3.mlp.hook_out"),
        ("h.11.attn/seed2", "blocks.11.attn.hook_in", "blocks.11.attn.hook_out"),
        ("model.layers.0", "blocks.0.hook_resid_pre", "blocks.0.hook_resid_post"),
        ("layers.3.mlp.act", None, None),
        ("layers.3/of_mine", None, None),
        ("embed_tokens", None, None),
    ],
)
def test_sites_of_modules(tmp_path, folder, inner, outer):
    for number, name in enumerate(("sparsify", "sparsify-transcoder")):
        files = {f"{folder}/{path.split('/')[-1]}": held for path, held in FOLDERS[name].items()}
        one = jmi_sparse.load(written(tmp_path / str(number), files))
        assert (one.hook_in, one.hook_out) == (inner if number else outer, outer)


def test_sites_of_trainers(tmp_path):
    def trained(number, trainer, io="out", folder="."):
        config = FOLDERS["topk"]["config.json"]
        files = {
            f"{folder}/ae.pt": FOLDERS["topk"]["ae.pt"],
            f"{folder}/config.json": {"trainer": {**config["trainer"], **trainer}, "buffer": {"io": io}},
        }
        return jmi_sparse.load(written(tmp_path / str(number), files))

    path = "gemma-2-2b_topk/resid_post_layer_4_checkpoints/trainer_0_step_5"
    assert trained(0, {"submodule_name": None}, folder=path).hook_in == "blocks.4.hook_resid_post"
    assert trained(1, {"submodule_name": None}).hook_in is None
    assert trained(2, {"submodule_name": "mlp_4"}).hook_in is None
    # What goes into a module is another point.
    assert trained(3, {}, io="in").hook_in is None
    one = trained(4, {}, io="in_and_out")
    assert (one.kind, one.hook_in, one.hook_out) == ("transcoder", None, None)


def test_a_transcoder_of_llama_scope_has_a_factor_at_each_end(tmp_path):
    norms = {"in": 1.7, "out": 0.6}
    sites = {"hook_point_in": "blocks.3.ln2.hook_normalized", "hook_point_out": "blocks.3.hook_mlp_out"}
    one = changed(tmp_path, "llama-scope", dataset_average_activation_norm=norms, **sites)
    assert (one.kind, one.hook_in, one.hook_out) == ("transcoder", *sites.values())
    acts, x = expected("llama-scope", points())[0], points()
    np.testing.assert_allclose(one.encode(x), acts, rtol=1e-5, atol=1e-5)
    wanted = (acts @ HELD["W_dec"] + HELD["b_dec"]) * 0.6 / D**0.5
    np.testing.assert_allclose(one.reconstruct(x), wanted, rtol=1e-4, atol=1e-5)


def test_sites_of_gemma_scope_2(tmp_path):
    base = FOLDERS["gemma-scope-2"]
    weights = base[WEIGHTS["gemma-scope-2"]]
    plain = {name: array for name, array in weights.items() if "affine" not in name}
    for kind, site in {
        "resid_post": "hook_resid_post",
        "attn_out_all": "attn.hook_z",
        "mlp_out": "hook_mlp_out",
    }.items():
        path = written(tmp_path / kind, {f"{kind}/layer_17_width_1k_l0_big/params.safetensors": plain})
        one = jmi_sparse.load(path)
        assert (one.kind, one.hook_in, one.hook_z) == ("sae", f"blocks.17.{site}", kind == "attn_out_all")
    unknown = written(tmp_path / "mine", {"any/params.safetensors": weights})
    with pytest.warns(UserWarning, match="says where this dictionary reads") as told:
        one = jmi_sparse.load(unknown)
    assert told[0].filename == __file__
    assert (one.kind, one.hook_in, one.hook_out) == ("transcoder", None, None)
    one = jmi_sparse.load(unknown, hook="blocks.2.mlp.hook_in")
    assert (one.kind, one.hook_in, one.hook_out) == (
        "transcoder",
        "blocks.2.mlp.hook_in",
        "blocks.2.hook_mlp_out",
    )
    # The folder's name says whether there is a skip.
    without = written(
        tmp_path / "without", {"transcoder/layer_3_width_1k_l0_big_affine/params.safetensors": plain}
    )
    with pytest.raises(CheckpointError, match="missing: affine_skip_connection"):
        jmi_sparse.load(without)


def test_what_config_and_path_say_differently_is_decided_by_the_caller(tmp_path):
    point = {"hf_hook_point_in": "model.layers.9.pre_feedforward_layernorm.output"}
    files = files_with("gemma-scope-2", "config", lambda held: {**held, **point})
    path = source(tmp_path, "gemma-scope-2", files)
    with pytest.raises(JmiError, match="pass hook="):
        jmi_sparse.load(path)
    one = jmi_sparse.load(path, hook="blocks.3.mlp.hook_in")
    assert (one.hook_in, one.hook_out) == ("blocks.3.mlp.hook_in", "blocks.3.hook_mlp_out")


def test_names_of_files_say_the_layer(tmp_path):
    found = {
        name: jmi_sparse.load(source(tmp_path / name, name)) for name in ("deepseek", "goodfire", "hook-z")
    }
    assert {name: one.hook_in for name, one in found.items()} == {
        "deepseek": "blocks.19.hook_resid_post",
        "goodfire": "blocks.19.hook_resid_post",
        "hook-z": "blocks.5.attn.hook_z",
    }
    renamed = written(tmp_path / "other", {"sae.pth": FOLDERS["goodfire"][WEIGHTS["goodfire"]]})
    assert jmi_sparse.load(renamed).hook_in is None
    assert jmi_sparse.load(renamed, hook="blocks.4.hook_resid_post").hook_out == "blocks.4.hook_resid_post"
