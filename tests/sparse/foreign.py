"""Folders in the layouts of others, made of random numbers: what their files hold, and their writing."""

import io
import json
import zipfile

import numpy as np
from safetensors.numpy import save_file

from tests.sparse.made import D, F, weights
from tests.support.torch_files import write_state_dict

LEFT_OUT = object()
"""In place of a file, a tensor or a field that is not to be there."""

K = 5
HELD = {name: array.astype(np.float32) for name, array in weights().items()}
HELD["threshold"] = np.linspace(-0.5, 1.5, F, dtype=np.float32)
HELD["W_skip"] = np.random.default_rng(7).normal(size=(D, D)).astype(np.float32)
LEVELS = np.linspace(0.05, 1.5, F, dtype=np.float32)
"""Thresholds that have a logarithm."""


def named(**names):
    """Tensors by their names in a file; a ``T`` at the end of a field means that it lies transposed."""
    return {
        name: HELD[field.removesuffix("T")] for field, name in names.items() if not field.endswith("T")
    } | {
        name: np.ascontiguousarray(HELD[field.removesuffix("T")].T)
        for field, name in names.items()
        if field.endswith("T")
    }


PLAIN = named(W_enc="W_enc", W_dec="W_dec", b_enc="b_enc", b_dec="b_dec")
LAYERS = named(W_encT="encoder.weight", W_decT="decoder.weight", b_enc="encoder.bias", b_dec="decoder.bias")
JUMP = {**PLAIN, "threshold": HELD["threshold"]}


def trained(dict_class, arrays, **options):
    """A folder of dictionary_learning."""
    trainer = {
        "dict_class": dict_class,
        "trainer_class": "Any",
        "activation_dim": D,
        "dict_size": F,
        "layer": 4,
        "lm_name": "EleutherAI/pythia-70m",
        "submodule_name": "resid_post_layer_4",
        **options,
    }
    return {
        "config.json": {"trainer": trainer, "buffer": {"io": "out", "ctx_len": 128}},
        "ae.pt": arrays,
    }


def below(folder, files):
    return {f"{folder}/{name}": held for name, held in files.items()}


_ENCODER = {name: LAYERS[name] for name in ("encoder.weight", "encoder.bias")}
_SPARSIFY = {"d_in": D, "expansion_factor": 32, "num_latents": F, "k": K, "normalize_decoder": True}
_LATER = {
    "d_model": D,
    "expansion_factor": 3,
    "act_fn": "jumprelu",
    "norm_activation": "inference",
    "hook_point_in": "blocks.5.hook_resid_post",
    "hook_point_out": "blocks.5.hook_resid_post",
    "sparsity_include_decoder_norm": False,
}
_SCOPE_2 = {
    "architecture": "jump_relu",
    "model_name": "gemma-v3-1b-pt",
    "hf_hook_point_in": "model.layers.3.pre_feedforward_layernorm.output",
    "affine_connection": True,
}
_KEPT = {"b_dec": HELD["b_dec"], "k": np.array(K), "threshold": np.array(0.4, np.float32)}
# Of the later form the number of features is a multiple of the width.
CUT = {name: array[..., :18] if name != "W_dec" else array[:18] for name, array in HELD.items()}

FOLDERS = {
    "gemma-scope": below("gemma-scope-2b-pt-res/layer_3/width_1k/average_l0_5", {"params.npz": JUMP}),
    "gemma-scope-embedding": below(
        "embedding/width_1k/average_l0_5",
        {"params.npz": {**JUMP, "scaling_factor": np.ones(F, np.float32)}},
    ),
    "gemma-scope-2": below(
        "transcoder_all/layer_3_width_1k_l0_small_affine",
        {
            "config.json": _SCOPE_2,
            "params.safetensors": {
                **named(W_enc="w_enc", W_dec="w_dec", b_enc="b_enc", b_dec="b_dec"),
                **named(threshold="threshold", W_skipT="affine_skip_connection"),
            },
        },
    ),
    "llama-scope": below(
        "Llama3_1-8B-Base-L3R-8x",
        {
            "hyperparams.json": {
                "d_model": D,
                "d_sae": F,
                "jump_relu_threshold": 0.3,
                "dataset_average_activation_norm": {"in": 1.7, "out": 1.7},
                "norm_activation": "dataset-wise",
                "hook_point_in": "blocks.3.hook_resid_post",
                "hook_point_out": "blocks.3.hook_resid_post",
                "sparsity_include_decoder_norm": False,
            },
            "checkpoints/final.safetensors": LAYERS,
        },
    ),
    "llama-scope-later": below(
        "L5R",
        {
            "config.json": _LATER,
            "sae_weights.safetensors": {
                "encoder.weight": np.ascontiguousarray(CUT["W_enc"].T),
                "decoder.weight": np.ascontiguousarray(CUT["W_dec"].T),
                "encoder.bias": CUT["b_enc"],
                "decoder.bias": HELD["b_dec"],
                "log_jumprelu_threshold": np.log(LEVELS[:18]),
            },
        },
    ),
    "qwen-scope": below(
        f"SAE-Res-Qwen3-8B-Base-W64K-L0_{K}",
        {"layer7.sae.pt": named(W_encT="W_enc", W_decT="W_dec", b_enc="b_enc", b_dec="b_dec")},
    ),
    "goodfire": {
        "Llama-3.1-8B-Instruct-SAE-l19.pth": {
            name.replace(".", "_linear."): held for name, held in LAYERS.items()
        }
    },
    "deepseek": {"DeepSeek-R1-Distill-Llama-8B-SAE-l19.pt": LAYERS},
    "hook-z": {
        "gpt2-small_L5_Hcat_z_lr1.20e-03_v9.pt": PLAIN,
        "gpt2-small_L5_Hcat_z_lr1.20e-03_v9_cfg.json": {
            "act_size": D,
            "dict_size": F,
            "act_name": "blocks.5.attn.hook_z",
            "lr": 1e-3,
        },
    },
    "auto-encoder": trained(
        "AutoEncoder", {**_ENCODER, **named(W_decT="decoder.weight", b_dec="bias")}, l1_penalty=0.1
    ),
    "auto-encoder-new": trained("AutoEncoderNew", LAYERS),
    "gated": trained(
        "GatedAutoEncoder",
        {
            **named(W_encT="encoder.weight", W_decT="decoder.weight", b_dec="decoder_bias"),
            "gate_bias": HELD["b_enc"],
            "mag_bias": HELD["threshold"],
            "r_mag": HELD["b_enc"] * np.float32(0.5),
        },
    ),
    "jumprelu": trained("JumpReluAutoEncoder", JUMP),
    "topk": trained("AutoEncoderTopK", {**_ENCODER, **named(W_decT="decoder.weight"), **_KEPT}, k=K),
    "batchtopk": trained("BatchTopKSAE", {**_ENCODER, **named(W_decT="decoder.weight"), **_KEPT}, k=K),
    "matryoshka": trained(
        "MatryoshkaBatchTopKSAE", {**PLAIN, **_KEPT, "group_sizes": np.array([4, 6, 10])}, k=K
    ),
    "sparsify": below(
        "layers.3.mlp",
        {
            "cfg.json": {**_SPARSIFY, "activation": "topk", "transcode": False, "skip_connection": False},
            "sae.safetensors": {**_ENCODER, "W_dec": HELD["W_dec"], "b_dec": HELD["b_dec"]},
        },
    ),
    "sparsify-transcoder": below(
        "layers.3.mlp",
        {
            "cfg.json": {**_SPARSIFY, "activation": "groupmax", "transcode": True, "skip_connection": True},
            "sae.safetensors": {
                **_ENCODER,
                **{name: HELD[name] for name in ("W_dec", "b_dec", "W_skip")},
            },
        },
    ),
}
"""Name -> files of a good folder: arrays of the weights, and fields of the config."""

WEIGHTS = {
    name: next(path for path in files if not path.endswith(".json")) for name, files in FOLDERS.items()
}
CONFIGS = {
    name: next((path for path in files if path.endswith(".json")), None) for name, files in FOLDERS.items()
}


def written(root, files):
    """Write files: fields as JSON, arrays by the ending of the name, bytes as they are."""
    for name, held in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if held is LEFT_OUT:
            continue
        if isinstance(held, bytes):
            path.write_bytes(held)
        elif name.endswith(".json"):
            path.write_text(json.dumps({key: value for key, value in held.items() if value is not LEFT_OUT}))
        else:
            arrays = {key: array for key, array in held.items() if array is not LEFT_OUT}
            writer = {".npz": _npz, ".pt": write_state_dict, ".pth": write_state_dict}
            writer.get(path.suffix, _safetensors)(path, arrays)
    return root


def _npz(path, arrays):
    np.savez(path, **arrays)


def _safetensors(path, arrays):
    save_file(arrays, path)


def source(root, name, files=None):
    """What is loaded: the folder, or the file where a format has one file."""
    written(root, FOLDERS[name] if files is None else files)
    return root / WEIGHTS[name] if CONFIGS[name] is None and ".npz" not in WEIGHTS[name] else root


def files_with(name, part, change):
    """The files of a folder, with one of them changed."""
    path = (WEIGHTS if part == "weights" else CONFIGS)[name]
    return {**FOLDERS[name], path: change(FOLDERS[name][path])}


def npy(array):
    held = io.BytesIO()
    np.lib.format.write_array(held, array, allow_pickle=True)
    return held.getvalue()


def archive(root, compression=zipfile.ZIP_STORED, **entries):
    """A folder of Gemma Scope in which some entries are replaced by bytes."""
    path = source(root, "gemma-scope")
    held = FOLDERS["gemma-scope"][WEIGHTS["gemma-scope"]]
    with zipfile.ZipFile(root / WEIGHTS["gemma-scope"], "w", compression) as file:
        for name, data in {**{name: npy(array) for name, array in held.items()}, **entries}.items():
            file.writestr(f"{name}.npy", data)
    return path
