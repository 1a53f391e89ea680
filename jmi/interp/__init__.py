"""Techniques: one file each, plain functions over a LanguageModel."""

from jmi.interp.knockout import KnockoutResult, knockout
