"""What interventions say of their reach is true, and sweeps share no more than it allows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jmi
from jmi.hooks.freeze import Detach
from jmi.hooks.reach import says
from jmi.model.sites import PATTERN, SCORES, Site, table_of
from jmi.sweeps import chunks as sweep_plan
from jmi.sweeps.every_cell import all_say
from tests.core.conftest import lively, tiny
from tests.support.tolerances import assert_agree

S = 7
SITES = {
    "stream": Site("blocks.*.hook_mlp_out", ("batch", "pos", "d_model"), (None, None, 5), (0, 1), 0),
    "keys": Site(
        "blocks.*.attn.hook_k", ("batch", "pos", "kv_head", "d_head"), (None, None, 2, 3), (0, 1), 0
    ),
    "pattern": Site(PATTERN, ("batch", "head", "query", "key"), (None, 2, None, None), (0, 1), 0),
    "scores": Site(SCORES, ("batch", "head", "query", "key"), (None, 2, None, None), (0, 1), 0),
}
SEES = np.tri(S, dtype=bool)


def arrived(site, rng):
    """A tensor as a model gives it: at sites of attention later keys are masked."""
    value = rng.normal(size=site.shape(2, S))
    if site.point == PATTERN:
        return np.where(SEES, np.exp(value), 0) / np.where(SEES, np.exp(value), 0).sum(-1, keepdims=True)
    return np.where(SEES, value, -np.inf) if site.point == SCORES else value


def made(site, rng):
    """Interventions at a site with payloads of every kind."""
    last = site.shape(2, S)[-1]
    whole, earlier = rng.normal(size=site.shape(2, S)), arrived(site, rng)
    chosen = {"positions": rng.choice(S, 3, replace=False)} if rng.random() < 0.5 else {}
    payloads = [0.0, 2.0, whole, earlier, rng.normal(size=last), -np.inf]
    if "key" in site.axes:
        payloads += [np.tri(S), np.zeros((S, 1)), np.ones((2, 1, S))]
    yield from (jmi.Replace(x, **chosen) for x in payloads)
    yield from (jmi.Add(x, **chosen) for x in payloads if np.isfinite(x).all())
    yield from (jmi.Patch(x, **chosen) for x in (whole, earlier))
    yield jmi.Patch(earlier[..., ::-1, :] if "key" in site.axes else earlier[:, ::-1], **chosen)
    yield jmi.Scale(1.5, **chosen)
    yield jmi.Zero(**chosen)
    yield Detach(**chosen)
    yield jmi.Noise(0.5, 3, **chosen)
    yield jmi.Project(rng.normal(size=(2, last)), **chosen)
    if site.point == SCORES:
        yield jmi.Knockout(keys=2)
        yield jmi.Knockout(edges=[[5, 3], [2, 6]])
    if site.point == PATTERN:
        yield jmi.ScaleAttention(0.3, keys=2)
        yield jmi.SetAttention(0.4, queries=[1, 3], keys=[2, 6])


@pytest.mark.parametrize("where", SITES)
def test_what_interventions_say_is_true(where):
    site, rng = SITES[where], np.random.default_rng(0)
    axis = site.axis("pos", "query")
    yes = dict.fromkeys(("is_local", "is_causal"), 0)
    for _ in range(3):
        for hook in made(site, rng):
            value, other = arrived(site, rng), arrived(site, rng)
            out = np.asarray(hook(jnp.asarray(value), site))
            if says(hook, "is_local", site):
                yes["is_local"] += 1
                for p in range(S):
                    here = np.arange(S).reshape([-1 if i == axis else 1 for i in range(value.ndim)]) == p
                    mixed = np.asarray(hook(jnp.asarray(np.where(here, value, other)), site))
                    np.testing.assert_allclose(
                        np.take(mixed, p, axis), np.take(out, p, axis), rtol=1e-5, err_msg=repr(hook)
                    )
            if says(hook, "is_causal", site):
                yes["is_causal"] += 1
                if "key" in site.axes:
                    ahead = out[..., ~SEES]
                    assert (ahead == (-np.inf if site.point == SCORES else 0)).all(), repr(hook)
    assert min(yes.values()) > 10


def test_who_says_nothing_or_acts_anew_is_not_believed():
    site = SITES["stream"]

    class Bare:
        def __call__(self, value, site):
            return value

    @jmi.tree.dataclass
    class Mean(jmi.Add):
        def __call__(self, value, site):
            return jnp.broadcast_to(value.mean(1, keepdims=True), value.shape)

    @jmi.tree.dataclass
    class Twice(jmi.Add):
        def __call__(self, value, site):
            return super().__call__(super().__call__(value, site), site)

        def is_local(self, site):
            return True

    @jmi.tree.dataclass
    class Renamed(jmi.Add):
        """Acts as its parent."""

    assert not says(Bare(), "is_local", site)
    assert not says(jax.tree_util.Partial(lambda value, site: value), "is_causal", site)
    assert not says(Mean(1.0), "is_local", site)
    assert says(Twice(1.0), "is_local", site)
    assert not says(Twice(1.0), "is_causal", site)
    assert says(Renamed(1.0), "is_local", site)
    for hook, expected in ((Twice(1.0), True), (Mean(1.0), False)):
        assert says(jmi.At(0, hook), "is_local", site) == expected
        assert says(jmi.PerLayer(hook), "is_local", site) == expected


def test_an_answer_holds_for_every_layer():
    site, rng = SITES["pattern"], np.random.default_rng(1)
    earlier, uniform = arrived(site, rng), np.full((2, 2, S, S), 1 / S)
    for rows, expected in (
        ([earlier, earlier], True),
        ([earlier, uniform], False),
        ([uniform, earlier], False),
    ):
        hook = jmi.PerLayer(jmi.Patch(np.stack(rows)))
        assert says(hook, "is_causal", site) == expected
    by_row = jmi.PerLayer(jmi.Replace(np.tri(2, S)))
    assert not says(by_row, "is_causal", site), "a row of weights for all queries, not a triangle"


LENGTH = 9


@jmi.tree.dataclass
class Clip:
    """A user's own, of which sweeps may share what it leaves alone."""

    limit: jax.Array

    def __call__(self, value, site):
        return value.clip(-self.limit, self.limit)

    def is_local(self, site):
        return True

    def is_causal(self, site):
        return "key" not in site.axes


def lagged(value, site):
    """A plain function, of unknown reach: each position gets what the one before it has."""
    return jnp.roll(value, 1, axis=site.axis("pos", "query"))


def any_hook(rng, site, length):
    """One intervention at ``site``, of any kind and reach."""
    shape = (1, *site.shape(1, length)[1:])
    tensor, row = 0.3 * rng.normal(size=shape), 0.3 * rng.normal(size=shape[-1])
    kinds = [
        lambda **at: jmi.Replace(rng.choice([0.0, 1 / length]), **at),
        lambda **at: jmi.Replace(tensor, **at),
        lambda **at: jmi.Add(row, **at),
        lambda **at: jmi.Scale(rng.choice([0.5, 1.5]), **at),
        lambda **at: jmi.Zero(**at),
        lambda **at: jmi.Patch(tensor, **at),
        lambda **at: jmi.Noise(0.3, int(rng.integers(9)), **at),
        lambda **at: jmi.Project(row, **at),
        lambda **at: Clip(np.float64(0.7)),
        lambda **at: lagged,
    ]
    if site.point == SCORES:
        kinds = [*kinds[:7], lambda **at: jmi.Knockout(keys=int(rng.integers(length)))]
    if site.point == PATTERN:
        kinds += [
            lambda **at: jmi.ScaleAttention(0.5, keys=int(rng.integers(length))),
            lambda **at: jmi.SetAttention(0.5, queries=int(rng.integers(1, length)), keys=0),
        ]
    chosen = [{}, {"positions": int(rng.integers(length))}, {"positions": rng.choice(length, 4, False)}]
    heads = {"heads": 0} if site.axis("head") is not None and rng.random() < 0.5 else {}
    return kinds[rng.integers(len(kinds))](**chosen[rng.integers(3)], **heads)


def experiment(rng, arch):
    """Random base hooks behind the first layer, and cells at every layer and position."""
    points = ["hook_embed", *(f"blocks.*.{x}" for x in ("hook_mlp_out", "hook_resid_mid", "attn.hook_v"))]
    points += [PATTERN, SCORES] * 6
    base = {}
    for _ in range(rng.integers(1, 3)):
        point = points[rng.integers(len(points))]
        hook = any_hook(rng, table_of(arch)[point], LENGTH)
        base[point] = [jmi.At(int(rng.integers(1, arch.n_layers)), hook) if "*" in point else hook]
    grid = jmi.Grid(layer=range(arch.n_layers), position=range(LENGTH))
    edits = [
        lambda p: jmi.Zero(positions=p),
        lambda p: jmi.Add(np.ones(arch.d_model), 0.5, positions=p),
        lambda p: jmi.Scale(2.0, positions=p),
    ]
    make = edits[rng.integers(len(edits))]
    return base, grid, lambda i, p: {"blocks.*.hook_mlp_out": jmi.At(i, make(p))}


@pytest.mark.parametrize("seed", range(10))
def test_a_sweep_on_random_base_hooks_is_a_loop(seed, monkeypatch):
    monkeypatch.setattr(sweep_plan, "PASS", 0)
    monkeypatch.setattr(sweep_plan, "STEPS", 2)
    rng = np.random.default_rng(seed)
    with jax.enable_x64(True):
        arch = tiny(3)
        lm = jmi.LanguageModel(arch, lively(arch, jnp.float64))
        tokens = jnp.asarray(rng.integers(0, 29, (1, LENGTH)), jnp.int32)
        base, grid, hooks = experiment(rng, arch)

        @jax.jit
        def one(i, p):
            both = {**base, **{point: [*base.get(point, ()), hook] for point, hook in hooks(i, p).items()}}
            return jmi.forward(arch, lm.params, tokens, hooks=both).logits

        want = np.stack([[one(i, p) for p in range(LENGTH)] for i in range(3)])
        swept = hooks(grid["layer"], grid["position"])
        at = None if rng.random() < 0.7 else -1
        got = jmi.sweep(lm, tokens, swept, lambda out: out.logits, base=base, logits_at=at)
    want = want if at is None else want[..., -1, :]
    assert_agree({repr(base): got}, {repr(base): want})


def test_the_sweeps_above_share_positions_where_they_may():
    arch = tiny(3)
    rng = np.random.default_rng(0)
    drawn = [experiment(rng, arch)[0] for _ in range(100)]
    prepared = [jmi.prepare(arch, base, (1, LENGTH)) for base in drawn]
    apart = [all(all_say(arch, p, q) for q in ("is_local", "is_causal")) for p in prepared]
    local = [all_say(arch, p, "is_local") for p in prepared]
    assert sum(apart) > 20
    assert sum(local) - sum(apart) > 10, "local ones that look ahead are what this is about"
