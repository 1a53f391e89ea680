"""What a user gives beside the options: keys and seeds, what ends a text, what a tokenizer knows."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jmi.checks import several, shown, whole_number
from jmi.errors import ArgumentError
from jmi.tokenizers import Tokenizer


def ends_of(stop: Any) -> tuple[list[str], list[Any]]:
    """Texts that end a row, and ids, of ``stop``: one of them or several.

    Raises:
      ArgumentError: an empty text, or no list.
    """
    given = (
        [stop] if isinstance(stop, (int, np.integer, str)) else several("stop", stop, "token ids and texts")
    )
    words = [one for one in given if isinstance(one, str)]
    if not all(words):
        raise ArgumentError(f"stop={shown(stop)}: an empty text is in every text; give what ends one")
    return words, [one for one in given if not isinstance(one, str)]


def ids_of(stop: Any) -> list[Any]:
    """``stop`` as ids; ArgumentError for texts, which only `LanguageModel.generate` can look for."""
    words, ids = ends_of(stop)
    if words:
        raise ArgumentError(f"stop={shown(stop)}: texts need a tokenizer, use lm.generate; here give ids")
    return ids


def checked_key(key: Any, batch: int) -> Any:
    """A key, or one for each row, of the new kind; None as it is.

    Raises:
      ArgumentError: something else.
    """
    if key is None:
        return None
    dtype = getattr(key, "dtype", None)
    if dtype == jnp.uint32:
        key = jax.random.wrap_key_data(key)
    if dtype is None or not jnp.issubdtype(key.dtype, jax.dtypes.prng_key) or key.shape not in ((), (batch,)):
        raise ArgumentError(
            f"key={shown(key)}: give jax.random.key(seed), or one for each of the {batch} rows"
        )
    return key


def key_of(seed: Any, batch: int) -> Any:
    """The key of a seed, or of one for each row; None for None.

    Raises:
      ArgumentError: no whole number from 0 on, or not one for each row.
    """
    if seed is None:
        return None
    if not isinstance(seed, (list, tuple, range)) and not getattr(seed, "ndim", 0):
        return jax.random.key(whole_number("seed", seed, 0))
    seeds = [whole_number("seed", one, 0) for one in several("seed", seed, "seeds")]
    if len(seeds) != batch:
        raise ArgumentError(f"seed={shown(seed)}: give one seed, or one for each of the {batch} rows")
    return jax.vmap(jax.random.key)(np.asarray(seeds, np.uint32))


def with_tokens_of(
    tokenizer: Tokenizer | None, options: Mapping[str, Any], n_vocab: int | None
) -> dict[str, Any]:
    """Options with the end token and the padding of a tokenizer, where they say nothing of these."""
    if tokenizer is None:
        return dict(options)
    known = {"eos_token_id": tokenizer.special.get("eos_token"), "pad_token_id": tokenizer.pad_id}
    # A tokenizer may have more tokens than the model.
    own = {name: i for name, i in known.items() if i is not None and (n_vocab is None or i < n_vocab)}
    return {**own, **{name: value for name, value in options.items() if value is not None}}


def n_vocab_of(arch: Any) -> int | None:
    """How many tokens a model chooses from, if it says."""
    return getattr(arch, "d_vocab", None)
