"""The shipped model: what its card claims, that transformers agrees, that training is reproducible."""

import functools
import json
import re

import jax
import numpy as np
import pytest
from scipy.special import log_softmax

import jmi
import jmi_models
from jmi_models.embedded import MODELS, batches, checkpoint, corpus, evaluate, phrases, train
from jmi_models.embedded.facts import COUNTRIES
from jmi_models.embedded.tokenizer import build_tokenizer
from jmi_models.families import llama
from tests.support.tolerances import assert_agree

FOLDER = MODELS["atlas"]
REQUIRED = {
    "facts in unseen phrasings": 0.95,
    "facts in phrasings of another author": 0.95,
    "indirect object": 0.95,
    "induction on random words": 0.90,
    "greater-than": 0.95,
}


@functools.cache
def tokenizer():
    """Made by the script; making it takes seconds."""
    return build_tokenizer(0)


@functools.cache
def scores():
    """As `train.logits_fn`, in faster machine code than the suite's: these are eight thousand prompts."""
    lm = jmi_models.load("atlas")
    quick = {"xla_backend_optimization_level": 1}
    forward = jax.jit(
        lambda tokens, at: jmi.forward(lm.arch, lm.params, tokens, logits_at=at).logits,
        compiler_options=quick,
    )
    return evaluate.evaluate(lambda tokens, at: np.asarray(forward(tokens, at)), lm.tokenizer._backend)


@pytest.mark.xdist_group("scores of atlas")
@pytest.mark.parametrize("task", REQUIRED)
def test_held_out_accuracy_is_what_the_model_is_for(task):
    assert scores()[task] >= REQUIRED[task]


@pytest.mark.xdist_group("scores of atlas")
def test_the_card_states_the_measured_accuracies():
    card = (FOLDER / "README.md").read_text()
    stated = dict(re.findall(r"^\| (.+?) \| ([\d.]+) ?%? \|$", card, re.MULTILINE))
    assert set(stated) >= set(REQUIRED)
    for task, value in stated.items():
        assert float(value) == pytest.approx(100 * scores()[task], abs=0.5), task


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        ("The capital of France is", " Paris"),
        ("When Mary and John went to the store, John gave a drink to", " Mary"),
    ],
)
def test_well_known_prompts(prompt, answer):
    lm = jmi_models.load("atlas")
    assert lm.token_string(lm.run(prompt).logits[0, -1].argmax()) == answer


def test_the_evaluation_sees_the_logits_of_the_model():
    lm, tokens, at = jmi_models.load("atlas"), np.arange(24, dtype=np.int32).reshape(2, 12), np.array([3, 11])
    logits, want = train.logits_fn(lm.arch, lm.params), np.asarray(lm.run(tokens).logits)
    assert_agree(logits(tokens, None), want)
    assert_agree(logits(tokens, at), want[[0, 1], at])


def test_it_is_small_and_complete():
    files = {file.name: file.stat().st_size for file in FOLDER.iterdir()}
    assert set(files) == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "README.md",
    }
    assert sum(files.values()) < 10e6


@pytest.mark.parametrize("relation", phrases.BLIND)
def test_facts_are_trained_in_many_phrasings_that_fit_a_row_and_no_held_out_one(relation):
    composed, written = phrases.FACTS_TRAIN[relation]
    trained, unseen = composed + written, phrases.FACTS_HELD_OUT[relation] + phrases.FACTS_BLIND[relation]
    assert len(set(composed)) == len(composed) > 500
    assert len(set(written)) == len(written) > 300
    assert 20 < len(phrases.FACTS_HELD_OUT[relation]) < len(written) / 9
    blanks = {"x": "France", "n": "Mary", "m": "Mary", "c": COUNTRIES[0], "d": COUNTRIES[-1]}
    texts = [phrasing.format(**blanks) for phrasing in trained]
    assert not {text.lower() for text in texts} & {text.format(**blanks).lower() for text in unseen}
    answer = 1
    assert all(len(e.ids) + answer <= batches.SHORT[1] for e in tokenizer().encode_batch(texts))


def test_batches_depend_on_seed_and_step_alone():
    again = build_tokenizer(0)
    for step in (0, 7, 2000):
        one, two = batches.batch(tokenizer(), 3, step), batches.batch(again, 3, step)
        np.testing.assert_array_equal(one.tokens, two.tokens)
        np.testing.assert_array_equal(one.weights, two.weights)
    assert (batches.batch(tokenizer(), 4, 2000).tokens != two.tokens).any()


def test_of_a_fact_only_the_answer_counts(monkeypatch):
    monkeypatch.setattr(batches, "piece", corpus.fact)
    rows = batches.text_rows(np.random.default_rng(0), tokenizer(), 100, 64, alone=True, quotes=1.0)
    for weights in rows.weights:
        (answer,) = np.flatnonzero(weights == batches.ANSWER_WEIGHT)
        assert not weights[:answer].any()
        assert weights[answer + 1] == batches.TEXT_WEIGHT
    assert sum('"' in tokenizer().decode(row.tolist()) for row in rows.tokens) > 50


def test_the_loss_is_that_of_all_logits_weighted():
    lm = jmi_models.load("atlas")
    batch = batches.batch(tokenizer(), 0, 2000)
    counted = batches.counted(batch)
    assert len(counted.places) % batches.PLACES == 0
    logits = np.asarray(lm.run(batch.tokens).logits, np.float64)[:, :-1]
    rows = np.take_along_axis(log_softmax(logits, -1), batch.tokens[:, 1:, None], -1)[..., 0]
    want = -(rows * batch.weights[:, 1:]).sum() / batch.weights[:, 1:].sum()
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        got = jax.jit(train.loss_fn, static_argnums=1)(lm.params, lm.arch, counted)
    assert_agree(got, np.float32(want), "oracle")


def test_the_shipped_tokenizer_is_the_one_the_script_makes():
    made = json.loads(tokenizer().to_str())
    assert json.loads((FOLDER / "tokenizer.json").read_text()) == made


def test_resumed_training_ends_where_uninterrupted_training_does(tmp_path, monkeypatch):
    """Four steps on tiny batches, against two, a checkpoint, and two more: equal to the last bit."""
    monkeypatch.setattr(batches, "SHORT", (4, 16))
    monkeypatch.setattr(batches, "LONG", (4, 16))
    monkeypatch.setattr(train, "CHECKPOINT_EVERY", 2)
    monkeypatch.setattr(train, "WARMUP", 1)
    arch = llama.from_config({**train.hf_config(tokenizer().get_vocab_size()), "num_hidden_layers": 1})
    file = tmp_path / "checkpoint.safetensors"
    kept = tmp_path / "kept.safetensors"
    written = []

    def keep_first(path, state, step, run):
        written.append(step)
        checkpoint.write_checkpoint(kept if step == 2 else path, state, step, run)

    monkeypatch.setattr(train, "write_checkpoint", keep_first)
    # optax itself mixes dtypes and ranks.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        whole = train.train(tokenizer(), arch, 4, 0, file, resume=False)
        resumed = train.train(tokenizer(), arch, 4, 0, kept, resume=True)
    assert written == [2, 4, 4]
    jax.tree.map(np.testing.assert_array_equal, whole, resumed)
    with pytest.raises(ValueError, match="settings"):
        train.train(tokenizer(), arch, 5, 0, kept, resume=True)


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore")
def test_transformers_loads_it_with_equal_logits_and_tokens():
    torch = pytest.importorskip("torch", reason="the live oracle needs torch")
    transformers = pytest.importorskip("transformers", reason="the live oracle needs transformers")
    theirs = transformers.LlamaForCausalLM.from_pretrained(
        FOLDER, dtype=torch.float32, attn_implementation="eager"
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(FOLDER)
    lm = jmi_models.load("atlas")
    for text in ("The capital of France is", "Mary and John went to the park. 12 + 7 = 19", "naïve 東京 🙂"):
        tokens = lm.encode(text)
        assert tokenizer(text)["input_ids"] == tokens[0].tolist()
        with torch.no_grad():
            want = theirs(torch.tensor(tokens.astype(np.int64))).logits[0].numpy()
        got = np.asarray(lm.run(tokens).logits[0])
        assert_agree(got, want, "oracle")
        np.testing.assert_array_equal(np.argsort(-got)[:, 0], np.argsort(-want)[:, 0])
        ids = torch.tensor(tokens.astype(np.int64))
        exactly = {"min_new_tokens": 24, "max_new_tokens": 24, "do_sample": False, "pad_token_id": 0}
        said = theirs.generate(ids, attention_mask=torch.ones_like(ids), **exactly)[0, ids.shape[1] :]
        np.testing.assert_array_equal(lm.generate(tokens, 24).tokens[0], said.numpy())
