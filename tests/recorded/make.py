"""Records the numbers of short real runs, for `tests/integration/test_recorded.py` to compare with.

    python tests/recorded/make.py --out tests/recorded/numbers [--overwrite] [NAME ...]

Trains the runs of `jobs.py` in a temporary directory (about half a minute) and writes a file for each, or
for those that are named, to the directory given by --out and nowhere else. A file that exists is not
replaced without --overwrite: then the numbers are meant to change, and the commit says why.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.recorded import jobs


def commit() -> str:
    """The commit that is checked out, marked if a tracked file differs from it."""
    command = ["git", "describe", "--always", "--abbrev=7", "--exclude=*", "--dirty"]
    done = subprocess.run(command, cwd=jobs.HERE, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="where the files are written")
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist")
    parser.add_argument("names", nargs="*", metavar="NAME", help="runs to write; default: all")
    args = parser.parse_args()
    if unknown := sorted(set(args.names) - set(jobs.names())):
        sys.exit(f"{', '.join(unknown)}: not among the runs, which are {', '.join(jobs.names())}")
    files = {name: args.out / f"{name}.json" for name in args.names or jobs.names()}
    existing = [str(file) for file in files.values() if file.exists()]
    if existing and not args.overwrite:
        sys.exit(f"{', '.join(existing)}: exists; give another --out, or --overwrite")
    with tempfile.TemporaryDirectory() as folder:
        jobs.train(Path(folder))
        args.out.mkdir(parents=True, exist_ok=True)
        for name, file in files.items():
            file.write_text(jobs.render(commit(), jobs.read(Path(folder) / name)), encoding="utf-8")
            print(file)


if __name__ == "__main__":
    main()
