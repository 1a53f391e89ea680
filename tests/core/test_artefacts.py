import json

import jax.numpy as jnp
import numpy as np
import pytest

import jmi
from jmi import artefacts
from jmi.errors import ConfigError


def test_a_file_is_written_whole(tmp_path):
    file = tmp_path / "result.json"
    artefacts.write_json(
        file, {"a": jnp.arange(3), "b": np.float32(0.5), "c": float("nan"), "d": {1: (True, None)}}
    )
    assert json.loads(file.read_text()) == {"a": [0, 1, 2], "b": 0.5, "c": None, "d": {"1": [True, None]}}


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path):
    file = tmp_path / "result.json"
    file.write_text("old")
    with pytest.raises(RuntimeError), artefacts.replacing(file) as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise RuntimeError
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_bfloat16_arrays_are_numbers_in_json(tmp_path):
    artefacts.write_json(tmp_path / "x.json", {"x": jnp.ones(2, jnp.bfloat16)})
    assert json.loads((tmp_path / "x.json").read_text()) == {"x": [1.0, 1.0]}


@pytest.mark.parametrize("name", ["missing/x.json", "."])
def test_an_impossible_path_is_refused_before_the_work(tmp_path, name):
    with pytest.raises(ConfigError):
        artefacts.check_writable(tmp_path / name)


def test_hooks_are_described_in_full():
    hooks = {"blocks.*.hook_resid_pre": jmi.At([1], jmi.Add(np.ones(2), positions=3))}
    described = artefacts.describe_hooks(hooks)["blocks.*.hook_resid_pre"]
    assert described[0]["kind"] == "At"
    assert described[0]["hook"] == {
        "kind": "Add",
        "positions": 3,
        "vector": pytest.approx([1, 1]),
        "scale": 1.0,
    }


def test_the_environment_names_versions_and_device():
    found = artefacts.environment()
    assert found["packages"]["jax"]
    assert found["device"]["backend"] == "cpu"
