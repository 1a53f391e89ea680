"""A trained GPT-2 that sorts six digits, against activations that others published (llm-viz)."""

import functools
import os
from pathlib import Path

import numpy as np
import pytest

import jmi_models
from jmi.lm import LanguageModel
from tests.support.tolerances import assert_agree

SHARED = Path(os.environ.get("JMI_SHARED") or Path(__file__).parents[3] / "shared")
FOLDER = SHARED / "models" / "gpt2-nano-sort"

pytestmark = pytest.mark.skipif(
    not (FOLDER / "model.safetensors").is_file(),
    reason="the weights of gpt2-nano-sort are not here; set JMI_SHARED to the folder that holds models/",
)

FIRST = "blocks.0."
PUBLISHED = {
    "tok_emb": "hook_embed",
    "x": FIRST + "hook_resid_pre",
    "ln1": FIRST + "attn.hook_in",
    "q": FIRST + "attn.hook_q",
    "k": FIRST + "attn.hook_k",
    "v": FIRST + "attn.hook_v",
    "att": FIRST + "attn.hook_attn_scores",
    "attSm": FIRST + "attn.hook_pattern",
    "y": FIRST + "attn.hook_z",
    "yProj": FIRST + "attn.hook_out",
    "attnResid": FIRST + "hook_resid_mid",
    "ln2": FIRST + "mlp.hook_in",
    "fc": FIRST + "mlp.hook_pre",
    "gelu": FIRST + "mlp.hook_post",
    "mlp": FIRST + "hook_mlp_out",
    "mlpResid": FIRST + "hook_resid_post",
    "block0": FIRST + "hook_resid_post",
    "block1": "blocks.1.hook_resid_post",
    "block2": "blocks.2.hook_resid_post",
    "ln_f": "hook_final_norm",
    "lm_head": "hook_logits",
}
HEADS_FIRST = ("q", "k", "v")


@functools.cache
def load() -> LanguageModel:
    return jmi_models.load(FOLDER)


@functools.cache
def partials() -> dict[str, np.ndarray]:
    with np.load(FOLDER / "expected_partials_llmviz.npz", allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


@functools.cache
def sites() -> dict[str, np.ndarray]:
    out = load().run(partials()["idx"].astype(np.int32), capture=list(load().arch.sites()))
    return {site: np.asarray(out[site]) for site in set(PUBLISHED.values()) | {"hook_pos_embed"}}


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_activation_is_reproduced(name: str) -> None:
    got, want = sites()[PUBLISHED[name]], partials()[name]
    got = got.swapaxes(1, 2) if name in HEADS_FIRST else got
    got = got.reshape(want.shape)
    finite = np.isfinite(want)
    assert (np.isfinite(got) == finite).all()
    assert_agree(got[finite], want[finite], "oracle")


def test_positions_and_probabilities_are_reproduced() -> None:
    assert_agree(sites()["hook_pos_embed"][:1], partials()["pos_emb"], "oracle")
    weights = np.exp(sites()["hook_logits"])
    probs = weights / weights.sum(-1, keepdims=True)
    assert_agree(probs, partials()["probs"], "oracle")


def test_it_sorts_every_input() -> None:
    with np.load(FOLDER / "greedy_all729.npz", allow_pickle=False) as file:
        inputs, outputs = file["inputs"], file["outputs"]
    # The sorted digits begin where the last of the six inputs predicts.
    tokens = np.concatenate([inputs, np.zeros((len(inputs), 5), inputs.dtype)], 1).astype(np.int32)
    for step in range(6):
        digit = np.asarray(load().run(tokens).logits)[:, 5 + step].argmax(-1)
        np.testing.assert_array_equal(digit, outputs[:, step])
        if step < 5:
            tokens[:, 6 + step] = digit
    np.testing.assert_array_equal(np.sort(inputs, 1), outputs)
