"""Folders that trainers of several layers wrote, and what they computed: tests/oracles/sparse_sets.py."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file

import jmi_sparse
from jmi.errors import ArgumentError, CheckpointError, ConfigError
from tests.sparse.set_folders import gap

ARCHIVES = Path(__file__).parents[1] / "data" / "sparse_sets"


def unpacked(name, path):
    """The folder of one archive, and what was recorded with it."""
    with zipfile.ZipFile(ARCHIVES / f"{name}.zip") as archive:
        for entry in archive.namelist():
            if entry != "io.npz":
                (path / entry).parent.mkdir(parents=True, exist_ok=True)
                (path / entry).write_bytes(archive.read(entry))
        return path, dict(np.load(io.BytesIO(archive.read("io.npz"))))


SAME = [
    *(f"clt-training-{case}" for case in ("plain", "groupmax", "scaled")),
    *(f"crosslayer-transcoder-{case}" for case in ("jumprelu", "unfolded", "by-layer", "batch", "plt")),
    *(
        f"llamascopium-{case}"
        for case in ("jumprelu", "transcoder", "no-norm", "clt-jumprelu", "clt-batchtopk")
    ),
]
SCALED = [f"llamascopium-{case}" for case in ("topk", "batchtopk", "clt-topk")]


def test_every_archive_is_used():
    rest = ["clt-training-post-enc", "llamascopium-crosscoder"]
    assert sorted(path.stem for path in ARCHIVES.iterdir()) == sorted([*SAME, *SCALED, *rest])


@pytest.mark.parametrize("name", SAME)
def test_features_and_outputs_are_the_trainers(name, tmp_path):
    path, held = unpacked(name, tmp_path)
    one = jmi_sparse.load(path)
    acts = np.asarray(one.encode(held["x"]))
    np.testing.assert_array_equal(acts != 0, held["acts"] != 0)
    assert 0 < (acts != 0).mean() < 0.95
    assert gap(acts, held["acts"]) <= 1e-5
    assert gap(one.reconstruct(held["x"]), held["out"]) <= 1e-5


@pytest.mark.parametrize("name", SCALED)
def test_features_in_units_of_their_rows(name, tmp_path):
    path, held = unpacked(name, tmp_path)
    one = jmi_sparse.load(path)
    acts = np.asarray(one.encode(held["x"]))
    np.testing.assert_array_equal(acts != 0, held["acts"] != 0)
    assert gap(one.reconstruct(held["x"]), held["out"]) <= 1e-5
    # How much larger they are is one number of each feature, the length of its rows in the file.
    raw = load_file(path / "sae_weights.safetensors")
    if name.endswith("clt-topk"):
        squares = np.zeros(acts.shape[::2])
        for t in range(3):
            squares[: t + 1] += (raw[f"W_D.{t}"] ** 2).sum(-1)
        norms = np.sqrt(squares)[:, None]
    else:
        norms = np.linalg.norm(raw["W_D"], axis=-1)
        if name.endswith("batchtopk"):
            # Rows are loaded in units of the outputs as they are.
            norms *= raw["dataset_average_activation_norm.blocks.2.hook_resid_post"] / np.sqrt(6)
    assert gap(acts, held["acts"] * norms) <= 1e-5


def test_a_crosscoder_of_relu(tmp_path):
    path, held = unpacked("llamascopium-crosscoder", tmp_path)
    one = jmi_sparse.load(path)
    assert one.points == tuple(f"blocks.{i}.hook_resid_mid" for i in (0, 3, 4))
    acts = np.asarray(one.encode(held["x"]))
    for head in held["acts"]:
        assert gap(acts, head) <= 1e-5
    assert gap(one.reconstruct(held["x"]), held["out"]) <= 1e-5


def test_where_they_belong(tmp_path):
    load = lambda name: jmi_sparse.load(unpacked(name, tmp_path / name)[0])
    clt = load("clt-training-plain")
    assert (clt.layers, clt.hook_in, clt.hook_out) == (
        (0, 1, 2),
        "blocks.*.mlp.hook_in",
        "blocks.*.mlp.hook_out",
    )
    assert clt.activation == jmi_sparse.TopK(4, "before")
    other = load("crosslayer-transcoder-jumprelu")
    assert (other.hook_in, other.hook_out) == ("blocks.*.hook_resid_mid", "blocks.*.hook_mlp_out")
    assert isinstance(load("crosslayer-transcoder-plt"), jmi_sparse.DictionarySet)
    assert load("crosslayer-transcoder-by-layer").activation == jmi_sparse.TopK(9, "after")
    sae = load("llamascopium-topk")
    assert (sae.kind, sae.hook_in, sae.hook_out) == ("sae", *["blocks.2.hook_resid_post"] * 2)
    assert sae.normalisation == jmi_sparse.ConstantNorm()
    one = load("llamascopium-transcoder")
    assert (one.kind, one.hook_in, one.hook_out) == (
        "transcoder",
        "blocks.2.hook_resid_post",
        "blocks.2.hook_mlp_out",
    )
    several = load("llamascopium-clt-jumprelu")
    assert (several.layers, several.targets) == ((0, 3, 4), (0, 3, 4))
    assert (several.hook_in, several.hook_out) == ("blocks.*.hook_resid_mid", "blocks.*.hook_mlp_out")


def test_what_clt_training_adds_to_active_values_is_refused(tmp_path):
    path, _ = unpacked("clt-training-post-enc", tmp_path)
    with pytest.raises(ConfigError, match=r"post_encs\.0 is added"):
        jmi_sparse.load(path)


def test_skips_into_later_layers_are_refused(tmp_path):
    path, _ = unpacked("clt-training-groupmax", tmp_path)
    file = path / "layers.1.mlp" / "sae.safetensors"
    held = load_file(file)
    save_file(held | {"W_skips.1": held["W_skips.0"] + 1}, file)
    with pytest.raises(ConfigError, match=r"W_skips\.1 is a skip into a later layer"):
        jmi_sparse.load(path)
    save_file(held | {"W_dec": held["W_dec"] + 1}, file)
    with pytest.raises(ConfigError, match="are one, and differ"):
        jmi_sparse.load(path)


def rewritten(path, name, change):
    """A config with some fields changed."""
    file = path / name
    reads, writes = (yaml.safe_load, yaml.safe_dump) if name.endswith("yaml") else (json.loads, json.dumps)
    said = reads(file.read_text())
    change(said)
    file.write_text(writes(said))


@pytest.mark.parametrize(
    "fields",
    [
        {"coalesce_topk": "concat"},
        {"coalesce_topk": "per-layer"},
        {"coalesce_topk": "group"},
        {"secondary_target_tied": True},
        {"divide_cross_layer": True},
        {"post_encoder_scale": True},
        {"activation": "batchtopk"},
        {"transcode": False},
        {"n_targets": 3},
        {"n_targets": "2"},
        {"k": 0},
        {"k": 3},
        {"per_source_tied": True},
        {"normalize_io": "yes"},
    ],
)
def test_a_config_of_clt_training_that_cannot_be_honoured_is_said(tmp_path, fields):
    path, _ = unpacked("clt-training-plain", tmp_path)
    rewritten(path, "layers.1.mlp/cfg.json", lambda said: said.update(fields))
    with pytest.raises(ConfigError, match=r"cfg\.json"):
        jmi_sparse.load(path)


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("nonlinearity", "BatchTopK"),
        ("nonlinearity", "GELU"),
        ("decoder", "MoltDecoder"),
        ("encoder", None),
        ("input_standardizer", "SamplewiseInputStandardizer"),
    ],
)
def test_a_config_of_crosslayer_transcoder_that_cannot_be_honoured_is_said(tmp_path, part, name):
    path, _ = unpacked("crosslayer-transcoder-jumprelu", tmp_path)
    made = None if name is None else {"class_path": f"crosslayer_transcoder.{name}", "init_args": {}}
    rewritten(path, "config.yaml", lambda said: said["model"]["init_args"].update({part: made}))
    with pytest.raises(ConfigError, match=f"{part} .* cannot be represented"):
        jmi_sparse.load(path)


@pytest.mark.parametrize(
    "model", [None, [], {}, {"class_path": "a.Molt", "init_args": {}}, {"class_path": 3}]
)
def test_other_models_of_crosslayer_transcoder_are_refused(tmp_path, model):
    path, _ = unpacked("crosslayer-transcoder-jumprelu", tmp_path)
    rewritten(path, "config.yaml", lambda said: said.update(model=model))
    with pytest.raises(ConfigError, match="is no CrossLayerTranscoder"):
        jmi_sparse.load(path)


@pytest.mark.parametrize(
    ("archive", "fields"),
    [
        ("jumprelu", {"sae_type": "lorsa"}),
        ("jumprelu", {"sae_type": "molt"}),
        ("jumprelu", {"sae_type": None}),
        ("jumprelu", {"act_fn": "batchlayertopk"}),
        ("jumprelu", {"norm_activation": "batch-wise"}),
        ("jumprelu", {"use_glu_encoder": True}),
        ("jumprelu", {"hook_point_in": None}),
        ("jumprelu", {"d_model": "6"}),
        ("topk", {"top_k": 13}),
        ("transcoder", {"norm_activation": "token-wise"}),
        ("clt-jumprelu", {"act_fn": "layertopk"}),
        ("clt-jumprelu", {"norm_activation": "token-wise"}),
        ("clt-jumprelu", {"hook_points_in": ["a", "b", "c"]}),
        ("clt-jumprelu", {"hook_points_in": ["blocks.1.a", "blocks.0.a", "blocks.2.a"]}),
        ("clt-jumprelu", {"hook_points_in": []}),
        ("crosscoder", {"act_fn": "jumprelu"}),
        ("crosscoder", {"act_fn": "topk"}),
    ],
)
def test_a_config_of_llamascopium_that_cannot_be_honoured_is_said(tmp_path, archive, fields):
    path, _ = unpacked(f"llamascopium-{archive}", tmp_path)
    rewritten(path, "config.json", lambda said: said.update(fields))
    with pytest.raises(ConfigError, match=r"config\.json"):
        jmi_sparse.load(path)


@pytest.mark.parametrize("name", [*SAME, *SCALED, "llamascopium-crosscoder"])
def test_missing_and_surplus_tensors_are_one_error(tmp_path, name):
    path, _ = unpacked(name, tmp_path)
    file = sorted(path.rglob("*.safetensors"))[-1]
    held = load_file(file)
    # Of one tensor under two names either may be there alone; what says nothing may be missing.
    spare = {"b_dec", "W_skip", *(() if name == "clt-training-scaled" else ("W_dec",))}
    needed = [n for n in held if not n.startswith(("dataset_average", "post_encs")) and n not in spare]
    assert len(needed) >= 3
    for part in needed:
        save_file({n: a for n, a in held.items() if n != part}, file)
        with pytest.raises(CheckpointError, match=r"missing: |must be"):
            jmi_sparse.load(path)
    save_file(held | {"extra": np.zeros(2, np.float32)}, file)
    with pytest.raises(CheckpointError, match="surplus: extra"):
        jmi_sparse.load(path)


def test_a_mean_norm_that_is_none_is_said(tmp_path):
    path, _ = unpacked("llamascopium-clt-topk", tmp_path)
    file = path / "sae_weights.safetensors"
    held = load_file(file)
    name = "dataset_average_activation_norm.blocks.3.hook_mlp_out"
    for value in (0.0, -1.0, np.nan):
        save_file(held | {name: np.array(value, np.float32)}, file)
        with pytest.raises(CheckpointError, match="must be above 0"):
            jmi_sparse.load(path)
    del held[name]
    save_file(held, file)
    with pytest.raises(CheckpointError, match="missing: dataset_average"):
        jmi_sparse.load(path)


def test_arguments_that_do_not_fit_are_said(tmp_path):
    path, _ = unpacked("clt-training-plain", tmp_path / "a")
    assert jmi_sparse.load(path, k=2).activation.k == 2
    assert jmi_sparse.load(path, hook="blocks.*.x").hook_in == "blocks.*.x"
    for wrong in ({"hook": "blocks.1.x"}, {"norm_factor": 2.0}):
        with pytest.raises(ArgumentError):
            jmi_sparse.load(path, **wrong)
    other, _ = unpacked("llamascopium-jumprelu", tmp_path / "b")
    for wrong in ({"k": 2}, {"norm_factor": 2.0}):
        with pytest.raises((ArgumentError, ConfigError)):
            jmi_sparse.load(other, **wrong)
    assert jmi_sparse.load(other, hook="blocks.1.x").hook_out == "blocks.1.x"
