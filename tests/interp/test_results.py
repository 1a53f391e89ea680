"""Results of techniques as plain data: every array has names for its axes, and JSON can hold all of it."""

import functools
import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import jmi
from jmi import interp
from jmi.errors import ArgumentError
from jmi.interp.patching.patch_result import PatchResult
from jmi.interp.results import Result
from tests.core.conftest import lively, tiny

CLEAN, CORRUPTED = np.random.default_rng(0).integers(0, 29, (2, 2, 6)).astype(np.int32)
DIFF = jmi.metrics.LogitDiff([3, 5], 7)


@functools.cache
def model() -> jmi.LanguageModel:
    return jmi.LanguageModel(tiny(n_layers=2), lively(tiny(n_layers=2)), name="tiny")


def scores() -> Any:
    return interp.eap(model(), CLEAN, CORRUPTED, metric=DIFF)


def faithful() -> Any:
    exists = interp.edge_graph(model()).exists
    return interp.faithfulness(model(), CLEAN, CORRUPTED, exists[None], metric=DIFF)


SEVERAL = {"diff": DIFF, "prob": jmi.metrics.Prob(3)}
RESULTS: dict[str, Callable[[], Any]] = {
    "patch": lambda: interp.patch(model(), CLEAN, CORRUPTED, "hook_resid_pre", metric=SEVERAL),
    "ablation": lambda: interp.patch(model(), CLEAN, None, "hook_mlp_out", metric=DIFF, using="zero"),
    "path_patch": lambda: interp.path_patch(model(), CLEAN, CORRUPTED, metric=DIFF),
    "causal_trace": lambda: interp.causal_trace(model(), CLEAN, [1], seeds=[3, 4]),
    "knockout": lambda: interp.knockout(model(), CLEAN[:1]),
    "attribution": lambda: interp.attribution_patching(
        model(), CLEAN, CORRUPTED, ["blocks.*.attn.hook_z", "hook_embed"], metric=DIFF
    ),
    "eap": scores,
    "faithfulness": faithful,
    "head_scores": lambda: interp.head_scores(model(), CLEAN),
    "decompose": lambda: interp.decompose(model(), CLEAN, by="head"),
    "logit": lambda: interp.direct_logit_attribution(model(), CLEAN, 3, positions=[0, -1]),
}


def arrays(held: Any) -> Iterator[dict[str, Any]]:
    """Every array of a result, however deep."""
    if isinstance(held, dict) and set(held) == {"axes", "values"}:
        yield held
    elif isinstance(held, dict):
        for each in held.values():
            yield from arrays(each)


@pytest.mark.parametrize("name", RESULTS)
def test_every_array_has_names_for_its_axes_and_labels_that_fit(name: str) -> None:
    result = RESULTS[name]()
    assert isinstance(result, Result)
    held = result.to_dict()
    assert json.loads(result.to_json()) == held
    assert held["kind"] == type(result).__name__
    assert len(repr(result)) < 400
    found = list(arrays(held))
    assert found
    for one in found:
        shape = np.shape(np.asarray(one["values"], object))
        assert len(shape) == len(one["axes"]), one["axes"]
        for axis, size in zip(one["axes"], shape, strict=True):
            assert len(held.get("labels", {}).get(axis, range(size))) == size, axis


def test_the_numbers_are_those_of_the_result() -> None:
    found = RESULTS["patch"]()
    held = found.to_dict()
    assert held["labels"] == {"layer": [0, 1], "position": list(range(6))}
    assert held["patched"]["prob"]["axes"] == ["layer", "position", "batch"]
    np.testing.assert_array_equal(held["recovery"]["diff"]["values"], found.recovery["diff"])
    edges, graph = scores(), interp.edge_graph(model())
    values = edges.to_dict()["scores"]["values"]
    for w, r in np.ndindex(graph.exists.shape):
        assert values[w][r] == (float(edges.values[w, r]) if graph.exists[w, r] else None)
    parts = RESULTS["decompose"]()
    assert parts.to_dict()["values"]["axes"] == ["part", "batch", "d_model"]
    assert parts.to_dict()["labels"]["part"] == parts.labels()
    given = RESULTS["logit"]().to_dict()
    assert given["values"]["axes"] == ["part", "batch", "position"]


def test_what_is_no_number_is_null_and_other_pytrees_have_paths() -> None:
    axes, nan = {"layer": np.arange(2)}, np.asarray([[np.nan], [np.inf]])
    held = PatchResult(axes, (nan, nan + 1), (nan[0], nan[0]), None, "clean").to_dict()
    assert held["patched"] == {
        name: {"axes": ["layer", "batch"], "values": [[None], [None]]} for name in ("[0]", "[1]")
    }
    assert "recovery" not in held


def test_pictures() -> None:
    pytest.importorskip("matplotlib")
    found = RESULTS["causal_trace"]()
    assert found.plot().axes[0].get_xlabel() == "position"
    assert RESULTS["knockout"]().plot().axes
    with pytest.raises(ArgumentError, match="metric=None"):
        RESULTS["patch"]().plot()
    with pytest.raises(ArgumentError, match="two axes"):
        PatchResult({"layer": np.arange(2)}, np.zeros((2, 1)), np.zeros(1), None, "clean").plot()
