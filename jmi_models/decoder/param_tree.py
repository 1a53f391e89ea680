"""The parameters of the generic decoder: which there are, their axes, sizes and initial values."""

from typing import TYPE_CHECKING, Any

from jmi.model.architecture import runs_of, stack_name
from jmi_models.decoder.norms import Norm
from jmi_models.params import Param

if TYPE_CHECKING:
    from jmi_models.decoder.transformer import Transformer


def sizes(arch: "Transformer") -> dict[str, int]:
    """Logical parameter axis -> its size."""
    experts = arch.experts
    return {
        "n_layers": arch.n_layers,
        "d_model": arch.d_model,
        "n_heads": arch.n_heads,
        "n_kv_heads": arch.n_kv_heads,
        "group": arch.n_heads // arch.n_kv_heads,
        "d_head": arch.d_head,
        "d_mlp": arch.d_mlp,
        "d_vocab": arch.d_vocab,
        "d_embed": arch.d_embed or arch.d_model,
        "n_positions": arch.n_ctx + (arch.positions.learned or 0),
        "n_experts": experts.n_experts if experts else 0,
        "d_expert": experts.d_expert if experts else 0,
        "d_shared": experts.d_shared or 0 if experts else 0,
        "one": 1,
    }


def param_tree(arch: "Transformer") -> dict[str, Any]:
    """Abstract parameters: `Param` leaves in the structure of the real ones.

    Layers are one stack, or where some have a mixture and others none, one for each run of like layers.
    """
    make = _Maker(arch, arch.n_layers)
    runs = runs_of(arch)
    stacks = {stack_name(run): _layers(arch, run) for run in runs}
    tree: dict[str, Any] = {
        "embed": _embed(arch, make),
        "pos_embed": {} if arch.positions.learned is None else {"W_pos": make("n_positions d_model")},
        "blocks": stacks if len(runs) > 1 else stacks[stack_name(runs[0])],
        "ln_final": {} if arch.norms.in_stream else make.norm(arch.norms.norm, "d_model"),
        "unembed": _unembed(arch, make),
    }
    return _pruned(tree)


def _layers(arch: "Transformer", run: range) -> dict[str, Any]:
    """Parameters of a run of like layers."""
    make = _Maker(arch, len(run))
    mixed = arch.kinds[run.start] == "experts"
    return {
        **_norms(arch, make),
        "attn": _attention(arch, make),
        "mlp": _mixture(arch, make) if mixed else _mlp(arch, make),
    }


class _Maker:
    """``make("n_layers d_model d_mlp")`` is a parameter with these axes, of so many layers."""

    def __init__(self, arch: "Transformer", n_layers: int):
        self.sizes = {**sizes(arch), "n_layers": n_layers}
        # GPT-2's rule: the residual stream keeps its scale however many layers write to it.
        self.writing = 0.02 / (2 * arch.n_layers) ** 0.5

    def __call__(self, axes: str, init: float | str = 0.02) -> Param:
        names = tuple(axes.split())
        return Param(tuple(self.sizes[name] for name in names), names, init)

    def norm(self, norm: Norm, axes: str) -> dict[str, Param]:
        return {name: self(axes, init) for name, init in norm.inits().items()}


def _embed(arch: "Transformer", make: _Maker) -> dict[str, Any]:
    tree: dict[str, Any] = {"W_E": make("d_vocab d_embed" if arch.d_embed else "d_vocab d_model")}
    if arch.d_embed:
        tree["W_in"] = make("d_embed d_model")
    if arch.norms.embed:
        tree["ln"] = make.norm(arch.norms.norm, "d_model")
    return tree


def _norms(arch: "Transformer", make: _Maker) -> dict[str, Any]:
    before, after = ("ln1", "ln2"), ("ln1_post", "ln2_post")
    names = {"pre": before, "post": after, "stream": before, "both": (*before, *after)}
    kept = [name for name in names[arch.norms.where] if not (arch.norms.shared and name == "ln2")]
    return {name: make.norm(arch.norms.norm, "n_layers d_model") for name in kept}


def _attention(arch: "Transformer", make: _Maker) -> dict[str, Any]:
    tree: dict[str, Any] = {
        "W_Q": make("n_layers d_model n_heads d_head"),
        "W_K": make("n_layers d_model n_kv_heads d_head"),
        "W_V": make("n_layers d_model n_kv_heads d_head"),
        "W_O": make("n_layers n_heads d_head d_model", make.writing),
    }
    if arch.attn.qkv_bias:
        tree["b_Q"] = make("n_layers n_heads d_head", "zeros")
        tree["b_K"] = make("n_layers n_kv_heads d_head", "zeros")
        tree["b_V"] = make("n_layers n_kv_heads d_head", "zeros")
    if arch.attn.out_bias:
        tree["b_O"] = make("n_layers d_model", "zeros")
    if arch.attn.sinks:
        tree["sinks"] = make("n_layers n_heads", "zeros")
    if arch.attn.qk_norm is not None:
        axes = "n_layers " + ("n_heads d_head" if arch.attn.qk_norm.joint else arch.attn.qk_norm.axes)
        tree["q_norm"] = make.norm(arch.attn.qk_norm.norm, axes)
        tree["k_norm"] = make.norm(arch.attn.qk_norm.norm, axes.replace("n_heads", "n_kv_heads"))
    return tree


def _mlp(arch: "Transformer", make: _Maker, width: str = "d_mlp") -> dict[str, Any]:
    tree = {"W_gate": make(f"n_layers d_model {width}")} if arch.mlp.gated else {}
    tree["W_in"] = make(f"n_layers d_model {width}")
    tree["W_out"] = make(f"n_layers {width} d_model", make.writing)
    if arch.mlp.bias:
        if arch.mlp.gated:
            tree["b_gate"] = make(f"n_layers {width}", "zeros")
        tree["b_in"] = make(f"n_layers {width}", "zeros")
        tree["b_out"] = make("n_layers d_model", "zeros")
    return tree


def _mixture(arch: "Transformer", make: _Maker) -> dict[str, Any]:
    assert arch.experts is not None
    tree: dict[str, Any] = {
        "W_router": make("n_layers d_model n_experts"),
        "W_gate": make("n_layers n_experts d_model d_expert"),
        "W_in": make("n_layers n_experts d_model d_expert"),
        "W_out": make("n_layers n_experts d_expert d_model", make.writing),
    }
    if arch.experts.bias:
        tree["b_router"] = make("n_layers n_experts", "zeros")
        tree["b_gate"] = make("n_layers n_experts d_expert", "zeros")
        tree["b_in"] = make("n_layers n_experts d_expert", "zeros")
        tree["b_out"] = make("n_layers n_experts d_model", "zeros")
    if arch.experts.d_shared is not None:
        tree["shared"] = {"W_sigmoid": make("n_layers d_model one"), **_mlp(arch, make, "d_shared")}
    return tree


def _unembed(arch: "Transformer", make: _Maker) -> dict[str, Any]:
    tree = {"W_out": make("d_model d_embed")} if arch.d_embed else {}
    if not arch.tied:
        tree["W_U"] = make("d_embed d_vocab" if arch.d_embed else "d_model d_vocab")
    if arch.unembed_bias:
        tree["b_U"] = make("d_vocab", "zeros")
    return tree


def _pruned(tree: dict[str, Any]) -> dict[str, Any]:
    """``tree`` without empty branches (norms that have no parameters)."""
    pruned = {key: _pruned(value) if isinstance(value, dict) else value for key, value in tree.items()}
    return {key: value for key, value in pruned.items() if value != {}}
