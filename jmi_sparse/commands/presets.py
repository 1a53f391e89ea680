"""Prompts, words and features of the planning-site experiment that others published, as data.

Source: the presets of candle-mi, whose features its authors found in the dictionaries named here.
"""

from typing import NamedTuple

from jmi_sparse.steering.planning import Feature


class Preset(NamedTuple):
    """One experiment: what is suppressed and injected, and the word that is followed."""

    model: str
    dictionaries: str
    prompt: str
    suppress: tuple[Feature, ...]
    inject: Feature
    word: str


_BIRDS = (
    "The birds were singing in the tree,\nAnd everything was wild and free.\n"
    "The river ran down to the sea,\nThere is so much we cannot "
)
_STARS = (
    "The stars were twinkling in the night,\nThe lanterns cast a golden light.\n"
    "She wandered in the dark about,\nAnd found a hidden passage "
)
_CELEBRATION = (
    "At every grand celebration,\nEach careful preparation,\n"
    "Brings joy beyond expectation,\nAnd then the brief "
)
_TEEN = (
    "She counted thirteen, then fourteen,\nFollowed shortly by fifteen,\n"
    "And carefully whispered sixteen,\nBefore she reached "
)
_LLAMA, _GEMMA = "meta-llama/Llama-3.2-1B", "google/gemma-2-2b"
_SMALL, _LARGE = "Qwen/Qwen3-0.6B-Base", "Qwen/Qwen3-1.7B-Base"
_SMALL_20K, _LARGE_20K = "bluelightai/clt-qwen3-0.6b-base-20k", "bluelightai/clt-qwen3-1.7b-base-20k"
_SMALL_16K = "bluelightai-dev/clt-Qwen3-0.6B-Base-16k-test"

PRESETS = {
    "llama3.2-1b-524k": Preset(
        _LLAMA,
        "mntss/clt-llama-3.2-1b-524k",
        _BIRDS,
        ((13, 30985), (9, 5488), (14, 27874), (13, 32049)),
        (14, 13043),
        " that",
    ),
    "gemma2-2b-426k": Preset(
        _GEMMA, "mntss/clt-gemma-2-2b-426k", _STARS, ((16, 13725), (25, 9385)), (22, 10243), " around"
    ),
    "gemma2-2b-2.5m": Preset(
        _GEMMA,
        "mntss/clt-gemma-2-2b-2.5M",
        _STARS,
        ((25, 57092), (23, 49923), (20, 77102)),
        (25, 82839),
        " can",
    ),
    "qwen3-1.7b-20k-ation": Preset(
        _LARGE, _LARGE_20K, _CELEBRATION, ((15, 263), (18, 3801), (18, 4404)), (21, 3908), " myself"
    ),
    "qwen3-1.7b-20k-teen": Preset(
        _LARGE, _LARGE_20K, _TEEN, ((27, 16975), (20, 3668), (18, 10986)), (15, 263), " duration"
    ),
    "qwen3-0.6b-20k-ation": Preset(
        _SMALL, _SMALL_20K, _CELEBRATION, ((19, 9578), (0, 8867), (25, 4979)), (22, 4081), " myself"
    ),
    "qwen3-0.6b-20k-teen": Preset(
        _SMALL, _SMALL_20K, _TEEN, ((27, 16425), (23, 15839), (26, 6308)), (19, 9578), " duration"
    ),
    "qwen3-0.6b-16k-ation": Preset(
        _SMALL, _SMALL_16K, _CELEBRATION, ((23, 11154), (20, 10987), (14, 10719)), (22, 8011), " myself"
    ),
}
