"""The names that ``jmi_sparse`` hands on: the only list of them (`jmi.lazy`)."""

from . import bench as bench
from jmi_sparse.dictionaries.activations import (
    BatchTopK as BatchTopK,
    Gated as Gated,
    GroupMax as GroupMax,
    JumpReLU as JumpReLU,
    ReLU as ReLU,
    TopK as TopK,
)
from jmi_sparse.dictionaries.active import Sparse as Sparse
from jmi_sparse.steering.comparing import Arm as Arm, compare_arm as compare_arm
from jmi_sparse.steering.correcting import Correction as Correction, commit_and_correct as commit_and_correct
from jmi_sparse.dictionaries.crosscoder import Crosscoder as Crosscoder
from jmi_sparse.dictionaries.crosslayer import CrossLayerTranscoder as CrossLayerTranscoder
from jmi_sparse.dictionaries.dictionary import Dictionary as Dictionary
from jmi_sparse.scoring.examples import examples as examples
from jmi_sparse.features import ActiveFeatures as ActiveFeatures, Encode as Encode, features as features
from jmi_sparse.dictionaries.folding import at_threshold as at_threshold, fold_norm_factor as fold_norm_factor
from jmi_sparse.steering.inject import inject as inject
from jmi_sparse.scoring.labels import Labels as Labels, labels as labels
from jmi_sparse.steering.planning import PlanningSite as PlanningSite, planning_site as planning_site
from jmi_sparse.dictionaries.layered import DictionarySet as DictionarySet, stack as stack
from jmi_sparse.registry.listed import releases as releases
from jmi_sparse.dictionaries.pursuit import MatchingPursuit as MatchingPursuit
from jmi_sparse.scoring.scores import score as score
from jmi_sparse.scoring.found import Examples as Examples
from jmi_sparse.scoring.scored import Scores as Scores
from jmi_sparse.splicing.splice import splice as splice
from jmi_sparse.dictionaries.temporal import Temporal as Temporal
from jmi_sparse.load import load as load, save as save
from jmi_sparse.decoders.on_disk import open_decoder as open_decoder
from jmi_sparse.dictionaries.normalisation import (
    ConstantNorm as ConstantNorm,
    LayerNorm as LayerNorm,
    Outside as Outside,
    Scalar as Scalar,
)
from jmi_sparse.decoders.search import (
    Found as Found,
    Row as Row,
    best_rows as best_rows,
    search_decoders as search_decoders,
)
from jmi_sparse.decoders.virtual import virtual_weights as virtual_weights
from jmi_sparse.decoders.vocabulary import Nearest as Nearest, vocab_scan as vocab_scan
from jmi_sparse.decoders.rows import decoders_of as decoders_of
from jmi_sparse.formats.reading.decoders import Decoders as Decoders
