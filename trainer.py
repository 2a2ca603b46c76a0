"""The continued-pretraining trainer; a file imports only from lower floors or its own room."""

from __future__ import annotations




__version__ = "0.1.0"
