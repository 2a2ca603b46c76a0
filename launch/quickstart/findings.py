"""Write the page of findings from the directories of studies.

python launch/quickstart/findings.py --page FILE [--minutes N] [--processor-minutes N] DIR…
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from tokenization import disk
from tokenization.errors import RewarmError
from trainer.study.findings import findings_page


def main() -> int:
    """Return 0 if the page is written."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--page", type=Path, required=True)
    parser.add_argument("--minutes", type=int, help="how long all of it took in this call")
    parser.add_argument("--processor-minutes", type=int, help="of processor time, all processes together")
    parser.add_argument("studies", type=Path, nargs="+", metavar="DIR")
    args = parser.parse_args()
    took = f", {args.minutes} minutes in the last call" if args.minutes else ""
    took += f" ({args.processor_minutes} minutes of processor time)" if args.processor_minutes else ""
    try:
        text = findings_page(args.studies, f"{os.cpu_count()} CPU cores{took}")
    except RewarmError as error:
        print(f"findings: {error}", file=sys.stderr)
        return error.exit_code
    disk.write_atomically(args.page, text)
    print(args.page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
