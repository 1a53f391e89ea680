"""Pictures: nothing is cut off, nothing is drawn as if it were something."""

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

import jmi_models
from jmi.interp import knockout
from jmi.plots import new_figure, shown
from jmi.plots.heatmap import plot_heatmap
from jmi.plots.knockout import plot_knockout

TITLES = {
    "short": "atlas: 'The capital of France is'",
    "long": "atlas: " + "When John and Mary went to the shop, John gave the book to. " * 5,
    "two lines": "atlas, hook_resid_pre: denoising\n" + "The capital of France is " * 12,
    "one word": "x" * 1000,
    "wide letters": "W" * 60 + " M" * 50,
    "odd": "it costs $5 or $6 {x} \\frac \x1b[31m " * 10,
}


def heatmap(values, title="title"):
    rows, columns = (("layer", ["0", "1"]), ("position", ["a", "b", "c"]))
    return plot_heatmap(np.asarray(values), rows, columns, title, "share")


@pytest.mark.parametrize("title", TITLES.values(), ids=TITLES)
@pytest.mark.parametrize("wide", [False, True])
def test_a_title_is_in_the_picture_as_a_whole(title, wide):
    figure = new_figure(11.5, 4.8, title) if wide else heatmap(np.eye(2, 3), title)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    (text,) = [child for child in figure.texts if child.get_text()]
    box, whole = text.get_window_extent(canvas.get_renderer()), figure.bbox
    assert 0 <= box.x0 < box.x1 <= whole.x1
    assert 0 <= box.y0 < box.y1 <= whole.y1
    if len(title) < 400:
        kept = title.replace("\x1b", "\\x1b")
        assert "".join(text.get_text().split()) == "".join(kept.split())


@pytest.mark.parametrize("largest", [0.0, 1e-12, 1e-7, -1e-5, 9e-4])
def test_a_map_of_nothing_is_pale(largest):
    values = np.zeros((2, 3))
    values[1, 2] = largest
    for given in (values, np.where(values == 0, np.nan, values)):
        (image, _) = (axes.collections + axes.images for axes in heatmap(given).axes)
        assert image[0].norm.vmin == -1
        assert image[0].norm.vmax == 1


@pytest.mark.parametrize("largest", [2e-3, 0.3, -1.0, 40.0])
def test_a_map_of_something_uses_its_colours(largest):
    values = np.zeros((2, 3))
    values[1, 2] = largest
    assert heatmap(values).axes[0].images[0].norm.vmax == abs(largest)


def test_a_knockout_without_effect_says_so_in_its_picture():
    lm = jmi_models.load("atlas")
    for layer, words in ((1, "nothing changed"), (None, "KL(before || after)")):
        result = knockout(lm, "The capital of France is", layer=layer, keys=0 if layer else -2, top=3)
        figure = plot_knockout(result, list("abcdef"), list("xyz"), "title")
        assert words in figure.axes[1].get_title()


def test_labels_show_what_a_token_is_and_are_not_long():
    assert shown(" a\tb\n") == "␣a⇥b⏎"
    assert shown("\x1b[31m") == r"\x1b[31m"
    assert shown("$x$") == r"\$x\$"
    assert len(shown("x" * 100)) == 24
