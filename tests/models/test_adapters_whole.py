"""Adapters with modules that were trained whole, embeddings that were resized, or tied matrices."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jmi_models
from tests.models.test_adapters import MODELS, changed, close, merged, refused, tensors, write
from tests.oracles import grid
from tests.support.committed import put_together

EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def whole(folder: Path, name: str, given: Mapping[str, np.ndarray], **changes: Any) -> Path:
    """A model with an adapter that holds ``given`` beside its pairs."""
    also = {f"base_model.model.{key}": value for key, value in given.items()}
    return write(folder, name, {**tensors(name), **also}, **changes)


def with_tensors(name: str, changes: Mapping[str, np.ndarray], **config: Any) -> Any:
    """The model with these tensors in place of its own and its matrices changed."""
    weights = {**changed(name, dict.fromkeys(MODELS[name], 3.0)), **changes}
    return put_together({**grid.GRID[name], **config}, weights)


def drawn(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape).standard_normal(shape).astype(np.float32)


def test_modules_that_were_trained_whole_replace_those_of_the_model(tmp_path: Path) -> None:
    name = "llama/longrope_beyond"
    norm, down = "model.layers.1.input_layernorm.weight", "model.layers.0.mlp.down_proj.weight"
    given = {HEAD: drawn(61, 24), norm: drawn(24), down: drawn(24, 28)}
    folder = whole(tmp_path / "a", name, given, modules_to_save=["lm_head", "input_layernorm", "mlp"])
    with pytest.warns(UserWarning, match="merged into 2 matrices and replaces 3 tensors whole"):
        lm = jmi_models.load(folder)
    close(lm.params, with_tensors(name, given).params)


def test_embeddings_that_were_resized_with_the_adapter(tmp_path: Path) -> None:
    name = "llama/longrope_beyond"
    given = {EMBED: drawn(64, 24), HEAD: drawn(64, 24)}
    lm = merged(whole(tmp_path / "a", name, given), words=" and replaces 2 tensors whole")
    assert lm.arch.d_vocab == 64
    close(lm.params, with_tensors(name, given, vocab_size=64).params)
    # One of the two alone does not fit the other.
    refused(
        whole(tmp_path / "b", name, {EMBED: given[EMBED]}), r"lm_head.weight is \[61, 24\], expected \[64"
    )


def test_what_is_done_to_one_of_two_tied_matrices_is_not_done_to_the_other(tmp_path: Path) -> None:
    name = "qwen3/tied"
    old, new = grid.committed(name).tensors[EMBED], drawn(61, 24)
    told = {"words": " and replaces 1 tensors whole"}
    lm = merged(whole(tmp_path / "a", name, {EMBED: new}, modules_to_save=["embed_tokens"]), **told)
    np.testing.assert_array_equal(lm.params["embed"]["W_E"], new)
    np.testing.assert_array_equal(lm.params["unembed"]["W_U"], old.T)
    lm = merged(whole(tmp_path / "b", name, {HEAD: new}, modules_to_save=["lm_head"]), **told)
    np.testing.assert_array_equal(lm.params["embed"]["W_E"], old)
    np.testing.assert_array_equal(lm.params["unembed"]["W_U"], new.T)
    saved = {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}
    lm = merged(whole(tmp_path / "c", name, {EMBED: new}, **saved), **told)
    assert lm.arch.tied
    np.testing.assert_array_equal(lm.params["embed"]["W_E"], new)
