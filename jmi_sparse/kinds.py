"""Every kind of dictionary there is, for those who take any of them."""

from jmi_sparse.crosscoder import Crosscoder
from jmi_sparse.crosslayer import CrossLayerTranscoder
from jmi_sparse.dictionary import Dictionary
from jmi_sparse.layered import DictionarySet
from jmi_sparse.pursuit import MatchingPursuit
from jmi_sparse.temporal import Temporal

AnyDictionary = Dictionary | MatchingPursuit | Temporal | DictionarySet | CrossLayerTranscoder | Crosscoder
