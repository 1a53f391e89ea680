"""Prompts, dictionaries of random numbers, and their scores by loops written from the definitions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import jmi
import jmi_models
import jmi_sparse

D, F, SITE = 128, 60, "blocks.2.hook_resid_post"
LENGTHS = (5, 9, 20, 1, 7)


@functools.cache
def atlas():
    return jmi_models.load("atlas")


@functools.cache
def padded():
    """Prompts of several lengths that begin with a special token, padded on the left."""
    rng, width = np.random.default_rng(3), max(LENGTHS)
    tokens = rng.integers(2, 4000, (len(LENGTHS), width)).astype(np.int32)
    mask = np.arange(width)[None] >= width - np.array(LENGTHS)[:, None]
    tokens[np.arange(len(LENGTHS)), width - np.array(LENGTHS)] = 0
    tokens[2, 12] = 1  # a special token within a text
    return tokens, mask


def special(tokens):
    return np.isin(tokens, [0, 1])


@functools.cache
def values(*sites):
    """At sites, ``[b, s, d]`` each, in float64; of one run of all prompts."""
    out = atlas().run(padded(), capture=list(sites), exact=True)
    return [np.asarray(out[site], np.float64) for site in sites]


def random_weights(seed, features=F, scale=0.3):
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(features, D)) / D**0.5
    return {
        "W_enc": (rows.T * 1.5).astype(np.float32),
        "W_dec": (rows * scale).astype(np.float32),
        "b_dec": rng.normal(size=D).astype(np.float32) * np.float32(0.1),
        "b_enc": rng.normal(size=features).astype(np.float32) * np.float32(0.3),
    }


def sae(seed=0, activation=None, **options):
    arrays = jax.tree.map(jnp.asarray, random_weights(seed))
    activation = jmi_sparse.ReLU() if activation is None else activation
    return jmi_sparse.Dictionary(activation=activation, **arrays, **options)


def clt():
    """A cross-layer transcoder of layers 1 and 3."""
    one, two = random_weights(6), random_weights(7)
    stacked = {name: jnp.stack([one[name], two[name]]) for name in ("W_enc", "b_enc", "b_dec")}
    rows = jnp.stack([one["W_dec"], random_weights(8)["W_dec"], two["W_dec"]])
    return jmi_sparse.CrossLayerTranscoder(
        activation=jmi_sparse.ReLU(),
        W_dec=rows,
        pairs=((0, 0), (0, 1), (1, 1)),
        layers=(1, 3),
        hook_in="blocks.*.hook_resid_mid",
        hook_out="blocks.*.hook_mlp_out",
        **stacked,
    )


def forward(weights, x):
    """Features and output of ReLU, in float64."""
    w = {name: np.asarray(array, np.float64) for name, array in weights.items()}
    f = np.maximum(x @ w["W_enc"] + w["b_enc"], 0)
    return f, f @ w["W_dec"] + w["b_dec"]


def fvus(y, z, groups):
    """The four, of tokens ``[n, d]``, and of groups of them that were measured together."""
    error = ((y - z) ** 2).sum(-1)
    legacy, by_batch = [], []
    for g in groups:
        away = ((y[g] - y[g].mean(0)) ** 2).sum(-1)
        legacy += list(error[g] / away)
        by_batch.append((len(g), error[g].sum() / away.sum()))
    return {
        "fvu_saelens": error.mean() / ((y**2).sum(-1).mean() - (y.mean(0) ** 2).sum()),
        "fvu_saelens_legacy": np.mean(legacy),
        "fvu_dictionary_learning": (y - z).var(0, ddof=1).sum() / y.var(0, ddof=1).sum(),
        "fvu_sparsify": sum(n * v for n, v in by_batch) / sum(n for n, _ in by_batch),
    }


def of_outputs(y, z, groups):
    norm, own = np.linalg.norm(y, axis=-1), np.linalg.norm(z, axis=-1)
    return fvus(y, z, groups) | {
        "mse": ((y - z) ** 2).sum(-1).mean(),
        "cosine": ((y * z).sum(-1) / (norm * own)).mean(),
        "l2_ratio": (own / norm).mean(),
        "relative_reconstruction_bias": (own**2).mean() / (y * z).sum(-1).mean(),
    }


def of_features(f, rows):
    """Of features ``[n, f]`` of tokens in ``rows``."""
    active = f != 0
    fires = active.sum(0)
    in_rows = np.array([active[rows == row].any(0) for row in np.unique(rows)]).sum(0)
    with np.errstate(invalid="ignore"):
        return {
            "l0": active.sum(1).mean(),
            "l1": np.abs(f).sum(1).mean(),
            "density": fires / len(f),
            "mean_activation": f.sum(0) / fires,
            "consistent_activation": fires / in_rows,
        }


def agree(found, wanted, bar=2e-5):
    for name, value in wanted.items():
        np.testing.assert_allclose(getattr(found, name), value, rtol=bar, atol=1e-7, err_msg=name)


def log_softmax(logits):
    logits = np.asarray(logits, np.float64)
    away = logits - logits.max(-1, keepdims=True)
    return away - np.log(np.exp(away).sum(-1, keepdims=True))


def cross_entropy(logits, counted):
    """Mean of what the counted tokens predict, where another token follows."""
    tokens, mask = padded()
    log_p, found = log_softmax(logits), []
    for row, place in zip(*np.nonzero(counted[:, :-1] & mask[:, 1:] & mask[:, :-1]), strict=True):
        found.append(-log_p[row, place, tokens[row, place + 1]])
    return np.mean(found)


def divergence(clean, logits, counted):
    p, q = log_softmax(clean), log_softmax(logits)
    return (np.exp(p) * (p - q)).sum(-1)[counted & padded()[1]].mean()


def groups_of(rows, size):
    """Tokens measured together: rows of up to 16 tokens come before the longer ones."""
    short = [row for row, length in enumerate(LENGTHS) if length <= 16]
    long = [row for row, length in enumerate(LENGTHS) if length > 16]
    chunks = [part[i : i + size] for part in (short, long) for i in range(0, len(part), size)]
    return [np.flatnonzero(np.isin(rows, chunk)) for chunk in chunks]


def loop(place, weights, y_site, kept, ablated, counted):
    """`Losses` by definition: the site is overwritten, in a run of its own for each loss."""
    tokens, mask = padded()
    lm = atlas()
    (y,) = values(y_site)
    _, z = forward(weights, *values(place))

    def run(value=None, chosen=None):
        if value is None:
            return lm.run(padded(), exact=True).logits
        new = np.where((chosen & mask)[..., None], value, y).astype(np.float32)
        return lm.run(padded(), {y_site: jmi.Replace(new)}, exact=True).logits

    mean = y[mask & ~(special(tokens) & kept)].mean(0)
    clean = run()
    found = {"ce_clean": cross_entropy(clean, counted)}
    for name, value, chosen in (
        ("spliced", z, ~(special(tokens) & kept)),
        ("zero", np.zeros(D), ablated),
        ("mean", mean, ablated),
    ):
        logits = run(value, chosen)
        found[f"ce_{name}"] = cross_entropy(logits, counted)
        found[f"kl_{name}"] = divergence(clean, logits, counted)
    return found
