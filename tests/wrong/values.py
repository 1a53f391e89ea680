"""Wrong values of arguments, by the kind of the argument; and right values said in another way."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

import jmi
import jmi_models

PROMPT, OTHER = "The capital of France is", "The capital of Spain is"


@functools.cache
def model() -> jmi.LanguageModel:
    """The model of all calls."""
    return jmi_models.load("atlas")


@functools.cache
def tokens(text: str = PROMPT) -> np.ndarray:
    """Tokens of a prompt; all prompts have one length."""
    return model().encode(text)


def nothing(*_: Any) -> None:
    """A function that forgets to return anything."""


def words(*_: Any) -> str:
    """A function that returns what is no array."""
    return "seven"


def several(*values: Any) -> list[Any]:
    """A function that returns a list."""
    return [values[0], values[0]]


ANYTHING: Mapping[str, Any] = {
    "None": None,
    "a class": dict,
    "pairs": [("layer", 1), ("head", 2)],
    "text": "seven",
    "bytes": b"7",
    "a fraction": 2.5,
    "NaN": float("nan"),
    "infinity": float("inf"),
    "minus one": -1,
    "True": True,
    "complex": 1j,
    "objects": np.array([object()]),
    "words": np.array(["a", "b"]),
    "an empty list": [],
    "an empty array": np.zeros((0, 3), np.float32),
    "a ragged list": [[1, 2], [3]],
    "a dict": {"a": 1},
    "a set": {1, 2},
    "a function": nothing,
    "too large": 10**30,
    "four axes": np.zeros((1, 1, 1, 1), np.float32),
    "a date": np.datetime64("2020-01-01"),
}
"""What is wrong for most arguments, or for all."""


@dataclasses.dataclass(frozen=True)
class Kind:
    """What may stand in one kind of argument.

    Attributes:
      fine: names of `ANYTHING` that are no mistake there.
      wrong: further mistakes.
      same: other ways to say the good value, given that.
    """

    fine: tuple[str, ...] = ()
    wrong: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    same: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class Tensor:
    """An array of another library, as PyTorch's: its dtype is none of numpy's, and numpy can read it."""

    def __init__(self, value: Any):
        self._value = np.asarray(value)
        self.shape, self.ndim, self.dtype = self._value.shape, self._value.ndim, f"other.{self._value.dtype}"

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self._value, dtype)

    def __len__(self) -> int:
        return len(self._value)

    def __iter__(self) -> Any:
        return map(Tensor, self._value)


AS_ARRAYS = {
    "a jax array": jnp.asarray,
    "a list": lambda value: np.asarray(value).tolist(),
    "of another library": Tensor,
}
SCALARS = {"of numpy": np.asarray, "of jax": jnp.asarray}

_ATOM = ("NaN", "infinity", "a fraction", "minus one", "True")
_POINT = "blocks.2.hook_mlp_out"

HOOKS: Mapping[str, Any] = {
    "a class for an instance": {_POINT: jmi.Zero},
    "names with interventions": [(_POINT, jmi.Zero())],
    "an intervention alone": jmi.Zero(),
    "a number for a name": {3: jmi.Zero()},
    "a name for an intervention": {_POINT: "zero"},
    "no such name": {"blocks.2.hook_mlp": jmi.Zero()},
    "no such layer": {"blocks.99.hook_mlp_out": jmi.Zero()},
    "None for an intervention": {_POINT: None},
    "one argument only": {_POINT: lambda value: value},
}
RETURNS: Mapping[str, Any] = {
    "nothing returned": {_POINT: nothing},
    "words returned": {_POINT: words},
    "a list returned": {_POINT: several},
    "another shape returned": {_POINT: lambda value, site: value[..., :1]},
}

KINDS: Mapping[str, Kind] = {
    "prompt": Kind(fine=("text",), wrong={"no text": ""}, same=AS_ARRAYS),
    "tokens": Kind(
        wrong={
            "rows of texts": [PROMPT],
            "beyond the vocabulary": np.array([[3, 10**6]]),
            "no rank": np.int32(3),
        },
        same=AS_ARRAYS,
    ),
    "text": Kind(fine=("text",), wrong={"rows of texts": [PROMPT]}),
    "row of ids": Kind(fine=("an empty list", "an empty array"), wrong={"a text": PROMPT}, same=AS_ARRAYS),
    "hooks": Kind(fine=("None",), wrong={**HOOKS, **RETURNS}),
    "hooks to prepare": Kind(fine=("None",), wrong=HOOKS),
    "capture": Kind(
        fine=("an empty list", "an empty array"),
        wrong={
            "a class for an instance": jmi.Capture,
            "a reducer alone": jmi.IsFinite(),
            "functions": [nothing],
            "no such name": "blocks.2.hook_mlp",
            "a number for a name": [jmi.Capture(3)],
            "nothing returned": [jmi.Capture(_POINT, reduce=nothing)],
            "words returned": [jmi.Capture(_POINT, reduce=words)],
            "a class as reducer": [jmi.Capture(_POINT, reduce=jmi.IsFinite)],
            "text as reducer": [jmi.Capture(_POINT, reduce="mean")],
            "no such time": [jmi.Capture(_POINT, when="between")],
            "a number as label": [jmi.Capture(_POINT, label=3)],
        },
    ),
    "site": Kind(wrong={"no such name": "hook_mlp", "no such layer": "blocks.99.hook_mlp_out"}),
    "sites": Kind(wrong={"no such name": ["hook_mlp"], "captures": [jmi.Capture(_POINT)]}),
    "metric": Kind(
        fine=("a function",),
        wrong={
            "a class for an instance": jmi.metrics.LogitDiff,
            "words for tokens": jmi.metrics.LogitDiff("Paris", "Madrid"),
            "fractions for tokens": jmi.metrics.Prob(2.5),
            "nothing returned": nothing,
            "words returned": words,
            "another shape returned": lambda out: out.logits,
        },
    ),
    "metrics": Kind(
        wrong={
            "a class for an instance": {"diff": jmi.metrics.LogitDiff},
            "a list": [jmi.metrics.Prob(3)],
            "words for tokens": {"prob": jmi.metrics.Prob("Paris")},
            "nothing returned": {"none": nothing},
            "words returned": {"words": words},
            "another shape returned": {"all": lambda out: out.logits},
        },
    ),
    "metric of any shape": Kind(
        fine=("a function",),
        wrong={
            "words returned": words,
            "a class for an instance": jmi.metrics.Prob,
            "None in it": {"a": nothing},
        },
    ),
    "mask": Kind(
        fine=("None",),
        wrong={"numbers": np.ones((1, 6), np.float32), "another shape": np.ones((2, 3), bool)},
        same=AS_ARRAYS,
    ),
    "mask of edges": Kind(
        fine=("None", "True"), wrong={"numbers": np.ones((6, 6), np.float32)}, same=AS_ARRAYS
    ),
    "positions of tokens": Kind(fine=("None",), wrong={"another shape": np.arange(3)}, same=AS_ARRAYS),
    "count": Kind(wrong={"none": 0, "as text": "3", "in a list": [2]}, same=SCALARS),
    "count or pair": Kind(
        wrong={"none": 0, "as text": "3", "three": (1, 2, 3), "a fraction in it": (1, 0.5)}, same=SCALARS
    ),
    "places": Kind(
        wrong={
            "no axis": {"heads": 1},
            "another axis of the model": {"head": 1},
            "out of range": {"position": 99},
            "no such layer": {"layer": 99},
            "fractions": {"position": [0.5]},
            "as texts": {"layer": ["0"]},
            "a number": 3,
        }
    ),
    "count from 0": Kind(wrong={"as text": "3", "too many": 10**6}, same=SCALARS),
    "seed": Kind(wrong={"as text": "3", "in a list": [2]}, same=SCALARS),
    "seed of rows": Kind(wrong={"as text": "3", "one too many": [2, 3]}, same=SCALARS),
    "seeds": Kind(wrong={"one alone": 3, "fractions": [0.5], "as texts": ["0"]}, same=AS_ARRAYS),
    "number": Kind(
        fine=("a fraction", "minus one", "infinity", "too large"), wrong={"as text": "3"}, same=SCALARS
    ),
    "positive": Kind(
        fine=("a fraction", "infinity", "too large"), wrong={"zero": 0.0, "as text": "3"}, same=SCALARS
    ),
    "share": Kind(wrong={"zero": 0.0, "one": 1.0}, same=SCALARS),
    "flag": Kind(fine=("True",), wrong={"no": "no", "one": 1}, same={"of numpy": np.bool_}),
    "choice": Kind(wrong={"another word": "sideways", "several": ["layer"]}),
    "axes": Kind(wrong={"another word": ["sideways"], "one twice": ["layer", "layer"]}),
    "axes to keep": Kind(fine=("an empty list", "an empty array"), wrong={"another word": ["sideways"]}),
    "logits": Kind(fine=("an empty array", "four axes")),
    "index": Kind(fine=("minus one",), wrong={"out of range": 99, "below": -99}, same=SCALARS),
    "indices": Kind(
        fine=("minus one",),
        wrong={"out of range": 99, "below": [0, -99], "fractions": [0.5], "as texts": ["0"]},
        same=AS_ARRAYS,
    ),
    "selector": Kind(
        fine=("None", "minus one", "an empty list"),
        wrong={"out of range": 99, "fractions": [0.5], "a mask of another size": np.ones(3, bool)},
        same=AS_ARRAYS,
    ),
    "token": Kind(
        wrong={"beyond the vocabulary": 10**6, "a word": "Paris", "fractions": [0.5]}, same=SCALARS
    ),
    "payload": Kind(
        fine=("a fraction", "minus one", "NaN", "infinity", "too large"),
        wrong={"another shape": np.zeros(7, np.float32), "words": "mean"},
        same=AS_ARRAYS,
    ),
    "whole tensor": Kind(wrong={"another shape": np.zeros((1, 6, 7), np.float32)}, same=AS_ARRAYS),
    "values": Kind(
        fine=("NaN",),
        wrong={"one number": 3.0, "as texts": ["a", "b"], "too few": [1.0]},
        same=AS_ARRAYS,
    ),
    "values of an axis": Kind(
        fine=("NaN", "True", "four axes"), wrong={"one number": 3.0, "as texts": ["a"]}, same=AS_ARRAYS
    ),
    "vector": Kind(fine=("four axes",), wrong={"one number": 3.0}, same=AS_ARRAYS),
    "factor": Kind(fine=("a fraction", "four axes"), wrong={"words": "much"}, same=SCALARS),
    "word": Kind(fine=("text",), wrong={"no text": "", "words": [PROMPT]}),
    "word or token": Kind(fine=("text",), wrong={"beyond the vocabulary": 10**6}, same=SCALARS),
    "examples": Kind(
        fine=("NaN", "an empty array", "four axes"),
        wrong={"one number": 3.0, "as texts": ["a", "b"]},
        same=AS_ARRAYS,
    ),
    "weights": Kind(wrong={"of another model": {"blocks": {}}}),
    "model": Kind(wrong={"its name": "atlas", "its class": jmi.LanguageModel, "its parts": ({}, {})}),
    "architecture": Kind(wrong={"its name": "atlas", "its class": jmi_models.Transformer}),
    "graph": Kind(),
    "scores": Kind(wrong={"the values alone": np.zeros((31, 79))}),
    "edges": Kind(wrong={"of another shape": np.ones((2, 2), bool), "numbers": np.ones((31, 79))}),
    "spans": Kind(
        wrong={"one alone": (1, 4), "of other names": {"verb": (0, 1)}, "three ends": {"s": (1, 2, 3)}}
    ),
    "folder": Kind(fine=("text",), wrong={"no model": "/nowhere/at/all"}),
    "dtype": Kind(wrong={"of numbers that are whole": np.int32, "another word": "float33"}),
    "intervention": Kind(
        fine=("a function",),
        wrong={"a class for an instance": jmi.Zero, "a name": "zero", "At in it": jmi.At(1, jmi.Zero())},
    ),
    "config": Kind(wrong={"of no family": {"model_type": "mystery"}}),
    "axis": Kind(wrong={"several": [1, 2]}),
}
"""Everything that is not `fine` in a kind, or said to be the same, is a mistake there."""
