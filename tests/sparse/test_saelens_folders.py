"""Folders made by hand: what versions before 6 left out, what lies beside the weights, and bad folders."""

import json
import math
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import jmi_sparse
from jmi.errors import ArgumentError, CheckpointError, ConfigError, JmiError, OutputError
from tests.sparse.made import CONFIG, LEFT_OUT, D, F, dictionary, folder, points, weights
from tests.sparse.test_dictionary import temporal

FLOATS = {name: array.astype(np.float32) for name, array in weights().items()}
OLD = {"metadata": LEFT_OUT, "architecture": LEFT_OUT, "device": LEFT_OUT, "reshape_activations": LEFT_OUT}


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ({"hook_point": "blocks.3.hook_resid_pre"}, {"hook_in": "blocks.3.hook_resid_pre", "hook_z": False}),
        ({"hook_name": "blocks.3.attn.hook_z"}, {"hook_out": "blocks.3.attn.hook_z", "hook_z": True}),
        ({"apply_b_dec_to_input": LEFT_OUT}, {"apply_b_dec_to_input": True}),
        ({"normalize_activations": False}, {"normalisation": None}),
        ({"normalize_activations": LEFT_OUT}, {"normalisation": None}),
        (
            {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 3}},
            {"activation": jmi_sparse.TopK(3), "rescale_acts_by_decoder_norm": False},
        ),
        ({"lr": 3e-4, "wandb_project": "x", "dataset_path": "d"}, {"activation": jmi_sparse.ReLU()}),
    ],
)
def test_defaults_of_versions_before_6(tmp_path, said, found):
    one = jmi_sparse.load(folder(tmp_path / "old", OLD | said))
    assert {name: getattr(one, name) for name in found} == found


def test_a_finetuned_scale_is_applied_and_one_that_is_not_meant_refused(tmp_path):
    scale = np.linspace(0.5, 2, F, dtype=np.float32)
    for name in ("scaling_factor", "finetuning_scaling_factor"):
        told = OLD | {"finetuning_scaling_factor": True}
        one = jmi_sparse.load(folder(tmp_path / name, told, {name: scale}))
        np.testing.assert_allclose(one.W_dec, FLOATS["W_dec"] * scale[:, None], rtol=1e-6)
    ones = folder(tmp_path / "ones", OLD, {"scaling_factor": np.ones(F, np.float32)})
    np.testing.assert_array_equal(jmi_sparse.load(ones).W_dec, FLOATS["W_dec"])
    with pytest.raises(CheckpointError, match="scaling_factor is not 1"):
        jmi_sparse.load(folder(tmp_path / "wrong", OLD, {"scaling_factor": scale}))
    with pytest.raises(CheckpointError, match="no tensor of that name"):
        jmi_sparse.load(folder(tmp_path / "none", OLD | {"finetuning_scaling_factor": True}))


def test_the_factor_is_an_argument_or_that_of_the_checkpoint(tmp_path):
    mode, x = {"normalize_activations": "expected_average_only_in"}, points()
    with pytest.warns(UserWarning, match="pass norm_factor="):
        plain = jmi_sparse.load(folder(tmp_path / "a", mode))
    given = jmi_sparse.load(tmp_path / "a", norm_factor=2.0)
    np.testing.assert_allclose(given.encode(x), plain.encode(2 * x), rtol=1e-4, atol=1e-5)
    held = jmi_sparse.load(folder(tmp_path / "b", mode, activation_scaler='{"scaling_factor": 2.0}'))
    np.testing.assert_array_equal(held.W_enc, given.W_enc)
    with pytest.raises(ArgumentError, match="norm_factor=2"):
        jmi_sparse.load(folder(tmp_path / "c"), norm_factor=2.0)
    for text in ('{"scaling_factor": "2"}', '{"scaling_factor": 0}', '{"scaling_factor": true}', "["):
        with pytest.raises(ConfigError, match="activation_scaler"):
            jmi_sparse.load(folder(tmp_path / "d", mode, activation_scaler=text))


def test_what_a_true_normalisation_was_before_6(tmp_path):
    with pytest.warns(UserWarning, match="expected_average_only_in"):
        one = jmi_sparse.load(folder(tmp_path / "a", OLD | {"normalize_activations": True}))
    assert one.normalisation == jmi_sparse.Outside("expected_average_only_in")


@pytest.mark.parametrize(
    ("architecture", "rescaled"), [("topk", False), ("abstopk", False), ("batchtopk", True)]
)
def test_whether_features_are_in_units_of_their_rows_where_the_config_does_not_say(
    tmp_path, architecture, rescaled
):
    kept = {"topk_threshold": np.array(0.5)} if architecture == "batchtopk" else {}
    one = jmi_sparse.load(folder(tmp_path / "a", {"architecture": architecture, "k": 3}, kept))
    assert one.rescale_acts_by_decoder_norm == rescaled


def test_arguments_come_before_what_the_files_say(tmp_path):
    path = folder(tmp_path / "a", {"architecture": "topk", "k": 4})
    one = jmi_sparse.load(path / "sae_weights.safetensors", k=7, hook="blocks.2.hook_mlp_out")
    assert (one.activation.k, one.hook_in, one.hook_out) == (
        7,
        "blocks.2.hook_mlp_out",
        "blocks.2.hook_mlp_out",
    )
    assert repr(one) == (
        "Dictionary(sae, TopK, 6 -> 20 -> 6, float32, blocks.2.hook_mlp_out -> blocks.2.hook_mlp_out)"
    )
    assert jmi_sparse.load(path, dtype="bfloat16").W_enc.dtype == jnp.bfloat16
    with pytest.raises(ConfigError, match="keeps no fixed number"):
        jmi_sparse.load(folder(tmp_path / "b"), k=3)


def test_density_is_kept(tmp_path):
    density = np.linspace(-10, -1, F, dtype=np.float32)
    one = jmi_sparse.load(folder(tmp_path / "a", sparsity={"sparsity": density}))
    np.testing.assert_array_equal(one.log_density, density)
    jmi_sparse.save(one, tmp_path / "b")
    np.testing.assert_array_equal(load_file(tmp_path / "b" / "sparsity.safetensors")["sparsity"], density)


def test_what_saelens_has_no_name_for_is_not_saved(tmp_path):
    threshold = jmi_sparse.JumpReLU(jnp.ones(F))
    for made in (
        dictionary(jmi_sparse.TopK(3, "none")),
        dictionary(threshold, rescale_acts_by_decoder_norm=True),
        dictionary(skip=("b_enc",)),
        dictionary(W_skip=jnp.zeros((D, D))),
        dictionary(jmi_sparse.TopK(3), kind="transcoder"),
        dictionary(normalisation=jmi_sparse.Scalar(jnp.float32(2))),
    ):
        with pytest.raises(ArgumentError, match="SAELens has no"):
            jmi_sparse.save(made, tmp_path / "a")
    assert not (tmp_path / "a").exists()
    with pytest.raises(ArgumentError, match="give a dictionary"):
        jmi_sparse.save({}, tmp_path / "a")
    with pytest.raises(ArgumentError, match="format="):
        jmi_sparse.save(dictionary(threshold), tmp_path / "a", format="npz")


def test_temporal_untied_comes_back(tmp_path):
    with jax.enable_x64(True):
        jmi_sparse.save(temporal(), tmp_path)
        again = jmi_sparse.load(tmp_path, dtype="float64")
        assert again.layers[1].heads == 2
        np.testing.assert_array_equal(
            again.reconstruct(points(1, 4, D)), temporal().reconstruct(points(1, 4, D))
        )


WORDS = [None, [], {}, "x", -1, 0, 1.5, True, 2**40, 10**30]
BAD_FIELDS = [
    *(("d_in", value) for value in [*WORDS, LEFT_OUT, D + 1]),
    *(("d_sae", value) for value in [*WORDS, LEFT_OUT, F - 1]),
    *(("architecture", value) for value in [*WORDS, "crosscoder"]),
    *(("normalize_activations", value) for value in [[], {}, "x", 1, "constant_scalar_rescale"]),
    *(("reshape_activations", value) for value in [[], {}, "x", 1]),
    *(("apply_b_dec_to_input", value) for value in [[], "true", 1]),
    *(("dtype", value) for value in [[], "int8", 1]),
    *(("metadata", value) for value in [[], "x", {"hook_name": 3}, {"hook_name": "a\x1b[31m"}]),
    *((name, 1) for name in ("unheard_of", "finetuning_scaling_factor", "hook_point")),
]


@pytest.mark.parametrize(("name", "value"), BAD_FIELDS)
def test_a_bad_field_is_one_error(tmp_path, name, value):
    said = {name: value}
    if name == "metadata" and isinstance(value, dict):
        said = {name: CONFIG["metadata"] | value}
    with pytest.raises((ConfigError, CheckpointError)) as told:
        jmi_sparse.load(folder(tmp_path / "a", said))
    assert len(str(told.value)) < 1000
    assert "\x1b" not in str(told.value)


@pytest.mark.parametrize("k", [[], "8", 0, -1, F + 1, 2.5, True, None])
def test_a_bad_k_is_one_error(tmp_path, k):
    with pytest.raises(ConfigError, match="k must be"):
        jmi_sparse.load(folder(tmp_path / "a", {"architecture": "topk", "k": k}))


@pytest.mark.parametrize(
    "said",
    [
        {"apply_b_dec_to_input": True},
        {"reshape_activations": "hook_z"},
        {"normalize_activations": "layer_norm"},
        {"d_out": LEFT_OUT},
    ],
)
def test_what_a_transcoder_cannot_be(tmp_path, said):
    given = {"architecture": "transcoder", "d_out": D, "apply_b_dec_to_input": False}
    jmi_sparse.load(folder(tmp_path / "good", given))
    with pytest.raises(ConfigError):
        jmi_sparse.load(folder(tmp_path / "a", given | said))


NAN, INF = (np.full((F, D), value, np.float32) for value in (math.nan, math.inf))
BAD_ARRAYS = [
    {"W_enc": LEFT_OUT},
    {"b_enc": LEFT_OUT, "b_dec": LEFT_OUT},
    {"W_dec": FLOATS["W_enc"]},
    {"b_dec": np.zeros((1, D), np.float32)},
    {"threshold": np.zeros(F, np.float32)},
    {"W_dec": NAN},
    {"W_dec": INF},
    {"b_enc": np.zeros(F, np.int32)},
    {"b_enc": np.zeros(F, bool)},
    {"b_enc": np.zeros(F, np.complex64)},
]


@pytest.mark.parametrize("arrays", BAD_ARRAYS)
def test_bad_weights_are_one_error(tmp_path, arrays):
    with pytest.raises(CheckpointError, match="sae_weights") as told:
        jmi_sparse.load(folder(tmp_path / "a", None, arrays))
    assert all(name in str(told.value) for name in arrays)


def test_all_that_is_wrong_is_in_one_message(tmp_path):
    arrays = {"W_enc": LEFT_OUT, "W_dec": FLOATS["W_enc"], "extra": np.zeros(3, np.float32)}
    with pytest.raises(CheckpointError, match=r"missing: W_enc; surplus: extra; W_dec has shape \[6, 20\]"):
        jmi_sparse.load(folder(tmp_path / "a", None, arrays))
    said = {"d_in": 0, "dtype": "int8", "reshape_activations": "x", "unheard_of": 1}
    with pytest.raises(ConfigError, match=r"unheard_of.*d_in must.*dtype 'int8'.*reshape_activations 'x'"):
        jmi_sparse.load(folder(tmp_path / "b", said))


def test_weights_too_large_for_a_dtype_are_said(tmp_path):
    path = folder(tmp_path / "a", None, {"b_dec": np.full(D, 1e5, np.float32)})
    with pytest.raises(CheckpointError, match="finite in float16: b_dec"):
        jmi_sparse.load(path, dtype="float16")


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"d_in": NaN}', "\xff", "[" * 5000, '{"a": 1e999}'])
def test_a_bad_config_file_is_one_error(tmp_path, text):
    path = folder(tmp_path / "a")
    (path / "cfg.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"cfg\.json"):
        jmi_sparse.load(path)


@pytest.mark.parametrize("keep", [0, 5, 8, 60, -1, "more", "huge", "pipe", "none"])
def test_a_bad_weights_file_is_one_error(tmp_path, keep):
    path = folder(tmp_path / "a")
    file = path / "sae_weights.safetensors"
    data = file.read_bytes()
    file.unlink()
    if keep == "pipe":
        os.mkfifo(file)
    elif keep != "none":
        huge = (2**62).to_bytes(8, "little") + data[8:]
        file.write_bytes(
            {"more": data + b"0", "huge": huge}.get(keep, data[: keep if isinstance(keep, int) else 0])
        )
    for format in (None, "saelens"):
        with pytest.raises(CheckpointError):
            jmi_sparse.load(path, format=format)


def test_bad_files_beside_the_weights(tmp_path):
    for number, held in enumerate(
        ({"sparsity": np.zeros(3, np.float32)}, {"other": np.zeros(F, np.float32)})
    ):
        with pytest.raises(CheckpointError, match="sparsity"):
            jmi_sparse.load(folder(tmp_path / str(number), sparsity=held))


@pytest.mark.parametrize("source", ["", None, 3, "./no/such/folder", "a\0b", "x" * 5000])
def test_wrong_sources_are_said(source):
    with pytest.raises(ArgumentError, match="source="):
        jmi_sparse.load(source)


def test_wrong_arguments_are_said(tmp_path):
    path = folder(tmp_path / "a")
    for wrong in ({"dtype": "int8"}, {"format": "npz"}, {"k": 0}, {"hook": 3}, {"norm_factor": -1}):
        with pytest.raises(JmiError, match=f"{next(iter(wrong))}="):
            jmi_sparse.load(path, **wrong)
    (tmp_path / "b").mkdir()
    with pytest.raises(CheckpointError, match="no format of dictionaries that is known"):
        jmi_sparse.load(tmp_path / "b")
    assert json.loads((path / "cfg.json").read_text()) == CONFIG


def test_a_factor_beyond_every_number_is_refused(tmp_path):
    place = folder(tmp_path / "sae", {"normalize_activations": "expected_average_only_in"})
    for said in ("1" + "0" * 400, "1e300", "0", "-1", "true"):
        (place / "activation_scaler.json").write_text(f'{{"scaling_factor": {said}}}')
        with pytest.raises(ConfigError, match="scaling_factor must be a number above 0"):
            jmi_sparse.load(place)


def test_before_and_after_are_one_kind_to_saelens(tmp_path):
    one = dictionary(jmi_sparse.TopK(3, "before"))
    jmi_sparse.save(one, tmp_path)
    x = points().astype(np.float32)
    np.testing.assert_array_equal(jmi_sparse.load(tmp_path).encode(x), one.encode(x))


def test_a_place_where_no_folder_can_be(tmp_path):
    (tmp_path / "file").write_text("a file")
    with pytest.raises(OutputError, match="cannot be made"):
        jmi_sparse.save(dictionary(), tmp_path / "file" / "sae")
