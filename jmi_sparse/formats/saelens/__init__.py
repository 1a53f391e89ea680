"""Folders of SAELens."""
