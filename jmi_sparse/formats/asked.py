"""What a caller of `jmi_sparse.load` asked for."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Asked:
    """Arguments of `jmi_sparse.load`, checked.

    Attributes:
      dtype: of the weights.
      k: how many features are kept, instead of what files say.
      hook: the site that is read, instead of what files say.
      norm_factor: what inputs were multiplied by in training, where files do not hold it.
    """

    dtype: Any
    k: int | None = None
    hook: str | None = None
    norm_factor: float | None = None
