"""A trained Llama (260 thousand weights) against karpathy/llama2.c and Hugging Face recordings."""

import functools
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jmi
import jmi_models
from jmi.lm import LanguageModel
from tests.support.tolerances import assert_agree

SHARED = Path(os.environ.get("JMI_SHARED") or Path(__file__).parents[3] / "shared")
FOLDER = SHARED / "models" / "llama-stories260k"
PROMPTS = ("bos", "once", "dog")
TOLERANCE = 2e-5

pytestmark = pytest.mark.skipif(
    not (FOLDER / "model.safetensors").is_file(),
    reason="the weights of llama-stories260k are not here; set JMI_SHARED to the folder that holds models/",
)


@functools.cache
def reference() -> dict[str, np.ndarray]:
    with np.load(FOLDER / "reference.npz", allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


@functools.cache
def load(dtype: str) -> LanguageModel:
    with jax.enable_x64(dtype == "float64"):
        return jmi_models.load(FOLDER, dtype=dtype)


@functools.cache
def logits(prompt: str, dtype: str) -> np.ndarray:
    with jax.enable_x64(dtype == "float64"):
        return np.asarray(load(dtype).run(reference()[f"{prompt}.tokens"][None]).logits)[0]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_logits_equal_those_of_llama2_c(prompt: str) -> None:
    got, want = logits(prompt, "float32"), reference()[f"{prompt}.logits_run_c"]
    assert_agree(got, want, "oracle")
    np.testing.assert_array_equal(got.argmax(-1), want.argmax(-1))


def test_every_recorded_position_is_compared() -> None:
    assert sum(len(reference()[f"{prompt}.logits_run_c"]) for prompt in PROMPTS) == 520


def test_the_c_program_itself_misses_an_absolute_bar() -> None:
    """Why the bar above is relative to the largest logit (23): float32 cannot do without it.

    The C program is more than an absolute 2e-5 from the float64 result, so an exact implementation
    would fail such a bar against it. Relatively, both are well within it.
    """
    exact = np.concatenate([logits(prompt, "float64") for prompt in PROMPTS])
    program = np.concatenate([reference()[f"{prompt}.logits_run_c"] for prompt in PROMPTS])
    ours = np.concatenate([logits(prompt, "float32") for prompt in PROMPTS])
    assert np.abs(program - exact).max() > TOLERANCE
    for rounded in (program, ours):
        assert np.abs(rounded - exact).max() <= TOLERANCE * np.abs(exact).max()
        np.testing.assert_array_equal(rounded.argmax(-1), exact.argmax(-1))


def recorded_run(dtype: str) -> jmi.Output:
    tokens = reference()["once.tokens"][None, :64]
    with jax.enable_x64(dtype == "float64"):
        capture = ["blocks.*.hook_resid_pre", "hook_final_norm", "blocks.*.attn.hook_pattern"]
        return jax.device_get(load(dtype).run(tokens, capture=capture))


# Named f64, the recordings are of Hugging Face, which rounds through float32: good to a bar of float32.
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_hidden_states_and_attentions_equal_hugging_face(dtype: str) -> None:
    out = recorded_run(dtype)
    hidden = [*out.captures["blocks.*.hook_resid_pre"][:, 0], out.captures["hook_final_norm"][0]]
    pairs = {
        **{f"hidden {i}": (x, reference()["once64.hidden_states_hf_f64"][i]) for i, x in enumerate(hidden)},
        **{
            f"attention {i}": (x[0], reference()["once64.attentions_hf_f64"][i])
            for i, x in enumerate(out.captures["blocks.*.attn.hook_pattern"])
        },
        "logits": (out.logits[0], reference()["once64.logits_hf_f64"]),
    }
    assert len(pairs) == 6 + 5 + 1
    for name, (got, want) in pairs.items():
        assert_agree({name: got.astype(np.float32)}, {name: want.astype(np.float32)}, "oracle")


def greedy(lm: LanguageModel, prompt: np.ndarray, length: int) -> np.ndarray:
    """Greedy continuation to ``length`` tokens in one right-padded buffer, so in one compile."""

    @jax.jit
    def step(params: Any, buffer: jax.Array, end: jax.Array) -> jax.Array:
        mask = jnp.arange(length)[None] < end
        out = jmi.forward(lm.arch, params, jmi.Prompts(buffer, mask))
        best = out.logits[:, end - 1].argmax(-1).astype(buffer.dtype)
        return buffer.at[:, end].set(best)

    buffer = jnp.zeros((1, length), jnp.int32).at[0, : len(prompt)].set(prompt)
    for end in range(len(prompt), length):
        buffer = step(lm.params, buffer, jnp.int32(end))
    assert step._cache_size() == 1
    return np.asarray(buffer[0])


@pytest.mark.parametrize(
    ("prompt", "text"), [("bos", ""), ("dog", "The big brown dog was 7 years old, and héllo")]
)
def test_greedy_continuation_is_the_recorded_story(prompt: str, text: str) -> None:
    want = reference()[f"{prompt}.tokens"]
    given = load("float32").encode(text)[0] if text else want[:1]
    np.testing.assert_array_equal(given, want[: len(given)])
    found = load("float32").generate(given[None], len(want) - len(given))
    np.testing.assert_array_equal(found.tokens[0], want[len(given) :])
    if prompt == "dog":
        np.testing.assert_array_equal(greedy(load("float32"), given, len(want)), want)
