"""Folders of several layers, made by hand: what is read of them, by the tensors as they lie on disk."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file

import jmi_sparse
from jmi.errors import ArgumentError, CheckpointError, ConfigError
from tests.sparse.set_folders import (
    CLT_CONFIG,
    CODER_CONFIG,
    CONFIG,
    clt_folder,
    gap,
    gemma_folder,
    layer_file,
    plt_folder,
    points,
)


def test_a_topk_set_keeps_negative_values_and_its_config_decides(tmp_path):
    path, held = plt_folder(tmp_path / "a", config={"activation": "topk", "k": 4}, k=2)
    x, one = points(3), jmi_sparse.load(path)
    pre = np.stack([x[i] @ held[i]["W_enc"].T + held[i]["b_enc"] for i in range(3)])
    want = np.where(pre >= np.sort(pre, axis=-1)[..., -4:-3], pre, 0)
    assert (want < 0).any()
    assert gap(one.encode(x), want) <= 1e-5
    y = np.stack([want[i] @ held[i]["W_dec"] + held[i]["b_dec"] for i in range(3)])
    assert gap(one.reconstruct(x), y) <= 1e-5
    assert jmi_sparse.load(path, k=3).stacked.activation.k == 3
    # Without a config the tensors decide.
    (path / "config.yaml").unlink()
    assert jmi_sparse.load(path).stacked.activation == jmi_sparse.TopK(2, "none")
    single = jmi_sparse.load(path / "layer_1.safetensors")
    assert isinstance(single, jmi_sparse.Dictionary)
    assert single.activation == jmi_sparse.TopK(2, "none")
    other = layer_file(2, k=3)
    save_file(other, path / "layer_2.safetensors")
    with pytest.raises(ConfigError, match="topk needs one number"):
        jmi_sparse.load(path)
    assert jmi_sparse.load(path, k=2).stacked.activation.k == 2


def test_what_a_config_says_must_fit_the_files(tmp_path):
    for number, (said, options) in enumerate(
        [
            ({"activation": "relu"}, {"threshold": 0.5}),
            ({"activation": "relu"}, {"k": 2}),
            ({"activation": "topk", "k": 2}, {"threshold": 0.5}),
            ({"activation": "jumprelu"}, {}),
            ({}, {"threshold": 0.5, "k": 2}),
            ({"activation": "gelu"}, {}),
            ({"activation": "topk"}, {}),
            ({"activation": "topk", "k": 7}, {}),
            ({"k": 2}, {}),
        ]
    ):
        path, _ = plt_folder(tmp_path / str(number), config=said, **options)
        with pytest.raises(ConfigError, match=r"config\.yaml|k="):
            jmi_sparse.load(path)
    with pytest.raises(ConfigError, match="k=2"):
        jmi_sparse.load(plt_folder(tmp_path / "x")[0], k=2)


def test_layers_of_a_set_keep_their_numbers_and_widths(tmp_path):
    path, held = plt_folder(tmp_path / "a", layers=(3, 12), skip=True, d_out=5)
    one, x = jmi_sparse.load(path), points(2)
    assert (one.layers, one.d_in, one.d_out) == ((3, 12), 4, 5)
    assert one[12].hook_in == "blocks.12.hook_resid_mid"
    assert json.loads(one.stacked.metadata) == {"model_name": "some/model"}
    pre = x[1] @ held[12]["W_enc"].T + held[12]["b_enc"]
    want = np.maximum(pre, 0) @ held[12]["W_dec"] + held[12]["b_dec"] + x[1] @ held[12]["W_skip"].T
    assert gap(one[12].reconstruct(x[1]), want) <= 1e-5
    assert gap(one.reconstruct(x)[1], want) <= 1e-5


def test_hooks_are_those_of_an_argument(tmp_path):
    path, _ = plt_folder(tmp_path / "a")
    assert jmi_sparse.load(path, hook="blocks.*.mlp.hook_in").hook_in == "blocks.*.mlp.hook_in"
    assert jmi_sparse.load(path / "layer_1.safetensors", hook="blocks.1.a").hook_in == "blocks.1.a"
    clt, gemma = clt_folder(tmp_path / "b")[0], gemma_folder(tmp_path / "clt" / "c")[0]
    for place in (path, clt, gemma):
        with pytest.raises(ArgumentError, match="hook="):
            jmi_sparse.load(place, hook="blocks.1.mlp.hook_in")
        with pytest.raises(ArgumentError, match="norm_factor="):
            jmi_sparse.load(place, norm_factor=2.0)
    assert jmi_sparse.load(clt, hook="blocks.*.a").hook_in == "blocks.*.a"


def by_hand(held, x, encode, rows, bias, skip=None):
    """Outputs of a cross-layer transcoder, from the tensors as they lie on disk."""
    features = [encode(i, x[i]) for i in range(len(x))]
    y = np.stack([np.broadcast_to(bias(t), (len(x[0]), len(bias(t)))) for t in range(len(x))]).copy()
    for t in range(len(x)):
        for i in range(t + 1):
            y[t] += features[i] @ rows(i, t)
        if skip is not None:
            y[t] += x[t] @ skip(t)
    return np.stack(features), y


@pytest.mark.parametrize("threshold", [None, 0.4])
def test_a_cross_layer_folder_with_skips(tmp_path, threshold):
    path, held = clt_folder(tmp_path / "a", d_out=5, skip=True, threshold=threshold)
    one, x = jmi_sparse.load(path), points(3)

    def encode(i, x):
        pre = x @ held[f"W_enc_{i}"][f"W_enc_{i}"].T + held[f"W_enc_{i}"][f"b_enc_{i}"]
        return np.where(pre > (threshold or 0), pre, 0)

    features, y = by_hand(
        held,
        x,
        encode,
        lambda i, t: held[f"W_dec_{i}"][f"W_dec_{i}"][:, t - i],
        lambda t: held[f"W_enc_{t}"][f"b_dec_{t}"],
        # As it lies on disk, not transposed.
        lambda t: held[f"W_enc_{t}"][f"W_skip_{t}"],
    )
    assert gap(one.encode(x), features) <= 1e-5
    assert gap(one.reconstruct(x), y) <= 1e-5
    assert (one.hook_in, one.layers, one.targets) == ("blocks.*.hook_resid_mid", (0, 1, 2), (0, 1, 2))


def test_thresholds_of_some_layers_alone_are_refused(tmp_path):
    for layer in (0, 2):
        path, held = clt_folder(tmp_path / str(layer), threshold=0.4)
        del held[f"W_enc_{layer}"][f"threshold_{layer}"]
        save_file(held[f"W_enc_{layer}"], path / f"W_enc_{layer}.safetensors")
        with pytest.raises(CheckpointError, match="threshold"):
            jmi_sparse.load(path)


def test_negative_thresholds_are_said_and_let_no_negative_value_through(tmp_path):
    x = points(3)
    for path in (
        plt_folder(tmp_path / "a", threshold=-0.5)[0],
        clt_folder(tmp_path / "b", threshold=-0.5)[0],
    ):
        with pytest.warns(UserWarning, match="18 thresholds are negative") as told:
            one = jmi_sparse.load(path)
        assert told[0].filename == __file__
        assert (np.asarray(one.encode(x)) >= 0).all()
        with pytest.warns(UserWarning, match="thresholds are negative"):
            jmi_sparse.save(one, tmp_path / "c" / path.name, format="circuit-tracer")


@pytest.mark.parametrize("kind", ["clt", "crosscoder"])
@pytest.mark.parametrize("config", [True, False])
def test_gemma_scope_2_over_layers(tmp_path, kind, config):
    names = {"clt": "width_262k_l0_big_affine", "crosscoder": "layer_5_9_12_width_1m_l0_big"}
    said = {"clt": CLT_CONFIG, "crosscoder": CODER_CONFIG}[kind] if config else None
    affine = kind == "clt"
    path, held = gemma_folder(tmp_path / kind / names[kind], affine=affine, config=said)
    one, x = jmi_sparse.load(path), points(3)
    layers = (0, 1, 2) if affine else (5, 9, 12)
    hooks = ("mlp.hook_in", "hook_mlp_out") if affine else ("hook_resid_post", "hook_resid_post")
    assert (one.layers, one.targets) == (layers, layers)
    assert (one.hook_in, one.hook_out) == tuple(f"blocks.*.{hook}" for hook in hooks)

    def encode(i, x):
        pre = x @ held[i]["w_enc"] + held[i]["b_enc"]
        return np.where(pre > held[i]["threshold"], pre, 0)

    skip = (lambda t: held[t]["affine_skip_connection"]) if affine else None
    features, y = by_hand(
        held, x, encode, lambda i, t: held[i]["w_dec"][:, t], lambda t: held[t]["b_dec"], skip
    )
    assert gap(one.encode(x), features) <= 1e-5
    assert gap(one.reconstruct(x), y) <= 1e-5
    # One file of it: its own layer, what it writes into that and later ones.
    alone = jmi_sparse.load(path / "params_layer_1.safetensors")
    assert (alone.layers, alone.targets) == (layers[1:2], layers[1:])
    want = np.stack([features[1] @ held[1]["w_dec"][:, t] for t in (1, 2)])
    want[0] += held[1]["b_dec"] + (x[1] @ skip(1) if affine else 0)
    assert gap(alone.reconstruct(x[1:2]), want) <= 1e-5


def test_rows_for_earlier_layers_are_not_read(tmp_path):
    path, _ = gemma_folder(tmp_path / "clt" / "a", lower=3.0)
    with pytest.warns(UserWarning, match="earlier layers that are not zeros"):
        odd = jmi_sparse.load(path)
    usual = jmi_sparse.load(gemma_folder(tmp_path / "clt" / "b")[0])
    np.testing.assert_array_equal(odd.reconstruct(points(3)), usual.reconstruct(points(3)))


@pytest.mark.parametrize(
    "said",
    [
        {"type": "sae"},
        {"architecture": "topk"},
        {"affine_connection": False},
        {"hf_hook_point_in": "model.layers.{all}.output"},
        {"hf_hook_point_in": "model.layers.{0,1}.pre_feedforward_layernorm.output"},
        {"hf_hook_point_in": "model.layers.{0,2,1}.pre_feedforward_layernorm.output"},
        {"hf_hook_point_out": "model.layers.{0,1,5}.post_feedforward_layernorm.output"},
        {"hf_hook_point_in": 3},
    ],
)
def test_a_config_of_gemma_scope_2_that_does_not_fit_is_said(tmp_path, said):
    path, _ = gemma_folder(tmp_path / "clt", config=CLT_CONFIG | said)
    with pytest.raises(ConfigError, match=r"config\.json"):
        jmi_sparse.load(path)


def places(*names):
    return {"transcoders": list(names)}


def test_curation_lists_of_local_files(tmp_path):
    path, _ = plt_folder(tmp_path / "some" / "repo")
    (path / "config.yaml").unlink()
    usual = jmi_sparse.load(path)
    names = [f"hf://some/repo/layer_{i}.safetensors?revision=new" for i in (2, 0, 1)]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG | places(*names)))
    with pytest.warns(UserWarning, match="stands where layer 0 is") as told:
        one = jmi_sparse.load(tmp_path)
    assert told[0].filename == __file__
    assert (one.layers, one.hook_in) == ((0, 1, 2), "blocks.*.hook_resid_mid")
    np.testing.assert_array_equal(one.stacked.W_enc, usual.stacked.W_enc[jnp.array([2, 0, 1])])
    # As it was: entries with their layer, in any order, in a file of any name.
    old = [{"id": "a", "layer": i, "filepath": f"some/repo/layer_{i}.safetensors"} for i in (2, 0, 1)]
    (tmp_path / "list.yaml").write_text(yaml.safe_dump({"model_name": "m", "transcoders": old}))
    again = jmi_sparse.load(tmp_path / "list.yaml")
    np.testing.assert_array_equal(again.stacked.W_dec, usual.stacked.W_dec)


def test_a_curation_list_says_what_to_download(tmp_path):
    names = [f"hf://some/repo/sub/layer_{i}.safetensors?revision=new" for i in range(2)]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG | places(*names)))
    with pytest.raises(ConfigError) as told:
        jmi_sparse.load(tmp_path)
    assert "hf download some/repo sub/layer_0.safetensors --revision new --local-dir some/repo" in str(
        told.value
    )


def test_a_curation_list_of_gemma_scope_2(tmp_path):
    path, _ = gemma_folder(tmp_path / "google" / "gemma-scope-2-270m-pt" / "clt" / "width_262k", count=2)
    usual = jmi_sparse.load(path)
    names = [f"hf://{path.relative_to(tmp_path)}/params_layer_{i}.safetensors" for i in range(2)]
    said = CONFIG | {"model_kind": "cross_layer_transcoder"}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(said | places(*names)))
    one = jmi_sparse.load(tmp_path)
    np.testing.assert_array_equal(one.W_dec, usual.W_dec)
    assert one.hook_in == "blocks.*.mlp.hook_in"
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(said | places(*reversed(names))))
    with pytest.raises(ConfigError, match="of one folder"):
        jmi_sparse.load(tmp_path)
