"""The ``config.json`` of Llamascopium (OpenMOSS Language-Model-SAEs)."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from jmi.errors import ConfigError
from jmi_models.disk import words
from jmi_sparse.formats.reading.fields import Fields

KINDS = {
    "sae": ("relu", "jumprelu", "topk", "batchtopk"),
    "clt": ("relu", "jumprelu", "topk", "batchtopk"),
    # Other activations gate each head by the norms of its own rows, and heads have no shared features then.
    "crosscoder": ("relu",),
}
"""Kind -> activations that can be represented. Lorsa and MOLT are no dictionaries of this kind."""

_NORMS = ("inference", "dataset-wise", "token-wise")
_LAYER = re.compile(r"blocks\.(\d{1,4})\.([\w.]+)", re.ASCII)


@dataclasses.dataclass(frozen=True)
class Config:
    """What such a file says.

    Attributes:
      kind: a name of `KINDS`.
      activation: as Llamascopium names it.
      k: of topk and batchtopk.
      norm: how inputs are normalised: a name of `_NORMS`.
      by_norm: features are gated in units of their decoder rows.
      bias: whether there is one of the decoder.
      reads, writes: sites, one for each layer or head.
      d_model, features: sizes.
    """

    kind: str
    activation: str
    k: int | None
    norm: str
    by_norm: bool
    bias: bool
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    d_model: int
    features: int


def parse(given: Mapping[str, Any], k: int | None) -> Config:
    """The config; ConfigError with everything in it that is absurd or cannot be represented."""
    kind = given.get("sae_type")
    if not isinstance(kind, str) or kind not in KINDS:
        raise ConfigError(
            f"config.json: sae_type {words.value(kind)} cannot be represented; {', '.join(KINDS)} can"
        )
    find = Fields(given, problems := list[str]())
    activation = str(given.get("act_fn", "relu")).lower()
    if activation not in KINDS[kind]:
        problems.append(f"act_fn {words.value(given['act_fn'])} of a {kind} cannot be represented")
    norm = given.get("norm_activation", "dataset-wise")
    if norm not in _NORMS:
        problems.append(f"norm_activation {words.value(norm)} cannot be represented: it depends on the batch")
    if find.flag("use_glu_encoder", False):
        problems.append("use_glu_encoder cannot be represented")
    width, factor = find.whole("d_model"), find.number("expansion_factor", 0.0, 1e-6)
    reads, writes = _points(given, kind, problems)
    if norm == "token-wise" and (kind != "sae" or reads != writes):
        problems.append("norm_activation token-wise: outputs have no way back from another point's norm")
    kept = None
    if activation in ("topk", "batchtopk"):
        kept = find.whole("top_k", 50) if k is None else k
        if kept > int(width * factor):
            problems.append(f"top_k {kept} is more than {int(width * factor)} features")
    elif k is not None:
        problems.append(f"k={k} was given, and this kind keeps no fixed number")
    by_norm, bias = find.flag("sparsity_include_decoder_norm", True), find.flag("use_decoder_bias", True)
    if problems:
        raise ConfigError("config.json: " + "; ".join(problems))
    for points in (reads, writes) if kind == "clt" else ():
        layers_of(points)
    return Config(kind, activation, kept, norm, by_norm, bias, reads, writes, width, int(width * factor))


def layers_of(points: tuple[str, ...]) -> tuple[tuple[int, ...], str]:
    """Layers of the sites of a cross-layer transcoder, in order, and the site with the layer open.

    Raises:
      ConfigError: sites that are not one point of ascending layers.
    """
    found = [_LAYER.fullmatch(point) for point in points]
    layers = tuple(int(match[1]) for match in found if match)
    if len(layers) != len(points) or len({match[2] for match in found if match}) != 1:
        raise ConfigError(
            f"config.json: hook points {words.some(points)} are not one point of several layers"
        )
    if list(layers) != sorted(set(layers)):
        raise ConfigError(f"config.json: hook points {words.some(points)} are not of ascending layers")
    return layers, f"blocks.*.{found[0][2] if found[0] else ''}"


def _points(
    given: Mapping[str, Any], kind: str, problems: list[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Sites that are read and written."""
    names = {"sae": ("hook_point_in", "hook_point_out"), "clt": ("hook_points_in", "hook_points_out")}
    found = []
    for name in names.get(kind, ("hook_points", "hook_points")):
        said = [given.get(name)] if kind == "sae" else given.get(name)
        plain = (
            isinstance(said, list) and said and all(isinstance(p, str) and 0 < len(p) <= 200 for p in said)
        )
        if not plain:
            problems.append(
                f"{name} must name {'a hook' if kind == 'sae' else 'hooks'}, not {words.value(said)}"
            )
        found.append(tuple(said) if plain and said else ("",))
    if len(found[0]) != len(found[1]):
        problems.append(f"{len(found[0])} hook points are read, and {len(found[1])} written")
    return found[0], found[1]
