"""SmolLM2 and Gemma 3 from GGUF files: every site, long texts, padding and generation as in transformers."""

import dataclasses
from typing import Any

import numpy as np
import pytest

import jmi
from tests.oracles.recording import RECORDINGS
from tests.support.texts import WRITTEN
from tests.support.tolerances import assert_agree

pytestmark = pytest.mark.real

TEXTS = (
    "The capital of France is",
    "When John and Mary went to the shop, John gave the book to",
    'def mean(x):\n    """Of a list."""\n    return sum(x) /',
    "Äpfel, Öl und Übermut: 数学, математика, 😀 3.14159",
)
STREAMS = ["blocks.*.hook_resid_pre", "hook_final_norm"]


def hidden(pair: Any, tokens: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Logits and streams of transformers, those inside blocks ``[layer, b, s, d]``."""
    import torch

    with torch.inference_mode():
        out = pair.theirs(
            torch.from_numpy(np.array(tokens)).long(), use_cache=False, output_hidden_states=True
        )
    *streams, last = (state.numpy() for state in out.hidden_states)
    return out.logits.numpy(), {STREAMS[0]: np.stack(streams), STREAMS[1]: last}


def assert_layers_agree(got: dict[str, np.ndarray], want: dict[str, np.ndarray]) -> None:
    """Each site, each layer on its own."""
    assert set(got) == set(want)
    for site, value in want.items():
        layers = range(len(value)) if site.startswith("blocks.") else [...]
        for i in layers:
            assert_agree({(site, i): got[site][i]}, {(site, i): value[i]}, "oracle")


def sites_of(
    lm: jmi.LanguageModel, prompts: Any, sites: list[str]
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Logits and sites of jmi."""
    out = lm.run(prompts, capture=sites, exact=True)
    got = {site: out.stack(site) if site.startswith("blocks.") else out[site] for site in sites}
    return np.asarray(out.logits), {site: np.asarray(value) for site, value in got.items()}


@pytest.mark.parametrize("text", TEXTS, ids=["fact", "names", "code", "scripts"])
def test_logits_and_hidden_states(pair, text):
    tokens = np.asarray(pair.lm.to_tokens(text))
    logits, streams = hidden(pair, tokens)
    got, sites = sites_of(pair.lm, tokens, STREAMS)
    assert_agree(got, logits, "oracle")
    assert_layers_agree(sites, streams)
    np.testing.assert_array_equal(*(np.argsort(-x, -1)[0, -1, :10] for x in (got, logits)))


def test_every_site_that_transformers_shows(pair):
    import torch

    from tests.oracles.tapping import recording, stacked

    tokens, seen = np.asarray(pair.lm.to_tokens(TEXTS[1])), {}
    with torch.inference_mode(), recording(pair.theirs, seen):
        pair.theirs(torch.from_numpy(tokens).long(), use_cache=False)
    want = stacked(pair.theirs.config, seen)
    assert set(want) == set(RECORDINGS[pair.lm.arch.family].resolved(pair.theirs.config))
    _, got = sites_of(pair.lm, tokens, list(want))
    assert_layers_agree(got, want)


def test_attention_of_a_text_longer_than_the_window(pair):
    text = " ".join(text for text in WRITTEN if text.isprintable() and "<" not in text)
    tokens = np.asarray(pair.lm.to_tokens(text))[:, :600]
    assert tokens.shape == (1, 600)
    logits, streams = hidden(pair, tokens)
    got, sites = sites_of(pair.lm, tokens, STREAMS)
    assert_agree(got, logits, "oracle")
    assert_layers_agree(sites, streams)
    if windows := [window for window in pair.lm.arch.attn.windows if window]:
        assert set(windows) == {512}
        attn = dataclasses.replace(pair.lm.arch.attn, windows=())
        without = jmi.LanguageModel(dataclasses.replace(pair.lm.arch, attn=attn), pair.lm.params)
        changed = np.abs(np.asarray(without.run(tokens, exact=True).logits) - got).max(-1)[0]
        assert changed[:512].max() < 1e-3 < 0.1 < changed[530:].max()


@pytest.mark.parametrize(("before", "behind"), [(3, 0), (0, 3), (2, 2)])
def test_padding_on_either_side_changes_nothing(pair, before, behind):
    alone = [np.asarray(pair.lm.to_tokens(text))[0] for text in TEXTS[:2]]
    longest = max(map(len, alone)) + before + behind
    tokens, mask = np.full((2, longest), pair.lm.arch.d_vocab - 1, np.int32), np.zeros((2, longest), bool)
    for row, ids in enumerate(alone):
        start = before if behind else longest - len(ids)
        tokens[row, start : start + len(ids)], mask[row, start : start + len(ids)] = ids, True
    got = np.asarray(pair.lm.run(jmi.Prompts(tokens, mask), exact=True).logits)
    for row, ids in enumerate(alone):
        assert_agree(got[row][mask[row]], pair.logits(ids[None])[0], "oracle")


@pytest.mark.parametrize("text", [TEXTS[0], TEXTS[2]], ids=["fact", "code"])
def test_greedy_text_is_that_of_transformers_and_of_the_whole_run(pair, text):
    import torch

    tokens = np.asarray(pair.lm.to_tokens(text))
    said = pair.lm.generate(tokens, 20, capture=["hook_final_norm"])
    new, given = np.asarray(said.tokens), torch.from_numpy(tokens).long()
    exactly = {"max_new_tokens": 20, "min_new_tokens": 20, "do_sample": False}
    with torch.inference_mode():
        want = pair.theirs.generate(given, attention_mask=torch.ones_like(given), pad_token_id=0, **exactly)
    np.testing.assert_array_equal(new, want.numpy()[:, tokens.shape[1] :])
    both = np.concatenate([tokens, new], 1)
    whole = pair.lm.run(both, capture=["hook_final_norm"], exact=True)
    np.testing.assert_array_equal(np.asarray(whole.logits).argmax(-1)[:, tokens.shape[1] - 1 : -1], new)
    steps = np.asarray(said.captures["hook_final_norm"]).reshape(20, -1)
    assert_agree(steps, np.asarray(whole["hook_final_norm"])[0, -20:], "oracle")
