"""RWKV as an architecture: the stream, the norms, the state and the points around the mixes of a version.

Axis letters: b batch, s sequence, d model width, v vocabulary.
"""

import dataclasses
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from jmi.errors import ArgumentError
from jmi.model.architecture import State
from jmi.model.inputs import Prompts
from jmi.model.sites import Site, sites_of
from jmi.model.tap import SILENT, Tap
from jmi_models.decoder import residual
from jmi_models.decoder.norms import Norm, Norms, normalise
from jmi_models.decoder.ops import rows
from jmi_models.params import Param
from jmi_models.rwkv import rwkv6, rwkv7
from jmi_models.rwkv.points import AXES
from jmi_models.rwkv.time_mix import ATTENTION, SCORES, Padding, padding

VERSIONS = {6: rwkv6, 7: rwkv7}
"""Module of each version: what it lacks, its ranks, parameters and mixes."""

_NORMS = Norms(Norm("layer", 1e-5, bias=True), embed=True)


@dataclasses.dataclass(frozen=True)
class Rwkv:
    """An RWKV language model.

    Attributes:
      version: 6 or 7.
      n_layers, d_model, n_heads, d_head, d_mlp, d_vocab: sizes.
      ranks: name and size of each low-rank part, as parameter axes ``rank_...``.
      norms: of the stream and the embedding.
      group_eps: of the norm of each head's output.
      tied: whether the unembedding is the transposed embedding.
      d_embed, logit_scale: as `Transformer` says, the same for every RWKV.
      implementation: of the recurrence. ``scan``, the default, takes one token after another;
        ``chunked`` takes chunks of tokens by matrix products. The results are the same. Hooks and
        captures of ``rwkv.hook_states`` always take one token after another.
    """

    takes_padding: ClassVar[bool] = True
    version: Literal[6, 7]
    n_layers: int
    d_model: int
    n_heads: int
    d_head: int
    d_mlp: int
    d_vocab: int
    ranks: tuple[tuple[str, int], ...]
    norms: Norms = _NORMS
    group_eps: float = 64e-5
    tied: bool = False
    implementation: Literal["scan", "chunked"] = "scan"
    d_embed: ClassVar[None] = None
    logit_scale: ClassVar[float] = 1.0

    @property
    def family(self) -> str:
        """Name of its family."""
        return f"rwkv{self.version}"

    def memory(self) -> dict[str, State]:
        """What is handed from one token to the next: the state, and the last token of each shift."""
        return {
            "wkv": State("blocks.*.rwkv.hook_state_in", "blocks.*.rwkv.hook_state"),
            "shift": State("blocks.*.rwkv.hook_shift_in", "blocks.*.rwkv.hook_shift"),
            "mlp_shift": State("blocks.*.mlp.hook_shift_in", "blocks.*.mlp.hook_shift"),
        }

    def within(self, context: Padding, first: Any, length: int) -> Padding:
        """Where the real tokens of a part of the text are."""
        if context.mask is None:
            return context
        return padding(jax.lax.dynamic_slice_in_dim(context.mask, first, length, axis=1))

    def check_continued(self, length: int) -> None:
        """A state is of any length."""

    def sizes(self) -> dict[str, int]:
        """Logical parameter axis -> its size."""
        names = ("n_layers", "d_model", "n_heads", "d_head", "d_mlp", "d_vocab")
        own = {name: getattr(self, name) for name in names}
        return {**own, **dict(self.ranks), "n_mixes": 5, "d_gate": self.d_model}

    def param_tree(self) -> dict[str, Any]:
        """Abstract parameters: `Param` leaves in the structure of the real ones."""
        sizes = self.sizes()

        def make(axes: str, init: float | str = 0.02) -> Param:
            names = tuple(axes.split())
            return Param(tuple(sizes[name] for name in names), names, init)

        def norm(axes: str) -> dict[str, Param]:
            return {name: make(axes, init) for name, init in self.norms.norm.inits().items()}

        writing = 0.02 / (2 * self.n_layers) ** 0.5
        heads = "n_layers n_heads d_head"
        own = VERSIONS[self.version].params(make)
        time = {f"W_{name}": make("n_layers d_model n_heads d_head") for name in "RKV"}
        time |= {"W_O": make(f"{heads} d_model", writing)}
        ln_x = {"w": make(heads, "ones"), "b": make(heads, "zeros")}
        mlp = {"W_in": make("n_layers d_model d_mlp"), "W_out": make("n_layers d_mlp d_model", writing)}
        return {
            "embed": {"W_E": make("d_vocab d_model"), "ln": norm("d_model")},
            "blocks": {
                "ln1": norm("n_layers d_model"),
                "rwkv": {**time, **own["rwkv"], "ln_x": ln_x},
                "ln2": norm("n_layers d_model"),
                "mlp": {**mlp, **own["mlp"]},
            },
            "ln_final": norm("d_model"),
            **({} if self.tied else {"unembed": {"W_U": make("d_model d_vocab")}}),
        }

    def sites(self) -> dict[str, Site]:
        """Every point of the model, in execution order."""
        sizes = {
            "d_model": self.d_model,
            "head": self.n_heads,
            **dict.fromkeys(("d_head", "d_key", "d_value"), self.d_head),
            "d_mlp": self.d_mlp,
            "vocab": self.d_vocab,
        }
        lacks = [f"blocks.*.{point}" for point in VERSIONS[self.version].LACKS]
        has = {point: axes for point, axes in AXES.items() if point not in lacks}
        found = sites_of(has, sizes, self.n_layers)
        for name in (f"blocks.*.{SCORES}", f"blocks.*.{ATTENTION}"):
            found[name] = dataclasses.replace(found[name], derived=True)
        return found

    def context(self, params: Any, prompts: Prompts) -> Padding:
        """Where the real tokens are; the order of tokens is all this model knows of positions."""
        if prompts.positions is not None:
            raise ArgumentError("positions=: an RWKV model has no positions; leave it out")
        return padding(None if prompts.mask is None else jnp.asarray(prompts.mask))

    def embed(self, params: Any, prompts: Prompts, context: Padding, tap: Tap) -> Any:
        """The normalised embedding ``[b, s, d]``, and room for what the first layer hands to all others."""
        x = rows(params["embed"]["W_E"], jnp.asarray(prompts.tokens))
        x = tap("hook_embed", normalise(self.norms.norm, params["embed"]["ln"], x, SILENT, ""))
        shape = (*x.shape[:2], self.n_heads, self.d_head)
        return {"stream": x, "first": VERSIONS[self.version].first_values(shape, x.dtype)}

    def block(self, layer_params: Any, carry: Any, context: Padding, layer: Any, tap: Tap) -> Any:
        """One layer."""
        version, p = VERSIONS[self.version], layer_params
        x = tap("hook_resid_pre", carry["stream"])
        read = tap("rwkv.hook_in", normalise(self.norms.norm, p["ln1"], x, tap, "ln1"))
        out, first = version.time_mix(self, p["rwkv"], read, carry["first"], context, layer=layer, tap=tap)
        x = tap("hook_resid_mid", x + tap("hook_attn_out", out))
        read = tap("mlp.hook_in", normalise(self.norms.norm, p["ln2"], x, tap, "ln2"))
        out = tap("mlp.hook_out", version.channel_mix(p["mlp"], read, context, tap))
        x = tap("hook_resid_post", x + tap("hook_mlp_out", out))
        return {"stream": x, "first": first}

    def unembed(self, params: Any, carry: Any, tap: Tap) -> jax.Array:
        """Final norm and unembedding: logits ``[b, s, v]``."""
        x = normalise(self.norms.norm, params["ln_final"], carry["stream"], tap, "ln_final")
        x = tap("unembed.hook_in", tap("hook_final_norm", x))
        if self.tied:
            logits = jnp.einsum("bsd,vd->bsv", x, params["embed"]["W_E"])
        else:
            logits = jnp.einsum("bsd,dv->bsv", x, params["unembed"]["W_U"])
        return tap("hook_logits", tap("unembed.hook_out", logits))

    def carry_of(self, stream: jax.Array) -> Any:
        """Logits are read from the stream alone."""
        return {"stream": stream}

    # How logits read the stream, given the denominator of a run.
    to_logits = residual.to_logits
    logit_constant = residual.logit_constant
    direction = residual.direction
