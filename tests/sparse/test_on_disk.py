"""Decoders that stay on disk: the rows of a loaded dictionary, and no more of a file than they need."""

import ctypes
import json
import mmap
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

import jmi_sparse
from jmi.errors import ArgumentError, CheckpointError
from jmi_sparse.decoders.on_disk import open_decoder
from tests.sparse.made import D, F, folder, points
from tests.sparse.set_folders import clt_folder, gemma_folder, layer_file, plt_folder
from tests.sparse.set_folders import points as inputs

IDS = [5, 0, 3, 3]


def assert_encodes_alike(one, other, x):
    np.testing.assert_allclose(one.encode(x), other, rtol=1e-5, atol=1e-6)
    assert isinstance(one.W_enc, type(jnp.zeros(1)))


@pytest.mark.parametrize("options", [{"skip": True, "threshold": 0.4}, {"k": 3}])
def test_layers_by_themselves(tmp_path, options):
    path, _ = plt_folder(tmp_path / "a", layers=(1, 4), d_out=5, **options)
    every, opened, x = jmi_sparse.load(path), open_decoder(path), inputs(2)
    assert (opened.layers, opened.n_features, opened.d_out) == ((1, 4), 6, 5)
    assert dict(opened.targets) == {1: (1,), 4: (4,)}
    for row, layer in enumerate((1, 4)):
        np.testing.assert_array_equal(opened.rows(layer, IDS), every.stacked.W_dec[row][jnp.array(IDS)])
        np.testing.assert_array_equal(opened.matrix(layer, layer), every.stacked.W_dec[row])
        one = opened.encoder(layer)
        assert (one.hook_in, one.activation) == (every[layer].hook_in, one.activation)
        assert_encodes_alike(one, every[layer].encode(x[row]), x[row])
        np.testing.assert_array_equal(one.reconstruct(x[row]), every[layer].reconstruct(x[row]))
    single = open_decoder(path / "layer_4.safetensors")
    assert single.layers == (4,)
    np.testing.assert_array_equal(single.rows(4, IDS), opened.rows(4, IDS))


@pytest.mark.parametrize("make", [clt_folder, gemma_folder])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_layers_that_write_into_later_ones(tmp_path, make, dtype):
    path, _ = make(tmp_path / "clt" / "a")
    every, opened, x = jmi_sparse.load(path, dtype=dtype), open_decoder(path, dtype=dtype), inputs(3)
    assert dict(opened.targets) == {0: (0, 1, 2), 1: (1, 2), 2: (2,)}
    features = every.encode(x)
    for number, (layer, target) in enumerate(every.pairs):
        found = opened.rows(layer, np.array(IDS), target)
        assert str(found.dtype) == dtype
        np.testing.assert_array_equal(found, every.W_dec[number][jnp.array(IDS)])
        np.testing.assert_array_equal(opened.matrix(layer, target), every.W_dec[number])
    for layer in range(3):
        np.testing.assert_array_equal(opened.rows(layer, IDS), opened.rows(layer, IDS, layer))
        one = opened.encoder(layer)
        assert one.W_dec.shape == (6, 0)
        assert one.hook_in == every.hook_in.replace("*", str(layer))
        np.testing.assert_array_equal(one.b_dec, every.b_dec[layer])
        if every.W_skip is not None:
            np.testing.assert_array_equal(one.W_skip, every.W_skip[layer])
        if dtype == "float32":
            assert_encodes_alike(one, features[layer], x[layer])


def test_an_encoder_needs_no_other_layer(tmp_path):
    path, held = clt_folder(tmp_path / "a")
    opened = open_decoder(path)
    for layer in (0, 2):
        (path / f"W_enc_{layer}.safetensors").unlink()
    x = inputs(1)[0]
    want = x @ held["W_enc_1"]["W_enc_1"].T + held["W_enc_1"]["b_enc_1"]
    np.testing.assert_allclose(opened.encoder(1).encode(x), np.maximum(want, 0), rtol=1e-5, atol=1e-6)
    with pytest.raises(CheckpointError):
        opened.encoder(2)


def test_folders_of_one_dictionary(tmp_path):
    path = folder(tmp_path / "a")
    one, opened = jmi_sparse.load(path), open_decoder(path)
    assert (opened.layers, opened.n_features, opened.d_out) == ((1,), F, D)
    np.testing.assert_array_equal(opened.rows(1, IDS), one.W_dec[jnp.array(IDS)])
    np.testing.assert_array_equal(opened.encoder(1).reconstruct(points()), one.reconstruct(points()))
    # Rows of the file are not those of the dictionary where loading multiplies them by a factor.
    mode = {"normalize_activations": "expected_average_only_in"}
    held = folder(tmp_path / "b", mode, activation_scaler='{"scaling_factor": 2.0}')
    scaled = folder(tmp_path / "c", {"metadata": {}}, {"scaling_factor": np.ones(F, np.float32)})
    for place in (held, scaled):
        with pytest.raises(ArgumentError, match="loading multiplies"):
            open_decoder(place)


def test_one_file_of_gemma_scope_2(tmp_path):
    path, held = gemma_folder(tmp_path / "clt" / "a")
    opened = open_decoder(path / "params_layer_1.safetensors")
    assert dict(opened.targets) == {1: (1, 2)}
    np.testing.assert_array_equal(opened.rows(1, IDS, 2), held[1]["w_dec"][IDS, 2])


def test_wrong_arguments_are_said(tmp_path):
    opened = open_decoder(clt_folder(tmp_path / "a")[0])
    for layer, ids, target, name in (
        (3, IDS, None, "layer="),
        (-1, IDS, None, "layer="),
        (1.0, IDS, None, "layer="),
        (1, IDS, 0, "target="),
        (1, IDS, 3, "target="),
        (1, [6], None, "ids="),
        (1, [-1], None, "ids="),
        (1, [[0]], None, "ids="),
        (1, [0.5], None, "ids="),
        (1, [True], None, "ids="),
        (1, "all", None, "ids="),
    ):
        with pytest.raises(ArgumentError, match=name):
            opened.rows(layer, ids, target)
    with pytest.raises(ArgumentError, match="layer="):
        opened.encoder(7)
    assert opened.rows(1, np.array([], int)).shape == (0, 4)
    for wrong in ({"dtype": "int8"}, {"format": "npz"}):
        with pytest.raises(ArgumentError, match=f"{next(iter(wrong))}="):
            open_decoder(tmp_path / "a", **wrong)


def test_rows_that_are_not_finite_are_said(tmp_path):
    path, held = plt_folder(tmp_path / "a")
    held[1]["W_dec"][2] = 1e30
    save_file(held[1], path / "layer_1.safetensors")
    assert open_decoder(path).rows(1, [2]).max() > 1e29
    half = open_decoder(path, dtype="float16")
    assert np.isfinite(half.rows(1, [0, 1])).all()
    with pytest.raises(CheckpointError, match="not finite in float16"):
        half.rows(1, [2])


def sparse_file(path, shapes):
    """A file of safetensors whose numbers are a hole: zeros that take no room on the disk."""
    header, at = {}, 0
    for name, shape in shapes.items():
        size = 4 * int(np.prod(shape))
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + at)
    return 8 + len(text) + at


def resident(path):
    """Bytes of a file that the system has read: those in its page cache."""
    size = path.stat().st_size
    with path.open("rb") as file, mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) as mapped:
        view = np.frombuffer(mapped, np.uint8)
        pages = np.zeros(-(-size // mmap.PAGESIZE), np.uint8)
        address = ctypes.c_void_p(view.ctypes.data)
        failed = ctypes.CDLL(None).mincore(address, ctypes.c_size_t(size), ctypes.c_void_p(pages.ctypes.data))
        del view
    assert not failed
    return int((pages & 1).sum()) * mmap.PAGESIZE


@pytest.mark.skipif(sys.platform != "linux", reason="counts pages as Linux does")
@pytest.mark.parametrize("format", ["circuit-tracer", "circuit-tracer-clt", "gemma-scope-2-sets", "saelens"])
def test_ten_rows_of_two_gigabytes_read_less_than_a_megabyte(tmp_path, format):
    features, d, layers = 131_072, 2048, 2
    ids, name = np.arange(10) * (features // 10) + 7, "layer_0.safetensors"
    if format == "circuit-tracer":
        shapes = {"W_enc": [features, 1], "W_dec": [features, 2 * d], "b_enc": [features], "b_dec": [2 * d]}
    elif format == "circuit-tracer-clt":
        name = "W_dec_0.safetensors"
        shapes = {"W_dec_0": [features, layers, d]}
        _clt_encoders(tmp_path, features, d)
    elif format == "saelens":
        name = "sae_weights.safetensors"
        folder(tmp_path, {"d_in": 2 * d, "d_sae": features})
        shapes = {
            "W_enc": [2 * d, features],
            "W_dec": [features, 2 * d],
            "b_enc": [features],
            "b_dec": [2 * d],
        }
    else:
        name = "params_layer_0.safetensors"
        shapes = {
            "w_enc": [1, features],
            "w_dec": [features, 1, 2 * d],
            "b_enc": [features],
            "b_dec": [2 * d],
            "threshold": [features],
        }
    (tmp_path / name).unlink(missing_ok=True)
    assert sparse_file(tmp_path / name, shapes) > 2e9
    opened = open_decoder(tmp_path)
    layer = opened.layers[0]
    target = opened.targets[layer][-1]
    found = opened.rows(layer, ids, target)
    assert found.shape == (10, opened.d_out)
    read = resident(tmp_path / name)
    assert found.nbytes <= read < 1e6


def _clt_encoders(path, features, d):
    """All but the first decoder of a transcoder of two layers."""
    for i in range(2):
        encoder = {f"W_enc_{i}": [features, d], f"b_enc_{i}": [features], f"b_dec_{i}": [d]}
        sparse_file(path / f"W_enc_{i}.safetensors", encoder)
    sparse_file(path / "W_dec_1.safetensors", {"W_dec_1": [features, 1, d]})


@pytest.mark.skipif(sys.platform != "linux", reason="counts pages as Linux does")
def test_opening_reads_headers_alone_and_an_encoder_its_own_layer(tmp_path):
    features, d = 4096, 512
    for layer in range(3):
        shapes = {name: list(a.shape) for name, a in layer_file(0, d=d, features=features).items()}
        sparse_file(tmp_path / f"layer_{layer}.safetensors", shapes)
    opened = open_decoder(tmp_path)
    files = [tmp_path / f"layer_{layer}.safetensors" for layer in range(3)]
    assert max(map(resident, files)) < 1e5
    opened.encoder(1)
    assert [resident(file) > 1e7 for file in files] == [False, True, False]
    assert max(resident(files[0]), resident(files[2])) < 1e5
