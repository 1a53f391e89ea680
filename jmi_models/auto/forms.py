"""How a model in the usual naming may be stored: the known forms of each of its parts, as data.

The usual naming is Llama's, ``model.layers.{i}.self_attn.q_proj.weight``. A form is taken from the key
map of a family that has it, so that a tensor's name is written down once.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

from jmi_models.auto.naming import ANY
from jmi_models.disk.layout import Key, Sizes, disk_shape
from jmi_models.families import FAMILIES
from jmi_models.families.usual import LAYER, mlp_keys

Shapes = Mapping[str, tuple[int, ...]]
"""Name -> shape of every tensor of a checkpoint."""


@dataclasses.dataclass(frozen=True)
class Form:
    """One way in which a part of a model is stored.

    Attributes:
      name: in words.
      keys: its tensors, by parameter path.
      fields: what it says of the architecture, by path of the field; of a mixture or a norm of heads,
        of their own fields.
      unless: it is another form, or none that is known, where a tensor's name contains this pattern.
      whole: its biases are no choice; all are there.
    """

    name: str
    keys: Mapping[str, Key]
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    unless: str | None = None
    whole: bool = False

    def required(self) -> Iterator[Key]:
        """Those of its tensors that are always there."""
        return (key for path, key in self.keys.items() if self.whole or not is_bias(path))

    def fits(self, shapes: Shapes, sizes: Sizes | None) -> bool:
        """Whether layer 0 is stored so; given ``sizes``, in these shapes."""
        if self.unless is not None and any(re.search(self.unless, name) for name in shapes):
            return False
        stored = [(shapes.get(first(key)), key) for key in self.required()]
        return all(s is not None and (sizes is None or s == disk_shape(key, sizes)) for s, key in stored)

    def share(self, shapes: Shapes) -> float:
        """Share of its required tensors that layer 0 has."""
        found = [first(key) in shapes for key in self.required()]
        return sum(found) / max(len(found), 1)


def is_bias(path: str) -> bool:
    """Whether the parameter at ``path`` is a bias."""
    return path.split(".")[-1].split("_")[0] == "b"


def first(key: Key) -> str:
    """Its name in the first layer (expert, head)."""
    return key.name.format(i=0, e=0, h=0)


def choose(part: str, shapes: Shapes, sizes: Sizes | None = None) -> Form:
    """The form in which a checkpoint stores ``part``; where none fits, the one that comes closest."""
    fitting = [form for form in PARTS[part] if form.fits(shapes, sizes)]
    if fitting:
        return max(fitting, key=lambda form: len(list(form.required())))
    return max(PARTS[part], key=lambda form: form.share(shapes))


def _of(family: str, *prefixes: str) -> dict[str, Key]:
    keys = FAMILIES[family].keys(ANY)
    return {path: key for path, key in keys.items() if path.startswith(prefixes)}


_PROJECTIONS, _QK = ("blocks.attn.W_", "blocks.attn.b_"), ("blocks.attn.q_norm", "blocks.attn.k_norm")
_EXPERTS, _MLP = "blocks.mlp.W_", LAYER + "mlp."
_ONE_BRANCH, _GATED = {"mlp.gated": False}, {"mlp.gated": True}
NONE = Form("none", {})

EMBEDDINGS = _of("llama", "embed.", "unembed.")

PARTS: Mapping[str, tuple[Form, ...]] = {
    "final norm": (
        Form("norm", _of("llama", "ln_final.")),
        Form("final_layernorm", _of("phi", "ln_final.")),
        Form("none with weights", {}, unless="norm"),
    ),
    "norms": (
        Form("before each module", _of("llama", "blocks.ln1.", "blocks.ln2.")),
        Form("before each module", _of("gemma2", "blocks.ln1.", "blocks.ln2.")),
        Form("before and after each module", _of("gemma2", "blocks.ln"), {"norms.where": "both"}),
        Form(
            "after each module", _of("olmo2", "blocks.ln1_post.", "blocks.ln2_post."), {"norms.where": "post"}
        ),
        Form("one before both modules", _of("phi", "blocks.ln1."), {"parallel": True, "norms.shared": True}),
        Form("none with weights", {}, unless="norm"),
    ),
    "attention": (
        Form("separate projections", _of("llama", *_PROJECTIONS)),
        Form("separate projections", _of("phi", *_PROJECTIONS)),
        Form("fused projections", _of("phi3", *_PROJECTIONS)),
    ),
    "qk_norm": (
        Form("each head, one gain for all", _of("qwen3", *_QK)),
        Form("each head, one gain for all", _of("phi", *_QK)),
        Form("each head, a gain for each", _of("cohere", *_QK), {"axes": "n_heads d_head"}),
        Form("each head, a gain for each", _of("stablelm", *_QK), {"axes": "n_heads d_head"}),
        Form("all heads together", _of("olmo2", *_QK), {"joint": True}),
        NONE,
    ),
    "sinks": (Form("a score for each head", _of("gpt_oss", "blocks.attn.sinks"), {"attn.sinks": True}), NONE),
    "mlp": (
        Form("gated", _of("llama", "blocks.mlp."), _GATED),
        Form("gated, fused", _of("phi3", "blocks.mlp."), _GATED),
        Form(
            "one branch",
            _of("starcoder2", "blocks.mlp.W_in", "blocks.mlp.W_out", "blocks.mlp.b_"),
            _ONE_BRANCH,
        ),
        Form("one branch", _of("phi", "blocks.mlp."), _ONE_BRANCH),
        Form("one branch", mlp_keys(_MLP, "up_proj down_proj"), _ONE_BRANCH),
        Form("one branch", mlp_keys(_MLP, "dense_h_to_4h dense_4h_to_h"), _ONE_BRANCH),
        Form("mixture of experts", _of("qwen3_moe", _EXPERTS), {"normalise": False}),
        Form("mixture of experts", _of("mixtral", _EXPERTS), {"normalise": True}),
        Form(
            "mixture of gpt-oss", _of("gpt_oss", "blocks.mlp."), {"normalise": True, "limit": 7.0}, whole=True
        ),
    ),
    "shared expert": (Form("for every token", _of("qwen2_moe", "blocks.mlp.shared.")), NONE),
}
"""Part of a model -> the ways in which it may be stored."""
