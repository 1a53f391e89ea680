"""Files of the hub: what is downloaded of a repository, sets of layers, and the layouts of others."""

import json
import os
import shutil
import warnings
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub.utils import filter_repo_objects
from safetensors.numpy import load_file, save_file

import jmi_sparse
from jmi.errors import CheckpointError, ConfigError
from jmi_sparse.registry import hub, listed
from tests.sparse.cached import OLDER, HubCache
from tests.sparse.made import weights

SHARED = Path(os.environ.get("JMI_SHARED") or Path(__file__).parents[3] / "shared")
FOREIGN = SHARED / "oracles" / "sparse" / "foreign"
INDEX = json.loads((FOREIGN / "index.json").read_text()) if FOREIGN.is_dir() else []

FACTOR = "gemma-2b-res-jb/blocks.12.hook_resid_post"
FACTOR_PLACE = "gemma_2b_blocks.12.hook_resid_post_16384"
LAYERS = [f"layer_{i}.safetensors" for i in range(28)]
REPOSITORIES = {
    FACTOR: (
        {
            f"{FACTOR_PLACE}/{name}"
            for name in ("cfg.json", "sae_weights.safetensors", "sparsity.safetensors")
        },
        [
            "README.md",
            f"{FACTOR_PLACE}/extra.pt",
            f"{FACTOR_PLACE}_2/cfg.json",
            "other/sae_weights.safetensors",
        ],
    ),
    "gemma-scope-2b-pt-res-canonical/layer_12/width_16k/canonical": (
        {"layer_12/width_16k/average_l0_82/params.npz"},
        [
            "layer_12/width_16k/average_l0_8/params.npz",
            "layer_1/width_16k/average_l0_82/params.npz",
            "params.npz",
        ],
    ),
    "gemma-scope-2-1b-pt-transcoders-all/layer_3_width_16k_l0_small_affine": (
        {
            "transcoder_all/layer_3_width_16k_l0_small_affine/config.json",
            "transcoder_all/layer_3_width_16k_l0_small_affine/params.safetensors",
        },
        [
            "transcoder_all/layer_3_width_16k_l0_small/params.safetensors",
            "transcoder/layer_3/params.safetensors",
        ],
    ),
    "llama_scope_lxr_8x/l15r_8x": (
        {
            "Llama3_1-8B-Base-L15R-8x/hyperparams.json",
            "Llama3_1-8B-Base-L15R-8x/checkpoints/final.safetensors",
        },
        ["Llama3_1-8B-Base-L15R-8x/lm_config.json", "Llama3_1-8B-Base-L1R-8x/hyperparams.json"],
    ),
    "qwen-scope-3-1.7b-base-w32k-l50/layer5": ({"layer5.sae.pt"}, ["layer15.sae.pt", "layer50.sae.pt"]),
    "gpt2-small-hook-z-kk/blocks.5.hook_z": (
        {
            "gpt2-small_L5_Hcat_z_lr1.20e-03_l11.00e+00_ds49152_bs4096_dc1.00e-06_rsanthropic_rie25000_nr4_v9.pt",
            "gpt2-small_L5_Hcat_z_lr1.20e-03_l11.00e+00_ds49152_bs4096_dc1.00e-06_rsanthropic_rie25000_nr4_v9_cfg.json",
        },
        ["gpt2-small_L5_Hcat_z_v1.pt"],
    ),
    "mwhanna/qwen3-0.6b-transcoders-lowl0": (
        {"config.yaml", "wanb-config.yaml", *LAYERS},
        [
            "features/layer_0.bin",
            "features/index.json.gz",
            "layer_0/weights.safetensors",
            "layer_0.safetensors.index",
        ],
    ),
    "mwhanna-qwen3-0.6b-transcoders-lowl0/layer_2": (
        {"config.yaml", "wanb-config.yaml", "layer_2.safetensors"},
        LAYERS[3:],
    ),
    "mntss/clt-gemma-2-2b-426k": (
        {"config.yaml", *(f"W_{end}_{i}.safetensors" for end in ("enc", "dec") for i in range(26))},
        ["features/layer_0.bin", "W_enc_0.pt", "old/W_enc_0.safetensors"],
    ),
    "google/gemma-scope-2-1b-pt/clt/width_262k_l0_medium_affine": (
        {
            f"clt/width_262k_l0_medium_affine/{n}"
            for n in ("config.json", "params_layer_0.safetensors", "params_layer_25.safetensors")
        },
        ["clt/width_262k_l0_big_affine/params_layer_0.safetensors", "resid_post/layer_3/params.safetensors"],
    ),
    "EleutherAI/sae-llama-3-8b-32x/layers.3.mlp": (
        {"layers.3.mlp/cfg.json", "layers.3.mlp/sae.safetensors", "config.json"},
        ["layers.3/cfg.json", "layers.30.mlp/sae.safetensors", "sae.safetensors"],
    ),
    "someone/saes": (
        {"cfg.json", "sae_weights.safetensors"},
        ["a/cfg.json", "a/sae_weights.safetensors", "big.safetensors"],
    ),
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    return HubCache(tmp_path, monkeypatch)


@pytest.mark.parametrize("source", REPOSITORIES)
def test_no_more_is_downloaded_than_is_needed(monkeypatch, tmp_path, source):
    needed, others = REPOSITORIES[source]
    fetched = set()

    def download(repo, *, revision, allow_patterns):
        assert revision is None
        there = sorted({*needed, *others})
        fetched.update(filter_repo_objects(there, allow_patterns=allow_patterns))
        for file in fetched:
            (tmp_path / "snapshot" / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "snapshot" / file).write_text("a: 1")
        return tmp_path / "snapshot"

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    found = hub.found(source)
    assert fetched == needed
    assert found.path.exists()
    assert found.path.is_relative_to(tmp_path / "snapshot")


def layer(path, seed):
    """The file of one transcoder of circuit-tracer."""
    held = {name: array.astype(np.float32) for name, array in weights(seed).items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({**held, "W_enc": held["W_enc"].T.copy()}, path)


CONFIG = (
    "model_name: a\nmodel_kind: transcoder_set\nfeature_input_hook: {}\nfeature_output_hook: hook_mlp_out\n"
)


def test_a_set_whose_list_names_another_repository(tmp_path, cache):
    for number in range(2):
        layer(tmp_path / "weights" / f"deep/layer_{number}.safetensors", number)
    cache.put("someone/weights", tmp_path / "weights", commit=OLDER)
    places = [f"  - hf://someone/weights/deep/layer_{n}.safetensors?revision={OLDER}\n" for n in (1, 0)]
    (tmp_path / "list").mkdir()
    (tmp_path / "list" / "config.yaml").write_text(
        CONFIG.format("hook_resid_mid") + "transcoders:\n" + "".join(places)
    )
    cache.put("someone/list", tmp_path / "list")
    with pytest.warns(UserWarning, match="stands where layer 0 is"):
        made = jmi_sparse.load("someone/list")
    assert made.hook_in == "blocks.*.hook_resid_mid"
    np.testing.assert_array_equal(made.stacked.W_enc[0], weights(1)["W_enc"].astype(np.float32))
    np.testing.assert_array_equal(made.stacked.W_enc[1], weights(0)["W_enc"].astype(np.float32))


def test_the_set_that_lists_transcoders_of_gemma_scope(tmp_path, cache):
    repo, places = "google/gemma-scope-2b-pt-transcoders", []
    for number in range(26):
        held = {name: array.astype(np.float32) for name, array in weights(number).items()}
        path = tmp_path / "weights" / f"layer_{number}/width_16k/average_l0_{number + 5}"
        path.mkdir(parents=True)
        np.savez(path / "params.npz", **held, threshold=np.full(20, 0.1, np.float32))
        places.append(f"  - hf://{repo}/{path.relative_to(tmp_path / 'weights')}/params.npz\n")
    cache.put(repo, tmp_path / "weights")
    (tmp_path / "list").mkdir()
    text = CONFIG.format("ln2.hook_normalized") + "transcoders:\n" + "".join(places)
    (tmp_path / "list" / "config.yaml").write_text(text)
    cache.put("mntss/gemma-scope-transcoders", tmp_path / "list")
    made = jmi_sparse.load("mntss/gemma-scope-transcoders")
    assert (made.layers, made.hook_in) == (tuple(range(26)), "blocks.*.ln2.hook_normalized")
    np.testing.assert_array_equal(made.stacked.W_enc[7], weights(7)["W_enc"].astype(np.float32))
    one = jmi_sparse.load(f"{repo}/layer_7/width_16k/average_l0_12")
    assert repr(made[7]) == repr(one)


def test_places_that_leave_a_repository_are_not_fetched(monkeypatch, tmp_path, cache):
    (tmp_path / "list").mkdir()
    places = [
        "hf://a/b/../../c",
        "hf://a/b/c*",
        "hf://../b/c",
        "hf://a/b",
        "file:///etc/passwd",
        "hf://a/b/c?revision=;",
    ]
    text = (
        CONFIG.format("hook_resid_mid") + "transcoders:\n" + "".join(f"  - '{place}'\n" for place in places)
    )
    (tmp_path / "list" / "config.yaml").write_text(text)
    cache.put("someone/list", tmp_path / "list")
    asked, real = [], huggingface_hub.snapshot_download

    def download(repo, **options):
        asked.append(repo)
        return real(repo, **options)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(ConfigError, match="transcoders"):
        jmi_sparse.load("someone/list")
    assert asked == ["someone/list"]


def test_a_set_with_layers_missing_is_an_error_and_its_hook_is_checked(tmp_path, cache):
    made = tmp_path / "plt"
    for number in range(16):
        layer(made / f"layer_{number}.safetensors", number)
        if number == 2:
            (made / "config.yaml").write_text(CONFIG.format("hook_resid_mid"))
            cache.put("mntss/transcoder-Llama-3.2-1B", made)
            with pytest.raises(CheckpointError, match=r"has 16 layers, and here are \[0, 1, 2\]"):
                jmi_sparse.load("mntss/transcoder-Llama-3.2-1B")
            one = jmi_sparse.load("mntss/transcoder-Llama-3.2-1B/layer_2.safetensors")
            assert one.hook_in == "blocks.2.hook_resid_mid"
    cache.put("mntss/transcoder-Llama-3.2-1B", made, commit=OLDER)
    assert jmi_sparse.load("mntss/transcoder-Llama-3.2-1B").hook_in == "blocks.*.hook_resid_mid"
    (made / "config.yaml").write_text(CONFIG.format("mlp.hook_in"))
    cache.put("mntss/transcoder-Llama-3.2-1B", made, commit="c" * 40)
    with pytest.raises(ConfigError, match=r"reads .*mlp.hook_in.*registry says blocks.\*.hook_resid_mid"):
        jmi_sparse.load("mntss/transcoder-Llama-3.2-1B")
    (made / "config.yaml").unlink()
    cache.put("mntss/transcoder-Llama-3.2-1B", made, commit="d" * 40)
    bare = jmi_sparse.load("mntss/transcoder-Llama-3.2-1B")
    assert (bare.hook_in, bare[3].hook_in) == ("blocks.*.hook_resid_mid", "blocks.3.hook_resid_mid")


@pytest.mark.parametrize("oracle", INDEX, ids=lambda oracle: oracle["name"])
def test_layouts_of_others_load_from_the_cache_at_their_hooks(cache, oracle):
    place = FOREIGN / oracle["name"]
    cache.put(oracle["repo"], place)
    source = f"{oracle['repo']}/{oracle['folder']}" + ".safetensors" * ("/clt/" in f"/{oracle['folder']}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = jmi_sparse.load(source)
    assert made.hook_in.replace("*", "3") == oracle["hook_name"].replace("hook_mlp_in", "mlp.hook_in")
    kind = "clt" if "clt/" in oracle["folder"] else "transcoder"
    assert made.kind == (kind if "transcoder" in oracle["architecture"] else "sae")
    entry = next((e for e in listed.by_repo().get(oracle["repo"], ()) if e.path == oracle["folder"]), None)
    if entry is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert repr(jmi_sparse.load(entry.name)) == repr(made)


def test_a_factor_of_the_registry_reaches_llama_scope_r1(cache, tmp_path):
    if not INDEX:
        pytest.skip("oracles/sparse/foreign is not here; set JMI_SHARED")
    entry = listed.by_name()["llama_scope_r1_distill/l5r_800m_slimpajama"]
    made = tmp_path / "changed"
    shutil.copytree(FOREIGN / "llama-scope-r1-distill", made, copy_function=shutil.copyfile)
    config = made / entry.path / "config.json"
    config.write_text(config.read_text().replace('"inference"', '"dataset-wise"'))
    cache.put(entry.repo, made)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sae = jmi_sparse.load(entry.name)
    assert not any("its factor is not there" in str(each.message) for each in caught)
    held = load_file(made / entry.path / "sae_weights.safetensors")
    np.testing.assert_allclose(sae.W_enc, held["encoder.weight"].T * entry.norm_factor, rtol=1e-5)
    np.testing.assert_allclose(sae.W_dec, held["decoder.weight"].T / entry.norm_factor, rtol=1e-5)
    np.testing.assert_allclose(sae.b_dec, held["decoder.bias"] / entry.norm_factor, rtol=1e-5)
    np.testing.assert_allclose(sae.activation.threshold, np.exp(held["log_jumprelu_threshold"]), rtol=1e-6)
