"""Captures: what a run returns."""
