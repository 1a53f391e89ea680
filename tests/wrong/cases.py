"""Wrong arguments of every public entry point, drawn by a seed, and how each of them ends.

``python -m tests.wrong.cases`` calls them all and counts.
"""

import collections
import contextlib
import dataclasses
import functools
import io
import re
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

import jmi
from tests.wrong.call import Call
from tests.wrong.models import model_calls
from tests.wrong.parts import part_calls
from tests.wrong.runs import run_calls
from tests.wrong.techniques import technique_calls
from tests.wrong.values import ANYTHING, KINDS

JARGON = re.compile(
    r"Tracer|traced array|jaxpr|concrete|abstract|unhashable|ufunc|ArrayImpl|object has no attribute"
    r"|not subscriptable|<class '|<function|\n"
)
"""What no sentence to a person says."""

SEED, DRAWN = 11, 550


@functools.cache
def calls() -> list[Call]:
    """Every public entry point."""
    return [*run_calls(), *part_calls(), *technique_calls(), *model_calls()]


@dataclasses.dataclass(frozen=True)
class Case:
    """One call with one argument that is not as the good call has it.

    Attributes:
      what: the value, in words.
      right: whether it says the good value in another way.
    """

    call: Call
    argument: str
    what: str
    value: Any
    right: bool = False

    def __str__(self) -> str:
        return f"{self.call.name}: {self.argument} = {self.what}"

    def run(self) -> Any:
        """What the call returns."""
        with contextlib.redirect_stderr(io.StringIO()):
            return self.call.function(**{**self.call.good, self.argument: self.value})


def every_case() -> list[Case]:
    """All of them, in a fixed order."""
    return [case for call in calls() for argument in call.kinds for case in _cases(call, argument)]


def drawn(count: int, seed: int = SEED) -> list[Case]:
    """So many, of every argument in turn, so that no entry point and no argument is left out."""
    rng = np.random.default_rng(seed)
    by_argument = collections.defaultdict(list)
    for case in every_case():
        by_argument[case.call.name, case.argument].append(case)
    decks = [[cases[i] for i in rng.permutation(len(cases))] for cases in by_argument.values()]
    rounds = [deck[i] for i in range(max(map(len, decks))) for deck in decks if i < len(deck)]
    return rounds[:count]


def _cases(call: Call, argument: str) -> Iterator[Case]:
    name = call.kinds[argument].removesuffix("?")
    kind = KINDS[name]
    fine = {*kind.fine, *(["None"] if call.kinds[argument].endswith("?") else [])}
    for what, value in {**ANYTHING, **kind.wrong}.items():
        if what not in fine:
            yield Case(call, argument, what, value)
    if argument in call.good:
        for what, say in kind.same.items():
            yield Case(call, argument, what, say(call.good[argument]), right=True)


def ending(case: Case) -> str:
    """How a case ends: "" if well, else what is wrong with its end."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = case.run()
    except jmi.JmiError as error:
        jargon = JARGON.search(str(error))
        return f"jargon {jargon[0]!r}: {error}" if jargon or len(str(error)) > 400 else ""
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0][:150] if str(error) else ''}"
    if not case.right:
        return "taken without a word"
    return "" if _equal(found, _good(case.call.name)) else "another result"


@functools.cache
def _good(name: str) -> Any:
    call = next(call for call in calls() if call.name == name)
    return call.function(**call.good)


def _equal(one: Any, other: Any) -> bool:
    a, b = _arrays(one), _arrays(other)
    return len(a) == len(b) and all(
        x.shape == y.shape and np.allclose(x, y, rtol=1e-4, atol=1e-5, equal_nan=True)
        for x, y in zip(a, b, strict=True)
    )


def _arrays(result: Any) -> list[np.ndarray]:
    """Every number in a result."""
    if dataclasses.is_dataclass(result) and jax.tree_util.all_leaves([result]):
        result = [getattr(result, field.name) for field in dataclasses.fields(result)]
    leaves = [
        leaf for leaf in jax.tree.leaves(result) if isinstance(leaf, (int, float, np.ndarray, jax.Array))
    ]
    nested = [leaf for leaf in jax.tree.leaves(result) if dataclasses.is_dataclass(leaf)]
    return [*(np.asarray(leaf, float) for leaf in leaves), *(x for leaf in nested for x in _arrays(leaf))]


if __name__ == "__main__":
    chosen = drawn(int(sys.argv[1]) if len(sys.argv) > 1 else DRAWN)
    bad = 0
    for case in chosen:
        if end := ending(case):
            bad += 1
            print(f"{case}\n    {end}", flush=True)
    print(f"{bad} of {len(chosen)} wrong arguments end in no clear error")
