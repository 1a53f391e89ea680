"""Adapters are what peft makes of them, live."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jmi_models
from tests.models.test_adapters import MODELS, refused
from tests.oracles import grid


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_peft(name: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="the live oracle needs torch")
    peft = pytest.importorskip("peft", reason="the live comparison of adapters needs peft")
    transformers = pytest.importorskip("transformers", reason="the live oracle needs transformers")
    grid.write_folder(tmp_path, grid.GRID[name], grid.committed(name).tensors)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    ends = [module.split(".")[-1] for module in MODELS[name]]
    lora = peft.LoraConfig(
        r=3,
        lora_alpha=5,
        target_modules=ends,
        rank_pattern={ends[0]: 2},
        alpha_pattern={ends[1]: 7},
        use_rslora=True,
        init_lora_weights=False,
    )
    torch.manual_seed(0)
    changed = peft.get_peft_model(model, lora).eval()
    changed.save_pretrained(tmp_path)
    tokens = grid.committed(name).tokens
    with torch.no_grad():
        want = changed(torch.as_tensor(tokens.astype(np.int64))).logits.numpy()
    got = np.asarray(jmi_models.load(tmp_path).run(tokens).logits)
    plain = np.asarray(jmi_models.load(tmp_path, adapter=False).run(tokens).logits)
    assert np.abs(got - want).max() <= 2e-5 * np.abs(want).max()
    assert np.abs(plain - want).max() > 1e-2 * np.abs(want).max()


PEFT_CASES: Mapping[str, dict[str, Any]] = {
    "head": {"modules_to_save": ["lm_head"]},
    "embedding": {"modules_to_save": ["embed_tokens"]},
    "both": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "still tied": {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    "norms and MLPs": {"modules_to_save": ["input_layernorm", "mlp"]},
    "pair of the embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "pair of the head": {"target_modules": ["q_proj", "lm_head"]},
    "resized": {"resized": 3},
    "resized, pair of the embedding": {"resized": 3, "target_modules": ["q_proj", "embed_tokens"]},
}


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", PEFT_CASES)
@pytest.mark.parametrize("name", ["llama/longrope_beyond", "qwen3/tied"])
def test_whole_modules_embeddings_and_heads_are_those_of_peft(name: str, case: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="the live oracle needs torch")
    peft = pytest.importorskip("peft", reason="the live comparison of adapters needs peft")
    transformers = pytest.importorskip("transformers", reason="the live oracle needs transformers")
    options = {"target_modules": ["q_proj"], **PEFT_CASES[case]}
    more = options.pop("resized", 0)
    base, both = (
        grid.write_folder(tmp_path / each, grid.GRID[name], grid.committed(name).tensors)
        for each in ("base", "both")
    )

    def model() -> Any:
        torch.manual_seed(1)
        found = transformers.AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager")
        if more:
            found.resize_token_embeddings(grid.GRID[name]["vocab_size"] + more)
        return found

    torch.manual_seed(0)
    trained = peft.get_peft_model(model(), peft.LoraConfig(r=2, init_lora_weights=False, **options)).eval()
    for parameter in trained.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    trained.save_pretrained(both)
    # What peft reads of its own file, not what was in memory.
    again = peft.PeftModel.from_pretrained(model(), both).eval()
    tokens = grid.committed(name).tokens
    with torch.no_grad():
        want = again(torch.as_tensor(tokens.astype(np.int64))).logits.numpy()
    if more and len(options["target_modules"]) > 1 and not grid.GRID[name].get("tie_word_embeddings"):
        # peft leaves the resized head out of its file, and draws its new rows anew.
        return refused(both, r"lm_head.weight is \[61, 24\], expected \[64, 24\]")
    got = np.asarray(jmi_models.load(both).run(tokens).logits)
    assert np.abs(got - want).max() <= 2e-5 * np.abs(want).max()
