"""A dictionary of one point: sparse autoencoders and transcoders, with or without a linear skip."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jmi import tree
from jmi.checks import whole_number
from jmi.engine.forward import precise
from jmi.errors import ArgumentError
from jmi.numerics import wide
from jmi_sparse.dictionaries import active, folding, inputs
from jmi_sparse.dictionaries.activations import Activation, Gated, TopK, over
from jmi_sparse.dictionaries.active import Sparse
from jmi_sparse.dictionaries.normalisation import Normalisation

_FEW = 16
"""Of a feature in this many or fewer, gathered decoder rows are faster than a product with all of them."""


@tree.dataclass
class Dictionary:
    """Features of a vector, and the vector that features stand for.

    ``encode(x) = activation(z W_enc + b_enc)`` with ``z`` the input after ``normalisation`` and, where
    ``apply_b_dec_to_input``, minus ``b_dec``; ``decode(f) = f W_dec + b_dec``, scaled back. All of it is of
    the dtype of the weights, to which inputs are cast, and may be jitted, mapped and differentiated.

    A dictionary read at another hook than its own, or before instead of after a norm's gain, gives numbers
    that look right and are wrong: `hook_in` is where it was trained.

    Source: the order of operations and the names of the weights are SAELens's.

    Attributes:
      W_enc: ``[d_in, features]``.
      W_dec: ``[features, d_out]``.
      b_dec: ``[d_out]``, in the units of the normalised input.
      activation: makes features of pre-activations: `ReLU`, `JumpReLU`, `Gated`, `TopK`, `BatchTopK`.
      b_enc: ``[features]``, or None, as in a gated dictionary.
      W_skip: ``[d_out, d_in]``: ``reconstruct`` adds ``x W_skip^T`` of the input as it is; None without one.
      normalisation: of inputs: `ConstantNorm`, `LayerNorm`, `Outside`; None for none.
      log_density: ``[features]``, log10 of the share of tokens that a feature was active on, if the files say
        it.
      apply_b_dec_to_input: whether ``b_dec`` is subtracted before encoding; only where d_in is d_out.
      rescale_acts_by_decoder_norm: features are in units of their decoder row: pre-activations are multiplied
        by its norm, and features divided by it before they are decoded.
      hook_z: the last two axes of inputs are heads and their width, and are taken as one.
      hook_in, hook_out: the sites that are read, and that the output stands for; None where nothing says.
      kind: ``"sae"``, whose output stands for its input, or ``"transcoder"``.
      metadata: what its files say besides (model, context size), as a JSON text.

    Example:
      >>> import jax.numpy as jnp, jmi_sparse
      >>> eye = jnp.eye(3)
      >>> pairs = jmi_sparse.Dictionary(eye, eye, jnp.zeros(3), jmi_sparse.TopK(2), jnp.zeros(3))
      >>> [float(value) for value in pairs.encode(jnp.array([3.0, -1.0, 2.0]))]
      [3.0, 0.0, 2.0]
    """

    W_enc: jax.Array
    W_dec: jax.Array
    b_dec: jax.Array
    activation: Activation
    b_enc: jax.Array | None = None
    W_skip: jax.Array | None = None
    normalisation: Normalisation | None = None
    log_density: jax.Array | None = None
    apply_b_dec_to_input: bool = tree.static(default=False)
    rescale_acts_by_decoder_norm: bool = tree.static(default=False)
    hook_z: bool = tree.static(default=False)
    hook_in: str | None = tree.static(default=None)
    hook_out: str | None = tree.static(default=None)
    kind: str = tree.static(default="sae")
    metadata: str = tree.static(default="{}")

    @property
    def d_in(self) -> int:
        """Width of what is read; heads times their width with ``hook_z``."""
        return self.W_enc.shape[-2]

    @property
    def d_out(self) -> int:
        """Width of what is written."""
        return self.b_dec.shape[-1]

    @property
    def n_features(self) -> int:
        """How many features there are."""
        return self.W_dec.shape[-2]

    @property
    def decoder_norms(self) -> jax.Array:
        """Euclidean norm of each decoder row ``[features]``, in float32 or more."""
        square = jnp.square(self.W_dec.astype(wide(self.W_dec.dtype))).sum(-1)
        # The gradient of a root at 0 is none; that of a row of zeros is 0.
        return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)

    @precise()
    def encode(self, x: jax.Array) -> jax.Array:
        """Features ``[..., features]`` of ``x`` ``[..., d_in]``, or ``[..., heads, width]`` with ``hook_z``.

        Raises:
          ArgumentError: no real numbers, or of another width.
        """
        if isinstance(self.activation, TopK):
            return self.activation(*self._apart(x))
        return self.activation(self._scaled(self._linear(x)))

    @precise()
    def encode_through(self, x: jax.Array, through: Callable[[jax.Array], jax.Array]) -> jax.Array:
        """`encode`, with ``through`` applied to the pre-activations that `encode_pre` gives on their way."""
        linear = self._linear(x)
        if isinstance(self.activation, Gated):
            return self.activation.of(linear, through(self.activation.pre(linear)))
        return self.activation(self._scaled(through(linear)))

    @precise()
    def encode_sparse(self, x: jax.Array, capacity: int) -> Sparse:
        """The active features of ``x``, the largest first, in ``capacity`` places each; inputs as `encode`.

        Use it where features leave the device: of 100 active ones among 16,384 it is a hundredth of the
        memory. ``overflowed`` says where more were active than there are places.
        """
        capacity = whole_number("capacity", capacity, 1)
        if not isinstance(self.activation, TopK) or self.activation.k > capacity:
            return active.sparse(self.encode(x), capacity)
        ids, values = self.activation.kept(*self._apart(x))
        if self.activation.relu == "none":
            # The largest first, whatever the sign.
            order = jnp.argsort(-jnp.abs(values), axis=-1)
            ids, values = (jnp.take_along_axis(part, order, axis=-1) for part in (ids, values))
        return active.padded(ids, values, jnp.zeros(ids.shape[:-1], bool), capacity)

    @precise()
    def encode_pre(self, x: jax.Array) -> jax.Array:
        """Pre-activations ``[..., features]``: SAELens's ``hook_sae_acts_pre``; inputs as `encode`.

        Of a gated dictionary the magnitude before relu, whatever its gate says; without the factor of
        ``rescale_acts_by_decoder_norm``, which comes after it.
        """
        return self.activation.pre(self._linear(x))

    @precise()
    def decode(self, features: jax.Array, x: jax.Array | None = None) -> jax.Array:
        """What features ``[..., features]`` stand for, ``[..., d_out]``, without the skip.

        Args:
          x: the input whose features they are. Where each vector is normalised by itself the output is scaled
            as it was; with ``hook_z`` the output gets its heads back, and without it stays flat.

        Raises:
          ArgumentError: features of another number; no ``x`` where the normalisation needs one.
        """
        features = inputs.features(features, self.W_dec)
        if self.rescale_acts_by_decoder_norm:
            features = self._in_units(features, over(self._norms, features))
        return self._restored(features @ self.W_dec, x)

    @precise()
    def decode_sparse(self, features: Sparse, x: jax.Array | None = None) -> jax.Array:
        """`decode` of the features that `encode_sparse` gave, from their decoder rows alone."""
        ids, values, _ = features
        if self.rescale_acts_by_decoder_norm:
            values = self._in_units(values, self._norms[ids])
        return self._restored(active.written(ids, values, self.W_dec), x)

    @precise()
    def reconstruct(self, x: jax.Array) -> jax.Array:
        """The output for ``x``, skip included: ``[..., d_out]``, or the shape of ``x`` with ``hook_z``."""
        if isinstance(self.activation, TopK) and self.activation.k * _FEW <= self.n_features:
            y = self.decode_sparse(self.encode_sparse(x, self.activation.k), x)
        else:
            y = self.decode(self.encode(x), x)
        return y if self.W_skip is None else y + self.skipped(x)

    @precise()
    def skipped(self, x: jax.Array) -> jax.Array:
        """What the skip adds for ``x``: ``x W_skip^T``, or 0 without one."""
        x = self._flat(x)
        if self.W_skip is None:
            return jnp.zeros((*x.shape[:-1], self.d_out), x.dtype)
        return x @ self.W_skip.T

    def error(self, x: jax.Array, y: jax.Array | None = None) -> jax.Array:
        """What the dictionary misses: ``y - reconstruct(x)``.

        Args:
          y: what its output stands for; of an SAE that is ``x``.

        Raises:
          ArgumentError: no ``y`` for a transcoder, or of another shape than its output.
        """
        if y is None and self.kind == "transcoder":
            raise ArgumentError("error: a transcoder stands for another point than it reads; pass y=")
        return inputs.missed(self.reconstruct(x), x if y is None else y)

    def fold_norms(self) -> "Dictionary":
        """The dictionary whose decoder rows have norm 1, with features as much larger as their rows were.

        Reconstructions stay as they are. Keep `decoder_norms` to turn it back with `unfold_norms`. Norms
        below 1e-8 count as 1e-8.

        Raises:
          ArgumentError: it takes the k largest of unscaled pre-activations, and would take others.
        """
        return folding.fold(self, jnp.maximum(self.decoder_norms, folding.LEAST_NORM))

    def unfold_norms(self, norms: jax.Array) -> "Dictionary":
        """`fold_norms`, turned back: decoder rows become ``norms`` ``[features]`` times as long."""
        return folding.unfold(self, norms)

    @property
    def _norms(self) -> jax.Array:
        # A row of zeros writes nothing, and 0 / 0 would write NaN.
        return jnp.maximum(self.decoder_norms, folding.LEAST_NORM)

    def _in_units(self, features: jax.Array, norms: jax.Array) -> jax.Array:
        """Features in units of decoder rows, from those in units of their norms."""
        return (features.astype(norms.dtype) / norms).astype(self.W_dec.dtype)

    def _restored(self, y: jax.Array, x: jax.Array | None) -> jax.Array:
        return inputs.restored(y + over(self.b_dec, y), x, self.normalisation, self.hook_z)

    def _scaled(self, linear: jax.Array) -> jax.Array:
        """What the activation reads."""
        if self.rescale_acts_by_decoder_norm:
            linear = linear * over(self.decoder_norms.astype(linear.dtype), linear)
        return linear

    def _apart(self, x: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        """What the activation reads, the bias by itself: to add it is a pass over all features."""
        bias = None if self.b_enc is None else self._scaled(self.b_enc)
        return self._scaled(self._product(x)), bias

    def _linear(self, x: jax.Array) -> jax.Array:
        """``z W_enc + b_enc``."""
        linear = self._product(x)
        return linear if self.b_enc is None else linear + over(self.b_enc, linear)

    def _product(self, x: jax.Array) -> jax.Array:
        subtracted = self.b_dec if self.apply_b_dec_to_input else None
        return inputs.prepared(self._flat(x), self.normalisation, subtracted) @ self.W_enc

    def _flat(self, x: jax.Array) -> jax.Array:
        return inputs.flat(x, self.d_in, self.hook_z, self.W_dec.dtype)

    def __repr__(self) -> str:
        made = f"{type(self.activation).__name__}, {self.d_in} -> {self.n_features} -> {self.d_out}"
        return f"Dictionary({self.kind}, {made}, {self.W_dec.dtype}, {self.hook_in} -> {self.hook_out})"
