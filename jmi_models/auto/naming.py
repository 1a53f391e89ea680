"""After which family a checkpoint names its tensors, and which names come near one that is missing."""

import collections
import difflib
import re
from collections.abc import Iterable, Mapping

from jmi_models.decoder.attention import Attention
from jmi_models.decoder.mlp import Mlp
from jmi_models.decoder.norms import Norm, Norms
from jmi_models.decoder.transformer import Transformer
from jmi_models.families import FAMILIES
from jmi_models.families.family import Family
from jmi_models.families.usual import LAYER

# Two families choose among names by their architecture; any one tells their naming.
ANY = Transformer("any", 1, 1, 1, 1, 1, 1, 1, 1, Norms(Norm("rms", 1e-6)), Attention(), Mlp("silu"))
_ENOUGH = 0.5


def template(name: str) -> str:
    """``name`` with a star for every number: the same for all layers and experts."""
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name)


def convention(names: Iterable[str]) -> str | None:
    """``usual``, the family after which most of ``names`` are formed, or None where few are."""
    counts = collections.Counter(map(template, names))
    shares = {kind: _share(known, counts) for kind, known in _conventions().items()}
    best = max(shares, key=lambda kind: shares[kind])
    return best if shares[best] > _ENOUGH else None


def is_usual(family: Family) -> bool:
    """Whether a family names its tensors as Llama does."""
    key = family.keys(ANY).get("blocks.attn.W_Q")
    return key is not None and key.name.startswith(LAYER)


def _conventions() -> dict[str, set[str]]:
    """Convention -> templates of its names, those of a checkpoint without its head as well."""
    known: dict[str, set[str]] = collections.defaultdict(set)
    for family in FAMILIES.values():
        names = {re.sub(r"\{\w\}", "*", key.name) for key in family.keys(ANY).values()}
        names |= {name.removeprefix(family.prefix) for name in names}
        known["usual" if is_usual(family) else family.name] |= names
    return known


def _share(known: set[str], counts: Mapping[str, int]) -> float:
    return sum(n for name, n in counts.items() if name in known) / max(sum(counts.values()), 1)


def nearest(name: str, stored: Iterable[str]) -> tuple[str, ...]:
    """Those of ``stored`` that read most like ``name``, one for each template."""
    one_of = {template(other): other for other in sorted(stored, reverse=True)}
    return tuple(one_of[near] for near in difflib.get_close_matches(template(name), one_of, n=2))
