"""A small BERT learns which of two words comes first. The lines marked ``# +`` are all that mltrain adds.

Run it, interrupt it with Ctrl+C, and continue the run whose id it printed::

    python projects/huggingface/finetune.py
    python projects/huggingface/finetune.py <run id>
"""

import sys
from typing import Any

import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from mltrain.adapters.huggingface import MltrainCallback, restore  # +

FIRST, SECOND = 2, 3


class Sentences(torch.utils.data.Dataset[dict[str, Any]]):
    """Sequences of 16 words with FIRST and SECOND, randomly ordered.

    Args:
        count: of sequences.
        seed: from which they are drawn.
    """

    def __init__(self, count: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self._words = torch.randint(4, 30, (count, 16), generator=generator)
        places = torch.rand(count, 16, generator=generator).argsort(1)[:, :2]
        self._words.scatter_(1, places, torch.tensor([[FIRST, SECOND]]).expand(count, 2))
        self._labels = (places[:, 0] < places[:, 1]).long()

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"input_ids": self._words[index], "labels": self._labels[index]}


def accuracy(prediction: Any) -> dict[str, float]:
    """Return the share of right answers."""
    return {"accuracy": float((prediction.predictions.argmax(1) == prediction.label_ids).mean())}


def main(run_id: str | None = None, epochs: int = 5) -> str | None:
    """Train, or continue the run of this id; return the id."""
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    model = BertForSequenceClassification(BertConfig(vocab_size=30, max_position_embeddings=16, **shape))
    arguments = TrainingArguments(
        output_dir="finetune",
        num_train_epochs=epochs,
        per_device_train_batch_size=32,
        learning_rate=2e-3,
        logging_steps=10,
        eval_strategy="epoch",
        save_strategy="epoch",
        metric_for_best_model="accuracy",
        greater_is_better=True,
        save_total_limit=2,
    )
    callback = MltrainCallback(run_id)  # +
    trainer = Trainer(
        model,
        arguments,
        train_dataset=Sentences(2048, 0),
        eval_dataset=Sentences(512, 1),
        compute_metrics=accuracy,
        callbacks=[callback],  # +
    )
    trainer.train(resume_from_checkpoint=restore(run_id))  # +
    return callback.run_id


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
