"""The names that ``jmi_sparse`` hands on: the only list of them (`jmi.lazy`)."""

from jmi_sparse.activations import (
    BatchTopK as BatchTopK,
    Gated as Gated,
    JumpReLU as JumpReLU,
    ReLU as ReLU,
    TopK as TopK,
)
from jmi_sparse.active import Sparse as Sparse
from jmi_sparse.crosscoder import Crosscoder as Crosscoder
from jmi_sparse.crosslayer import CrossLayerTranscoder as CrossLayerTranscoder
from jmi_sparse.dictionary import Dictionary as Dictionary
from jmi_sparse.folding import at_threshold as at_threshold, fold_norm_factor as fold_norm_factor
from jmi_sparse.layered import DictionarySet as DictionarySet, stack as stack
from jmi_sparse.pursuit import MatchingPursuit as MatchingPursuit
from jmi_sparse.splice import splice as splice
from jmi_sparse.temporal import Temporal as Temporal
from jmi_sparse.load import load as load, save as save
from jmi_sparse.normalisation import (
    ConstantNorm as ConstantNorm,
    LayerNorm as LayerNorm,
    Outside as Outside,
    Scalar as Scalar,
)
