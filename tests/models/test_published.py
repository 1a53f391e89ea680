"""Published checkpoints against Hugging Face: opt-in, ``pytest -m hub``, with the hub or a cache in reach.

Expected values come from ``tests/data/hub``, written by ``python -m tests.oracles.hub_reference``; where a
model has none there, transformers computes them live. Set ``HF_HUB_OFFLINE=0`` to let models be downloaded.
"""

import json
from typing import Any

import numpy as np
import pytest

import jmi_models
from jmi.errors import DownloadError
from tests.oracles import hub_reference

pytestmark = pytest.mark.hub

BAR = 1e-3


def reference(model: str) -> dict[str, Any]:
    if hub_reference.file_of(model).is_file():
        return json.loads(hub_reference.file_of(model).read_text())
    pytest.importorskip("torch", reason="no recorded reference, and computing one needs torch")
    pytest.importorskip("transformers", reason="no recorded reference, and computing one needs transformers")
    return hub_reference.compute(model)


@pytest.mark.parametrize("model", hub_reference.MODELS)
def test_logits_of_published_checkpoints_equal_hugging_face(model: str) -> None:
    try:
        lm = jmi_models.load(model)
    except DownloadError as error:
        pytest.skip(str(error))
    for case in reference(model)["cases"]:
        tokens = np.asarray(case["tokens"], np.int32)[None]
        np.testing.assert_array_equal(lm.encode(case["prompt"]), tokens)
        out = lm.run(tokens, capture=["hook_final_norm"])
        logits = np.asarray(out.logits)[0, -1]
        wanted = {int(token): value for token, value in case["top_10"].items()}
        assert np.argsort(-logits)[:10].tolist() == list(wanted)
        np.testing.assert_allclose(logits[list(wanted)], list(wanted.values()), atol=BAR)
        residual = np.asarray(out["hook_final_norm"])[0, -1]
        np.testing.assert_allclose(residual, case["last_residual"], atol=BAR)
