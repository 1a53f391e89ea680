"""Folders in the layouts of others: good ones give the right numbers, damaged ones one error."""

import os
import pickle
import zipfile

import numpy as np
import pytest

import jmi_sparse
from jmi.errors import CheckpointError, JmiError
from jmi_sparse.formats.reading import tensors
from tests.sparse.foreign import (
    CONFIGS,
    FOLDERS,
    HELD,
    LEFT_OUT,
    WEIGHTS,
    K,
    archive,
    files_with,
    npy,
    source,
)
from tests.sparse.made import D, F
from tests.support import torch_files
from tests.support.torch_files import Malice


def matrices(held):
    return [name for name, array in held.items() if array.ndim == 2 and array.shape != (D, D)]


DAMAGES = {
    "a tensor missing": lambda held: {**held, matrices(held)[0]: LEFT_OUT},
    "a bias missing": lambda held: {**held, bias(held): LEFT_OUT},
    "surplus": lambda held: {**held, "extra\x1b[31m": np.zeros(3, np.float32)},
    "transposed": lambda held: {**held, matrices(held)[0]: held[matrices(held)[0]].T.copy()},
    "all transposed": lambda held: {
        **held,
        **{name: np.ascontiguousarray(held[name].T) for name in matrices(held)},
    },
    "longer": lambda held: {**held, bias(held): np.zeros(F + 1, np.float32)},
    "one more axis": lambda held: {**held, bias(held): held[bias(held)][None]},
    "no axis": lambda held: {**held, bias(held): np.array(0, np.float32)},
    "NaN": lambda held: {**held, bias(held): np.full_like(held[bias(held)], np.nan)},
    "infinite": lambda held: {**held, matrices(held)[1]: np.full_like(held[matrices(held)[1]], np.inf)},
    "integers": lambda held: {**held, bias(held): held[bias(held)].astype(np.int64)},
    "booleans": lambda held: {**held, bias(held): held[bias(held)] > 0},
    "no features": lambda held: {
        name: array[tuple(slice(0 if size in (F, 18) else None) for size in array.shape)]
        for name, array in held.items()
    },
}


def bias(held):
    """A vector with an entry for each feature."""
    return next(name for name, array in held.items() if array.shape in ((F,), (18,)))


def refused(path, kind=JmiError, **options):
    """The one error of a bad folder."""
    with pytest.raises(kind) as told:
        jmi_sparse.load(path, **options)
    message = str(told.value)
    assert len(message) < 1500
    assert "\x1b" not in message
    return message


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FOLDERS)
def test_bad_weights_are_one_error(tmp_path, name, damage):
    files = files_with(name, "weights", DAMAGES[damage])
    message = refused(source(tmp_path, name, files), CheckpointError)
    assert WEIGHTS[name].split("/")[-1] in message


@pytest.mark.parametrize("keep", [0, 3, 40, 0.5, 0.999, "noise", "pipe", "folder"])
@pytest.mark.parametrize("name", FOLDERS)
def test_bad_files_are_one_error(tmp_path, name, keep):
    path = source(tmp_path, name)
    file = tmp_path / WEIGHTS[name]
    data = file.read_bytes()
    file.unlink()
    if keep in ("pipe", "folder"):
        (os.mkfifo if keep == "pipe" else os.mkdir)(file)
    else:
        noise = np.random.default_rng(0).bytes(len(data))
        whole = int(len(data) * keep) if isinstance(keep, float) else keep
        file.write_bytes(noise if keep == "noise" else data[:whole])
    refused(path if path.exists() else tmp_path)


def test_all_that_is_wrong_is_in_one_message(tmp_path):
    def change(held):
        return {
            "W_enc": held["W_enc"].T.copy(),
            "W_dec": held["W_dec"],
            "b_enc": held["b_enc"].astype(np.int64),
            "threshold": held["threshold"],
            "other": held["b_dec"],
        }

    message = refused(source(tmp_path, "gemma-scope", files_with("gemma-scope", "weights", change)))
    assert "missing: b_dec; surplus: other; W_enc has shape [20, 6], not [6, 20]; b_enc is I64" in message


def test_a_scale_that_is_not_1_is_refused(tmp_path):
    files = files_with(
        "gemma-scope-embedding", "weights", lambda held: {**held, "scaling_factor": HELD["threshold"]}
    )
    assert "scaling_factor is not 1" in refused(source(tmp_path, "gemma-scope-embedding", files))


@pytest.mark.parametrize("name", ["qwen-scope", "goodfire", "deepseek", "hook-z", "topk"])
def test_no_code_in_a_pickle_is_run(tmp_path, name):
    path, touched = source(tmp_path, name), tmp_path / "touched"
    program = pickle.dumps({"W_enc": Malice(f"touch {touched}")}, protocol=2)
    torch_files.write(tmp_path / WEIGHTS[name], program, {})
    assert "asks for" in refused(path, CheckpointError)
    assert not touched.exists()


def test_a_tensor_larger_than_its_file_is_refused(tmp_path):
    path = source(tmp_path, "goodfire")
    held = torch_files.tensor(torch_files.storage("0", 1), (2**20, 2**20), (0, 0))
    values = torch_files.mapping({"encoder_linear.weight": held})
    torch_files.write(path, torch_files.program(values), {"data/0": b"\0" * 4})
    assert "larger than its file" in refused(path, CheckpointError, format="goodfire")


def test_bad_archives_are_one_error(tmp_path):
    good = npy(HELD["b_enc"])
    for number, (bad, said) in enumerate(
        {
            npy(np.array([Malice("touch x")], object)): "b_enc is object",
            npy(HELD["b_enc"].astype(">f4")): r"b_enc is '>f4'",
            npy(HELD["b_enc"].astype([("a", "f4")])): "b_enc is",
            good[:-4]: "not those of",
            good.replace(b"(20,)", b"(99,)"): "not those of",
            good.replace(b"(20,)", b"(-1,)"): "a shape of",
            b"\x93NUMPY\x07\x00" + good[8:]: "not a readable",
            b"": "not a readable",
            good[:40]: "not a readable",
        }.items()
    ):
        assert said in refused(archive(tmp_path / str(number), b_enc=bad), CheckpointError)


def test_what_would_grow_without_bound_is_refused(tmp_path):
    many = 10**7
    bomb = npy(np.broadcast_to(np.float32(0), (many,)))
    message = refused(archive(tmp_path, zipfile.ZIP_DEFLATED, b_enc=bomb), CheckpointError)
    assert f"to {len(bomb)}" in message


def test_compressed_archives_and_other_orders_are_read(tmp_path):
    entries = {name: npy(np.asfortranarray(HELD[name])) for name in ("W_enc", "W_dec")}
    plain = jmi_sparse.load(source(tmp_path / "plain", "gemma-scope"))
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        held = tensors.headers(archive(tmp_path / "boxes", compression, **entries) / WEIGHTS["gemma-scope"])
        rows = held["W_dec"].read((slice(2, 4),))
        np.testing.assert_array_equal(rows, HELD["W_dec"][2:4])
        # Of a stored one the file alone is mapped.
        assert isinstance(rows.base.base, np.memmap) == (compression == zipfile.ZIP_STORED)
        other = jmi_sparse.load(archive(tmp_path / str(compression), compression, **entries))
        for name in ("W_enc", "W_dec", "b_enc", "b_dec"):
            np.testing.assert_array_equal(getattr(other, name), getattr(plain, name))


def test_a_damaged_compressed_array_is_one_error(tmp_path):
    path = archive(tmp_path, zipfile.ZIP_DEFLATED)
    file = tmp_path / WEIGHTS["gemma-scope"]
    data = bytearray(file.read_bytes())
    data[300] ^= 255
    file.write_bytes(data)
    refused(path, CheckpointError)


WORDS = [None, [], {}, "x", -1, 1.5, True, 2**40, 10**400, LEFT_OUT]
SIZES = {
    "llama-scope": ("d_model", "d_sae"),
    "llama-scope-later": ("d_model", "expansion_factor"),
    "hook-z": ("act_size", "dict_size"),
    "sparsify": ("d_in", "num_latents", "k"),
}
BAD_FIELDS = [
    *((name, field, value) for name, fields in SIZES.items() for field in fields for value in WORDS),
    *(("llama-scope", "jump_relu_threshold", value) for value in [[], "x", -1, True, 10**400, LEFT_OUT]),
    *(
        ("llama-scope", "dataset_average_activation_norm", value)
        for value in [[], "x", 1.5, {}, {"in": 0}, {"in": 1, "out": -1}, {"in": 10**400}, LEFT_OUT]
    ),
    *(("llama-scope", "norm_activation", value) for value in [1, [], "token-wise"]),
    *(("llama-scope", name, value) for name in ("act_fn", "sae_type") for value in ["topk", [], 3]),
    ("llama-scope-later", "norm_activation", "batch-wise"),
    *(
        (name, "hook_point_in", value)
        for name in ("llama-scope", "llama-scope-later")
        for value in [3, "a\x1b[31m"]
    ),
    *(("gemma-scope-2", "architecture", value) for value in ["standard", [], None, 3]),
    *(("gemma-scope-2", "affine_connection", value) for value in [False, 1, "yes", None]),
    *(
        ("gemma-scope-2", "hf_hook_point_in", f"model.layers.{point}")
        for point in ("4.pre_feedforward_layernorm.output", "3.output", "3.self_attn.o_proj.input")
    ),
    *(("hook-z", "act_name", value) for value in [3, [], "a\x1b[31m"]),
    *(("sparsify", "k", value) for value in [0, F + 1, "5"]),
    *(("sparsify", "activation", value) for value in ["relu", [], 3]),
    *(("sparsify", name, 1) for name in ("transcode", "skip_connection", "signed", "normalize_io")),
    ("sparsify", "skip_connection", True),
    *(("sparsify-transcoder", "k", value) for value in [3, 0, F + 1]),
    ("sparsify-transcoder", "skip_connection", False),
]
BAD_TRAINERS = [
    *(("topk", field, value) for field in ("activation_dim", "dict_size") for value in WORDS),
    *(("topk", "dict_class", value) for value in [*WORDS, "CrossCoder", "AutoEncoder", "GatedAutoEncoder"]),
    *(("topk", "k", value) for value in [0, -1, F + 1, K + 1, "5", 5.5, [], True]),
    *(("topk", "submodule_name", value) for value in [3, [], "resid_post_layer_9", "a\x1b[31m"]),
    *(("topk", "layer", value) for value in [3, [], "x"]),
    *(("batchtopk", "k", value) for value in [0, K + 1, "5"]),
    ("matryoshka", "dict_size", F - 1),
]
# 0 latents mean as many as the factor says, and nothing said about k means that of the library.
BAD_FIELDS = [
    case
    for case in BAD_FIELDS
    if case[1:] not in (("num_latents", None), ("num_latents", LEFT_OUT), ("k", LEFT_OUT), ("k", 1.5))
] + [("sparsify", "num_latents", False)]


@pytest.mark.parametrize(("name", "field", "value"), BAD_FIELDS)
def test_a_bad_field_is_one_error(tmp_path, name, field, value):
    files = files_with(name, "config", lambda config: {**config, field: value})
    refused(source(tmp_path, name, files))


@pytest.mark.parametrize(("name", "field", "value"), BAD_TRAINERS)
def test_a_bad_field_of_a_trainer_is_one_error(tmp_path, name, field, value):
    def change(config):
        trainer = {
            key: held for key, held in {**config["trainer"], field: value}.items() if held is not LEFT_OUT
        }
        return {**config, "trainer": trainer}

    refused(source(tmp_path, name, files_with(name, "config", change)))


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"d_in": NaN}', "\xff", "[" * 5000, "{}", None])
@pytest.mark.parametrize("name", ["llama-scope", "hook-z", "topk", "sparsify", "gemma-scope-2"])
def test_a_bad_config_file_is_one_error(tmp_path, name, text):
    path = source(tmp_path, name)
    file = tmp_path / CONFIGS[name]
    file.unlink()
    if text is not None:
        file.write_bytes(text.encode("latin-1"))
    if name == "gemma-scope-2" and text in ("{}", None):
        # The names of the folders say the same.
        assert jmi_sparse.load(path).hook_in == "blocks.3.mlp.hook_in"
    else:
        refused(path)
