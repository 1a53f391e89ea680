"""Wrong arguments end in one clear error, and right ones said in another way in the right result."""

import jax
import numpy as np
import pytest

import jmi
from jmi import interp
from tests.wrong.call import POINT
from tests.wrong.cases import drawn, ending, every_case
from tests.wrong.values import PROMPT, model, tokens

FEW = 250


def _ends(cases):
    return [f"{case}: {end}" for case in cases if (end := ending(case))]


def test_a_wrong_argument_of_every_kind_is_one_clear_error():
    cases = [case for case in drawn(len(every_case())) if not case.right][:FEW]
    assert len(cases) == FEW
    assert _ends(cases) == []


@pytest.mark.slow
def test_wrong_arguments_of_every_entry_point_are_clear_errors_or_the_right_result():
    assert _ends(every_case()) == []


def _tensor(value):
    torch = pytest.importorskip("torch")
    return torch.asarray(np.array(value))


SAID = {
    "a list of ids": lambda ids: ids[0].tolist(),
    "rows of ids": lambda ids: ids.tolist(),
    "int64": lambda ids: ids.astype(np.int64),
    "of jax": jax.numpy.asarray,
}


@pytest.mark.parametrize(
    "say", [*SAID.values(), pytest.param(_tensor, marks=pytest.mark.oracle)], ids=[*SAID, "of torch"]
)
def test_tokens_may_be_lists_and_arrays_of_other_libraries(say):
    lm, ids = model(), say(tokens())
    expected = lm.run(PROMPT, logits_at=-1).logits
    np.testing.assert_array_equal(lm.run(ids, logits_at=-1).logits, expected)
    run = jmi.forward(lm.arch, lm.params, ids, capture=[POINT], stop_at_layer=3)
    assert run[POINT].shape == (1, 6, 128)
    assert lm.generate(ids, 1).tokens.shape == (1, 1)


@pytest.mark.oracle
def test_payloads_and_selectors_may_be_tensors_of_other_libraries():
    lm, vector = model(), np.arange(128, dtype=np.float32)
    expected = lm.run(PROMPT, {POINT: jmi.Add(vector, positions=[1, 2])}, logits_at=-1).logits
    hooks = {POINT: jmi.Add(_tensor(vector), positions=_tensor([1, 2]))}
    np.testing.assert_array_equal(lm.run(PROMPT, hooks, logits_at=-1).logits, expected)


class _Own(Exception):
    """An error of the user's."""


def _raises(*_):
    raise _Own("mine")


@pytest.mark.parametrize(
    "call",
    [
        lambda lm: lm.run(PROMPT, {POINT: _raises}),
        lambda lm: lm.run(PROMPT, capture=[jmi.Capture(POINT, reduce=_raises)]),
        lambda lm: interp.patch(lm, PROMPT, None, "hook_mlp_out", metric=_raises, using="zero"),
        lambda lm: jmi.value_and_grad_at(lm, tokens(), _raises, [POINT]),
    ],
    ids=["hook", "reducer", "metric", "metric of gradients"],
)
def test_the_users_own_errors_pass_through(call):
    with pytest.raises(_Own, match="mine"):
        call(model())


@pytest.mark.parametrize("given", [None, "seven", [np.zeros(3)], 3])
def test_what_returns_no_array_is_said_to(given):
    lm = model()
    with pytest.raises(jmi.InterventionError, match="intervention returned"):
        lm.run(PROMPT, {POINT: lambda value, site: given})
    if given is None or given == "seven":
        with pytest.raises(jmi.InterventionError, match="reducer returned"):
            lm.run(PROMPT, capture=[jmi.Capture(POINT, reduce=lambda value, site: given)])


def test_text_to_what_takes_tokens_is_told_how_to_make_them():
    lm = model()
    with pytest.raises(jmi.ArgumentError, match=r"lm\.to_tokens"):
        jmi.forward(lm.arch, lm.params, PROMPT)
