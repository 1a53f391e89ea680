"""Configs of several layers that say what cannot be, or would take for ever to read: one clear error each."""

import time
import warnings

import pytest
import yaml
from safetensors.numpy import save_file

import jmi_sparse
from jmi.errors import ConfigError, JmiError
from jmi_sparse.decoders.on_disk import open_decoder
from jmi_sparse.formats.reading.yaml_files import LARGEST, read_yaml
from tests.sparse.set_folders import CONFIG, plt_folder


def billion():
    lines = ["a: &a [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"{b}: &{b} [{', '.join(['*' + a] * 10)}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True)]
    return "\n".join(lines)


def merged():
    lines = ["a: &a {k: v}"]
    lines += [
        f"{b}: &{b} {{<<: [{', '.join(['*' + a] * 10)}]}}"
        for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    ]
    return "\n".join(lines)


BAD_YAML = {
    "nothing": "",
    "a list": "- a\n- b",
    "a number": "3",
    "two documents": "a: 1\n---\nb: 2",
    "numbers for names": "1: a",
    "no YAML": "a: [1",
    "a tab": "a:\n\t- b",
    "an object": "a: !!python/object/apply:os.system ['true']",
    "an alias": "a: &x 1\nb: *x",
    "a billion": billion(),
    "merged maps": merged(),
    "deep lists": "a: " + "[" * 100_000,
    "deep maps": "a: " + "{b: " * 5000,
    "deep blocks": "a:\n  " + "- " * 50_000,
    "a long value": "a: " + "x" * 5000,
    "many values": "a:\n" + "- 1\n" * 100_000,
    "hours without end": "a: " + "1:" + ":".join(["59"] * 2000),
    "no day": "a: 2020-99-99",
    "too large": "# " + "x" * LARGEST,
    "not UTF-8": b"a: \xff",
    "a NUL": b"a: \x00",
}


@pytest.mark.parametrize("name", BAD_YAML)
def test_yaml_that_is_no_plain_data_is_refused_at_once(tmp_path, name):
    text = BAD_YAML[name]
    path, _ = plt_folder(tmp_path / "a")
    (path / "config.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    start = time.process_time()
    for call in (jmi_sparse.load, open_decoder):
        with pytest.raises(ConfigError, match=r"config\.yaml") as told:
            call(path)
        assert len(str(told.value)) < 400
    assert time.process_time() - start < 5


def test_yaml_of_plain_data_is_read(tmp_path):
    (tmp_path / "a.yaml").write_text("# a comment\na: 1\nb: [x, {c: 2.5, d: null}]\ne: |\n  text\n")
    assert read_yaml(tmp_path / "a.yaml", ConfigError) == {
        "a": 1,
        "b": ["x", {"c": 2.5, "d": None}],
        "e": "text\n",
    }
    for missing in ("b.yaml", "."):
        with pytest.raises(ConfigError):
            read_yaml(tmp_path / missing, ConfigError)


BAD_FIELDS = [
    {"model_kind": "crosscoder"},
    {"model_kind": "cross_layer_transcoder"},
    {"model_kind": [1]},
    {"feature_input_hook": 3},
    {"feature_input_hook": "a\x1b[31m"},
    {"feature_output_hook": ""},
    {"feature_output_hook": ["x"]},
    {"activation": 1},
    {"activation": []},
    {"activation": "topk", "k": 0},
    {"activation": "topk", "k": "2"},
    {"activation": "topk", "k": True},
    {"activation": "topk", "k": 2.5},
    {"transcoders": []},
    {"transcoders": "layer_0.safetensors"},
    {"transcoders": {"0": "layer_0.safetensors"}},
    {"transcoders": [3]},
    {"transcoders": [None, "layer_1.safetensors"]},
    {"transcoders": ["layer_0.safetensors", "layer_0.safetensors"]},
    {"transcoders": [{"layer": 0, "filepath": "layer_0.safetensors"}] * 2},
    {"transcoders": [{"layer": 7, "filepath": "layer_0.safetensors"}]},
    {"transcoders": [{"layer": "0", "filepath": "layer_0.safetensors"}]},
    {"transcoders": ["../a/layer_0.safetensors"]},
    {"transcoders": ["hf://../../layer_0.safetensors"]},
    {"transcoders": ["hf://a/../layer_0.safetensors"]},
    {"transcoders": ["hf://a/b"]},
    {"transcoders": ["hf://["]},
    {"transcoders": ["https://a/b/layer_0.safetensors"]},
    {"transcoders": ["sub/../../a/layer_0.safetensors"]},
    {"transcoders": ["layer_\n0.safetensors"]},
    {"transcoders": ["missing.safetensors"]},
]


@pytest.mark.parametrize("said", BAD_FIELDS)
def test_a_bad_field_is_one_error(tmp_path, said):
    path, _ = plt_folder(tmp_path / "a")
    (path / "config.yaml").write_text(yaml.safe_dump(CONFIG | said))
    with pytest.raises(JmiError) as told:
        jmi_sparse.load(path)
    assert len(str(told.value)) < 600
    assert str(told.value).isprintable()


@pytest.mark.parametrize("place", ["/etc/hostname", "../secret.safetensors"])
def test_no_list_reaches_out_of_its_folder(tmp_path, place):
    path, held = plt_folder(tmp_path / "a", layers=(0,))
    save_file(held[0], tmp_path / "secret.safetensors")
    (path / "config.yaml").write_text(yaml.safe_dump(CONFIG | {"transcoders": [place]}))
    with pytest.raises(ConfigError, match="no path below this folder"):
        jmi_sparse.load(path)


@pytest.mark.parametrize("value", [{"value": 5}, {"value": "4"}, {}, 4, None])
@pytest.mark.parametrize("field", ["d_model", "d_feature"])
def test_sizes_that_wandb_kept_must_be_those_of_the_files(tmp_path, field, value):
    path, _ = plt_folder(tmp_path / "a")
    held = {"d_model": {"value": 4}, "d_feature": {"value": 6}, "note": "x"}
    (path / "wandb-config.yaml").write_text(yaml.safe_dump(held))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        jmi_sparse.load(path)
    (path / "wandb-config.yaml").write_text(yaml.safe_dump(held | {field: value}))
    with pytest.raises(ConfigError, match="wandb-config"):
        jmi_sparse.load(path)
