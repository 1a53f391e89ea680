"""The names that ``jmi_models`` hands on: the only list of them (`jmi.lazy`)."""

from jmi.engine.listed import listed as listed
from jmi_models.adapted import adapt as adapt
from jmi_models.auto import CompatibilityReport as CompatibilityReport
from jmi_models.controls import shuffled as shuffled
from jmi_models.decoder.transformer import Transformer as Transformer
from jmi_models.lenses import load_lens as load_lens, save_lens as save_lens
from jmi_models.loading import architecture as architecture, inspect as inspect, load as load
from jmi_models.params import init as init, n_params as n_params
from jmi_models.processing import (
    centre_unembedding as centre_unembedding,
    centre_writing_weights as centre_writing_weights,
    fold_norm_gains as fold_norm_gains,
    fold_value_biases as fold_value_biases,
)
from jmi_models.rwkv.architecture import Rwkv as Rwkv
from jmi_models.saving import save as save
from jmi_models.weights.hub import CachedModel as CachedModel, list_cached as list_cached
