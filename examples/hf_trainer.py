"""A job of transformers' Trainer: ``harness compare --model examples/hf_trainer.py:make_job``.

Model, data set and collator are those that the Trainer got; TrainingArguments become options of the job. (A model that
needs nothing of your own code is named directly: ``--model hf:bert-base-uncased --random-weights``.)
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, default_data_collator

from core_model.user_job import TrainingJob

WORDS, LENGTH = 100, 16


class Reviews(torch.utils.data.Dataset):
    """Made-up token ids; the class says whether the first word is a large one."""

    def __init__(self, count: int) -> None:
        self.ids = torch.randint(WORDS, (count, LENGTH))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"input_ids": self.ids[index], "labels": int(self.ids[index, 0] >= WORDS // 2)}


# -- the ten lines -----------------------------------------------------------------------------------------------------
class Loss(nn.Module):
    """``module(batch)`` by the loss that the model itself returns, as the Trainer takes it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The loss, the mean over the samples."""
        return self.model(**batch).loss


def make_job(layers: int = 2, dropout: float = 0.0) -> TrainingJob:
    """What `Trainer(model, arguments, train_dataset=Reviews(256)).train()` trained."""
    config = BertConfig(
        vocab_size=WORDS,
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=64,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    model = Loss(BertForSequenceClassification(config))
    return TrainingJob(module=model, dataset=Reviews(256), collate=default_data_collator)
