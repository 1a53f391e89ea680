"""Published dictionaries against torch: opt-in, ``pytest -m hub``, with the hub or a cache in reach.

Expected values come from ``tests/data/hub``, written by ``python -m tests.oracles.published_dictionaries``;
where they are not there, torch computes them live. Set ``HF_HUB_OFFLINE=0`` to let weights be downloaded.
"""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

import jmi_models
import jmi_sparse
from jmi.errors import DownloadError
from tests.oracles import llama_grid, published_dictionaries
from tests.oracles.published_dictionaries import PLT, PROMPT, SAE

BAR = 1e-4
F = 80
# What another system recorded for random vectors: by layer and seed how many are active, and the largest.
RECORDED = {
    (0, 0): (31998, {80757: 21.6686, 36462: 19.3311, 57558: 17.9238}),
    (7, 7): (33619, {81769: 7.5358}),
    (15, 15): (56155, {63914: 15.3699}),
}
PLACES = {
    "plt": {layer: f"{PLT['repo']}/layer_{layer}.safetensors" for layer in PLT["layers"]},
    "sae": {SAE["layer"]: f"{SAE['repo']}/{SAE['path']}"},
}


def reference(kind):
    file = published_dictionaries.file_of(kind)
    if file.is_file():
        return json.loads(file.read_text())
    for name in ("torch", "transformers"):
        pytest.importorskip(name, reason=f"no recorded reference, and computing one needs {name}")
    try:
        return published_dictionaries.compute(kind)
    except OSError as error:
        pytest.skip(f"no recorded reference, and none can be computed: {error}")


def compared(dictionary, cases):
    """Features of the stored vectors: as many active, the same ten largest, the same values."""
    x = np.asarray([each["residual"] for each in cases], np.float64)
    assert dictionary.W_enc.dtype == np.float64
    features = np.asarray(dictionary.encode(x))
    for row, each in zip(features, cases, strict=True):
        ids = [top["index"] for top in each["top_10"]]
        assert (row > 0).sum() == each["n_active"]
        assert np.argsort(-row, kind="stable")[:10].tolist() == ids
        np.testing.assert_allclose(row[ids], [top["activation"] for top in each["top_10"]], atol=BAR)


@pytest.mark.hub
@pytest.mark.parametrize(("kind", "layer"), [(kind, layer) for kind in PLACES for layer in PLACES[kind]])
def test_features_of_published_dictionaries(kind, layer):
    with jax.enable_x64(True):
        try:
            dictionary = jmi_sparse.load(PLACES[kind][layer], dtype="float64")
        except DownloadError as error:
            pytest.skip(str(error))
        expected = {"plt": f"blocks.{layer}.hook_resid_mid", "sae": f"blocks.{layer}.hook_resid_post"}
        assert dictionary.hook_in == expected[kind]
        cases = [each for each in reference(kind)["test_cases"] if each["layer"] == layer]
        assert len(cases) >= 6
        compared(dictionary, cases)


@pytest.mark.hub
def test_the_reference_is_what_another_system_recorded():
    cases = {(each["layer"], each.get("seed")): each for each in reference("plt")["test_cases"]}
    for key, (count, largest) in RECORDED.items():
        # It counted in float32, where rounding decides on a few near 0.
        assert abs(cases[key]["n_active"] - count) <= 2
        top = {each["index"]: each["activation"] for each in cases[key]["top_10"][: len(largest)]}
        assert top == pytest.approx(largest, abs=1.5e-4)


@pytest.mark.hub
@pytest.mark.parametrize("kind", PLACES)
def test_the_model_gives_the_vectors_that_were_encoded(kind):
    try:
        lm = jmi_models.load({"plt": PLT, "sae": SAE}[kind]["model"])
    except DownloadError as error:
        pytest.skip(str(error))
    held = reference(kind)
    assert np.asarray(lm.encode(PROMPT))[0].tolist() == held["tokens"]
    hook = {"plt": "blocks.{}.hook_resid_mid", "sae": "blocks.{}.hook_resid_post"}[kind]
    out = lm.run(np.asarray([held["tokens"]], np.int32), capture=[hook.format(n) for n in PLACES[kind]])
    for each in held["test_cases"]:
        if "position" in each:
            wanted = np.asarray(each["residual"])
            got = np.asarray(out[hook.format(each["layer"])])[0, each["position"]]
            np.testing.assert_allclose(got, wanted, atol=BAR * np.abs(wanted).max())


@pytest.mark.oracle
def test_the_script_reads_points_and_files_as_jmi_does(tmp_path):
    torch = pytest.importorskip("torch", reason="compares with torch")
    transformers = pytest.importorskip("transformers", reason="compares with transformers")
    folder = llama_grid.write_folder(tmp_path / "llama", llama_grid.GRID["grouped"])
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    lm, tokens = jmi_models.load(folder), np.asarray([[3, 1, 4, 1, 5, 9]], np.int32)
    d, rng = theirs.config.hidden_size, np.random.default_rng(0)
    held = {
        "W_enc": rng.normal(size=(F, d)),
        "W_dec": rng.normal(size=(F, d)),
        "b_enc": rng.normal(size=F) - 1,
        "b_dec": rng.normal(size=d),
    }
    held = {name: array.astype(np.float32) for name, array in held.items()}
    save_file(held, tmp_path / "layer_1.safetensors")
    (tmp_path / "sae").mkdir()
    np.savez(
        tmp_path / "sae" / "params.npz",
        **{**held, "W_enc": held["W_enc"].T.copy(), "threshold": rng.uniform(-1, 2, F).astype(np.float32)},
    )
    encoders = {
        "mid": published_dictionaries.transcoder(tmp_path / "layer_1.safetensors"),
        "post": published_dictionaries.gemma_scope(tmp_path / "sae" / "params.npz"),
    }
    places = {"mid": tmp_path / "layer_1.safetensors", "post": tmp_path / "sae"}
    for point, encode in encoders.items():
        found = published_dictionaries.residuals(theirs, torch.from_numpy(tokens).long(), [0, 1], point)
        for layer in (0, 1):
            ours = lm.run(tokens, capture=[f"blocks.{layer}.hook_resid_{point}"])
            got = np.asarray(ours[f"blocks.{layer}.hook_resid_{point}"])[0]
            np.testing.assert_allclose(got, found[layer].numpy(), atol=1e-5 * np.abs(got).max())
        cases = [published_dictionaries.case(x, encode) for x in found[1]]
        assert len({each["n_active"] for each in cases}) > 1
        assert all(10 <= each["n_active"] < F for each in cases)
        with jax.enable_x64(True):
            hook = f"blocks.1.hook_resid_{point}"
            compared(jmi_sparse.load(places[point], dtype="float64", hook=hook), cases)
