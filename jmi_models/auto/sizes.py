"""Sizes of a model from its config and, where that is silent, from the shapes of its tensors."""

import collections
import re
from collections.abc import Mapping
from typing import Any

from jmi_models.auto.forms import Shapes, first
from jmi_models.auto.notes import Notes
from jmi_models.disk.layout import Key, disk_shape
from jmi_models.families.family import Reader
from jmi_models.families.usual import LAYER

_HEADS, _WIDTH, _GROUPS = "num_attention_heads", "head_dim", "num_key_value_heads"


def with_sizes(
    config: Mapping[str, Any], keys: Mapping[str, Key], shapes: Shapes, notes: Notes
) -> dict[str, Any]:
    """``config`` with the sizes that it leaves out.

    Raises:
      ConfigError: a size that is no positive integer, or neither the number of heads nor their width.
    """
    known = {name: value for name, value in config.items() if value is not None}

    def take(name: str, size: int | None, key: Key) -> None:
        if name in known:
            notes.found(name, known[name], f"config: {name}")
        elif size is not None and size > 0:
            known[name] = notes.found(name, size, f"shape of {first(key)}")

    layers = [int(m[1]) for name in shapes if (m := re.match(LAYER.replace("{i}", r"(\d{1,9})"), name))]
    embed, out, down = (keys[p] for p in ("embed.W_E", "blocks.attn.W_O", "blocks.mlp.W_out"))
    inner = "d_expert" if "d_expert" in down.layout else "d_mlp"
    take("vocab_size", along(embed, shapes, "d_vocab"), embed)
    take("hidden_size", along(embed, shapes, "d_model"), embed)
    take("num_hidden_layers", max(layers, default=-1) + 1, keys["blocks.attn.W_Q"])
    take("intermediate_size", along(down, shapes, inner), down)
    columns = along(out, shapes, "n_heads") or 0
    by_width = _HEADS not in known and _WIDTH in known
    take(_HEADS, columns // Reader(known).count(_WIDTH) if by_width else None, out)
    take(_WIDTH, columns // Reader(known).count(_HEADS), out)
    take(_GROUPS, _key_heads(known, keys["blocks.attn.W_K"], shapes), keys["blocks.attn.W_K"])
    return known


def along(key: Key, shapes: Shapes, axis: str) -> int | None:
    """Size of the stored axis that holds ``axis``, in the first layer; None where the tensor is absent."""
    shape = shapes.get(first(key))
    where = disk_shape(key, collections.defaultdict(lambda: 1, {axis: 2})).index(2)
    return shape[where] if shape is not None and len(shape) > where else None


def _key_heads(known: Mapping[str, Any], key: Key, shapes: Shapes) -> int | None:
    """Number of heads of the keys: rows of their projection, or half of what queries leave of a fused one."""
    if _WIDTH not in known:
        return None
    rows = next(iter(shapes.get(first(key), ())), 0) // Reader(known).count(_WIDTH)
    return (rows - Reader(known).count(_HEADS)) // 2 if key.fused else rows


def head_sizes(read: Reader) -> dict[str, int]:
    """Sizes on which the shapes of QK-norms depend."""
    n_heads = read.count(_HEADS)
    return {
        "n_heads": n_heads,
        "n_kv_heads": read.count(_GROUPS, n_heads),
        "d_head": read.count(_WIDTH, read.count("hidden_size") // n_heads),
    }
