"""The architecture of a model with modules in it, which `jmi.rewire` makes."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax

from jmi.engine.wired import Wire, WiredTap
from jmi.model.architecture import Params, carry_of
from jmi.model.inputs import Prompts
from jmi.model.sites import Site, table_of
from jmi.model.tap import Tap

_SAID_OF = {
    **dict.fromkeys(("head_outputs", "head_effects", "attn_constant"), "attn"),
    **dict.fromkeys(("neuron_outputs", "neuron_effects", "mlp_constant"), "mlp"),
}
"""What an architecture says of its own weights -> the part of the layer whose output they no longer are where
a module writes it."""


@dataclasses.dataclass(frozen=True)
class Rewired:
    """Architecture of a model with modules in it; `rewire` makes it, and the parameters that go with it.

    What flows between layers is ``{"host": ..., "modules": ...}``: that of the model, and what modules carry.

    Attributes:
      model: the architecture without them; whatever is not said here is asked of it.
      wires: where modules stand.
      own: points of theirs, each with the point of the model that their module writes.
      carries: which modules carry something.
      closed: points of the model that no longer mean what they say, each with the layers in which.
      takes_padding: whether the model and all modules do (`jmi.hooks.reach`).
    """

    model: Any
    wires: tuple[Wire, ...]
    own: tuple[tuple[Site, str], ...]
    carries: tuple[bool, ...]
    closed: tuple[tuple[str, tuple[int, ...]], ...] = ()
    takes_padding: bool = False

    def __getattr__(self, name: str) -> Any:
        # One place alone of a layer can be run where nothing but it is carried on.
        if name.startswith("__") or name == "model" or (name == "only" and any(self.carries)):
            raise AttributeError(name)
        part = _SAID_OF.get(name)
        if part is not None:
            ends = f"{part}.hook_out", f"hook_{part}_out"
            if any(wire.writes in ends for wire in self.wires):
                raise AttributeError(name)
        found = getattr(self.model, name)
        if name == "only":
            return lambda context, at: {**context, "host": found(context["host"], at), "only": at}
        return found

    @property
    def writes_stream(self) -> bool:
        """Whether a module writes the stream itself, which is then no sum of what the model wrote."""
        return any(wire.writes.startswith("hook_resid") for wire in self.wires)

    @property
    def n_layers(self) -> int:
        """Number of layers."""
        return self.model.n_layers

    def sites(self) -> dict[str, Site]:
        """Every point of the model, and those of modules in front of what they write."""
        found: dict[str, Site] = {}
        for point, site in table_of(self.model).items():
            found |= {own.point: own for own, writes in self.own if writes == point}
            gone = {layer for name, layers in self.closed if name == point for layer in layers}
            if gone:
                site = dataclasses.replace(site, layers=tuple(i for i in site.layers or () if i not in gone))
            if not gone or site.layers:
                found[point] = site
        return found

    def context(self, params: Params, prompts: Prompts) -> Any:
        """That of the model, and the modules."""
        return {"host": self.model.context(params, prompts), "modules": params["modules"], "only": None}

    def within(self, context: Any, first: Any, length: int) -> Any:
        """As the model's."""
        return {**context, "host": self.model.within(context["host"], first, length)}

    def embed(self, params: Params, prompts: Prompts, context: Any, tap: Tap) -> Any:
        """What enters the first layer, and what modules begin with."""
        carry = self.model.embed(params, prompts, context["host"], tap)
        pairs = zip(context["modules"], self.carries, strict=True)
        own = tuple(m.start(carry, prompts) if has else None for m, has in pairs)
        return {"host": carry, "modules": own}

    def block(self, layer_params: Params, carry: Any, context: Any, layer: Any, tap: Tap) -> Any:
        """One layer, with the modules in it."""
        rows = [layers_of(self.wires, i) for i in range(len(self.carries))]
        inside = WiredTap(
            tap,
            self.model,
            self.wires,
            rows,
            context["modules"],
            layer,
            layer_params,
            list(carry["modules"]),
            context["only"],
        )
        host = self.model.block(layer_params, carry["host"], context["host"], layer, inside)
        return {"host": host, "modules": tuple(inside.carries)}

    def unembed(self, params: Params, carry: Any, tap: Tap) -> jax.Array:
        """As the model's."""
        return self.model.unembed(params, carry["host"], tap)

    def carry_of(self, stream: jax.Array) -> Any:
        """As the model's; no module acts after the layers."""
        return {"host": carry_of(self.model, stream)}


def layers_of(wires: Iterable[Wire], module: int) -> tuple[int, ...]:
    """All layers in which a module stands."""
    return tuple(sorted({layer for wire in wires if wire.module == module for layer in wire.layers}))
