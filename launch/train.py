"""What the `deepspeed` launcher starts on every rank: `deepspeed launch/train.py RECIPE [field=value …]`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from trainer.cli.main import main

if __name__ == "__main__":
    # The launcher adds --local_rank=N, which the environment tells as well.
    sys.exit(main(["train", *(word for word in sys.argv[1:] if not word.startswith("--local_rank"))]))
