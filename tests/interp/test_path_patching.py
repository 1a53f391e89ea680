"""Paths from senders to receivers against explicit runs, and effects that add up where all is linear."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jmi
from jmi import metrics
from jmi.errors import ArgumentError, HookError, OutputError
from jmi.interp.patching.path_patching import Receiver, path_patch
from jmi_models.decoder.norms import Norm, Norms
from tests.core.conftest import lively, tiny
from tests.support.committed import load
from tests.support.random_rwkv import load as rwkv
from tests.support.tolerances import assert_agree

CORRUPTED = np.random.default_rng(0).integers(0, 29, (2, 5)).astype(np.int32)
CLEAN = np.random.default_rng(1).integers(0, 29, (2, 5)).astype(np.int32)
DIFF = {"diff": metrics.LogitDiff([3, 5], 7)}
Z, MLP = "attn.hook_z", "hook_mlp_out"


@pytest.fixture(autouse=True)
def double() -> Any:
    with jax.enable_x64(True):
        yield


@functools.cache
def small(eps: float = 1e-5) -> jmi.LanguageModel:
    with jax.enable_x64(True):
        arch = dataclasses.replace(tiny(n_layers=3), norms=Norms(Norm("rms", eps)))
        return jmi.LanguageModel(arch, lively(arch, jnp.float64), name="tiny")


def diff(logits: Any) -> np.ndarray:
    logits = np.asarray(logits)[:, -1]
    return logits[[0, 1], [3, 5]] - logits[:, 7]


def stacks(lm: jmi.LanguageModel, tokens: Any) -> dict[str, Any]:
    out = lm.run(tokens, capture=[f"blocks.*.{Z}", f"blocks.*.{MLP}"])
    return {Z: out.stack(Z), MLP: out.stack(MLP)}


def by_hand(
    lm: jmi.LanguageModel,
    sender: tuple[int, int | None],
    receivers: list[Receiver] | None,
    through_mlps: bool,
    positions: Any = None,
    into: str = "corrupted",
) -> np.ndarray:
    """The runs of the definition, one after the other."""
    changed, other = (CORRUPTED, CLEAN) if into == "corrupted" else (CLEAN, CORRUPTED)
    base, source = stacks(lm, changed), stacks(lm, other)
    layer, head = sender
    frozen = [Z] if through_mlps else [Z, MLP]
    hooks = {f"blocks.{i}.{p}": [jmi.Replace(base[p][i])] for p in frozen for i in range(lm.arch.n_layers)}
    point = MLP if head is None else Z
    patched = jmi.Replace(source[point][layer], heads=head, positions=positions)
    hooks.setdefault(f"blocks.{layer}.{point}", []).append(patched)
    inputs = {
        r: f"blocks.{r.layer}.hook_{r.input}_in{'' if r.input == 'mlp' else 'put'}" for r in receivers or ()
    }
    out = lm.run(changed, hooks, list(dict.fromkeys(inputs.values())))
    if receivers is None:
        return diff(out.logits)
    reads: dict[str, list[Any]] = {}
    for receiver, name in inputs.items():
        reads.setdefault(name, []).append(jmi.Replace(out[name], heads=receiver.head))
    return diff(lm.run(changed, reads).logits)


# Differences of logits, which are about 1 in size or larger.
same = functools.partial(assert_agree, scale=1.0)


READERS = [
    Receiver("q", 2, 1),
    Receiver("k", 2, 0),
    Receiver("v", 1, 1),
    Receiver("mlp", 1),
    Receiver("q", 1, 3),
]


@pytest.mark.parametrize("through_mlps", [False, True])
@pytest.mark.parametrize("receivers", [None, READERS])
def test_heads_reach_receivers_as_in_the_runs_of_the_definition(receivers: Any, through_mlps: bool) -> None:
    lm = small()
    found = path_patch(lm, CLEAN, CORRUPTED, metric=DIFF, receivers=receivers, through_mlps=through_mlps)
    assert found.patched["diff"].shape == (3, 4, 2)
    for sender in ((0, 0), (0, 3), (1, 2), (2, 1)):
        same(found.patched["diff"][sender], by_hand(lm, sender, receivers, through_mlps))
    assert np.abs(found.effect["diff"][0]).min() > 1e-4
    if receivers:
        same(found.effect["diff"][2], np.zeros((4, 2)))


@pytest.mark.parametrize("receivers", [None, READERS[:1]])
def test_the_clean_run_may_be_changed_instead(receivers: Any) -> None:
    lm = small()
    found = path_patch(lm, CLEAN, CORRUPTED, metric=DIFF["diff"], into="clean", receivers=receivers)
    assert found.into == "clean"
    same(found.base, diff(lm.run(CLEAN).logits))
    same(found.source, diff(lm.run(CORRUPTED).logits))
    same(found.patched[0, 3], by_hand(lm, (0, 3), receivers, False, into="clean"))


@pytest.mark.parametrize("receivers", [None, READERS[:4]])
def test_mlps_send_too(receivers: Any) -> None:
    lm = small()
    found = path_patch(
        lm, CLEAN, CORRUPTED, metric=DIFF, senders="mlps", receivers=receivers, positions=[1, -1]
    )
    assert list(found.axes) == ["layer"]
    for layer in range(3):
        want = by_hand(lm, (layer, None), receivers, False, positions=[1, -1])
        same(found.patched["diff"][layer], want)


@pytest.mark.parametrize("name", ["gemma2/capped", "falcon/new_decoder"])
def test_other_families(name: str) -> None:
    lm = load(name, "float64")
    n_kv = lm.arch.n_kv_heads
    receivers = [Receiver("v", lm.arch.n_layers - 1, n_kv - 1), Receiver("mlp", lm.arch.n_layers - 1)]
    found = path_patch(lm, CLEAN, CORRUPTED, metric=DIFF, receivers=receivers, through_mlps=True)
    for sender in ((0, 0), (0, lm.arch.n_heads - 1), (lm.arch.n_layers - 1, 0)):
        same(found.patched["diff"][sender], by_hand(lm, sender, receivers, True))


def test_direct_effects_add_up_to_the_total_where_the_final_norm_is_linear() -> None:
    # With so large an epsilon the norms divide by a constant, to 1e-14; their gains make up for it.
    lm = small(1e16)
    big = lambda path, x: x * 1e8 if "ln" in str(path) else x
    lm = dataclasses.replace(lm, params=jax.tree_util.tree_map_with_path(big, lm.params))
    heads = path_patch(lm, CLEAN, CORRUPTED, metric=DIFF)
    mlps = path_patch(lm, CLEAN, CORRUPTED, metric=DIFF, senders="mlps")
    base = stacks(lm, CORRUPTED)
    hooks = {f"blocks.{i}.{p}": jmi.Replace(base[p][i]) for p in (Z, MLP) for i in range(3)}
    embed = lm.run(CLEAN, capture=["hook_embed"])["hook_embed"]
    of_embedding = (
        diff(lm.run(CORRUPTED, {"hook_embed": jmi.Replace(embed), **hooks}).logits) - heads.base["diff"]
    )
    total = heads.source["diff"] - heads.base["diff"]
    parts = heads.effect["diff"].sum((0, 1)) + mlps.effect["diff"].sum(0) + of_embedding
    assert np.abs(heads.effect["diff"]).max() > 0.1
    np.testing.assert_allclose(parts, total, rtol=1e-10)


def test_heads_of_recurrent_models_reach_the_logits() -> None:
    lm = rwkv(7)
    found = path_patch(lm, CLEAN, CORRUPTED, metric=DIFF)
    z = {
        name: lm.run(t, capture=["blocks.*.rwkv.hook_z"])
        for name, t in (("base", CORRUPTED), ("source", CLEAN))
    }
    mlp = lm.run(CORRUPTED, capture=[f"blocks.*.{MLP}"]).stack(MLP)
    hooks: dict[str, Any] = {}
    for i in range(lm.arch.n_layers):
        hooks[f"blocks.{i}.{MLP}"] = jmi.Replace(mlp[i])
        hooks[f"blocks.{i}.rwkv.hook_z"] = [jmi.Replace(z["base"].stack("rwkv.hook_z")[i])]
    hooks["blocks.0.rwkv.hook_z"].append(jmi.Replace(z["source"].stack("rwkv.hook_z")[0], heads=1))
    same(found.patched["diff"][0, 1], diff(lm.run(CORRUPTED, hooks).logits))
    with pytest.raises(HookError, match="hook_q_input"):
        path_patch(lm, CLEAN, CORRUPTED, metric=DIFF, receivers=[Receiver("q", 1, 0)])


@pytest.mark.parametrize("senders", ["heads", "mlps"])
def test_every_sweep_is_kept_and_read_again(senders: Any, tmp_path: Path) -> None:
    run = functools.partial(path_patch, small(), CLEAN, CORRUPTED, metric=DIFF, senders=senders)
    for receivers in (None, [READERS[0], READERS[3]]):
        folder = tmp_path / str(receivers is None)
        first, again = (run(receivers=receivers, output=folder).patched["diff"] for _ in range(2))
        np.testing.assert_array_equal(again, first)
        same(first, run(receivers=receivers).patched["diff"])
        kept = {path.parent.name for path in folder.rglob("*.npz")}
        groups = ["0-0", "1-1", "2-2"] if senders == "heads" else ["0-2"]
        several = {f"{step}_{group}" for step in ("arriving", "reading") for group in groups}
        assert kept == ({folder.name} if receivers is None else several)
    with pytest.raises(OutputError, match="holds no such sweeps"):
        run(receivers=READERS[:1], output=tmp_path / "True")
    with pytest.raises(OutputError, match="holds another sweep"):
        run(receivers=READERS[:1], output=folder)


def test_what_does_not_fit_is_refused() -> None:
    lm = small()
    for receiver, message in (
        (Receiver("q", 1, 4), "heads are range"),
        (Receiver("k", 1, 2), "heads are range"),
        (Receiver("q", 1), "heads are range"),
        (Receiver("mlp", 1, 0), "no head"),
        (Receiver("z", 1, 0), "one of q, k, v, mlp"),  # type: ignore[arg-type]
    ):
        with pytest.raises(ArgumentError, match=message):
            path_patch(lm, CLEAN, CORRUPTED, metric=DIFF, receivers=[receiver])
    with pytest.raises(HookError, match="no layer 3"):
        path_patch(lm, CLEAN, CORRUPTED, metric=DIFF, receivers=[Receiver("q", 3, 0)])
    with pytest.raises(ArgumentError, match="empty"):
        path_patch(lm, CLEAN, CORRUPTED, metric=DIFF, receivers=[])
    with pytest.raises(ArgumentError, match="one shape"):
        path_patch(lm, CLEAN[:, 1:], CORRUPTED, metric=DIFF)
    with pytest.raises(ArgumentError, match="senders="):
        path_patch(lm, CLEAN, CORRUPTED, metric=DIFF, senders="neurons")  # type: ignore[arg-type]
