"""transformers' `Trainer` on the setting of a benchmark, as the peer to compare with.

python -m benchmarks.peer SETTING.json FOLDER --warm-up 2 --steps 10   # prints a JSON; one rank
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.gpu.engines import Setting


class Clock:
    """Wall clock and CPU seconds since it was made."""

    def __init__(self) -> None:
        self.began, self.used = time.perf_counter(), self._cpu_s()

    @staticmethod
    def _cpu_s() -> float:
        used = resource.getrusage(resource.RUSAGE_SELF)
        return used.ru_utime + used.ru_stime

    def read(self) -> tuple[float, float]:
        """(wall clock, CPU) seconds."""
        return time.perf_counter() - self.began, self._cpu_s() - self.used


def train(setting: Setting, folder: Path, warm_up: int, steps: int) -> tuple[float, float, float]:
    """Train on random tokens; returns wall clock and CPU seconds of `steps` steps, and the mean loss.

    The DeepSpeed configuration is the one that our engine is given, and `setting.compiled` is
    `torch_compile`. The ranks are those of the environment.
    """
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

    from benchmarks.gpu.engines import synchronize
    from trainer.engine.ds_config import complete, read_preset
    from trainer.engine.layout import Layout

    recipe = replace(setting, compiled=False).recipe(folder)
    layout = Layout(setting.ranks, setting.micro_batch_size, setting.accumulation)
    fields = setting.shape.config(setting.vocab_size)
    config = complete(read_preset(recipe.deepspeed), recipe, layout, fields)
    torch.manual_seed(0)
    init = {name: value for name, value in fields.items() if name != "model_type"}
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING["llama"](**init))
    random = torch.Generator().manual_seed(0)

    class Noise(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
        def __len__(self) -> int:
            return 1_000_000

        def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
            ids = torch.randint(3, setting.vocab_size, (setting.seq_len,), generator=random)
            return {"input_ids": ids, "labels": ids}

    class Watch(TrainerCallback):
        clock: Clock
        found: tuple[float, float]

        def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            if state.global_step == warm_up:
                synchronize()
                self.clock = Clock()
            if state.global_step == warm_up + steps:
                synchronize()
                self.found = self.clock.read()

    watch = Watch()
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=warm_up + steps,
        per_device_train_batch_size=setting.micro_batch_size,
        gradient_accumulation_steps=setting.accumulation,
        gradient_checkpointing=setting.recompute != "none",
        learning_rate=1e-4,
        lr_scheduler_type="constant",
        adam_beta2=0.95,
        weight_decay=0.1,
        max_grad_norm=1.0,
        optim="adamw_torch",
        bf16=setting.dtype == "bf16",
        deepspeed=config,
        use_cpu=not torch.cuda.is_available(),
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        torch_compile=setting.compiled,
    )
    trained = Trainer(model=model, args=arguments, train_dataset=Noise(), callbacks=[watch]).train()
    return *watch.found, float(trained.training_loss)


def main() -> int:
    from benchmarks.gpu.engines import Setting, Shape, peak_gib

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("setting", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--warm-up", type=int, default=2)
    parser.add_argument("--steps", type=int, default=10)
    args = parser.parse_args()
    tree = json.loads(args.setting.read_text(encoding="utf-8"))
    setting = Setting(**{**tree, "shape": Shape(**tree["shape"])})
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    seconds, _, loss = train(setting, args.folder, args.warm_up, args.steps)
    print(json.dumps({"seconds": seconds, "loss": loss, "peak_gib": peak_gib()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
