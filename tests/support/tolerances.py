"""How far apart two numbers of the suite may be: one table, and the one comparison that reads it.

Two programs never agree bit for bit on every CPU: sums are cut up by the width of its registers, and
products are fused or not. So what two programs compute is compared by `assert_agree`, in parts of the
largest entry; bits are asserted only where one program runs twice, or where numbers are only moved.

JMI_TEST_MARGINS=FILE appends to FILE, for every comparison, what was seen and what was allowed.
"""

import json
import os
import traceback
from typing import Any

import jax
import numpy as np

BARS: dict[str, dict[str, float]] = {
    # Two programs that compute one thing: jitted and eager, shared and looped, a site and its formula.
    "plans": {"float64": 1e-12, "float32": 2e-6},
    # Two programs that differentiate one thing: errors of the way up meet those of the way down.
    "gradients": {"float64": 1e-10, "float32": 2e-5},
    # Gradients and differences of finite steps, whose own error is larger than that of any gradient.
    "slopes": {"float64": 1e-7},
    # Another implementation, in another order of operations throughout.
    "oracle": {"float64": 1e-10, "float32": 2e-5},
}
"""By kind of comparison and dtype: the largest difference, in parts of the largest entry."""

WIDER = 4
"""Of families whose numbers are larger on the way than what is compared; each use says why."""


def assert_agree(got: Any, want: Any, kind: str = "plans", times: float = 1.0, scale: Any = 0.0) -> None:
    """Assert that the arrays of two trees agree: same structure, shapes, dtypes, and numbers within the bar.

    Integers, masks and texts must be equal, infinite numbers in the same places, and NaN agrees with nothing.
    ``scale`` is, for what is a small difference of large numbers, those numbers or their size: the bar is a
    part of the largest of them. ``times`` widens the bar; whoever does it says why.
    """
    largest = float(np.abs(np.asarray(scale)).max())
    found, wanted = jax.tree.leaves_with_path(got), jax.tree.leaves(want)
    assert jax.tree.structure(got) == jax.tree.structure(want), "trees of different structure"
    assert wanted, "nothing to compare"
    for (path, one), other in zip(found, wanted, strict=True):
        where = jax.tree_util.keystr(path)
        _assert_leaf(np.asarray(one), np.asarray(other), kind, times, largest, where)


def _assert_leaf(
    got: np.ndarray, want: np.ndarray, kind: str, times: float, scale: float, where: str
) -> None:
    assert got.shape == want.shape, f"{where} shape {got.shape}, not {want.shape}"
    assert got.dtype == want.dtype, f"{where} dtype {got.dtype}, not {want.dtype}"
    assert got.size, f"{where} nothing to compare"
    if got.dtype.name not in BARS[kind]:
        assert got.dtype.kind in "buiU", f"{where} the table has no bar for {kind} in {got.dtype}"
        np.testing.assert_array_equal(got, want, err_msg=where)
        return
    assert not np.isnan(got).any(), f"{where} NaN"
    finite = np.isfinite(want)
    np.testing.assert_array_equal(got[~finite], want[~finite], err_msg=f"{where} what is not finite")
    if not finite.any():
        return
    bar, largest = times * BARS[kind][got.dtype.name], max(scale, float(np.abs(want[finite]).max()))
    gap = np.abs(np.where(finite, got, 0) - np.where(finite, want, 0))
    _log(kind, got.dtype.name, gap.max(), bar * largest)
    worst = tuple(map(int, np.unravel_index(gap.argmax(), gap.shape)))
    assert gap.max() <= bar * largest, (
        f"{where} {kind} in {got.dtype}: {gap.max():.3g} apart, where {bar:.3g} of {largest:.6g} is allowed; "
        f"at {worst} {got[worst]!r}, not {want[worst]!r}"
    )


def _log(kind: str, dtype: str, seen: float, allowed: float) -> None:
    if "JMI_TEST_MARGINS" not in os.environ:
        return
    caller = next(f for f in reversed(traceback.extract_stack()) if f.filename != __file__)
    test = os.environ.get("PYTEST_CURRENT_TEST", "").split(" ")[0]
    share = float(seen / allowed) if allowed else float(seen > 0)
    line = {"test": test, "line": caller.lineno, "kind": kind, "dtype": dtype, "of_bar": share}
    with open(os.environ["JMI_TEST_MARGINS"], "a") as file:
        file.write(json.dumps(line) + "\n")
