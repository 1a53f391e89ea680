"""Every method of quantisation that is read, and what it makes of the tensors of a checkpoint."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jmi.errors import CheckpointError, ConfigError
from jmi_models.disk import words
from jmi_models.disk.tensors import Stored
from jmi_models.weights.quantised import bitsandbytes, compressed, mxfp4, packed, scaled
from jmi_models.weights.quantised.layout import Layout, Method, method_of

METHODS: Mapping[str, Method] = {
    **mxfp4.METHODS,
    **scaled.METHODS,
    **bitsandbytes.METHODS,
    **packed.METHODS,
    **compressed.METHODS,
}
"""``quant_method`` of a ``quantization_config`` -> what it means."""


@dataclasses.dataclass(frozen=True)
class Unquantised:
    """A checkpoint as if it were not quantised.

    Attributes:
      config: without what it says of quantisation.
      headers: with the matrices in place of the tensors that they are stored as; those of a matrix of which
        one is missing stay.
      told: the method and how many matrices are stored so, in words; None where none is.
    """

    config: Mapping[str, Any]
    headers: Mapping[str, Stored]
    told: str | None = None


def unquantised(config: Mapping[str, Any], headers: Mapping[str, Stored]) -> Unquantised:
    """What a checkpoint stands for. A matrix is decoded as it is read, some rows at a time.

    Raises:
      ConfigError: a method, or a variant of one, that is not read; the message names it.
      CheckpointError: naming a matrix whose tensors do not fit each other; or no matrix is stored so.
    """
    given = config.get("quantization_config")
    rest = {name: value for name, value in config.items() if name != "quantization_config"}
    if not given:
        return Unquantised(rest, headers)
    method = method_of(given)
    if not isinstance(given, Mapping) or not isinstance(method, str) or method not in METHODS:
        raise ConfigError(
            f"weights quantised with {words.value(method)} are not supported, only {', '.join(METHODS)}; use "
            "the full-precision model"
        )
    layouts = METHODS[method].layouts(given)
    found = dict(headers)
    matrices = sum(_decoded(found, layout) for layout in layouts)
    if headers and not matrices:
        raise CheckpointError(
            f"config.json says that weights are quantised with {method}, but no tensor is stored so; if they "
            "are in full precision, take quantization_config out of it"
        )
    return Unquantised(rest, found, f"{METHODS[method].told(given)}: {matrices} matrices")


def _decoded(found: dict[str, Stored], layout: Layout) -> int:
    """Put the matrices that are stored as ``layout`` in place of their tensors; how many there were."""
    count = 0
    for name in [name for name in found if name.endswith(layout.mark)]:
        stem = name.removesuffix(layout.mark)
        if not all(stem + end in found for end in layout.needs):
            continue
        ends = (layout.mark, *layout.needs, *layout.may)
        parts = {end: found.pop(stem + end) for end in ends if stem + end in found}
        try:
            found[stem + layout.gives] = layout.read(parts)
        except CheckpointError as error:
            raise CheckpointError(f"{words.name(stem + layout.gives)}: {error}") from None
        count += 1
    return count
