"""RWKV-6 and RWKV-7 as their author publishes them: no config, all sizes in the shapes of the tensors."""

import re
from collections.abc import Mapping
from typing import Any

from jmi.errors import CheckpointError, ConfigError
from jmi_models.decoder.norms import Norm, Norms
from jmi_models.disk.layout import Key
from jmi_models.disk.tensors import Stored
from jmi_models.families.family import Family, Reader
from jmi_models.families.recurrent import fit_ranks, mix_keys
from jmi_models.families.rwkv6 import keys_of
from jmi_models.families.usual import always, norm_keys
from jmi_models.rwkv.architecture import VERSIONS, Rwkv, rwkv7

_LAYER = "blocks.{i}."
_ATT = _LAYER + "att."


def _low_rank(letter: str, rank: str) -> dict[str, Key]:
    first = 1 if letter == "v" else 0
    path, name = f"blocks.rwkv.{letter}", f"{_ATT}{letter}"
    keys = {
        f"{path}1": Key(f"{name}1", f"d_model {rank}", first=first),
        f"{path}2": Key(f"{name}2", f"{rank} (n_heads d_head)", first=first),
    }
    return (
        keys if letter == "g" else {f"{path}0": Key(f"{name}0", "1 1 (n_heads d_head)", first=first), **keys}
    )


_AROUND = {
    "embed.W_E": Key("emb.weight", "d_vocab d_model"),
    **norm_keys("ln_final", "ln_out"),
    "unembed.W_U": Key("head.weight", "d_vocab d_model"),
}
_SEVEN = {
    **_AROUND,
    **norm_keys("embed.ln", "blocks.0.ln0"),
    **norm_keys("blocks.ln1", _LAYER + "ln1"),
    **mix_keys("blocks.rwkv", {name: f"{_ATT}x_{name}" for name in "rwkvag"}, "1 1 d_model"),
    **{
        f"blocks.rwkv.W_{letter}": Key(f"{_ATT}{name}.weight", "(n_heads d_head) d_model")
        for letter, name in {"R": "receptance", "K": "key", "V": "value"}.items()
    },
    "blocks.rwkv.W_O": Key(_ATT + "output.weight", "d_model (n_heads d_head)"),
    **{path: key for letter, rank in rwkv7.RANKS.items() for path, key in _low_rank(letter, rank).items()},
    "blocks.rwkv.k_k": Key(_ATT + "k_k", "1 1 (n_heads d_head)"),
    "blocks.rwkv.k_a": Key(_ATT + "k_a", "1 1 (n_heads d_head)"),
    "blocks.rwkv.r_k": Key(_ATT + "r_k", "n_heads d_head"),
    "blocks.rwkv.ln_x.w": Key(_ATT + "ln_x.weight", "(n_heads d_head)"),
    "blocks.rwkv.ln_x.b": Key(_ATT + "ln_x.bias", "(n_heads d_head)"),
    **norm_keys("blocks.ln2", _LAYER + "ln2"),
    **mix_keys("blocks.mlp", {"k": _LAYER + "ffn.x_k"}, "1 1 d_model"),
    "blocks.mlp.W_in": Key(_LAYER + "ffn.key.weight", "d_mlp d_model"),
    "blocks.mlp.W_out": Key(_LAYER + "ffn.value.weight", "d_model d_mlp"),
}
_SIX = {**_AROUND, **keys_of(_LAYER, "ln0", "att.", "ffn.")}

_HEADS = {"blocks.0.att.time_faaaa": 6, "blocks.0.att.r_k": 7}
"""The tensor that gives number and width of the heads -> version it belongs to."""


def _from_config(config: Mapping[str, Any]) -> Rwkv:
    raise ConfigError("the sizes of this model are those of its tensors; it has no config")


ORIGINAL = {
    version: Family(
        name=f"rwkv{version}",
        from_config=_from_config,
        keys=always(keys),
        prefix="",
        fit=fit_ranks,
        # Values that the first layer of RWKV-7 would mix in; it has none before it.
        ignored=(r"blocks\.0\.att\.v[012]",),
    )
    for version, keys in {6: _SIX, 7: _SEVEN}.items()
}


def is_original(headers: Mapping[str, Stored]) -> bool:
    """Whether tensors are named as by the author of RWKV."""
    return "emb.weight" in headers and any(name.startswith("blocks.0.att.") for name in headers)


def describe(headers: Mapping[str, Stored], config: Mapping[str, Any]) -> tuple[Family, Rwkv]:
    """Family and architecture of a checkpoint in the original names.

    Args:
      config: a config that someone put beside it, or an empty one; what it says must be true.

    Raises:
      CheckpointError: neither of the two versions, or the tensors that give the sizes are not there.
      ConfigError: the config says another size.
    """
    version = next((v for name, v in _HEADS.items() if name in headers), None)
    if version is None:
        raise CheckpointError(
            f"an RWKV checkpoint, but neither version 6 nor 7: it has none of {', '.join(_HEADS)}"
        )
    n_heads, d_head = _shape(headers, next(name for name, v in _HEADS.items() if v == version))
    d_vocab, d_model = _shape(headers, "emb.weight")
    layers = {int(found[1]) for name in headers if (found := re.match(r"blocks\.(\d{1,9})\.", name))}
    read = Reader(config)
    arch = Rwkv(
        version=version,  # type: ignore[arg-type]
        n_layers=max(layers) + 1,
        d_model=d_model,
        n_heads=n_heads,
        d_head=d_head,
        d_mlp=_shape(headers, "blocks.0.ffn.key.weight")[0],
        d_vocab=d_vocab,
        ranks=tuple((rank, 1) for rank in VERSIONS[version].RANKS.values()),
        norms=Norms(Norm("layer", read.eps("layer_norm_eps", 1e-5), bias=True), embed=True),
        group_eps=read.eps("group_norm_eps", 64e-5),
    )
    said: dict[str, Any] = {"hidden_size": d_model, "num_hidden_layers": arch.n_layers, "vocab_size": d_vocab}
    said |= {"num_heads": n_heads, "head_size": d_head, "ffn_size": arch.d_mlp, "model_type": arch.family}
    for name, size in {**said, "tie_word_embeddings": False}.items():
        read.only(name, size)
    # What describes the file to people.
    read.ignore("naming", "tokenizer", "params")
    read.finish()
    family = ORIGINAL[version]
    return family, fit_ranks(arch, family.keys(arch), headers)


def _shape(headers: Mapping[str, Stored], name: str) -> tuple[int, ...]:
    if name not in headers or len(headers[name].shape) != 2 or 0 in headers[name].shape:
        raise CheckpointError(f"{name} is missing, empty or no matrix: the sizes of this model are not known")
    return headers[name].shape
