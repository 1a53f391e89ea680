"""Setting the taps of `tests.oracles.recording` in a model of torch, and collecting what they show."""

import contextlib
import functools
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from tests.oracles import grid
from tests.oracles.recording import RECORDINGS
from tests.oracles.taps import Difference, Repair, Tap

Seen = dict[str, dict[int, np.ndarray]]
"""Site -> layer (0 outside the blocks) -> array."""


@contextlib.contextmanager
def recording(model: Any, seen: Seen) -> Iterator[None]:
    """Set the taps of the model's family; ``seen`` fills while the model runs."""
    family = RECORDINGS[model.config.model_type]
    table = family.resolved(model.config)
    with contextlib.ExitStack() as stack:
        stack.enter_context(repaired(model))
        for site, taps in table.items():
            if not isinstance(taps, Difference):
                for tap in taps if isinstance(taps, tuple) else (taps,):
                    stack.enter_context(_tapped(model, tap, site, seen))
        yield
    for site, taps in table.items():
        if isinstance(taps, Difference):
            larger, smaller = seen[taps.larger], seen[taps.smaller]
            seen[site] = {layer: larger[layer] - smaller[layer] for layer in larger}


@contextlib.contextmanager
def repaired(model: Any) -> Iterator[None]:
    """Mend what Hugging Face is known to get wrong in the model's family."""
    with contextlib.ExitStack() as stack:
        for repair in RECORDINGS[model.config.model_type].repairs:
            stack.enter_context(_repaired(model, repair))
        yield


def _tapped(model: Any, tap: Tap, site: str, seen: Seen) -> contextlib.AbstractContextManager[Any]:
    """Set one tap in every layer that has its place."""

    def keep(layer: int | None, value: Any) -> None:
        if tap.index is not None and isinstance(value, tuple):
            value = value[tap.index]
        value = value if tap.part is None else tap.part(value, model.config)
        arrays = seen.setdefault(site, {})
        # A function of the modeling file does not know its layer: its calls are counted.
        arrays[len(arrays) if layer is None else layer] = _array(site, value, model.config)

    if tap.called and "." not in tap.place:
        module = sys.modules[type(model).__module__]
        return _replaced(module, tap.place, tap.output, functools.partial(keep, None))
    stack = contextlib.ExitStack()
    for layer in range(model.config.num_hidden_layers if "*" in tap.place else 1):
        place = tap.place.replace("*", str(layer))
        owner = _find(model, place.rpartition(".")[0] if tap.called else place)
        if owner is not None and tap.called:
            method = place.rpartition(".")[2]
            stack.enter_context(_replaced(owner, method, tap.output, functools.partial(keep, layer)))
        elif owner is not None:
            stack.enter_context(_hooked(owner, tap.output, functools.partial(keep, layer)))
    return stack


@contextlib.contextmanager
def _repaired(model: Any, repair: Repair) -> Iterator[None]:
    """Replace a keyword of a module, in every layer."""

    def fix(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {**kwargs, repair.keyword: repair.fix(kwargs[repair.keyword])}

    layers = range(model.config.num_hidden_layers)
    modules = [_find(model, repair.module.replace("*", str(layer))) for layer in layers]
    handles = [module.register_forward_pre_hook(fix, with_kwargs=True) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _find(model: Any, path: str) -> Any:
    """The module at ``path``, or None."""
    parts = filter(None, path.split("."))
    return functools.reduce(lambda module, part: getattr(module, part, None), parts, model)


@contextlib.contextmanager
def _replaced(owner: Any, name: str, output: bool, keep: Any) -> Iterator[None]:
    """Put a function in the place of ``owner.name`` that shows its arguments or its result to ``keep``."""
    original = getattr(owner, name)

    def shown(*args: Any, **kwargs: Any) -> Any:
        if not output:
            keep(args)
        out = original(*args, **kwargs)
        if output:
            keep(out)
        return out

    own = name in vars(owner)  # a method is found in the class, until it is replaced here
    setattr(owner, name, shown)
    try:
        yield
    finally:
        setattr(owner, name, original) if own else delattr(owner, name)


@contextlib.contextmanager
def _hooked(module: Any, output: bool, keep: Any) -> Iterator[None]:
    """Show what enters or leaves ``module`` to ``keep``."""

    def entry(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        keep(args or (kwargs["hidden_states"],))

    def exit_(module: Any, args: Any, result: Any) -> None:
        keep(result)

    if output:
        handle = module.register_forward_hook(exit_)
    else:
        handle = module.register_forward_pre_hook(entry, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


_BY_HEAD = ("hook_q", "hook_k", "hook_v", "hook_rot_q", "hook_rot_k", "hook_z")


def _array(site: str, value: torch.Tensor, config: Any) -> np.ndarray:
    """A copy (some modules go on to change it in place), with batch, positions and heads apart."""
    array = value.detach().numpy().copy()
    if array.shape[0] == grid.BATCH * grid.LENGTH:
        array = array.reshape(grid.BATCH, grid.LENGTH, *array.shape[1:])
    if site.endswith(_BY_HEAD) and array.ndim == 3:
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        array = array.reshape(*array.shape[:2], -1, width)
    if site.endswith("hook_pos_embed"):
        array = np.broadcast_to(array, (grid.BATCH, *array.shape[1:]))
    return array


def stacked(config: Any, seen: Seen) -> dict[str, np.ndarray]:
    """Sites inside blocks stacked over layers, NaN where a layer has no such site."""
    sites = {}
    for site, arrays in seen.items():
        if site.startswith("blocks."):
            absent = np.full_like(next(iter(arrays.values())), np.nan)
            sites[site] = np.stack([arrays.get(i, absent) for i in range(config.num_hidden_layers)])
        else:
            sites[site] = arrays[0]
    return sites
