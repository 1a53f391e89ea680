"""The generic decoder: a Transformer value whose fields say in what families differ.

Axis letters: b batch, s sequence, d model width, e embedding width, h query heads, g key/value heads,
k head width, m MLP width, v vocabulary. Parameter names are TransformerLens's; weights are stored
input axis first (``W_Q[d, h, k]``), the order in which a matrix product reads them without a copy.
"""

import dataclasses
import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jmi.errors import ArgumentError
from jmi.model.architecture import Cache
from jmi.model.inputs import Prompts
from jmi.model.sites import Site
from jmi.model.tap import SILENT, Tap
from jmi_models.decoder import circuits, ops, param_tree, points, residual, rounding
from jmi_models.decoder.attention import Attention, InLayer, attend
from jmi_models.decoder.context import Context, context_of, looked_up
from jmi_models.decoder.experts import Experts, mixture
from jmi_models.decoder.mlp import Mlp, perceptron
from jmi_models.decoder.norms import Norms, normalise
from jmi_models.decoder.positions import Positions


@dataclasses.dataclass(frozen=True)
class Transformer:
    """Architecture of a decoder-only transformer.

    Attributes:
      family: name of the family it was read as.
      n_layers, d_model, n_heads, n_kv_heads, d_head, d_mlp, d_vocab, n_ctx: sizes.
      norms: of the residual stream, and where they stand.
      attn, mlp: its modules.
      experts: a mixture in place of the MLP, in all layers or in some.
      positions: how they are told apart.
      parallel: attention and MLP read the same stream and are added together.
      d_embed: width of the embedding where it is projected to that of the model.
      embed_scale, residual_scale, logit_scale: multipliers of the embedding, of what each module
        adds, and of the logits.
      logit_softcap: soft-cap of the logits.
      tied: whether the unembedding is the transposed embedding.
      unembed_bias: logits have a bias.
    """

    takes_padding: ClassVar[bool] = True
    family: str
    n_layers: int
    d_model: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    d_mlp: int
    d_vocab: int
    n_ctx: int
    norms: Norms
    attn: Attention
    mlp: Mlp
    experts: Experts | None = None
    positions: Positions = dataclasses.field(default_factory=Positions)
    parallel: bool = False
    d_embed: int | None = None
    embed_scale: float = 1.0
    residual_scale: float = 1.0
    logit_scale: float = 1.0
    logit_softcap: float | None = None
    tied: bool = False
    unembed_bias: bool = False

    @property
    def kinds(self) -> tuple[str, ...]:
        """Which layers have an MLP, and which a mixture."""
        dense = range(self.n_layers) if self.experts is None else self.experts.dense_layers
        return tuple("mlp" if i in dense else "experts" for i in range(self.n_layers))

    @property
    def n_places(self) -> int | None:
        """How many positions its table has, if it has one."""
        return None if self.positions.learned is None else self.n_ctx

    def sizes(self) -> dict[str, int]:
        """Logical parameter axis -> its size."""
        return param_tree.sizes(self)

    def param_tree(self) -> dict[str, Any]:
        """Abstract parameters: `Param` leaves in the structure of the real ones."""
        return param_tree.param_tree(self)

    def sites(self) -> dict[str, Site]:
        """Every point of the model, in execution order."""
        return points.sites(self)

    def context(self, params: Any, prompts: Prompts) -> Context:
        """Rotary tables and masks; real tokens are counted from 0 unless positions are given."""
        if prompts.positions is not None and self.positions.learned is not None:
            prompts = dataclasses.replace(prompts, positions=looked_up(jnp.asarray(prompts.positions)))
        return context_of(self.positions.ropes, prompts, params["embed"]["W_E"].dtype)

    def memory(self) -> dict[str, Cache]:
        """Keys and values are all that later positions read of earlier ones."""
        keys = "rot_k" if self.positions.rotary else "k"
        return {"keys": Cache(f"blocks.*.attn.hook_{keys}"), "values": Cache("blocks.*.attn.hook_v")}

    def within(self, context: Context, first: Any, length: int) -> Context:
        """The context of a run of ``length`` tokens from ``first`` on."""
        return dataclasses.replace(context, first=first, length=length)

    def check_continued(self, length: int) -> None:
        """Raise ArgumentError where keys of a shorter text are not those of one of ``length`` tokens."""
        if length > self.n_ctx:
            raise ArgumentError(f"{length} tokens in all; the context of this model holds {self.n_ctx}")
        bound = min((rope.steady for rope in self.positions.ropes if rope), default=length)
        if length > bound:
            raise ArgumentError(
                f"{length} tokens in all: past {bound} this model turns its earlier keys anew with every "
                f"token, so nothing can be kept of them; stay within {bound}, or call jmi.forward"
            )

    def only(self, context: Context, at: jax.Array) -> Context:
        """The context of a run of which only the output at position ``at`` of each row is wanted."""
        return dataclasses.replace(context, only=at)

    def embed(self, params: Any, prompts: Prompts, context: Context, tap: Tap) -> jax.Array:
        """Tokens ``[b, s]`` to the residual stream ``[b, s, d]``."""
        p = params["embed"]
        x = ops.rows(p["W_E"], jnp.asarray(prompts.tokens))
        if self.d_embed is not None:
            x = jnp.einsum("bse,ed->bsd", x, p["W_in"])
        x = rounding.times(x, self.embed_scale)
        if self.norms.embed:
            x = normalise(self.norms.norm, p["ln"], x, SILENT, "")
        x = tap("hook_embed", x)
        if self.positions.learned is not None:
            places = context.of_run(context.positions) + self.positions.learned
            rows = ops.rows(params["pos_embed"]["W_pos"], places)
            x = x + tap("hook_pos_embed", jnp.broadcast_to(rows, x.shape))
        return x

    def block(self, layer_params: Any, carry: jax.Array, context: Context, layer: Any, tap: Tap) -> jax.Array:
        """One layer on the residual stream ``[b, s, d]``: its wanted outputs."""
        p, x = layer_params, tap("hook_resid_pre", carry)
        normed = self._read(p, "ln1", x, tap)
        own = functools.partial(self._own_input, (p, x))
        read = tap("attn.hook_in", normed)
        out = attend(InLayer(self.attn, self.positions, context, layer), p["attn"], read, own, tap)
        attn_out = tap("hook_attn_out", self._written(p, "ln1_post", out, tap))
        x, normed = context.wanted(x), context.wanted(normed)
        if self.parallel:
            read = tap("hook_mlp_in", x)
            if not self.norms.shared:
                normed = self._read(p, "ln2", read, tap)
            elif tap.wants("hook_mlp_in"):
                normed = normed + self._moved(p, read, x)
            mlp_out = tap("hook_mlp_out", self._written(p, "ln2_post", self._mlp(p, normed, tap), tap))
            total = rounding.once(lambda x, attn, mlp: x + attn + mlp, x, attn_out, mlp_out)
            return tap("hook_resid_post", total)
        x = tap("hook_resid_mid", x + attn_out)
        if self.norms.in_stream:
            x = normalise(self.norms.norm, p.get("ln1"), x, tap, "ln1")
            normed = tap("hook_mlp_in", x)
        else:
            normed = self._read(p, "ln2", tap("hook_mlp_in", x), tap)
        x = x + tap("hook_mlp_out", self._written(p, "ln2_post", self._mlp(p, normed, tap), tap))
        if self.norms.in_stream:
            x = normalise(self.norms.norm, p.get("ln2"), x, tap, "ln2")
        return tap("hook_resid_post", x)

    def unembed(self, params: Any, carry: jax.Array, tap: Tap) -> jax.Array:
        """Final norm and unembedding: logits ``[b, s, v]``."""
        x = (
            carry
            if self.norms.in_stream
            else normalise(self.norms.norm, params.get("ln_final"), carry, tap, "ln_final")
        )
        x, p = tap("hook_final_norm", x), params.get("unembed", {})
        if self.d_embed is not None:
            x = jnp.einsum("bsd,de->bse", x, p["W_out"])
        x = tap("unembed.hook_in", x)
        p, weight = (params["embed"] | p, "W_E") if self.tied else (p, "W_U")
        logits = rounding.project("bsd,vd->bsv" if self.tied else "bsd,dv->bsv", x, p, weight, "b_U")
        logits = rounding.times(tap("unembed.hook_out", logits), self.logit_scale)
        if self.logit_softcap is not None:
            logits = rounding.once(functools.partial(ops.softcap, cap=self.logit_softcap), logits)
        return tap("hook_logits", logits)

    def _read(self, p: Any, name: str, x: jax.Array, tap: Tap) -> jax.Array:
        """What a module reads of the stream."""
        return normalise(self.norms.norm, p.get(name), x, tap, name) if self.norms.read else x

    def _own_input(
        self, given: tuple[Any, jax.Array], point: str, heads: int, x: jax.Array, tap: Tap
    ) -> jax.Array:
        """Each head's copy of the module's input ``x``, moved by what hooks do to its copy of the stream."""
        p, stream = given
        each = jnp.broadcast_to(stream[:, :, None], (*stream.shape[:2], heads, stream.shape[2]))
        return x[:, :, None] + self._moved(p, tap(point, each), each)

    def _moved(self, p: Any, given: jax.Array, stream: jax.Array) -> jax.Array:
        """By how much what is read through the first norm differs, given ``given`` and not ``stream``.

        A difference: exactly zero where nothing was changed, and hooks between stream and module still act.
        """
        if not self.norms.read:
            return given - stream
        before, after = (normalise(self.norms.norm, p.get("ln1"), x, SILENT, "") for x in (stream, given))
        return after - before

    def _written(self, p: Any, name: str, x: jax.Array, tap: Tap) -> jax.Array:
        """What a module's output adds to the stream."""
        if self.norms.written:
            x = normalise(self.norms.norm, p.get(name), x, tap, name)
        return rounding.times(x, self.residual_scale)

    def _mlp(self, layer_params: Any, x: jax.Array, tap: Tap) -> jax.Array:
        p, x = layer_params["mlp"], tap("mlp.hook_in", x)
        if self.experts is not None and "W_router" in p:
            return tap("mlp.hook_out", mixture(self.experts, self.mlp.act_fn, p, x, tap))
        return tap("mlp.hook_out", perceptron(self.mlp, p, x, tap))

    # What each part adds to the stream and how logits read it, given the denominators of a run.
    head_outputs = residual.head_outputs
    head_effects = residual.head_effects
    attn_constant = residual.attn_constant
    neuron_outputs = residual.neuron_outputs
    neuron_effects = residual.neuron_effects
    mlp_constant = residual.mlp_constant
    to_logits = residual.to_logits
    logit_constant = residual.logit_constant
    direction = residual.direction
    attention_weights = circuits.attention_weights
