"""Commands on dictionaries, as a person types them."""

import dataclasses
import json

import numpy as np
import pytest

import jmi_sparse
from tests.cli.command_line import jmi, refused
from tests.support.trained import SITE

PROMPT = "The capital of France is"


def done(*arguments):
    found = jmi(*arguments)
    assert found.returncode == 0, found.stderr
    return found.stdout


@pytest.fixture(scope="module")
def given(folder_of_capitals):
    return ("--dictionaries", folder_of_capitals)


@pytest.fixture(scope="module")
def tokyo(atlas, capitals):
    """The feature whose row points most at the word."""
    direction = atlas.params["embed"]["W_E"][atlas.token_id(" Tokyo")]
    return jmi_sparse.best_rows(capitals, direction, k=1)[0].id


@pytest.fixture(scope="module")
def written(tmp_path_factory, given, tokyo):
    """What each command writes, by its name, and its picture."""
    folder, found = tmp_path_factory.mktemp("written"), {}
    labels = folder / "labels.json"
    labels.write_text(json.dumps({f"4:{tokyo}": "capital cities"}))
    lines = {
        "features": [PROMPT, "--position", "-1"],
        "probe-features": [" Tokyo", "--top", "6", "--labels", labels],
        "vocab-scan": ["--step", "8", "--tokens", "4"],
        "inject": [
            "--inject",
            f"4:{tokyo}",
            "--word",
            " Tokyo",
            "--strength",
            "0.5",
            "--strength",
            "1",
            "--controls",
            "2",
        ],
        "correct": [
            "--commit",
            f"4:{tokyo}",
            "--correct",
            "4:3",
            "--word",
            " Tokyo",
            " Paris",
            "--most",
            "2",
        ],
        "compare": ["--against", given[1], "--layer", "4", "--strength", "0.5", "--top", "2"],
    }
    text = folder / "text.txt"
    text.write_text("The capital of France is Paris.\n\nJapan is a country in Asia. Its capital is Tokyo.\n")
    lines["feature"] = [f"4:{tokyo}", "--text", text, "--examples", "1", "--labels", labels]
    for name, line in lines.items():
        output, plot = folder / f"{name}.json", folder / f"{name}.png"
        text = done(name, *line, *given, "--output", output, "--plot", plot)
        record = json.loads(output.read_text())
        assert record["command"] == name
        assert {"schema_version", "model", "packages", "device"} <= set(record)
        assert plot.read_bytes().startswith(b"\x89PNG")
        found[name] = record, text
    return found


def test_active_features_of_a_token(written, atlas, capitals):
    record, text = written["features"]
    stream = atlas.run(PROMPT, capture=[SITE])[SITE]
    want = np.asarray(capitals.encode(stream))[0, -1]
    found = {row["id"]: row["activation"] for row in record["features"]}
    assert set(found) == set(np.flatnonzero(want))
    np.testing.assert_allclose([found[i] for i in found], want[list(found)], rtol=1e-5)
    assert {row["position"] for row in record["features"]} == {5}
    assert f"4:{want.argmax()}" in text
    assert record["dictionaries"]["loaded"][SITE].startswith("Dictionary(sae, TopK")


def test_features_that_point_at_a_word_with_their_labels(written, atlas, capitals):
    record, text = written["probe-features"]
    direction = np.asarray(atlas.params["embed"]["W_E"])[atlas.token_id(" Tokyo")]
    rows = np.asarray(capitals.W_dec)
    cosines = rows @ direction / np.linalg.norm(rows, axis=1) / np.linalg.norm(direction)
    assert [row["id"] for row in record["features"]] == list(np.argsort(-cosines)[:6])
    assert [row["label"] for row in record["features"]] == ["capital cities", *[None] * 5]
    assert "capital cities" in text


def test_a_scan_names_the_nearest_tokens_of_each_feature(written, atlas):
    record, _ = written["vocab-scan"]
    assert len(record["features"]) == 48
    best = [row["cosines"][0] for row in record["features"]]
    assert best == sorted(best, reverse=True)
    first = record["features"][0]
    assert first["tokens"] == [atlas.token_string(i) for i in first["token_ids"]]
    assert first["id"] % 8 == 0


def test_what_is_injected_is_what_the_function_gives(written, atlas, capitals, tokyo):
    record, text = written["inject"]
    found = jmi_sparse.planning_site(
        atlas,
        PROMPT,
        capitals,
        word=atlas.token_id(" Tokyo"),
        injected=[(4, tokyo)],
        strengths=[0.5, 1],
        controls=2,
        progress=False,
    )
    np.testing.assert_allclose(record["result"]["probs"]["values"], found.probs, rtol=1e-4)
    np.testing.assert_allclose(record["result"]["control_probs"]["values"], found.control_probs, rtol=1e-4)
    assert f"position {found.best[0]}" in text


def test_a_correction_and_a_comparison_are_told(written):
    record, text = written["correct"]
    assert len(record["result"]["strengths"]["values"]) == 13
    assert "P(' Tokyo')" in text
    record, text = written["compare"]
    assert set(record["arms"]) == {"first", "second"}
    assert record["arms"]["first"] == record["arms"]["second"]
    assert len(record["arms"]["first"]["ranked"]) == 2
    assert "second: 4:" in text


def test_a_feature_is_shown_where_it_is_strongest(written, atlas, capitals, tokyo):
    record, text = written["feature"]
    sentences = ["The capital of France is Paris.", "Japan is a country in Asia. Its capital is Tokyo."]
    acts = [
        np.asarray(capitals.encode(atlas.run(one, capture=[SITE])[SITE]))[0, :, tokyo] for one in sentences
    ]
    best = max(acts, key=lambda values: values.max())
    np.testing.assert_allclose(record["feature"]["act_max"], best.max(), rtol=1e-5)
    top = record["feature"]["examples_quantiles"][0]["examples"][0]
    np.testing.assert_allclose(top["tokens_acts_list"], best[: len(top["tokens"])], atol=1e-6)
    assert f"[{top['tokens'][int(best.argmax())]}]" in text
    logits = np.asarray(capitals.W_dec)[tokyo] @ np.asarray(atlas.params["embed"]["W_E"]).T
    assert record["feature"]["top_logits"][0] == atlas.token_string(int(logits.argmax()))
    answers = np.asarray(atlas.params["embed"]["W_E"]) @ np.asarray(capitals.W_enc)[:, tokyo]
    assert record["reads"][0]["token_id"] == answers.argmax()
    assert (record["layer"], record["id"], record["label"]) == (4, tokyo, "capital cities")


def test_a_dictionary_is_described_and_scored(given, tmp_path, atlas, capitals):
    text, output, plot = tmp_path / "text.txt", tmp_path / "sae.json", tmp_path / "sae.png"
    sentences = ["The capital of France is Paris", "The currency of Japan is the yen"]
    text.write_text("\n".join(sentences))
    shown = done("sae", given[1], "--text", text, "--output", output, "--plot", plot)
    assert "Dictionary(sae, TopK, 128 -> 384 -> 128" in shown
    assert plot.read_bytes().startswith(b"\x89PNG")
    found = jmi_sparse.score(atlas, sentences, {SITE: capitals}, progress=False)
    scores = json.loads(output.read_text())["scores"]
    assert scores["features"][SITE]["l0"] == pytest.approx(found.features[SITE].l0)
    assert scores["outputs"][SITE]["fvu_saelens"] == pytest.approx(found.outputs[SITE].fvu_saelens, rel=1e-4)
    assert scores["losses"][SITE]["ce_spliced"] == pytest.approx(found.losses[SITE].ce_spliced, rel=1e-4)
    assert f"{found.losses[SITE].loss_recovered_zero:.1%}" in shown
    assert "DICTIONARY is needed" in refused("sae")
    assert "no text in it" in refused("sae", given[1], "--text", _empty(tmp_path))


def _empty(folder):
    path = folder / "empty.txt"
    path.write_text("\n \n")
    return path


def test_published_experiments_are_named():
    text = done("inject", "--preset", "list")
    assert "llama3.2-1b-524k" in text
    assert "gemma2-2b-2.5m" in text
    assert "there are llama3.2-1b-524k" in refused("inject", "--preset", "llama")


@pytest.mark.parametrize(
    "name", ["features", "probe-features", "vocab-scan", "inject", "correct", "compare", "feature"]
)
def test_dictionaries_are_needed(name):
    assert "--dictionaries is needed" in refused(name)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (("features", "--position", "9"), "6 tokens"),
        (("features", "--labels", "nowhere.json"), "no such file"),
        (("features", "--plot", "picture.gif"), ".png"),
        (("probe-features", " Constantinople of old"), "one token"),
        (("probe-features", " Tokyo", "--target", "2"), "no feature writes"),
        (("inject", "--inject", "four"), "layer and id"),
        (("inject", "--strength", "nan"), "finite"),
        (("correct", "--most", "inf"), "finite"),
        (("inject", "--word", ""), "one token"),
        (("inject", ""), "empty"),
        (("inject", "--inject", "4:9999"), "ids from 0"),
        (("inject", "--inject", "3:1"), "features of layers"),
        (
            (
                "correct",
                "--commit",
                "4:1",
                "--correct",
                "4:2",
                "--word",
                " Rome",
                " Paris",
                "--from-layer",
                "2",
            ),
            "later layers",
        ),
        (("feature", "4:9999"), "384 features"),
        (("feature", "2:1"), "features of layers [4]"),
        (("feature", "4:1", "--text", "nowhere.txt"), "nowhere.txt"),
        (("compare",), "--against"),
        (("vocab-scan", "--layer", "9"), "decoders of"),
        (("vocab-scan", "--output", "nowhere/x.json"), "does not exist"),
    ],
)
def test_bad_input_is_one_clear_error(given, line, words):
    assert words in refused(*line, *given)


def test_two_dictionaries_of_one_layer_would_share_their_names(given):
    assert "one dictionary of a layer" in refused("features", *given, *given)


def test_rows_of_heads_point_at_no_token(tmp_path, capitals):
    place = tmp_path / "heads"
    site = "blocks.4.attn.hook_z"
    jmi_sparse.save(dataclasses.replace(capitals, hook_in=site, hook_out=site, hook_z=True), place)
    for line in (("probe-features", " Tokyo"), ("vocab-scan",), ("inject",)):
        assert "no vectors of this model's stream" in refused(*line, "--dictionaries", place)
    assert "reads " not in done("feature", "4:3", "--dictionaries", place)


def test_text_that_is_none(given, tmp_path):
    (tmp_path / "text").write_bytes("word".encode("utf-16"))
    assert "not UTF-8" in refused("sae", given[1], "--text", tmp_path / "text")


def test_a_folder_that_is_none(tmp_path):
    assert "no format of dictionaries" in refused("features", "--dictionaries", tmp_path)
    assert "nothing" in refused("features", "--dictionaries", tmp_path)
