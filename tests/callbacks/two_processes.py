"""Run by torchrun in two processes: train with a limit, and say what each process saw."""

import json
import sys
from pathlib import Path

from test_callbacks import make, watch


def main(model, prompts, out):
    trainer = make(model, out, max_steps=12, dropout=0.0, ddp_find_unused_parameters=False)
    monitor = watch(trainer, prompts, max_rotation=0.5)
    trainer.train()
    seen = {
        "world": trainer.args.world_size,
        "steps": trainer.state.global_step,
        "measured": [point.step for point in monitor.history],
        "stopped": monitor.stopped,
        "weights": sum(float(p.double().sum()) for p in trainer.model.parameters()),
    }
    path = Path(out) / f"process-{trainer.args.process_index}.json"
    path.write_text(json.dumps(seen), "utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
