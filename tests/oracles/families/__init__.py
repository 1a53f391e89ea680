"""Configs of the tiny models, one module per kin; `tests.oracles.grid` joins them."""
