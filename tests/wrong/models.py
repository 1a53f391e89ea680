"""Good calls: loading, controls and processing of models."""

import numpy as np

import jmi_models
from tests.wrong.call import MODEL, Call
from tests.wrong.values import model


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
