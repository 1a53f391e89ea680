"""Each of the models that packages bring, once in a session: as jmi loads it and as transformers does.

In one process (``-n 0``) each is read once.
"""

import dataclasses
import functools
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jmi_models
from jmi import LanguageModel
from jmi_models.gguf import places


@dataclasses.dataclass(frozen=True)
class Pair:
    """One file, read by both.

    Attributes:
      theirs: the model of transformers, in float32 with eager attention.
    """

    name: str
    file: Path
    lm: LanguageModel
    theirs: Any

    @functools.cached_property
    def tokenizer(self) -> Any:
        """That of transformers."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.file.parent, gguf_file=self.file.name)

    def logits(self, tokens: np.ndarray) -> np.ndarray:
        """Of transformers, ``[b, s, vocab]``."""
        import torch

        with torch.inference_mode():
            return self.theirs(torch.from_numpy(np.array(tokens)).long(), use_cache=False).logits.numpy()


def _paired(name: str) -> Pair:
    torch = pytest.importorskip("torch", reason="the models are compared with torch's")
    transformers = pytest.importorskip("transformers", reason="the models are compared with transformers'")
    if name not in places.installed():
        pytest.skip(f"{name} is not installed: {places.HOW_TO_INSTALL[name]}")
    file = places.from_package(name)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what transformers warns of while it reads is its own
        theirs = transformers.AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=torch.float32, attn_implementation="eager"
        )
    return Pair(name, file, jmi_models.load(name, progress=False), theirs.eval())


@pytest.fixture(scope="session", params=places.PACKAGES)
def pair(request: pytest.FixtureRequest) -> Pair:
    return _paired(request.param)
