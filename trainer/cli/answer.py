"""What a command found, on standard output."""

from __future__ import annotations

import argparse
import json
from typing import Any


def print_answer(args: argparse.Namespace, data: Any, text: str) -> None:
    """Print `data` as JSON if `--json` was given, else `text`."""
    print(json.dumps(data, ensure_ascii=False, default=str) if args.json else text)
