"""Which mechanisms a config has, and few configs that have every pair of them.

A promise that does not depend on the family is broken by a mechanism, or by two that meet. So it is tested
by default on configs that together have every pair which any config has, and before landing on all.
"""

import itertools
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import pytest

from jmi_models.decoder.transformer import Transformer
from tests.support.committed import arch_of


def _blocks(arch: Transformer) -> str:
    return "sequential" if not arch.parallel else "one norm" if arch.norms.shared else "parallel"


def _positions(arch: Transformer) -> str:
    if not arch.positions.rotary:
        return "alibi" if arch.positions.alibi else "learned"
    return " and ".join(sorted({type(rope.scaling).__name__ for rope in arch.positions.ropes if rope}))


def _turned(arch: Transformer) -> tuple[Any, ...]:
    partial = any(rope and rope.dim < arch.d_head for rope in arch.positions.ropes)
    return arch.positions.interleaved, partial, None in arch.positions.ropes


def _heads(arch: Transformer) -> str:
    return {arch.n_heads: "each its own", 1: "one for all"}.get(arch.n_kv_heads, "in groups")


def _scores(arch: Transformer) -> tuple[bool, ...]:
    return arch.attn.softcap is not None, arch.attn.sinks, arch.attn.scale_by_layer


def _queries(arch: Transformer) -> tuple[bool, ...]:
    return arch.attn.qk_norm is not None, arch.attn.clip_qkv is not None, arch.attn.qkv_bias


def _mlp(arch: Transformer) -> tuple[Any, ...]:
    if arch.experts is None:
        return arch.mlp.gated, arch.mlp.bias
    return arch.experts.normalise, arch.experts.bias, arch.experts.d_shared is not None


def _head(arch: Transformer) -> tuple[bool, ...]:
    return arch.tied, arch.unembed_bias, arch.d_embed is not None, arch.logit_softcap is not None


MECHANISMS: Mapping[str, Callable[[Transformer], Any]] = {
    "norm": lambda arch: (arch.norms.norm.kind, arch.norms.norm.gain, arch.norms.norm.bias),
    "norms": lambda arch: (arch.norms.where, arch.norms.embed),
    "blocks": _blocks,
    "positions": _positions,
    "turned": _turned,
    "windows": lambda arch: (any(arch.attn.windows), None in arch.attn.windows),
    "heads": _heads,
    "scores": _scores,
    "queries": _queries,
    "out_bias": lambda arch: arch.attn.out_bias,
    "mlp": _mlp,
    "head": _head,
    "scales": lambda arch: (arch.embed_scale != 1, arch.residual_scale != 1, arch.logit_scale != 1),
}
"""Mechanism -> which kind of it an architecture has."""


def covering(names: Iterable[str], mechanisms: Collection[str] = tuple(MECHANISMS)) -> list[str]:
    """Those of the configs ``names`` that together have every pair of kinds of ``mechanisms``.

    Greedy: again and again the first config that adds most pairs.
    """
    left = {name: pairs(name, mechanisms) for name in names}
    chosen = list[str]()
    while any(left.values()):
        best = max(left, key=lambda name: len(left[name]))
        chosen.append(best)
        found = left.pop(best)
        left = {name: pairs - found for name, pairs in left.items()}
    return chosen


def pairs(name: str, mechanisms: Collection[str]) -> set[Any]:
    """Every two mechanisms, with the kinds of them that a config has; the kind of a single one, too."""
    arch = arch_of(name)
    kinds = [(mechanism, MECHANISMS[mechanism](arch)) for mechanism in mechanisms]
    return set(itertools.combinations(kinds, 2)) | set(kinds)


def each_covering(names: Iterable[str], mechanisms: Collection[str] = tuple(MECHANISMS)) -> Any:
    """As `each`: one test per config, those beyond `covering` marked slow."""
    names = list(names)
    chosen = covering(names, mechanisms)
    params = [
        pytest.param(name, marks=[pytest.mark.xdist_group(name)] + [pytest.mark.slow] * (name not in chosen))
        for name in names
    ]
    return pytest.mark.parametrize("name", params)
