"""What all tests share."""

import sys
from pathlib import Path

from hypothesis import settings

# Last, so that a script in the working folder hides no module of the same name: the root is for `launch`.
sys.path.append(str(Path(__file__).resolve().parents[1]))

# A deadline measures the machine and not the code: on a busy one it fails at random.
settings.register_profile("rewarm", deadline=None)
settings.load_profile("rewarm")
