"""Published layouts of others: features and outputs as their own libraries computed them."""

import dataclasses
import json
import os
import shutil
import warnings
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import jmi_sparse
from jmi.errors import ArgumentError
from jmi_sparse.formats.reading import tensors
from jmi_sparse.formats.reading.recognising import recognised
from jmi_sparse.load import FORMATS

SHARED = Path(os.environ.get("JMI_SHARED") or Path(__file__).parents[3] / "shared")
ROOT = SHARED / "oracles" / "sparse"
FOREIGN = ROOT / "foreign"
# The other two hold dictionaries of several layers, or one of such a set.
SETS = ("gemma-scope-2-clt", "mwhanna-qwen3-transcoder")
LISTED = (
    {each["name"]: each for each in json.loads((FOREIGN / "index.json").read_text())}
    if FOREIGN.is_dir()
    else {}
)
NAMES = sorted(set(LISTED) - set(SETS))
CIRCUIT = ("gemma-scope-npz-transcoder", "gemma-scope-2-transcoder", "gemma-scope-2-transcoder-affine")
TRAINERS = ("standard", "standard-april-update", "gated", "jumprelu", "topk", "batchtopk", "matryoshka")
CODERS = ("sae-topk", "sae-groupmax", "sae-auxk-multi", "transcoder-skip")

pytestmark = pytest.mark.skipif(not NAMES, reason="oracles/sparse/foreign is not here; set JMI_SHARED")

FORMAT_OF = {
    "gemma-scope-npz-res": "gemma-scope",
    "gemma-scope-npz-embedding": "gemma-scope",
    "gemma-scope-npz-transcoder": "gemma-scope",
    "gemma-scope-2-resid-post": "gemma-scope-2",
    "gemma-scope-2-attn-out": "gemma-scope-2",
    "gemma-scope-2-transcoder": "gemma-scope-2",
    "llama-scope": "llama-scope",
    "llama-scope-r1-distill": "llama-scope",
    "qwen-scope": "qwen-scope",
    "goodfire": "goodfire",
    "connor-rob-hook-z": "hook-z",
}


def published(name, root):
    """The recorded folder where the hub's cache would have it, under its repository's name."""
    listed = LISTED[name]
    snapshot = root / f"models--{listed['repo'].replace('/', '--')}" / "snapshots" / "0"
    shutil.copytree(FOREIGN / name, snapshot)
    return snapshot / listed["folder"]


def loaded(path, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return jmi_sparse.load(path, **options)


def gap(got, want):
    """The largest difference, in parts of the largest entry."""
    assert np.shape(got) == np.shape(want)
    return np.abs(np.asarray(got, np.float64) - want).max() / np.abs(want).max()


def agree(one, held, output, bar=1e-5):
    """Equal features, and an output within the bar."""
    x, wanted = held["x"], held[output]
    if one.hook_z and x.shape[-1] == one.d_in:
        # Recorded without heads, which a model has there.
        x, wanted = (each.reshape(len(each), 4, -1) for each in (x, wanted))
    acts = np.asarray(one.encode(x))
    assert gap(acts, held["acts"]) <= bar
    np.testing.assert_array_equal(acts != 0, held["acts"] != 0)
    assert gap(one.reconstruct(x), wanted) <= bar


def test_all_of_them_are_here():
    assert set(NAMES) == set(FORMAT_OF)
    assert len(LISTED) == 13


@pytest.mark.parametrize("name", NAMES)
def test_as_saelens_reads_them(name, tmp_path):
    listed, path = LISTED[name], published(name, tmp_path)
    assert recognised(path, FORMATS)[0] == FORMAT_OF[name]
    one = loaded(path)
    agree(one, np.load(FOREIGN / name / "io.npz"), "forward")
    # SAELens has another name for the point after the norm's gain.
    reads = listed["hook_name"].replace("hook_mlp_in", "mlp.hook_in")
    transcoder = "transcoder" in listed["architecture"]
    assert one.kind == ("transcoder" if transcoder else "sae")
    assert (one.hook_in, one.hook_out) == (reads, listed["hook_name_out"] if transcoder else reads)
    assert one.apply_b_dec_to_input == listed["apply_b_dec_to_input"]
    assert one.hook_z == reads.endswith("hook_z")


@pytest.mark.parametrize("name", CIRCUIT)
def test_as_circuit_tracer_reads_them(name):
    path = ROOT / "circuit-tracer" / name
    one = loaded(path, hook="blocks.3.ln2.hook_normalized" if "npz" in name else None)
    agree(one, np.load(path / "io.npz"), "recon", 3e-5)
    assert (one.kind, one.hook_out) == ("transcoder", f"blocks.{3 if 'npz' in name else 5}.hook_mlp_out")
    assert one.hook_in == ("blocks.3.ln2.hook_normalized" if "npz" in name else "blocks.5.mlp.hook_in")
    assert (one.W_skip is not None) == name.endswith("affine")


@pytest.mark.parametrize("name", TRAINERS)
def test_as_dictionary_learning_reads_them(name):
    path = ROOT / "dictionary_learning" / name
    one, held = loaded(path), np.load(path / "io.npz")
    agree(one, held, "forward")
    assert one.hook_in == one.hook_out == "blocks.8.hook_resid_post"
    assert one.apply_b_dec_to_input == (name not in ("standard-april-update", "jumprelu"))
    stored = tensors.headers(path / "ae.pt")
    if "gate" in held:
        linear = (held["x"] - np.asarray(one.b_dec)) @ np.asarray(one.W_enc) + np.asarray(
            one.activation.b_gate
        )
        assert gap(np.maximum(linear, 0), held["gate"]) <= 1e-5
    if "acts_use_threshold" in held:
        threshold = jnp.full(one.n_features, stored["threshold"].read())
        other = dataclasses.replace(one, activation=jmi_sparse.JumpReLU(threshold))
        assert gap(other.encode(held["x"]), held["acts_use_threshold"]) <= 1e-5
    if "acts_batch_selection" in held:
        k, threshold = json.loads(one.metadata)["k"], one.activation.threshold[0]
        other = dataclasses.replace(one, activation=jmi_sparse.BatchTopK(threshold, k))
        assert gap(other.encode(held["x"]), held["acts_batch_selection"]) <= 1e-5
        assert k == int(stored["k"].read())


def fvu(y, found):
    """sparsify's: of all positions together."""
    return ((y - found) ** 2).sum() / ((y - y.mean(0)) ** 2).sum()


@pytest.mark.parametrize("name", CODERS)
def test_as_sparsify_reads_them(name):
    path, held = ROOT / "sparsify" / name, np.load(ROOT / "sparsify" / name / "io.npz")
    one, x = loaded(path), held["x"]
    y = held.get("y", x)
    assert one.kind == ("transcoder" if "y" in held else "sae")
    found = np.asarray(one.reconstruct(x))
    acts = np.asarray(one.encode(x))
    assert gap(acts, held["acts"]) <= 1e-5
    np.testing.assert_array_equal(acts != 0, held["acts"] != 0)
    assert abs(fvu(y, found) / held["fvu"] - 1) <= 1e-5
    if name == "sae-auxk-multi":
        # Its forward gives the output of four times k, and reports k features and their share.
        several = loaded(path, k=4 * one.activation.k)
        found = np.asarray(several.reconstruct(x))
        assert abs(fvu(y, found) / held["multi_topk_fvu"] - 1) <= 1e-5
    assert gap(found, held["forward"]) <= 1e-5
    site = {"sae-auxk-multi": "blocks.0.hook_resid_post"}.get(name, "blocks.3.mlp.hook_out")
    assert one.hook_out == site
    assert one.hook_in == ("blocks.3.mlp.hook_in" if one.kind == "transcoder" else site)
    assert json.loads(one.metadata)["model_name"] == "EleutherAI/tiny"


def test_in_half_precision():
    path = FOREIGN / "llama-scope"
    one, held = loaded(path, dtype="bfloat16"), np.load(path / "io.npz")
    acts = np.asarray(one.encode(held["x"])).astype(np.float32)
    ours, theirs = acts != 0, held["acts"] != 0
    assert (ours & theirs).sum() >= 0.98 * (ours | theirs).sum()
    assert gap(np.where(ours & theirs, acts, 0), np.where(ours & theirs, held["acts"], 0)) <= 1e-2


def recorded():
    """Every folder that was recorded, and the format of the dictionary in it."""
    for kind in ("saelens", "dictionary_learning", "sparsify", "trained"):
        for path in sorted((ROOT / kind).iterdir()):
            if path.is_dir() and path.name != "train-step":
                yield path, "saelens" if kind == "trained" else kind.replace("_", "-")
    for path in sorted((ROOT / "circuit-tracer").iterdir()):
        yield (
            path,
            "circuit-tracer-clt" if path.name.startswith("clt") else SAME.get(path.name, "circuit-tracer"),
        )
    for path in sorted(path for path in FOREIGN.iterdir() if path.is_dir()):
        yield path, SAME.get(path.name, "circuit-tracer")


SAME = {
    **FORMAT_OF,
    **dict.fromkeys(CIRCUIT[1:], "gemma-scope-2"),
    "gemma-scope-2-clt": "gemma-scope-2-sets",
}


def test_each_is_of_one_format_alone():
    listed = list(recorded())
    assert len(listed) == 41 + 7 + 4 + 2 + 10 + 13
    for path, format in listed:
        assert recognised(path, FORMATS)[0] == format
        found = {
            place: [name for name, each in FORMATS.items() if each.matches(place)] for place in below(path)
        }
        assert max(map(len, found.values())) == 1, found
        assert {names[0] for names in found.values() if names} == {format}


def below(path):
    return (path, *sorted(path.rglob("*")))


def test_the_path_says_what_the_files_do_not(tmp_path):
    recorded = FOREIGN / "gemma-scope-npz-res" / "layer_20"
    for repository, site in {
        "gemma-scope-9b-it-mlp": "blocks.20.hook_mlp_out",
        "gemma-scope-2b-pt-att": "blocks.20.attn.hook_z",
        "models--google--gemma-scope-27b-pt-res": "blocks.20.hook_resid_post",
    }.items():
        path = tmp_path / repository / "snapshots" / "7" / "layer_20"
        shutil.copytree(recorded, path)
        assert jmi_sparse.load(path).hook_in == site
        assert jmi_sparse.load(path, hook="blocks.1.hook_resid_mid").hook_in == "blocks.1.hook_resid_mid"
    assert json.loads(jmi_sparse.load(path).metadata) == {"model_name": "gemma-2-27b"}
    shutil.copytree(recorded, tmp_path / "elsewhere" / "layer_20")
    with pytest.warns(UserWarning, match="does not say where this dictionary reads") as told:
        one = jmi_sparse.load(tmp_path / "elsewhere")
    assert (one.hook_in, one.hook_out) == (None, None)
    assert told[0].filename == __file__


def test_only_the_folders_of_a_repository_make_an_embedding_sae(tmp_path):
    recorded = FOREIGN / "gemma-scope-npz-embedding" / "embedding" / "width_4k" / "average_l0_6"
    scaled = loaded(recorded)
    for above in ("embedding", "embedding/of_others/layer_3/width_4k"):
        path = tmp_path / above / "average_l0_6"
        shutil.copytree(recorded, path)
        plain = loaded(path)
        assert plain.hook_in is None
        np.testing.assert_allclose(plain.W_enc, scaled.W_enc * 32**0.5, rtol=1e-6)
    # Who names the site names the kind.
    np.testing.assert_array_equal(loaded(path, hook="hook_embed").W_dec, scaled.W_dec)


def test_k_is_that_of_the_repository_or_of_the_caller(tmp_path):
    path = published("qwen-scope", tmp_path)
    assert (loaded(path).activation, loaded(path, k=9).activation) == (
        jmi_sparse.TopK(7),
        jmi_sparse.TopK(9),
    )
    with pytest.raises(ArgumentError, match=r"SAE-Res-Qwen3-8B-Base-W64K-L0_50.*k="):
        jmi_sparse.load(FOREIGN / "qwen-scope")
    with pytest.raises(ArgumentError, match="k=129"):
        jmi_sparse.load(path, k=129)


def test_what_a_format_has_no_use_for_is_refused():
    with pytest.raises(ArgumentError, match=r"k=3: .*no fixed number"):
        jmi_sparse.load(FOREIGN / "goodfire", k=3)
    with pytest.raises(ArgumentError, match=r"k=3: .*no fixed number"):
        jmi_sparse.load(ROOT / "dictionary_learning" / "batchtopk", k=3)
    with pytest.raises(ArgumentError, match=r"norm_factor=2\.0: files of this format"):
        jmi_sparse.load(FOREIGN / "llama-scope", norm_factor=2.0)


def test_decoder_rows_that_would_choose_features_are_warned_of():
    with pytest.warns(UserWarning, match="sparsity_include_decoder_norm") as told:
        jmi_sparse.load(FOREIGN / "llama-scope")
    assert told[0].filename == __file__
