"""What a config leaves out is what the family's class in transformers takes for it.

Held by the committed table of every class's defaults; live, by the class itself, from configs whose other
fields have values of their own. An architecture is what is compared: that it computes what the class
computes is shown in `test_families`.
"""

import importlib
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

from jmi.errors import ConfigError
from jmi_models.families import FAMILIES
from tests.oracles import grid
from tests.support.config_data import CLASS_DEFAULTS, RECURRENT, Config

SIZES = {
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size"),
    *("n_embd", "n_layer", "n_head", "ffn_dim", "model_type"),
}
"""Sizes that every config must name: a default would be that of some published model."""


def read(config: Config) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return FAMILIES[config["model_type"]].from_config(config)


def without(config: Config) -> Iterator[tuple[str, Config]]:
    """``config`` without each of its fields, and each field of an object in it, that may be left out."""
    for name, value in config.items():
        if name in SIZES:
            continue
        rest = {key: kept for key, kept in config.items() if key != name}
        yield name, rest
        if isinstance(value, dict):
            for label, inner in without(value):
                yield f"{name}: {label}", {**rest, name: inner}


def test_every_family_has_its_class() -> None:
    assert set(CLASS_DEFAULTS) | set(RECURRENT) == set(FAMILIES)


@pytest.mark.parametrize("family", CLASS_DEFAULTS)
def test_fields_left_out_one_by_one_and_all_at_once_are_those_of_the_class(family: str) -> None:
    config = CLASS_DEFAULTS[family]
    want, least = read(config), {name: value for name, value in config.items() if name in SIZES}
    assert read(least) == want
    for name, rest in without(config):
        if ":" not in name:
            assert read(rest) == want, name


@pytest.mark.parametrize("family", CLASS_DEFAULTS)
def test_sizes_must_be_named(family: str) -> None:
    for name in SIZES & set(CLASS_DEFAULTS[family]) - {"model_type"}:
        rest = {key: value for key, value in CLASS_DEFAULTS[family].items() if key != name}
        if family != "bloom" or name != "intermediate_size":
            with pytest.raises(ConfigError, match=f"'{name}' is missing"):
                read(rest)


@pytest.fixture(scope="module")
def classes() -> Any:
    pytest.importorskip("transformers", reason="the live oracle needs transformers")
    return importlib.import_module("tests.oracles.class_defaults")


@pytest.mark.oracle
@pytest.mark.parametrize("family", CLASS_DEFAULTS)
def test_committed_defaults_are_those_of_the_class(family: str, classes: Any) -> None:
    assert classes.defaults(family) == CLASS_DEFAULTS[family]


@pytest.mark.oracle
@pytest.mark.parametrize("name", grid.GRID)
def test_fields_left_out_of_any_config_are_those_of_the_class(name: str, classes: Any) -> None:
    """What the class says of the rest, written out in full, is read as the same architecture."""
    config = grid.GRID[name]
    optional = {key: value for key, value in config.items() if key in SIZES}
    compared = 0
    nulls = [(f"null {key}", {**config, key: None}) for key in config if key not in SIZES]
    for label, rest in [*without(config), *nulls, ("all", optional)]:
        theirs = classes.read(rest)
        if theirs is None:
            continue  # the class refuses it
        try:
            want = read(theirs)
        except ConfigError:
            with pytest.raises(ConfigError):
                read(rest)
            continue
        compared += 1
        assert read(rest) == want, label
    assert compared
