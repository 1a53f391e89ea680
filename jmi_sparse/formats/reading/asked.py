"""What a caller of `jmi_sparse.load` asked for."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class Asked:
    """Arguments of `jmi_sparse.load`, checked.

    Attributes:
      dtype: of the weights.
      k: how many features are kept, instead of what files say.
      hook: the site that is read, instead of what files say.
      norm_factor: what inputs were multiplied by in training, where files do not hold it.
      listed_factor: the same number from a registry, used where files want one and none was given.
      normalize_activations: instead of what files say.
      files: where files of other repositories are, by the place that a list of transcoders names.
    """

    dtype: Any
    k: int | None = None
    hook: str | None = None
    norm_factor: float | None = None
    listed_factor: float | None = None
    normalize_activations: str | None = None
    files: Mapping[str, Path] = dataclasses.field(default_factory=dict)
