"""What a run is given: tokens, masks, positions and parameters that do not fit are refused."""

import jax
import numpy as np
import pytest

import jmi
from jmi.errors import ArgumentError


@pytest.mark.parametrize(
    "given",
    [
        {"mask": np.ones((2, 6), bool)},
        {"mask": np.ones((2, 7), np.int32)},
        {"mask": [[1.0] * 7] * 2},
        {"positions": np.zeros((2, 7))},
    ],
)
def test_arrays_that_do_not_fit_the_tokens_are_refused(tokens, lm, given):
    with pytest.raises(ArgumentError, match=r"mask=|positions="):
        lm.run(jmi.Prompts(tokens, **given))


@pytest.mark.parametrize(
    "tokens",
    [
        np.zeros(3, np.int32),
        np.zeros((1, 0), np.int32),
        np.zeros((0, 3), np.int32),
        np.zeros((1, 3)),
        [[1.5, 2.0]],
    ],
)
def test_tokens_must_be_a_batch_of_integers(lm, tokens):
    with pytest.raises(ArgumentError):
        lm.run(tokens)


def test_a_mask_and_positions_may_be_lists(tokens, lm):
    mask, positions = np.tri(2, 7, 5, dtype=bool), np.tile(np.arange(7), (2, 1))
    given = lm.run(jmi.Prompts(tokens, mask.tolist(), positions.tolist())).logits
    np.testing.assert_array_equal(given, lm.run(jmi.Prompts(tokens, mask, positions)).logits)


@pytest.mark.parametrize("listed", [True, False])
def test_parameters_of_another_depth_are_refused(arch, params, tokens, listed):
    short = jax.tree.map(lambda w: w[:3], params["blocks"])
    blocks = [jax.tree.map(lambda w, i=i: w[i], short) for i in range(3)] if listed else short
    with pytest.raises(ArgumentError, match="3"):
        jmi.forward(arch, {**params, "blocks": blocks}, tokens)
