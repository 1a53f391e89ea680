"""Good calls: loading, controls and processing of models."""

import json
import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

import jmi_models
from tests.wrong.call import MODEL, Call
from tests.wrong.values import model


def _adapter() -> str:
    """A folder with an adapter of the model of all calls."""
    folder, arch = Path(tempfile.mkdtemp()), model().arch
    ones = {"A": np.ones((1, arch.d_mlp), np.float32), "B": np.ones((arch.d_model, 1), np.float32)}
    name = "base_model.model.model.layers.0.mlp.down_proj.lora_{}.weight"
    save_file({name.format(x): value for x, value in ones.items()}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 1, "lora_alpha": 1}))
    return str(folder)


def model_calls() -> list[Call]:
    lm = model()
    own = {"arch": lm.arch, "params": lm.params}
    return [
        Call(
            "load",
            lambda **k: jmi_models.load(**k).params,
            {"name": "atlas", "dtype": "float32"},
            {"name": "folder", "dtype": "dtype", "pytorch_bin": "flag"},
        ),
        Call("architecture", jmi_models.architecture, {"name": "atlas"}, {"name": "folder"}),
        Call("inspect", lambda name: str(jmi_models.inspect(name)), {"name": "atlas"}, {"name": "folder"}),
        Call(
            "adapt",
            lambda **k: jmi_models.adapt(**k).params["modules"][0].params,
            {"lm": lm, "source": _adapter(), "name": "adapter"},
            {"lm": "model", "source": "folder", "name": "text"},
        ),
        Call(
            "init",
            jmi_models.init,
            {"arch": lm.arch, "seed": 0, "dtype": np.float32},
            {"arch": "architecture", "seed": "seed", "dtype": "dtype"},
        ),
        Call(
            "shuffled", lambda **k: jmi_models.shuffled(**k)[1], {**own, "seed": 0}, {**MODEL, "seed": "seed"}
        ),
        Call("listed", jmi_models.listed, {"params": lm.params}, {"params": "weights"}),
        Call("n_params", jmi_models.n_params, {"arch": lm.arch}, {"arch": "architecture"}),
        Call("fold_norm_gains", lambda **k: jmi_models.fold_norm_gains(*k.values())[1], own, MODEL),
    ]
