"""Sets of transcoders saved as folders of circuit-tracer, bit for bit, and what is not saved."""

import dataclasses

import jax
import numpy as np
import pytest
import yaml
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import jmi_sparse
from jmi.errors import ArgumentError, OutputError
from tests.sparse.made import dictionary
from tests.sparse.set_folders import CONFIG, clt_folder, gemma_folder, plt_folder, points


def same(one, other):
    """Whether two dictionaries are one: structure, dtypes and bits."""
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("options", [{}, {"skip": True, "threshold": 0.4}, {"k": 3, "d_out": 5}])
def test_sets_come_back_bit_for_bit(tmp_path, dtype, options):
    path, _ = plt_folder(tmp_path / "a", **options)
    one = jmi_sparse.load(path, dtype=dtype)
    jmi_sparse.save(one, tmp_path / "b", format="circuit-tracer")
    same(jmi_sparse.load(tmp_path / "b", dtype=dtype), one)
    if dtype == "float32":
        for layer in range(3):
            first, second = (load_file(p / f"layer_{layer}.safetensors") for p in (path, tmp_path / "b"))
            assert {n: a.tobytes() for n, a in first.items()} == {n: a.tobytes() for n, a in second.items()}
            assert {n: (a.dtype, a.shape) for n, a in first.items()} == {
                n: (a.dtype, a.shape) for n, a in second.items()
            }
    said = yaml.safe_load((tmp_path / "b" / "config.yaml").read_text())
    assert said.items() >= CONFIG.items()
    assert (said.get("activation"), said.get("k")) == (("topk", 3) if "k" in options else (None, None))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("options", [{}, {"skip": True, "d_out": 5}, {"threshold": 0.4, "skip": True}])
def test_cross_layer_transcoders_come_back_with_their_skips(tmp_path, dtype, options):
    path, _ = clt_folder(tmp_path / "a", **options)
    one = jmi_sparse.load(path, dtype=dtype)
    jmi_sparse.save(one, tmp_path / "b", format="circuit-tracer")
    same(jmi_sparse.load(tmp_path / "b", dtype=dtype), one)
    for file in path.glob("*.safetensors") if dtype == "float32" else ():
        with safe_open(file, "np") as first, safe_open(tmp_path / "b" / file.name, "np") as second:
            assert set(first.keys()) == set(second.keys())
            for name in first.keys():  # noqa: SIM118
                np.testing.assert_array_equal(first.get_tensor(name), second.get_tensor(name))


def test_a_gemma_scope_2_transcoder_saved_as_circuit_tracer_has_it(tmp_path):
    one = jmi_sparse.load(gemma_folder(tmp_path / "clt" / "a")[0])
    jmi_sparse.save(one, tmp_path / "b", format="circuit-tracer")
    again = jmi_sparse.load(tmp_path / "b")
    np.testing.assert_array_equal(again.reconstruct(points(3)), one.reconstruct(points(3)))
    assert again.hook_in == one.hook_in


def test_what_circuit_tracer_has_no_field_for_is_not_saved(tmp_path):
    one, clt = (jmi_sparse.load(make(tmp_path / make.__name__)[0]) for make in (plt_folder, clt_folder))
    changed = lambda **fields: dataclasses.replace(one, stacked=dataclasses.replace(one.stacked, **fields))
    for wrong in (
        one[0],
        dictionary(),
        changed(kind="sae"),
        changed(activation=jmi_sparse.TopK(2)),
        changed(rescale_acts_by_decoder_norm=True),
        changed(normalisation=jmi_sparse.LayerNorm()),
        changed(hook_in="somewhere"),
        dataclasses.replace(clt, layers=(1, 2, 3), targets=(1, 2, 3)),
        dataclasses.replace(clt, activation=jmi_sparse.TopK(2, "none")),
        dataclasses.replace(clt, W_dec=clt.W_dec[:-1], pairs=clt.pairs[:-1]),
    ):
        with pytest.raises(ArgumentError, match="save:"):
            jmi_sparse.save(wrong, tmp_path / "x", format="circuit-tracer")
    assert not (tmp_path / "x").exists()


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    first, second = (jmi_sparse.load(plt_folder(tmp_path / n, skip=s)[0]) for n, s in (("a", 0), ("b", 1)))
    jmi_sparse.save(first, tmp_path / "c", format="circuit-tracer")
    before = {file.name: file.read_bytes() for file in (tmp_path / "c").iterdir()}
    written = []

    def breaks(arrays, file):
        written.append(file)
        if len(written) == 3:
            raise OSError(28, "No space left on device")
        save_file(arrays, file)

    monkeypatch.setattr("jmi_sparse.formats.sets.circuit_tracer_writing.save_file", breaks)
    with pytest.raises(OutputError, match="No space left"):
        jmi_sparse.save(second, tmp_path / "c", format="circuit-tracer")
    assert {file.name: file.read_bytes() for file in (tmp_path / "c").iterdir()} == before


def test_layers_of_another_set_are_not_left_among_new_ones(tmp_path):
    large = jmi_sparse.load(plt_folder(tmp_path / "a", layers=range(5))[0])
    small = jmi_sparse.load(plt_folder(tmp_path / "b")[0])
    jmi_sparse.save(large, tmp_path / "c", format="circuit-tracer")
    with pytest.raises(ArgumentError, match=r"layer_3\.safetensors"):
        jmi_sparse.save(small, tmp_path / "c", format="circuit-tracer")
    same(jmi_sparse.load(tmp_path / "c"), large)
