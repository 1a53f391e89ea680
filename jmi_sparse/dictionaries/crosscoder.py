"""Crosscoders: one set of features for several points at once, of layers or of models.

H points (heads of the dictionary), d width.
"""

import jax
import jax.numpy as jnp

from jmi import tree
from jmi.checks import real_array
from jmi.engine.forward import precise
from jmi.errors import ArgumentError
from jmi_sparse.dictionaries import active, inputs
from jmi_sparse.dictionaries.activations import Activation, over
from jmi_sparse.dictionaries.active import Sparse


@tree.dataclass
class Crosscoder:
    """Features that several points share: each is read by an encoder of its own and the sum is activated.

    ``f = activation(sum over h of x_h W_enc_h + b_enc)`` and ``y_h = f W_dec_h + b_dec_h``. It reads all of
    its points before it writes any, so it describes runs and cannot stand in one.

    Attributes:
      W_enc: ``[H, d_in, features]``.
      W_dec: ``[H, features, d_out]``.
      b_dec: ``[H, d_out]``.
      activation: makes features of pre-activations.
      b_enc: ``[features]``.
      points: the site of each head; of models, where each has its own.
      metadata: what its files say besides, as a JSON text.

    Example:
      >>> import jax.numpy as jnp, jmi_sparse
      >>> eyes = jnp.stack([jnp.eye(3), jnp.eye(3)])
      >>> both = jmi_sparse.Crosscoder(eyes, eyes, jnp.zeros((2, 3)), jmi_sparse.ReLU(), jnp.zeros(3))
      >>> [float(value) for value in both.encode(jnp.ones((2, 3)))]
      [2.0, 2.0, 2.0]
    """

    W_enc: jax.Array
    W_dec: jax.Array
    b_dec: jax.Array
    activation: Activation
    b_enc: jax.Array
    points: tuple[str, ...] = tree.static(default=())
    metadata: str = tree.static(default="{}")
    kind = "crosscoder"

    @property
    def hook_in(self) -> tuple[str, ...]:
        """The sites that are read."""
        return self.points

    @property
    def hook_out(self) -> tuple[str, ...]:
        """The sites that the output stands for: those that are read."""
        return self.points

    @property
    def d_in(self) -> int:
        """Width of what is read at each point."""
        return self.W_enc.shape[-2]

    @property
    def d_out(self) -> int:
        """Width of what is written at each point."""
        return self.W_dec.shape[-1]

    @property
    def n_features(self) -> int:
        """How many features there are."""
        return self.W_enc.shape[-1]

    @precise()
    def encode(self, x: jax.Array) -> jax.Array:
        """Features ``[..., features]`` of ``x`` ``[H, ..., d_in]``."""
        return self.activation(self._linear(x))

    @precise()
    def encode_pre(self, x: jax.Array) -> jax.Array:
        """Pre-activations ``[..., features]``."""
        return self.activation.pre(self._linear(x))

    @precise()
    def encode_sparse(self, x: jax.Array, capacity: int) -> Sparse:
        """The active features alone; see `Dictionary.encode_sparse`."""
        return active.sparse(self.encode(x), capacity)

    @precise()
    def decode(self, features: jax.Array, x: jax.Array | None = None) -> jax.Array:
        """What features ``[..., features]`` stand for at each point, ``[H, ..., d_out]``."""
        features = inputs.features(features, self.W_dec[0])
        return jax.vmap(lambda rows, bias: self._written(features @ rows, bias))(self.W_dec, self.b_dec)

    @precise()
    def decode_sparse(self, features: Sparse, x: jax.Array | None = None) -> jax.Array:
        """`decode` of the features that `encode_sparse` gave."""
        ids, values, _ = features
        return jax.vmap(lambda rows, bias: self._written(active.written(ids, values, rows), bias))(
            self.W_dec, self.b_dec
        )

    def reconstruct(self, x: jax.Array) -> jax.Array:
        """The output ``[H, ..., d_out]`` for ``x`` ``[H, ..., d_in]``."""
        return self.decode(self.encode(x))

    def error(self, x: jax.Array, y: jax.Array | None = None) -> jax.Array:
        """What it misses: ``y - reconstruct(x)``, ``y`` being ``x`` by default."""
        return inputs.missed(self.reconstruct(x), x if y is None else y)

    def _linear(self, x: jax.Array) -> jax.Array:
        x = jnp.asarray(real_array("x", x)).astype(self.W_enc.dtype)
        if x.ndim < 2 or x.shape[0] != len(self.W_enc) or x.shape[-1] != self.d_in:
            raise ArgumentError(f"x={list(x.shape)}: give [{len(self.W_enc)} points, ..., {self.d_in}]")
        pre = jnp.einsum("h...d,hdf->...f", x, self.W_enc)
        return pre + over(self.b_enc, pre)

    @staticmethod
    def _written(y: jax.Array, bias: jax.Array) -> jax.Array:
        return y + over(bias, y)

    def __repr__(self) -> str:
        made = f"{type(self.activation).__name__}, {self.d_in} -> {self.n_features} -> {self.d_out}"
        return f"Crosscoder({len(self.W_enc)} points, {made}, {self.W_dec.dtype})"
