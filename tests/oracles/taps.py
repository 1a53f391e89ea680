"""The words in which `tests.oracles.recording` says where a site can be seen; no torch.

A tap names a place (a module, a function of the modeling file, a method of a module) and a side of it.
``*`` in a path stands for the layer. `tests.oracles.hugging_face` sets the taps.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

Part = Callable[[Any, Any], Any]
"""(What passes the tap, the config of the model) -> tensor of the site."""


@dataclasses.dataclass(frozen=True)
class Tap:
    """One place where a tensor can be seen.

    Attributes:
      place: path of a module, ``path.*.method`` or name of a function of the modeling file.
      called: a function or a method, rather than a module.
      output: what leaves, rather than what enters.
      index: which argument or which member of a returned tuple; None for all of them.
      part: how the site's tensor is made of it.
    """

    place: str
    called: bool
    output: bool
    index: int | None
    part: Part | None


def enters(module: str, index: int | None = 0, part: Part | None = None) -> Tap:
    """What a module reads."""
    return Tap(module, False, False, index, part)


def leaves(module: str, index: int | None = 0, part: Part | None = None) -> Tap:
    """What a module returns (of a tuple the member ``index``)."""
    return Tap(module, False, True, index, part)


def argument(function: str, index: int, part: Part | None = None) -> Tap:
    """A positional argument of a function or method."""
    return Tap(function, True, False, index, part)


def result(function: str, index: int, part: Part | None = None) -> Tap:
    """A member of the tuple that a function or method returns."""
    return Tap(function, True, True, index, part)


@dataclasses.dataclass(frozen=True)
class Difference:
    """A site that no module shows, as what one site has more than another."""

    larger: str
    smaller: str


Table = Mapping[str, Tap | tuple[Tap, ...] | Difference | None]
"""Site -> its tap; of several taps the last that exists in a model; None: the family has no such site."""


@dataclasses.dataclass(frozen=True)
class When:
    """Entries that hold for configs in which ``key`` is ``value``."""

    key: str
    value: Any
    table: Table


@dataclasses.dataclass(frozen=True)
class Repair:
    """A mistake of Hugging Face that the oracle undoes: ``fix`` replaces a keyword of a module."""

    module: str
    keyword: str
    fix: Callable[[Any], Any]


@dataclasses.dataclass(frozen=True)
class Recording:
    """The taps of a family, and what its flags change of them (later entries win)."""

    table: Table
    when: tuple[When, ...] = ()
    repairs: tuple[Repair, ...] = ()

    def resolved(self, config: Any) -> dict[str, Tap | tuple[Tap, ...] | Difference]:
        """The taps for one config."""
        table = dict(self.table)
        for case in self.when:
            if getattr(config, case.key) == case.value:
                table |= case.table
        return {site: tap for site, tap in table.items() if tap is not None}


def heads_first(value: Any, config: Any) -> Any:
    """``[b, h, s, k]`` -> ``[b, s, h, k]``."""
    return value.transpose(1, 2)


def first_half(value: Any, config: Any) -> Any:
    return value.chunk(2, dim=-1)[0]


def second_half(value: Any, config: Any) -> Any:
    return value.chunk(2, dim=-1)[1]


def logits(value: Any, config: Any) -> Any:
    return value.logits


def dense_weights(value: Any, config: Any) -> Any:
    """(tokens, indices ``[n, top]``, weights ``[n, top]``) -> ``[n, experts]``, zero where not chosen."""
    _, indices, weights = value[:3]
    experts = getattr(config, "num_experts", None) or config.num_local_experts
    return weights.new_zeros(len(weights), experts).scatter(1, indices, weights)


def one_per_group(value: Any, config: Any) -> Any:
    """Falcon's new decoder repeats each key and value for every query head: ``[b, s, h, k]`` -> one each."""
    group = config.num_attention_heads // config.num_kv_heads if config.new_decoder_architecture else 1
    return value[:, :, ::group]


def heads_first_one_per_group(value: Any, config: Any) -> Any:
    return one_per_group(heads_first(value, config), config)


def only_masked(mask: Any) -> Any:
    """An additive mask without what it adds to visible keys."""
    return mask.where(mask < -1e30, 0.0)
