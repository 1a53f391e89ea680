"""Labels of features from files of several kinds."""

import gzip
import importlib
import json

import pytest

import jmi_sparse
from jmi.errors import ArgumentError, ConfigError

MODULE = importlib.import_module("jmi_sparse.scoring.labels")


def written(path, text):
    data = text if isinstance(text, bytes) else text.encode()
    path.write_bytes(gzip.compress(data) if path.name.endswith(".gz") else data)
    return path


EXPLAINED = [
    {"modelId": "gpt2-small", "layer": "5-res-jb", "index": "17", "description": "capitals"},
    {"modelId": "gpt2-small", "layer": "5-res-jb", "index": 3, "description": "rivers"},
    {"modelId": "gpt2-small", "layer": "11-res-jb", "index": "3", "description": "verbs"},
]
SAME = {
    "named.json": json.dumps({"5:17": "capitals", "5:3": "rivers", "11:3": "verbs"}),
    "list.json": json.dumps(EXPLAINED),
    "export.json": json.dumps({"explanations": EXPLAINED, "modelId": "gpt2-small"}),
    "lines.jsonl": "\n".join(map(json.dumps, EXPLAINED)) + "\n\n",
    "lines.jsonl.gz": "\n".join(map(json.dumps, EXPLAINED)),
    "table.csv": "feature,layer,label\r\n17,5,capitals\r\n3,5,rivers\r\n3,11,verbs\r\n",
    "marked.csv": "\ufefflayer,index,description\n5,17,capitals\n5,3,rivers\n11,3,verbs\n",
}


@pytest.mark.parametrize("name", SAME)
def test_every_kind_says_the_same(tmp_path, name):
    found = jmi_sparse.labels(written(tmp_path / name, SAME[name]))
    assert found.texts == {(5, 17): "capitals", (5, 3): "rivers", (11, 3): "verbs"}
    assert found.get(5, 17) == "capitals"
    assert found.get(11, 17) is None
    assert found.get(11, 17, "?") == "?"
    assert repr(found) == "Labels(3 features of 2 layers)"


def test_without_layers_a_label_is_of_any(tmp_path):
    found = jmi_sparse.labels(written(tmp_path / "a.json", '{"3": "rivers", "0": "the"}'))
    assert (found.get(7, 3), found.get(None, 0), found.get(7, 4)) == ("rivers", "the", None)
    found = jmi_sparse.labels(written(tmp_path / "b.csv", "id,text\n3,rivers\n"))
    assert found.get(2, 3) == "rivers"


def test_a_folder_of_batches(tmp_path):
    written(tmp_path / "batch-0.jsonl.gz", json.dumps(EXPLAINED[0]))
    written(tmp_path / "batch-1.jsonl.gz", json.dumps(EXPLAINED[2]))
    written(tmp_path / "notes.txt", "nothing to read")
    assert jmi_sparse.labels(tmp_path).texts == {(5, 17): "capitals", (11, 3): "verbs"}


def test_several_dictionaries_of_a_layer_are_told_apart(tmp_path):
    other = {"layer": "5-mlp", "index": 17, "description": "commas"}
    path = written(tmp_path / "both.json", json.dumps([*EXPLAINED, other]))
    with pytest.raises(
        ArgumentError, match=r"layer 5 has labels of several dictionaries: mlp, res-jb.*only="
    ):
        jmi_sparse.labels(path)
    assert jmi_sparse.labels(path, only="mlp").texts == {(5, 17): "commas"}
    assert jmi_sparse.labels(path, only="res-jb").get(5, 17) == "capitals"
    with pytest.raises(ArgumentError, match="no label of the set att"):
        jmi_sparse.labels(path, only="att")


def test_the_first_of_several_is_kept_and_empty_ones_are_not(tmp_path):
    listed = [
        {"layer": 1, "index": 1, "description": None},
        {"layer": 1, "index": 2, "description": "  "},
        {"layer": 1, "index": 3, "description": "first"},
        {"layer": 1, "index": 3, "description": "second"},
    ]
    path = written(tmp_path / "a.json", json.dumps(listed))
    assert jmi_sparse.labels(path).texts == {(1, 3): "first"}


def test_labels_are_short_and_in_one_line(tmp_path):
    text = "a\n b\t" + "\x1b[31m" + "x" * 10_000
    label = jmi_sparse.labels(written(tmp_path / "a.json", json.dumps({"1": text}))).get(0, 1)
    assert label.startswith("a b \\x1b[31mxx")
    assert label.endswith("...")
    assert label.isprintable()
    assert len(label) < 320


WRONG = {
    "a.json": ('{"1": ', "not valid JSON"),
    "b.json": (
        '{"x:1": "a", "5:y": "b", "5:2": 3}',
        r"'x' is no layer; '5:y': 'y' is no id.*'5:2': 3 is no text",
    ),
    "c.jsonl": ('{"index": 1, "description": "a"}\n\n{"index": 2', "line 3 is not valid JSON"),
    "d.csv": ("feature,layer\n1,2\n", "row 1 has no description"),
    "e.json": (
        '{"explanations": [3, {"description": "a"}]}',
        "entry 1 has no description.*entry 2: None is no id",
    ),
    "f.json": ('{"-1": "a"}', "'-1' is no id"),
    "g.json": ('{"99999999999": "a"}', "is no id of a feature"),
    "h.json": (b"\xff\xfe", "not UTF-8"),
    "i.csv": ('index,label\n1,"' + "x" * 200_000 + '"\n', "is no table"),
    "j.jsonl": ('{"index": true, "description": "a"}', "True is no id"),
    "k.jsonl": ("[1]", "must hold an object"),
    "l.json": ('{"1": NaN}', "not valid JSON"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_in_a_file_is_said(tmp_path, name):
    text, message = WRONG[name]
    with pytest.raises(ConfigError, match=message) as error:
        jmi_sparse.labels(written(tmp_path / name, text))
    assert len(str(error.value)) < 1000


def test_many_faults_are_one_short_message(tmp_path):
    path = written(tmp_path / "a.json", json.dumps({f"x{i}": "a" for i in range(100)}))
    with pytest.raises(ConfigError, match="and 95 more") as error:
        jmi_sparse.labels(path)
    assert len(str(error.value)) < 1000


def test_sizes_are_bounded(tmp_path, monkeypatch):
    path = written(tmp_path / "a.json.gz", '{"1": "a", "2": "b"}' + " " * 1000)
    with monkeypatch.context() as patched:
        patched.setattr(MODULE, "LARGEST_FILE", 100)
        with pytest.raises(ConfigError, match="more than the 100 bytes"):
            jmi_sparse.labels(path)
    monkeypatch.setattr(MODULE, "MOST", 1)
    with pytest.raises(ConfigError, match="more than 1 labels"):
        jmi_sparse.labels(path)
    (tmp_path / "b.json.gz").write_bytes(b"no gzip")
    with pytest.raises(ConfigError, match="cannot be expanded"):
        jmi_sparse.labels(tmp_path / "b.json.gz")
    cut = gzip.compress(b'{"1": "a"}' * 100)[:-20]
    (tmp_path / "c.json.gz").write_bytes(cut)
    with pytest.raises(ConfigError, match="cannot be expanded"):
        jmi_sparse.labels(tmp_path / "c.json.gz")


def test_other_arguments_are_refused(tmp_path):
    for source, message in {
        tmp_path / "none.json": "no such file",
        "": "give the path",
        written(tmp_path / "a.txt", "x"): "labels are read from .json",
        tmp_path / "empty": "no label",
    }.items():
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(ArgumentError, match=message):
            jmi_sparse.labels(source)
    with pytest.raises(ArgumentError, match="only=3"):
        jmi_sparse.labels(tmp_path, only=3)
