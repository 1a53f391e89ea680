"""Where gradients stop: interventions that leave values as they are and let no gradient through."""

from typing import ClassVar

import jax

from jmi import tree
from jmi.checks import check_architecture, flag
from jmi.errors import ArgumentError
from jmi.hooks.selection import Selective
from jmi.model.sites import PATTERN, HasSites, Site, table_of


@tree.dataclass
class Detach(Selective):
    """Let no gradient through, where selected; values are untouched.

    Example:
      >>> from jmi.hooks.freeze import Detach
      >>> hooks = {"blocks.*.attn.hook_pattern": Detach(heads=3)}
    """

    takes_padding: ClassVar[bool] = True

    def is_local(self, site: Site) -> bool:
        """Values stay as they are."""
        return True

    def is_causal(self, site: Site) -> bool:
        """Values stay as they are."""
        return True

    def __call__(self, value: jax.Array, site: Site) -> jax.Array:
        return self.select(jax.lax.stop_gradient(value), value, site)


def frozen(arch: HasSites, *, patterns: bool = False, norms: bool = False) -> dict[str, Detach]:
    """Hooks under which gradients take attention patterns or norm denominators for constants.

    Values stay as they are. With both, what is left between two layers' residual streams is linear but
    for the MLPs (and norms of queries and keys, which only the patterns read).

    Raises:
      ArgumentError: the model lacks what is asked for, or nothing is asked for.

    Example:
      >>> import jmi_models
      >>> from jmi.hooks.freeze import frozen
      >>> sorted(frozen(jmi_models.load("atlas").arch, patterns=True))
      ['blocks.*.attn.hook_pattern']
    """
    check_architecture(arch)
    patterns, norms = flag("patterns", patterns), flag("norms", norms)
    scales = [point for point in table_of(arch) if point.endswith(".hook_scale")]
    if patterns and PATTERN not in table_of(arch):
        raise ArgumentError("patterns=True: this model has no attention patterns to freeze")
    if norms and not scales:
        raise ArgumentError("norms=True: this model has no norm denominators to freeze")
    if not (patterns or norms):
        raise ArgumentError("name what to freeze: patterns=True, norms=True or both")
    return {point: Detach() for point in [PATTERN] * patterns + scales * norms}
