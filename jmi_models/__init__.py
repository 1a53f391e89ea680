"""Architectures and loading: Hugging Face folders, the hub, the embedded model."""

from jmi_models.hub import CachedModel, list_cached
from jmi_models.loading import architecture, load, save
from jmi_models.params import init, n_params
from jmi_models.transformer import Transformer
