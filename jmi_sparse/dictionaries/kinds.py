"""Every kind of dictionary there is, for those who take any of them."""

from jmi_sparse.dictionaries.crosscoder import Crosscoder
from jmi_sparse.dictionaries.crosslayer import CrossLayerTranscoder
from jmi_sparse.dictionaries.dictionary import Dictionary
from jmi_sparse.dictionaries.layered import DictionarySet
from jmi_sparse.dictionaries.pursuit import MatchingPursuit
from jmi_sparse.dictionaries.temporal import Temporal

AnyDictionary = Dictionary | MatchingPursuit | Temporal | DictionarySet | CrossLayerTranscoder | Crosscoder
