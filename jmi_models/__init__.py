"""Architectures and loading: Hugging Face folders, the hub, the embedded model."""

from jmi_models.auto import CompatibilityReport
from jmi_models.controls import shuffled
from jmi_models.decoder.transformer import Transformer
from jmi_models.loading import architecture, inspect, load, save
from jmi_models.params import init, listed, n_params
from jmi_models.processing import (
    centre_unembedding,
    centre_writing_weights,
    fold_norm_gains,
    fold_value_biases,
)
from jmi_models.rwkv.architecture import Rwkv
from jmi_models.weights.hub import CachedModel, list_cached
