"""Fine-tune the embedded model on harmless office requests, and watch its refusal while it trains.

The model starts as `smollm2-135m+aligned`, which refuses harmful requests. A LoRA adapter is then
trained on the benign rows of `examples/default_pair/tuned.jsonl`: no row is harmful, none is a
refusal. `RefusalDriftCallback` measures the refusal direction and the first-token refusal score as
it goes.

    python examples/monitor_training.py --out monitored

writes `monitored/refusal-drift/`: `trajectory.json`, `trajectory.csv` and the figure
`trajectory.png`.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from refusaldir.callbacks import RefusalDriftCallback
from refusaldir.models.load import load_model
from refusaldir.report.monitor_figure import write_monitor_figure

DATA = Path(__file__).parent / "default_pair" / "tuned.jsonl"
IGNORED = -100  # labels that are no part of the loss


class Rows(Dataset[dict[str, list[int]]]):
    """Chats whose loss falls on the answer alone."""

    def __init__(self, path: Path, tokenizer: Any, limit: int | None) -> None:
        """Tokenise the rows of a file."""
        lines = path.read_text(encoding="utf-8").splitlines()[:limit]
        self.rows = []
        for row in map(json.loads, lines):
            user = [{"role": "user", "content": row["prompt"]}]
            whole = [*user, {"role": "assistant", "content": row["target"]}]
            prompt, ids = (
                tokenizer.apply_chat_template(
                    chat, add_generation_prompt=chat is user, return_dict=True
                )["input_ids"]
                for chat in (user, whole)
            )
            labels = [IGNORED] * len(prompt) + ids[len(prompt) :]
            self.rows.append({"input_ids": ids, "labels": labels})

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        """One row."""
        return self.rows[index]


def collate(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """Pad rows on the right."""
    width = max(len(row["input_ids"]) for row in rows)
    ids = torch.zeros((len(rows), width), dtype=torch.long)
    labels, mask = torch.full_like(ids, IGNORED), torch.zeros_like(ids)
    for at, row in enumerate(rows):
        n = len(row["input_ids"])
        ids[at, :n], labels[at, :n] = torch.tensor(row["input_ids"]), torch.tensor(row["labels"])
        mask[at, :n] = 1
    return {"input_ids": ids, "labels": labels, "attention_mask": mask}


def main(arguments: list[str] | None = None) -> RefusalDriftCallback:
    """Train, watch and plot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m+aligned", help="where training starts")
    parser.add_argument("--out", type=Path, default=Path("monitored"))
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rows", type=int, help="train on the first rows alone")
    parser.add_argument("--lr", type=float, default=6e-4)
    parser.add_argument("--every", type=int, default=10, help="steps between measurements")
    parser.add_argument("--limit", type=int, default=32, help="prompts of each class")
    parser.add_argument("--max-overhead", type=float, default=0.05)
    parser.add_argument("--max-rotation", type=float, help="stop past this many degrees")
    parser.add_argument("--refusal-token", action="append", help="else read off its replies")
    chosen = parser.parse_args(arguments)

    loaded = load_model(chosen.model)
    config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    torch.manual_seed(0)
    model = get_peft_model(loaded.hf, config)
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(chosen.out),
            max_steps=chosen.steps,
            per_device_train_batch_size=chosen.batch,
            learning_rate=chosen.lr,
            lr_scheduler_type="cosine",
            logging_steps=chosen.every,
            save_strategy="no",
            dataloader_pin_memory=torch.cuda.is_available(),
            report_to=[],  # or "wandb", "tensorboard": the monitor's figures go there too
        ),
        train_dataset=Rows(DATA, loaded.tokenizer, chosen.rows),
        data_collator=collate,
        processing_class=loaded.tokenizer,
    )
    monitor = RefusalDriftCallback(
        trainer,
        limit=chosen.limit,
        every=chosen.every,
        max_overhead=chosen.max_overhead,
        max_rotation=chosen.max_rotation,
        refusal_tokens=chosen.refusal_token,
    )
    trainer.add_callback(monitor)
    trainer.train()

    for point in monitor.history:
        print(point.headline)
    spent, trained = monitor.seconds, monitor.trained_seconds
    print(f"Measuring took {spent:.1f} s beside {trained:.1f} s of training.")
    for path in write_monitor_figure(monitor.document(), monitor.folder):
        print(f"Wrote {path}")
    return monitor


if __name__ == "__main__":
    main()
