"""The logit lens: against TransformerLens, against numpy on families, and against the run itself."""

import functools
import json
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jmi
import jmi_models
from jmi.errors import ArgumentError, HookError
from jmi.interp import Lens, direct_logit_attribution, lens_of, logit_lens
from jmi.interp.lenses import reading
from tests.core.conftest import lively, tiny
from tests.oracles import grid
from tests.support import random_rwkv
from tests.support.committed import each, every_site, load
from tests.support.tolerances import assert_agree

SHARED = Path(os.environ.get("JMI_SHARED") or Path(__file__).parents[3] / "shared")
ORACLE = SHARED / "oracles" / "interp" / "transformer_lens.npz"
KINDS = ("gpt2/plain", "gemma2/capped", "granite/multipliers", "falcon/new_decoder", "opt/post_norm")
"""A layer norm with bias; a cap; multipliers; parallel blocks; no final norm."""
TOKENS = np.random.default_rng(4).integers(0, 29, (2, 7)).astype(np.int32)


@functools.cache
def small() -> jmi.LanguageModel:
    with jax.enable_x64(True):
        return jmi.LanguageModel(tiny(), lively(tiny(), jnp.float64), name="tiny")


def small_lens(prompts: Any = TOKENS, **options: Any) -> Lens:
    with jax.enable_x64(True):
        return logit_lens(small(), prompts, **{"top": 29, **options})


def every_logit(lens: Lens) -> np.ndarray:
    """``[n, b, p, vocab]`` of a lens that kept all of them, each in its place."""
    found = np.full_like(lens.values, np.nan)
    np.put_along_axis(found, lens.ids, lens.values, -1)
    return found


def read_by_hand(lm: Any, x: np.ndarray, scale: np.ndarray | None = None) -> np.ndarray:
    """Logits of streams ``[..., d]`` as families define them, in plain numpy."""
    p, norm = jax.tree.map(np.asarray, lm.params), lm.arch.norms.norm
    if not lm.arch.norms.in_stream:
        x = x - x.mean(-1, keepdims=True) if norm.kind == "layer" else x
        x = x / (np.sqrt((x**2).mean(-1, keepdims=True) + norm.eps) if scale is None else scale)
        x = x * (p["ln_final"]["w"] + (norm.gain == "1 + w")) if norm.gain != "none" else x
        x = x + p["ln_final"]["b"] if norm.bias else x
    unembed = p.get("unembed", {})
    x = x @ unembed["W_out"] if lm.arch.d_embed is not None else x
    logits = x @ (p["embed"]["W_E"].T if lm.arch.tied else unembed["W_U"]) + unembed.get("b_U", 0)
    cap = lm.arch.logit_softcap
    logits = logits * lm.arch.logit_scale
    return logits if cap is None else cap * np.tanh(logits / cap)


@pytest.mark.skipif(not ORACLE.is_file(), reason="oracles/interp is not here; set JMI_SHARED")
def test_what_transformer_lens_says() -> None:
    held, lm = np.load(ORACLE), jmi_models.load("atlas")
    gain, unembedding = (np.asarray(lm.params[a][b]) for a, b in (("ln_final", "w"), ("embed", "W_E")))
    for i in range(4):
        want = {name.removeprefix(f"{i}."): held[name] for name in held.files if name.startswith(f"{i}.")}
        tokens, answer = want["tokens"][None], int(want["answer_and_rival"][0])
        lens = logit_lens(lm, tokens, target=answer)
        assert lens.labels == tuple(want["lens_labels"])
        at = {
            name: getattr(lens, name)[:, 0, -1] for name in ("ids", "values", "rank", "entropy", "kl", "prob")
        }
        np.testing.assert_array_equal(at["ids"], want["lens_top_ids"])
        np.testing.assert_allclose(at["values"], want["lens_top_logits"], atol=1e-4, rtol=0)
        np.testing.assert_array_equal(at["rank"], want["lens_rank_of_answer"])
        np.testing.assert_allclose(at["entropy"], want["lens_entropy"], atol=1e-4, rtol=0)
        np.testing.assert_allclose(at["kl"], want["lens_kl_final_to_layer"], atol=1e-4, rtol=0)
        tops = np.flatnonzero(want["lens_rank_of_answer"] == 0)
        assert lens.first[0, -1] == (tops[0] if tops.size else -1)
        # The other reading: what has been written so far, over the scale of the final stream.
        parts = dict(zip(want["decompose_labels"], want["decompose_scaled"], strict=True))
        summed = np.cumsum([parts[name] for name in want["decompose_labels"]], axis=0) * gain
        logits = summed.astype(np.float64) @ unembedding.T.astype(np.float64)
        final = logit_lens(lm, tokens, norm="final", positions=-1)
        np.testing.assert_allclose(final.values[:, 0, 0], -np.sort(-logits)[:, :10], atol=1e-3, rtol=0)
        taken = np.take_along_axis(logits, final.ids[:, 0, 0], -1)
        np.testing.assert_allclose(taken, final.values[:, 0, 0], atol=1e-3, rtol=0)


def test_paris_comes_with_the_last_attention() -> None:
    lm = jmi_models.load("atlas")
    lens = logit_lens(lm, "The capital of France is", target="Paris")
    assert lens.labels[lens.first[0, -1]] == "5_mid"
    assert lens.strings()[-1, 0, -1, 0] == " Paris"
    assert lens.strings()[0, 0, :, 0].tolist() == [lm.token_string(i) for i in lens.tokens[0]]  # tied


@each(KINDS)
def test_every_stream_is_read_as_the_family_reads_its_last(name: str) -> None:
    lm, x, tokens = load(name, "float64"), every_site(name, "float64"), grid.committed(name).tokens
    with jax.enable_x64(True):
        lens = logit_lens(lm, tokens, top=lm.arch.d_vocab)
    streams = {"pre": x["blocks.*.hook_resid_pre"], "mid": x.get("blocks.*.hook_resid_mid")}
    assert all(("mid" in label) <= (streams["mid"] is not None) for label in lens.labels)
    given = [streams[kind][int(i)] for i, kind in (label.split("_") for label in lens.labels[:-1])]
    want = read_by_hand(lm, np.stack([*given, x["blocks.*.hook_resid_post"][-1]]))
    logits = every_logit(lens)
    assert_agree(logits, want, times=4)  # The unembedding is computed by another program, in another order.
    assert_agree(logits[-1], x["hook_logits"], times=4)
    p = np.exp(want - want.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    own = want[-1].argmax(-1)
    np.testing.assert_array_equal(lens.target, own)
    there = np.take_along_axis(want, np.broadcast_to(own, want.shape[:-1])[..., None], -1)
    np.testing.assert_array_equal(lens.rank, (want > there).sum(-1))
    chosen = np.take_along_axis(p, np.broadcast_to(own, want.shape[:-1])[..., None], -1)[..., 0]
    assert_agree(lens.prob, chosen, "oracle")
    assert_agree(lens.entropy, -(p * np.log(p)).sum(-1), "oracle")
    assert_agree(lens.kl, (p[-1] * (np.log(p[-1]) - np.log(p))).sum(-1), "oracle")
    assert not lens.kl[-1].any()


def test_by_the_final_scale_what_parts_write_sums_to_what_the_stream_says() -> None:
    with jax.enable_x64(True):
        parts = {k: np.asarray(x) for k, x in direct_logit_attribution(small(), TOKENS, 3).parts.items()}
    lens = small_lens(norm="final", positions=-1)
    steps = [parts["embed"] + parts["constant"]]
    for attn, mlp in zip(parts["attn_out"], parts["mlp_out"], strict=True):
        steps += [attn, mlp]
    assert_agree(every_logit(lens)[:, :, 0, 3], np.cumsum(steps, 0)[:, :], "oracle")


@random_rwkv.each
def test_a_recurrent_model_ends_in_its_logits(version: int) -> None:
    lm = random_rwkv.load(version)
    with jax.enable_x64(True):
        lens, logits = logit_lens(lm, random_rwkv.TOKENS, top=31), lm.run(random_rwkv.TOKENS).logits
    assert_agree(every_logit(lens)[-1], np.asarray(logits))
    assert lens.labels[:3] == ("0_pre", "0_mid", "1_pre")


@jmi.tree.dataclass
class Halved:
    params: Any = None
    per_layer: bool = jmi.tree.static(default=False)

    def sites(self, reads: Any, writes: Any) -> dict[str, Any]:
        del reads, writes
        return {}

    def __call__(self, read: Any, written: Any, carry: Any, here: Any) -> Any:
        del read, here
        return written / 2, carry


def test_a_model_with_modules_in_it_ends_in_its_logits() -> None:
    point = "blocks.2.hook_mlp_out"
    with jax.enable_x64(True):
        lm = jmi.rewire(small(), {(point, point): Halved()})
        lens, logits = logit_lens(lm, TOKENS, top=29), lm.run(TOKENS).logits
        hooked = logit_lens(small(), TOKENS, top=29, hooks={point: jmi.Scale(0.5)})
    assert_agree(every_logit(lens)[-1], np.asarray(logits))
    assert_agree(every_logit(lens), every_logit(hooked))
    assert np.abs(every_logit(lens)[-1] - every_logit(small_lens())[-1]).max() > 1e-3


def test_a_lens_of_a_run_with_hooks_reads_the_hooked_streams() -> None:
    hooks = {"blocks.1.hook_resid_mid": jmi.Zero(positions=2)}
    with jax.enable_x64(True):
        out = small().run(TOKENS, hooks, ["blocks.*.hook_resid_mid", "blocks.*.hook_resid_post"])
    lens = small_lens(hooks=hooks, streams=["1_mid", "3_mid", "2_post"])
    assert lens.labels == ("1_mid", "3_mid", "2_post", "final_post")
    mid, post = (np.asarray(out.stack(f"hook_resid_{kind}")) for kind in ("mid", "post"))
    assert_agree(
        every_logit(lens), read_by_hand(small(), np.stack([mid[1], mid[3], post[2], post[3]])), times=4
    )
    with pytest.raises(HookError, match=r"hook_final_norm: streams are read by the model without hooks"):
        small_lens(hooks={"hook_final_norm": jmi.Zero()})


def test_padding_changes_nothing_and_is_marked() -> None:
    tokens = np.array([[9, 9, 1, 2, 3], [4, 5, 6, 7, 8]], np.int32)
    mask = np.array([[False, False, True, True, True], [True] * 5])
    padded = jmi.Prompts(tokens, mask)
    lens, alone = small_lens(padded, top=4), small_lens(tokens[:1, 2:], top=4)
    for name in ("values", "prob", "entropy"):
        assert_agree(getattr(lens, name)[:, :1, 2:], getattr(alone, name))
        assert np.isnan(getattr(lens, name)[:, 0, :2]).all()
    assert np.abs(lens.kl[:, :1, 2:] - alone.kl).max() < 1e-12
    for name in ("ids", "rank"):
        np.testing.assert_array_equal(getattr(lens, name)[:, :1, 2:], getattr(alone, name))
        assert (getattr(lens, name)[:, 0, :2] == -1).all()
    for name in ("first", "target", "tokens"):
        np.testing.assert_array_equal(getattr(lens, name)[:1, 2:], getattr(alone, name))
        assert (getattr(lens, name)[0, :2] == -1).all()
    last = small_lens(padded, top=4, positions=[[0, -1], [1, 2]], target=[[5, 6], [7, 8]])
    np.testing.assert_array_equal(last.tokens, [[1, 3], [5, 6]])
    np.testing.assert_array_equal(last.target, [[5, 6], [7, 8]])
    assert_agree(last.values[:, 0], lens.values[:, 0, [2, 4]])
    assert_agree(last.values[:, 1], lens.values[:, 1, [1, 2]])
    assert small_lens(padded, top=4).to_dict()["entropy"]["values"][0][0][0] is None


def test_in_pieces_it_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = small_lens(target=[3, 4], top=5)
    monkeypatch.setattr(reading, "_LOGITS", 9 * 29 * 5)  # Pieces of four of the fourteen rows.
    cut = small_lens(target=[3, 4], top=5)
    np.testing.assert_array_equal(cut.ids, whole.ids)
    for name in ("values", "prob", "entropy"):
        assert_agree(getattr(cut, name), getattr(whole, name))
    np.testing.assert_array_equal(cut.target, [[3] * 7, [4] * 7])


def test_the_target_that_is_given_is_followed() -> None:
    lens, logits = small_lens(target=11), every_logit(small_lens())
    np.testing.assert_array_equal(lens.rank, (logits > logits[..., 11:12]).sum(-1))
    on_top = lens.rank == 0
    for row, position in np.ndindex(lens.first.shape):
        there = np.flatnonzero(on_top[:, row, position])
        assert lens.first[row, position] == (there[0] if there.size else -1)


def test_vectors_are_read_as_streams_are() -> None:
    lm = small()
    vectors = np.random.default_rng(0).normal(size=(3, 2, 16))
    with jax.enable_x64(True):
        ids, values = lens_of(lm, vectors, top=29)
        longer = lens_of(lm, vectors * 1e4, top=1)[0]
    found = np.empty_like(values)
    np.put_along_axis(found, ids, values, -1)
    assert_agree(found, read_by_hand(lm, vectors), times=4)
    np.testing.assert_array_equal(longer[..., 0], ids[..., 0])
    with pytest.raises(ArgumentError, match=r"give \[\.\.\., 16\], vectors of the stream"):
        lens_of(lm, np.ones(15))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"norm": "none"}, "use one of 'fresh', 'final'"),
        ({"streams": ["4_pre"]}, "give different labels from 0_pre to 3_post"),
        ({"streams": ["1_pre", "1_pre"]}, "give different labels"),
        ({"target": 29}, "target must be 0 to 28"),
        ({"target": [1, 2, 3]}, r"give one token, \[2\] or \[2, 7\]"),
        ({"top": 30}, "at most 29"),
        ({"positions": [[1], [2], [3]]}, r"give one, a list, or \[2, p\]"),
        ({"positions": 1.5}, "whole numbers"),
    ],
)
def test_what_is_wrong_is_said(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ArgumentError, match=said):
        small_lens(**options)


def test_no_final_norm_has_no_final_scale() -> None:
    with pytest.raises(ArgumentError, match="no final norm"):
        logit_lens(load("opt/post_norm"), grid.committed("opt/post_norm").tokens, norm="final")


def test_it_is_plain_data_and_a_picture() -> None:
    lens = small_lens(top=3)
    held = json.loads(lens.to_json())
    assert held["ids"]["axes"] == ["stream", "batch", "position", "top"]
    assert held["labels"]["stream"][-1] == "final_post"
    assert np.allclose(held["kl"]["values"], lens.kl)
    assert held["note"].startswith("early streams")
    assert repr(lens) == "Lens(logit lens, norm fresh: 9 streams, rows 2, positions 7, top 3)"
    axes = lens.plot("entropy", row=1).axes[0]
    np.testing.assert_allclose(axes.images[0].get_array(), lens.entropy[:, 1])
    assert len(axes.texts) == 9 * 7
    with pytest.raises(ArgumentError, match="row=2"):
        lens.plot(row=2)
