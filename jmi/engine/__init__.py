"""The engine: the one place that runs layers."""
