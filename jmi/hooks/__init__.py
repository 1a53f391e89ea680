"""Hooks: what interventions there are, and how what a user writes becomes what runs."""
