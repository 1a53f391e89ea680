"""Strict JAX for the whole suite: no silent promotion of dtypes or ranks, several CPU devices."""

import os

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import hypothesis
import jax

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_platforms", "cpu")

# The first example compiles; how long that takes says nothing.
hypothesis.settings.register_profile("jmi", deadline=None)
hypothesis.settings.load_profile("jmi")
