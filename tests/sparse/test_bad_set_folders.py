"""Damaged folders of several layers: one clear error, or the right numbers."""

import os
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jmi_sparse
from jmi.errors import JmiError
from jmi_sparse.decoders.on_disk import open_decoder
from tests.sparse.set_folders import CLT_CONFIG, clt_folder, gemma_folder, plt_folder

MAKERS = {
    "plt": lambda path: plt_folder(path, threshold=0.3, skip=True),
    "topk": lambda path: plt_folder(path, config={"activation": "topk", "k": 2}, k=2),
    "clt": lambda path: clt_folder(path, threshold=0.3),
    "gemma": lambda path: gemma_folder(path, config=CLT_CONFIG),
}
FILES = {
    "plt": "layer_1.safetensors",
    "topk": "layer_1.safetensors",
    "clt": "W_dec_1.safetensors",
    "gemma": "params_layer_1.safetensors",
}


def changed(**names):
    """Tensors of the file of one layer replaced, or taken out where the value is None."""

    def damage(path, file):
        held = load_file(path / file)
        for part, change in names.items():
            name = next(name for name in held if name.startswith(part) or name.endswith(part))
            value = change(held.pop(name))
            if value is not None:
                held[name] = np.ascontiguousarray(value)
        save_file(held, path / file)

    return damage


def added(name, value):
    def damage(path, file):
        save_file(load_file(path / file) | {name: value}, path / file)

    return damage


def cut(keep):
    def damage(path, file):
        data = (path / file).read_bytes()
        (path / file).write_bytes(data[:keep] if keep >= 0 else data + b"0")

    return damage


def renamed(name):
    return lambda path, file: (path / file).rename(path / name)


def removed(path, file):
    (path / file).unlink()


def piped(path, file):
    (path / file).unlink()
    os.mkfifo(path / file)


def foldered(path, file):
    (path / file).unlink()
    (path / file).mkdir()


def dangling(path, file):
    (path / file).unlink()
    (path / file).symlink_to(path / "nowhere")


def copied(name):
    return lambda path, file: shutil.copy(path / file, path / name)


ANY = {
    "empty file": cut(0),
    "eight bytes": cut(8),
    "half a header": cut(60),
    "a byte more": cut(-1),
    "no file": removed,
    "a pipe": piped,
    "a folder": foldered,
    "a dangling link": dangling,
}
DAMAGE = {
    **{(kind, name): damage for kind in MAKERS for name, damage in ANY.items()},
    ("plt", "a padded number"): copied("layer_01.safetensors"),
    ("plt", "a huge number"): copied("layer_99999999999999999999.safetensors"),
    ("plt", "no W_enc"): changed(W_enc=lambda a: None),
    ("plt", "no b_enc"): changed(b_enc=lambda a: None),
    ("plt", "no skip"): changed(W_skip=lambda a: None),
    ("plt", "no threshold"): changed(threshold=lambda a: None),
    ("plt", "W_enc turned"): changed(W_enc=lambda a: a.T),
    ("plt", "another width"): changed(W_dec=lambda a: a[:, :3]),
    ("plt", "fewer features"): changed(W_enc=lambda a: a[:5], W_dec=lambda a: a[:5], b_enc=lambda a: a[:5]),
    ("plt", "whole numbers"): changed(W_dec=lambda a: a.astype(np.int32)),
    ("plt", "NaN"): changed(b_dec=lambda a: a * np.nan),
    ("plt", "infinite"): changed(b_enc=lambda a: a * np.inf),
    ("plt", "NaN as threshold"): changed(threshold=lambda a: a * np.nan),
    ("plt", "a surplus tensor"): added("extra", np.zeros(3, np.float32)),
    ("plt", "log thresholds"): added("log_thresholds", np.zeros(6, np.float32)),
    ("plt", "a k, too"): added("k", np.array(2)),
    ("topk", "k as a float"): changed(k=lambda a: np.array(2.5)),
    ("topk", "k as a row"): changed(k=lambda a: np.array([2])),
    ("topk", "no k"): changed(k=lambda a: None),
    ("clt", "a gap"): renamed("W_dec_7.safetensors"),
    ("clt", "a surplus layer"): copied("W_dec_3.safetensors"),
    ("clt", "a surplus encoder"): copied("W_enc_3.safetensors"),
    ("clt", "another name inside"): changed(W_dec=lambda a: None),
    ("clt", "too few targets"): changed(W_dec_1=lambda a: a[:, :1]),
    ("clt", "too few features"): changed(W_dec_1=lambda a: a[:3]),
    ("clt", "two axes"): changed(W_dec_1=lambda a: a[:, 0]),
    ("clt", "NaN"): changed(W_dec_1=lambda a: a * np.nan),
    ("gemma", "a gap"): renamed("params_layer_5.safetensors"),
    ("gemma", "a surplus layer"): copied("params_layer_3.safetensors"),
    ("gemma", "too few targets"): changed(w_dec=lambda a: a[:, :2]),
    ("gemma", "w_enc turned"): changed(w_enc=lambda a: a.T),
    ("gemma", "no skip"): changed(affine_skip_connection=lambda a: None),
    ("gemma", "no threshold"): changed(threshold=lambda a: None),
    ("gemma", "two axes"): changed(w_dec=lambda a: a[:, 0]),
}
FITS = {("topk", "a pipe"), ("topk", "no file"), ("plt", "no file"), ("plt", "a pipe")}
"""Per-layer sets may lack a layer: the others are read as they are, by their own numbers."""


def test_there_are_enough_of_them():
    assert len(DAMAGE) >= 50


@pytest.mark.parametrize(("kind", "name"), DAMAGE)
def test_a_damaged_folder_is_one_error_or_the_right_numbers(tmp_path, kind, name):
    path = tmp_path / "clt"
    MAKERS[kind](path)
    before, x = jmi_sparse.load(path), np.random.default_rng(2).normal(size=(3, 5, 4)).astype(np.float32)
    DAMAGE[kind, name](path, FILES[kind])
    for call in (jmi_sparse.load, open_decoder):
        try:
            one = call(path)
        except JmiError as error:
            text = str(error)
            assert 10 < len(text) < 1200, text
            assert text.isprintable(), text
            continue
        if call is open_decoder and name in ("NaN", "infinite", "NaN as threshold"):
            # Headers are all that was read: what is not finite is told of when it is.
            continue
        # What was there before and still is must be as it was.
        assert (kind, name) in FITS, f"{call.__name__} took a folder with {name}"
        assert one.layers == (0, 2)
        rows = [before.layers.index(layer) for layer in one.layers]
        if call is jmi_sparse.load:
            np.testing.assert_array_equal(one.reconstruct(x[rows]), before.reconstruct(x)[np.array(rows)])
        else:
            np.testing.assert_array_equal(one.matrix(2), before.stacked.W_dec[2])


@pytest.mark.parametrize("kind", MAKERS)
def test_all_that_is_wrong_is_in_one_message(tmp_path, kind):
    path = tmp_path / "clt"
    MAKERS[kind](path)
    files = sorted(file for file in path.iterdir() if file.suffix == ".safetensors")[-2:]
    for number, file in enumerate(files):
        held = load_file(file)
        save_file(held | {f"extra_{number}": np.zeros(2, np.float32)}, file)
    with pytest.raises(JmiError) as told:
        jmi_sparse.load(path)
    assert all(
        f"{file.name}: surplus: extra_{number}" in str(told.value) for number, file in enumerate(files)
    )
