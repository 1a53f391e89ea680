"""What was generated, and its text."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jmi import tree
from jmi.engine.lengths import beginning
from jmi.engine.memory import Memory
from jmi.errors import ArgumentError, TokenizerError
from jmi.tokenizers import Tokenizer


@tree.dataclass
class Generated:
    """What was generated.

    Attributes:
      tokens: int32 ``[b, n]``, without the prompt; after the end of a row ``pad_token_id``; -1, which is no
        token, where logits are NaN or no token is allowed.
      lengths: int32 ``[b]``, how many tokens of each row are its own, the end token included.
      log_probs: float32 or wider ``[b, n]``, of the tokens, in nats, as the model itself gives them: before
        temperature, penalties and all other options. 0 after the end of a row, so that sums are of texts.
      captures: under the names asked for, ``[n, ...]``, what was captured while each token was read. After
        the end of a row it is of no token.
      memory: of a run with ``memory=``, all that was read, the last token included; give it to `jmi.forward`
        or `generate` to go on. Else None.
      prompts: what was continued; of `jmi.generate` None.
      tokenizer: of the model. Static.
    """

    tokens: jax.Array
    lengths: jax.Array
    log_probs: jax.Array
    captures: dict[str, Any]
    memory: Memory | None
    prompts: Any = None
    tokenizer: Tokenizer | None = tree.static(default=None)

    def __repr__(self) -> str:
        names = ", ".join(list(self.captures)[:6]) or "nothing"
        return f"Generated({list(jnp.shape(self.tokens))} tokens, captured: {names})"

    @property
    def text(self) -> list[str]:
        """The text of each row, without the prompt and without special tokens such as the end token.

        Spaces are those that the tokens have after their prompt; alone, some tokenizers drop the first one.

        Raises:
          TokenizerError: there is no tokenizer, or ids that it does not know.
        """
        return [self._said(row, int(length)) for row, length in enumerate(np.asarray(self.lengths))]

    def first(self, count: int) -> "Generated":
        """The first ``count`` tokens, and what was captured of them."""
        shape = (len(self.tokens), count)
        return dataclasses.replace(
            self,
            tokens=beginning(self.tokens, shape),
            log_probs=beginning(self.log_probs, shape),
            captures=jax.tree.map(lambda x: beginning(x, (count, *x.shape[1:])), self.captures),
        )

    def checked(self) -> "Generated":
        """Itself; ArgumentError where no token could be chosen. Under a transformation nothing is known."""
        if isinstance(self.tokens, jax.core.Tracer) or not (np.asarray(self.tokens) < 0).any():
            return self
        if np.isnan(np.asarray(self.log_probs)).any():
            raise ArgumentError(
                "the model gives logits that are NaN, so that no token is the likeliest; run the prompt and "
                "capture jmi.IsFinite() of blocks.*.hook_resid_post to see in which layer it begins"
            )
        raise ArgumentError("the options of sampling leave no token that may be chosen; allow more tokens")

    def cut(self, stop: Sequence[str], pad: int) -> "Generated":
        """Rows that end with the token that completes the first of the texts ``stop``; ``pad`` after it.

        Raises:
          ArgumentError: under a transformation of jax, which holds no tokens to read yet.
        """
        if isinstance(self.tokens, jax.core.Tracer):
            raise ArgumentError("stop=, a text: it is looked for outside of jax.jit; give token ids")
        lengths = np.array(self.lengths)
        for row, length in enumerate(lengths):
            if _holds(self._said(row, int(length)), stop):
                every = range(1, length + 1)
                lengths[row] = next(n for n in every if _holds(self._said(row, n), stop))
        inside = np.arange(self.tokens.shape[1])[None] < lengths[:, None]
        tokens, log_probs = np.asarray(self.tokens), np.asarray(self.log_probs)
        return dataclasses.replace(
            self,
            tokens=jnp.asarray(np.where(inside, tokens, np.int32(pad))),
            lengths=jnp.asarray(lengths),
            log_probs=jnp.asarray(np.where(inside, log_probs, np.zeros((), log_probs.dtype))),
        )

    def _said(self, row: int, length: int) -> str:
        """What the first tokens of a row add to the text of its prompt."""
        if self.tokenizer is None or self.prompts is None:
            raise TokenizerError(
                "there is no tokenizer to read the tokens with; use lm.generate of a model that has one"
            )
        before = np.asarray(self.prompts.tokens)[row]
        if self.prompts.mask is not None:
            before = before[np.asarray(self.prompts.mask)[row]]
        own = np.asarray(self.tokens)[row, :length]
        read = [self.tokenizer.decode(ids, special_tokens=False) for ids in (before, np.append(before, own))]
        if read[1].startswith(read[0]):
            return read[1][len(read[0]) :]
        # A prompt that ends within a character.
        return self.tokenizer.decode(own, special_tokens=False)


def _holds(text: str, stop: Sequence[str]) -> bool:
    return any(each in text for each in stop)
