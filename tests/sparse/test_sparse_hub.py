"""Dictionaries of the hub by name: what the registry adds, the cache without a network, and clear errors."""

from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

import jmi_sparse
from jmi.errors import ArgumentError, ConfigError, DownloadError
from jmi_sparse.decoders.on_disk import open_decoder
from tests.sparse.cached import OLDER, HubCache
from tests.sparse.made import folder, points, weights

FACTOR = "gemma-2b-res-jb/blocks.12.hook_resid_post"
FACTOR_PLACE = ("jbloom/Gemma-2b-Residual-Stream-SAEs", "gemma_2b_blocks.12.hook_resid_post_16384")
FLOATS = {name: array.astype(np.float32) for name, array in weights().items()}
SCALED = {"normalize_activations": "expected_average_only_in", "apply_b_dec_to_input": False}
UNSAID = {"metadata": {"sae_lens_version": "6.54.12"}}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    return HubCache(tmp_path, monkeypatch)


def test_a_name_of_the_registry_has_its_hook_and_its_factor(cache):
    cache.folder(*FACTOR_PLACE, SCALED | UNSAID)
    sae = jmi_sparse.load(FACTOR)
    factor = np.float32(0.21381938399317255)
    np.testing.assert_allclose(sae.W_enc, FLOATS["W_enc"] * factor, rtol=1e-6)
    np.testing.assert_allclose(sae.W_dec, FLOATS["W_dec"] / factor, rtol=1e-6)
    np.testing.assert_allclose(sae.b_dec, FLOATS["b_dec"] / factor, rtol=1e-6)
    np.testing.assert_array_equal(sae.b_enc, FLOATS["b_enc"])
    assert (sae.hook_in, sae.hook_out, sae.normalisation) == (*["blocks.12.hook_resid_post"] * 2, None)


def test_its_place_on_the_hub_is_the_same_dictionary(cache):
    cache.folder(*FACTOR_PLACE, SCALED | UNSAID)
    one, other = jmi_sparse.load(FACTOR), jmi_sparse.load("/".join(FACTOR_PLACE))
    np.testing.assert_array_equal(one.W_enc, other.W_enc)
    assert repr(one) == repr(other)


def test_what_a_caller_gives_comes_before_the_registry(cache):
    cache.folder(*FACTOR_PLACE, SCALED | UNSAID)
    sae = jmi_sparse.load(FACTOR, hook="blocks.3.hook_resid_mid", norm_factor=2.0)
    np.testing.assert_array_equal(sae.W_enc, FLOATS["W_enc"] * 2)
    assert sae.hook_in == sae.hook_out == "blocks.3.hook_resid_mid"


def test_a_factor_that_was_folded_is_not_folded_twice(cache):
    said = {"metadata": {"sae_lens_version": "6.54.12", "hook_name": "blocks.12.hook_resid_post"}}
    cache.folder(*FACTOR_PLACE, said)
    np.testing.assert_array_equal(jmi_sparse.load(FACTOR).W_enc, FLOATS["W_enc"])


def test_files_that_name_another_hook_are_an_error(cache):
    cache.folder(*FACTOR_PLACE, SCALED)
    with pytest.raises(
        ConfigError, match=r"reads blocks.1.hook_resid_post.*registry says blocks.12.*pass hook="
    ):
        jmi_sparse.load(FACTOR)
    assert jmi_sparse.load(FACTOR, hook="blocks.1.hook_resid_post").hook_in == "blocks.1.hook_resid_post"


def test_a_normalisation_of_the_registry_replaces_that_of_the_config(cache):
    hook = {"sae_lens_version": "6.54.12", "hook_name": "blocks.8.hook_resid_pre"}
    cache.folder("JoshEngels/Mistral-7B-Residual-Stream-SAEs", "mistral_7b_layer_8", {"metadata": hook})
    sae = jmi_sparse.load("mistral-7b-res-wg/blocks.8.hook_resid_pre")
    assert sae.normalisation == jmi_sparse.ConstantNorm()
    x = points(3, 6).astype(np.float32)
    np.testing.assert_allclose(sae.encode(x), sae.encode(x * 7), rtol=1e-5)


def test_a_model_with_centred_weights_is_warned_of(cache):
    hook = {"sae_lens_version": "6.54.12", "hook_name": "blocks.8.hook_resid_pre"}
    cache.folder("jbloom/GPT2-Small-SAEs-Reformatted", "blocks.8.hook_resid_pre", {"metadata": hook})
    for options in ({}, {"hook": "blocks.8.hook_resid_pre"}):
        with pytest.warns(UserWarning, match="center_writing_weights") as caught:
            jmi_sparse.load("gpt2-small-res-jb/blocks.8.hook_resid_pre", **options)
        assert [Path(each.filename) for each in caught] == [Path(__file__)]


def test_what_the_registry_lacks_loads_by_its_place(cache):
    cache.folder("someone/saes", "run/final")
    assert jmi_sparse.load("someone/saes/run/final").hook_in == "blocks.1.hook_resid_post"
    cache.folder("someone/one-sae", "")
    assert jmi_sparse.load("someone/one-sae").n_features == 20


def test_a_repository_of_one_known_dictionary_needs_no_path(cache):
    hook = {"sae_lens_version": "6.54.12", "hook_name": "blocks.25.hook_resid_post"}
    cache.folder("Juliushanhanhan/llama-3-8b-it-res", "blocks.25.hook_resid_post", {"metadata": hook})
    assert jmi_sparse.load("Juliushanhanhan/llama-3-8b-it-res").hook_in == "blocks.25.hook_resid_post"


def test_a_folder_on_this_machine_comes_first_and_has_no_revision(tmp_path, cache):
    cache.folder("someone/saes", "", {"architecture": "topk", "k": 3})
    path = folder(tmp_path / "here")
    assert jmi_sparse.load(path).activation == jmi_sparse.ReLU()
    (tmp_path / "someone").mkdir()
    path.rename(tmp_path / "someone" / "saes")
    assert jmi_sparse.load("someone/saes").activation == jmi_sparse.ReLU()
    with pytest.raises(ArgumentError, match="revision='main': only what is on the hub has revisions"):
        jmi_sparse.load("someone/saes", revision="main")
    with pytest.raises(ArgumentError, match="revision=3"):
        jmi_sparse.load("someone/other", revision=3)


def test_revision_picks_the_snapshot(cache):
    cache.folder("someone/saes", "a", commit=OLDER, config={"architecture": "topk", "k": 3})
    cache.folder("someone/saes", "a")
    assert jmi_sparse.load("someone/saes/a").activation == jmi_sparse.ReLU()
    assert jmi_sparse.load("someone/saes/a", revision=OLDER).activation == jmi_sparse.TopK(3)
    with pytest.raises(DownloadError, match="someone/saes"):
        jmi_sparse.load("someone/saes/a", revision="no-such-branch")


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("gpt2-small-res_scl-ajt", ["3 dictionaries", "gpt2-small-res_scl-ajt/blocks.2.hook_resid_pre"]),
        ("neuronpedia/gpt2-small__res_scl-ajt", ["3 dictionaries", "gpt2-small-res_scl-ajt/blocks.6"]),
        (
            "google/gemma-scope-2b-pt-res/layer_20/width_16k",
            ["dictionaries", "layer_20/width_16k/average_l0_71"],
        ),
    ],
)
def test_a_name_of_several_lists_them(source, names):
    with pytest.raises(ArgumentError) as caught:
        jmi_sparse.load(source)
    assert all(name in str(caught.value) for name in names)


@pytest.mark.parametrize(
    ("source", "near"),
    [
        (
            "gemma-scope-2b-pt-res-canonical/layer_12/width_15k/canonical",
            "res-canonical/layer_12/width_16k/canonical",
        ),
        (
            "gemma-scope-2b-pt-res-cannonical/layer_12/width_16k/canonical",
            "res-canonical/layer_12/width_16k/canonical",
        ),
        ("gpt2-small-res-jp/blocks.3.hook_resid_pre", "gpt2-small-res-jb/blocks.3.hook_resid_pre"),
        ("mntss/transcoder-llama-3.2-1B", "mntss/transcoder-Llama-3.2-1B"),
    ],
)
def test_a_name_nearly_right_gives_the_nearest(source, near):
    with pytest.raises(DownloadError) as caught:
        jmi_sparse.load(source)
    assert near in str(caught.value)
    assert str(caught.value).isprintable()


def test_a_release_of_one_segment_nearly_right():
    with pytest.raises(ArgumentError, match="nearest names of the registry: llama_scope_lxr_8x"):
        jmi_sparse.load("llama_scope_lxr_9x")


@pytest.mark.parametrize(
    "source",
    [
        *(
            "a/b/../c",
            "a/b/..",
            "a/../../c",
            "../a/b",
            "a/b//c",
            "a/b/c/",
            "a//b",
            "/a/b",
            "-",
            "two words/a",
            "ö/ü",
        ),
        *(
            "a/b/c*",
            "a/b/[c]",
            "a/b/c?d",
            "a/b/.",
            "a\nb/c",
            "\x1b[31m/red",
            "a/b/\x1b[31mred",
            "a\\b/c",
            "a/b/c\0",
        ),
        *("~nobody-of-this-name/a", "./a/b", "x" * 5000),
    ],
)
def test_nonsense_never_reaches_the_hub(monkeypatch, source):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("asked the hub"))
    with pytest.raises(ArgumentError) as caught:
        jmi_sparse.load(source)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 600


def test_paths_that_are_meant_as_paths_are_not_looked_for_on_the_hub(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("asked the hub"))
    for source in (Path("no/such"), tmp_path / "no", "./no/such", str(tmp_path / "no")):
        with pytest.raises(ArgumentError, match="no such folder or file"):
            jmi_sparse.load(source)


def test_not_cached_and_offline_says_what_to_do(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DownloadError, match="switched off by HF_HUB_OFFLINE; unset that, or give a folder"):
        jmi_sparse.load(FACTOR)
    with pytest.raises(DownloadError, match=r"someone/unheard-of: .*not in the Hugging Face cache"):
        jmi_sparse.load("someone/unheard-of")


def test_another_dictionary_of_the_repository_is_not_taken_instead(cache):
    cache.folder(FACTOR_PLACE[0], "gemma_2b_blocks.6.hook_resid_post_16384_anthropic_fast_lr")
    cache.folder("someone/saes", "a")
    for source in (FACTOR, "someone/saes", "someone/saes/b", "someone/saes/a/c"):
        with pytest.raises(DownloadError, match=r"no dictionary at .*; connect, or see the list of files"):
            jmi_sparse.load(source)


class Refused(HfHubHTTPError):
    """What the client raises, without the response that it comes with."""

    def __init__(self, text):
        Exception.__init__(self, text)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (Refused("404 Client Error\nmore"), r"refused it \(404 Client Error\); check the name"),
        (Refused("403: gated"), "accept its licence and set HF_TOKEN"),
        (LocalEntryNotFoundError("no connection"), "the hub cannot be reached; connect"),
        (OSError("disk full\x1b[2J"), r"download failed \(disk full\\x1b"),
    ],
)
def test_what_the_hub_refuses_is_one_clear_error(monkeypatch, error, said):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(DownloadError, match=said):
        jmi_sparse.load("someone/saes/a")


def test_decoders_of_the_hub_can_stay_on_disk(cache):
    cache.folder("someone/saes", "a")
    rows = open_decoder("someone/saes/a").rows(1, [3, 0])
    np.testing.assert_array_equal(rows, FLOATS["W_dec"][[3, 0]])
