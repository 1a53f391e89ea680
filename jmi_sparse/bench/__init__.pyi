"""The names that ``jmi_sparse.bench`` hands on: the only list of them (`jmi.lazy`)."""

from jmi_sparse.bench.absorption import (
    Absorption as Absorption,
    absorbed as absorbed,
    absorption as absorption,
)
from jmi_sparse.bench.examples import mean_over_tokens as mean_over_tokens
from jmi_sparse.bench.main_latents import MainLatents as MainLatents, main_latents as main_latents
from jmi_sparse.bench.probes import Probe as Probe, fit_probe as fit_probe
from jmi_sparse.bench.removal import Scr as Scr, Tpp as Tpp, scr as scr, tpp as tpp
from jmi_sparse.bench.sparse_probing import SparseProbing as SparseProbing, sparse_probing as sparse_probing
