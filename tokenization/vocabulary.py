"""Vocabularies: train one, extend a base by another, prove what came out, and name it by its fingerprint."""

from __future__ import annotations

from tokenization.extension import Extension, extend, whole_model
from tokenization.report import Report, report
from tokenization.tokenizer_files import Tokenizer, fingerprint, open_tokenizer
from tokenization.training import Training, train

__all__ = [
    "Extension",
    "Report",
    "Tokenizer",
    "Training",
    "extend",
    "fingerprint",
    "open_tokenizer",
    "report",
    "train",
    "whole_model",
]
