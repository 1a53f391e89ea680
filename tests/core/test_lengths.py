"""Prompts of new lengths: nothing is compiled, and everything is what the exact length gives."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jmi
from jmi.captures.capture import CARRY
from jmi.captures.reducers import Positions
from jmi.engine.lengths import SHORTEST, length_for
from jmi.engine.takes_padding import Held, held_in
from jmi.errors import InterventionError
from jmi.interp.attribution.atp_star import atp_star
from jmi.interp.attribution.attribution_patching import attribution_patching, integrated_gradients
from jmi.interp.edges.eap import eap
from jmi.interp.edges.faithfulness import faithfulness
from jmi.interp.patching.causal_tracing import causal_trace
from jmi.interp.patching.patch import patch
from jmi.interp.patching.path_patching import path_patch
from jmi.metrics import LogitDiff, Prob
from tests.core.conftest import lively, tiny
from tests.support.committed import arch_of
from tests.support.padded import model
from tests.support.random_params import random_params
from tests.support.tolerances import assert_agree

RNG = np.random.default_rng(0)
CLEAN, CORRUPTED = RNG.integers(1, 29, (2, 1, 40)).astype(np.int32)
DIFF = LogitDiff(3, 4)
VECTOR = RNG.normal(size=16)


@pytest.fixture(scope="module", autouse=True)
def exactly():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def wide():
    arch = tiny()
    return jmi.LanguageModel(arch, lively(arch, jnp.float64))


def hooks_of(length: int) -> Any:
    return {
        "blocks.1.hook_resid_pre": jmi.Add(VECTOR * length, positions=-1),
        "blocks.*.attn.hook_attn_scores": jmi.Knockout(queries=-1, keys=0),
        "blocks.*.hook_mlp_out": jmi.At([2], jmi.Scale(0.5, positions=[0, 1])),
    }


CAPTURE = [
    "hook_embed",
    "blocks.*.hook_resid_post",
    "blocks.2.attn.hook_pattern",
    CARRY,
    jmi.Capture("blocks.*.attn.hook_attn_scores", reduce=jmi.Norm()),
    jmi.Capture("blocks.3.mlp.hook_post", reduce=jmi.Top(3)),
    jmi.Capture("blocks.*.hook_resid_mid", reduce=jmi.Select(position=-2)),
    jmi.Capture("blocks.*.hook_mlp_out", reduce=Positions([0, -1])),
    jmi.Capture("blocks.*.hook_attn_out", reduce=jmi.PerLayer(jmi.Dot(RNG.normal(size=(4, 16))))),
]


@pytest.mark.parametrize("length", [2, 3, SHORTEST, SHORTEST + 1])
def test_a_run_gives_what_it_gives_at_its_exact_length(wide, length):
    given = CLEAN[:, :length], hooks_of(length), CAPTURE
    for at in (None, -1):
        found, want = wide.run(*given, logits_at=at), wide.run(*given, logits_at=at, exact=True)
        assert_agree(found, want)
    assert found.at("blocks.*.hook_resid_post", -1).shape == (4, 1, 16)


@pytest.mark.parametrize("name", ["gpt2/plain", "bloom/six_heads_untied", "mistral/window", "rwkv7"])
def test_every_site_of_other_models_agrees(name):
    lm = model(name)
    sites = [point for point in lm.arch.sites() if not point.endswith("hook_states")]
    for given in (CLEAN[:, :5], (CLEAN[:, :10].reshape(2, 5), np.array([[0, 0, 1, 1, 1], [1] * 5], bool))):
        found, want = lm.run(given, capture=sites), lm.run(given, capture=sites, exact=True)
        mask = np.ones((1, 5), bool) if want.mask is None else want.mask
        for point, site in lm.arch.sites().items():
            if point not in sites:
                continue
            real = np.ones((), bool)
            for axis in site.token_axes():
                shape = [n if i in (0, axis) else 1 for i, n in enumerate(site.shape(*mask.shape))]
                real = real & mask.reshape(shape)
            clean = [np.where(real, np.asarray(out.captures[point]), 0) for out in (found, want)]
            assert_agree(*clean, times=4)  # Of states nobody reads what stands at padding; theirs are large.
        assert_agree(found.at("blocks.*.hook_resid_post", -1), want.at("blocks.*.hook_resid_post", -1))


def test_twenty_prompts_of_twenty_lengths_are_few_traces(lm, programs):
    traced = []
    for length in range(2, 22):
        hooks = {"blocks.2.hook_resid_post": jmi.Add(VECTOR.astype(np.float32), positions=-1)}
        lm.run(CLEAN[:, :length], hooks, ["blocks.*.attn.hook_pattern"])
        traced.append(programs())
    assert sum(traces > 0 for traces, _ in traced) <= 4
    cheap = [compiled for traces, compiled in traced if not traces]
    assert not any(cheap), "not even what cuts the results is compiled"
    lm.run(CLEAN[:, :20], exact=True)
    lm.run(CLEAN[:, :21], exact=True)
    assert programs()[0] >= 2


def test_texts_of_new_lengths_are_generated_from_by_few_programs(lm, programs):
    traced = []
    for length in range(2, 22):
        tokens = lm.generate(CLEAN[:, :length], 23 - length).tokens
        assert tokens.shape == (1, 23 - length)
        traced.append(programs())
    assert sum(traces > 0 for traces, _ in traced) <= 4
    assert sum(compiled for traces, compiled in traced if not traces) == 0


@pytest.mark.parametrize(("length", "count"), [(3, 1), (5, 16), (20, 17), (30, 34)])
def test_generation_is_that_of_the_exact_length(wide, length, count):
    captures = ["blocks.*.hook_resid_post", jmi.Capture("blocks.1.mlp.hook_post", reduce=jmi.Top(2))]
    for options in ({}, {"seed": 3, "hooks": hooks_of(length)}, {"capture": captures}):
        found, want = (
            wide.generate(CLEAN[:, :length], count, exact=exact, **options) for exact in (False, True)
        )
        np.testing.assert_array_equal(found.tokens, want.tokens)
        if "capture" in options:
            assert_agree(found.captures, want.captures)


@pytest.mark.parametrize("length", [3, 9])
def test_a_text_that_fits_is_generated_where_more_room_would_not(length):
    """Past 16 tokens this model turns earlier keys anew, so that no longer text may be continued."""
    arch = arch_of("llama/longrope_within")
    lm = jmi.LanguageModel(arch, random_params(arch, 0, 0.3, "float64"))
    found, want = (lm.generate(CLEAN[:, :length], 16 - length, exact=exact) for exact in (False, True))
    np.testing.assert_array_equal(found.tokens, want.tokens)
    with pytest.raises(jmi.errors.ArgumentError, match="stay within 16"):
        lm.generate(CLEAN[:, :length], 30)


def test_what_is_cut_is_bound_to_no_device_that_it_was_not_bound_to(wide):
    logits = wide.run(CLEAN[:, :5]).logits
    other = jax.devices()[1]
    assert (jax.device_put(np.zeros(()), other) + logits).devices() == {other}
    there = jmi.LanguageModel(wide.arch, jax.device_put(wide.params, other))
    assert there.run(CLEAN[:, :5]).logits.devices() == {other}


@pytest.mark.parametrize("using", ["source", "mean", "overall mean"])
def test_what_a_recurrent_model_is_patched_with_is_that_of_the_exact_length(using):
    lm, clean, corrupted = model("rwkv7"), CLEAN[:, :7], CORRUPTED[:, :7]
    for site in ("hook_mlp_out", "rwkv.hook_state")[: 2 if using == "source" else 1]:
        found, want = (
            patch(lm, clean, corrupted, site, metric=DIFF, using=using, exact=exact).patched
            for exact in (False, True)
        )
        assert_agree(found, want)


@jmi.tree.dataclass
class Shift:
    """A user's own, which says that it takes padding."""

    vector: Any
    takes_padding: ClassVar[bool] = True

    def __call__(self, value, site):
        return value + self.vector[None, None]


@jmi.tree.dataclass
class Centred(Shift):
    """Acts anew: what it inherits does not speak for it."""

    def __call__(self, value, site):
        return value - value.mean(1, keepdims=True)


def lengths(lm, hook: Any = None, length: int = 7, at: str = "blocks.*.hook_resid_pre") -> int | None:
    held = held_in(lm.arch, None if hook is None else {at: hook})
    return length_for(lm.arch, lm.params, jmi.Prompts(CLEAN[:, :length]), held)


@pytest.mark.parametrize(
    "held",
    [
        lambda value, site: value,
        jax.tree_util.Partial(lambda x, value, site: value, 3.0),
        Centred(VECTOR),
        jmi.Add(RNG.normal(size=(7, 16))),
        jmi.Add(RNG.normal(size=(16, 16))),
        jmi.PerLayer(jmi.Replace(RNG.normal(size=(4, 1, 7, 16)))),
        jmi.At([0], jmi.Patch(RNG.normal(size=(1, 7, 16)))),
        jmi.Zero(positions=np.arange(7) > 3),
        jmi.Noise(0.1),
    ],
)
def test_what_may_see_places_runs_at_the_exact_length(wide, held):
    assert lengths(wide, held) is None


def test_at_sites_of_attention_too_and_in_reducers_and_metrics(wide):
    scores = "blocks.*.attn.hook_attn_scores"
    assert lengths(wide, jmi.Knockout(mask=np.tri(7, dtype=bool)), at=scores) is None
    assert lengths(wide, jmi.Scale(RNG.normal(size=(4, 7, 1))), at=scores) is None
    assert lengths(wide, jmi.Scale(RNG.normal(size=(4, 1, 1))), at=scores) == SHORTEST
    prompts = jmi.Prompts(CLEAN[:, :7])
    of = lambda name, reduce: held_in(wide.arch, None, [jmi.Capture(name, reduce=reduce)])
    for held, want in (
        (of(scores, jmi.Dot(np.ones(7))), None),
        (of(scores, jmi.Norm()), SHORTEST),
        (of("hook_embed", jmi.Dot(np.ones((7, 16)))), SHORTEST),
        (of("hook_embed", jmi.IsFinite()), None),
        (of(CARRY, jmi.Norm()), None),
        ([Held(DIFF)], SHORTEST),
        ([Held(lambda out: out.logits[:, 0, 0])], None),
    ):
        assert length_for(wide.arch, wide.params, prompts, held) == want


def test_what_takes_padding_says_so(wide):
    kept = [Shift(VECTOR), jmi.Add(VECTOR, positions=list(range(7))), jmi.At([1], jmi.Zero(units=[0, 1]))]
    assert lengths(wide, kept) == SHORTEST == VECTOR.size, "a width that is a length, too"
    assert lengths(wide, jmi.PerLayer(jmi.Add(RNG.normal(size=(4, 16))))) == SHORTEST
    assert lengths(wide, length=17) == 32
    assert lengths(wide, length=40) == 64 == wide.arch.n_ctx


def test_padding_that_costs_more_than_it_saves_is_not_made(wide, monkeypatch):
    monkeypatch.setattr("jmi.engine.lengths.AFFORDABLE", {"cpu": 0.0, "other": 0.0})
    assert lengths(wide) is None
    assert lengths(wide, length=SHORTEST) == SHORTEST


def test_prompts_with_positions_of_their_own_and_traced_ones_run_as_they_are(wide):
    places = jmi.Prompts(CLEAN[:, :5], None, np.arange(3, 8, dtype=np.int32)[None])
    assert length_for(wide.arch, wide.params, places, ()) is None
    logits = jax.jit(lambda tokens: wide.run(tokens).logits)(CLEAN[:, :5])
    assert_agree(logits, wide.run(CLEAN[:, :5], exact=True).logits)
    slope = jax.grad(lambda v: wide.run(CLEAN[:, :5], {"blocks.1.hook_mlp_out": jmi.Add(v)}).logits.sum())
    assert np.abs(slope(VECTOR)).max() > 0


@pytest.mark.parametrize("size", [5, SHORTEST])
def test_a_payload_of_another_length_is_refused_in_numbers_of_the_prompt(wide, size):
    """As long as the padded prompt, it would fit there without a word."""
    with pytest.raises(InterventionError, match=r"pos 7.*\(7, 16\)"):
        wide.run(CLEAN[:, :7], {"blocks.1.hook_resid_pre": jmi.Add(np.ones((size, 16)))})
    with pytest.raises(InterventionError, match=r"does not broadcast to .*7, 7"):
        wide.run(CLEAN[:, :7], {"blocks.1.attn.hook_attn_scores": jmi.Knockout(mask=np.ones((5, 5), bool))})
    with pytest.raises(InterventionError, match="-7 to 6"):
        wide.run(CLEAN[:, :7], {"blocks.1.hook_resid_pre": jmi.Zero(positions=9)})
    with pytest.raises(jmi.errors.ArgumentError, match="k=8"):
        wide.run(CLEAN[:, :7], capture=[jmi.Capture("blocks.1.attn.hook_pattern", reduce=jmi.Top(8))])


@jmi.tree.dataclass
class Twice:
    params: Any
    per_layer: bool = jmi.tree.static(default=False)
    takes_padding: ClassVar[bool] = True

    def __call__(self, read, written, carry, here):
        return self.params * written, carry


@jmi.tree.dataclass
class Silent(Twice):
    def __call__(self, read, written, carry, here):
        return self.params * written, carry


def test_a_rewired_model_takes_padding_where_all_modules_do(wide):
    ends = "blocks.*.mlp.hook_in", "blocks.*.mlp.hook_out"
    said, silent = (jmi.rewire(wide, {ends: kind(jnp.float64(2))}) for kind in (Twice, Silent))
    assert lengths(said) == SHORTEST
    assert lengths(silent) is None
    assert lengths(jmi.rewire(silent, {("blocks.0.hook_resid_pre",) * 2: Twice(jnp.float64(1))})) is None
    assert_agree(said.run(CLEAN[:, :5]).logits, silent.run(CLEAN[:, :5]).logits)


def techniques(lm: Any, length: int, exact: bool) -> Any:
    """Results of every technique that takes prompts, on prompts of ``length``."""
    clean, corrupted = CLEAN[:, :length], CORRUPTED[:, :length]
    grid = jmi.Grid(layer=range(4), vector=np.stack([VECTOR, -VECTOR]))
    hooks = {"blocks.*.hook_resid_pre": jmi.At(grid["layer"], jmi.Add(grid["vector"], positions=1))}
    own = {"exact": exact}
    nodes = ["hook_embed", "blocks.*.attn.hook_z"]
    yield jmi.sweep(lm, clean, hooks, Prob(3), progress=False, **own)
    yield jmi.sweep(lm, clean, hooks, lambda out: out.logits[0, :5], logits_at=-2, progress=False, **own)
    for options in (
        {"hooks": {"blocks.0.hook_mlp_out": jmi.Zero()}},
        {"using": "mean", "over": ["layer"]},
    ):
        yield patch(lm, clean, corrupted, "hook_resid_pre", metric=DIFF, **options, **own).patched
    yield patch(lm, clean, None, "attn.hook_z", metric=DIFF, using="zero", over=["head"], **own).effect
    yield path_patch(lm, clean, corrupted, metric=DIFF, positions=[1, -1], **own).patched
    yield causal_trace(lm, clean, [0, 1], seeds=range(2), scale=0.5, **own).patched
    pair, node = {"metric": {"diff": DIFF}, **own}, {"keep": ("batch", "query", "head"), "logits_at": -1}
    yield attribution_patching(lm, clean, corrupted, [*nodes, "blocks.*.attn.hook_pattern"], **pair)
    yield attribution_patching(lm, clean, corrupted, nodes, **pair, steps=2, **node)
    yield integrated_gradients(lm, clean, corrupted, nodes[1], **pair, steps=2)
    yield atp_star(lm, clean, corrupted, ["blocks.*.attn.hook_k", "blocks.*.attn.hook_q", nodes[1]], **pair)
    yield eap(lm, clean, corrupted, metric=DIFF, steps=2, per_example=True, **own).values
    kept = np.ones((1, *eap(lm, clean, corrupted, metric=DIFF, **own).graph.exists.shape), bool)
    kept[0, :, 3:9] = False
    yield faithfulness(lm, clean, corrupted, kept, metric=DIFF, **own).values


def test_every_technique_gives_what_it_gives_at_the_exact_length(wide):
    for found, want in zip(techniques(wide, 5, False), techniques(wide, 5, True), strict=True):
        assert_agree(found, want, "gradients")


def test_techniques_do_not_trace_a_new_length(wide, programs):
    for found in techniques(wide, 6, False):
        assert jax.tree.leaves(found)
    programs()
    few = [jax.tree.leaves(found) and programs()[0] for found in techniques(wide, 7, False)]
    assert sum(count > 0 for count in few) <= 1, "a plain function of the sweep is a new object"
