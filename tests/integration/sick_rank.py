"""A rank of `rewarm train`; rank 1 is slow, and hangs in its seventh step."""

import os
import sys
import time
from typing import Any

from trainer.cli.main import main
from trainer.model.loss import CausalLM
from trainer.run.session import Session

forward, train_step = CausalLM.forward, Session.train_step
steps = 0


def counted(session: Session) -> None:
    global steps
    steps += 1
    train_step(session)


def sick(model: CausalLM, *args: Any, **options: Any) -> Any:
    if steps and os.environ["RANK"] == "1":
        time.sleep(1.0 if steps < 7 else 10**6)
    return forward(model, *args, **options)


if __name__ == "__main__":
    CausalLM.forward, Session.train_step = sick, counted  # type: ignore[method-assign]
    sys.exit(main(["train", *sys.argv[3:]]))
