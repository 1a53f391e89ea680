"""The names that ``jmi.cli`` hands on: the only list of them (`jmi.lazy`)."""

from . import console as console, effects as effects, failures as failures, options as options, pair as pair
from jmi.cli.main import main as main
