"""A plain torch.nn.Module that classifies token ids: what a recipe's `source.module` names."""

import torch


class MeanOfTokens(torch.nn.Module):
    """Embeds tokens, averages those that are no padding, and classifies the mean."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.embed = torch.nn.Embedding(200, 32)
        self.inner = torch.nn.Linear(32, 32)
        self.outer = torch.nn.Linear(32, 2)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        weights = attention_mask.unsqueeze(-1).float()
        mean = (self.embed(input_ids) * weights).sum(1) / weights.sum(1)
        logits: torch.Tensor = self.outer(torch.relu(self.inner(mean)))
        return logits


def classifier() -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    return MeanOfTokens(), {
        "input_ids": torch.ones(2, 8, dtype=torch.int64),
        "attention_mask": torch.ones(2, 8, dtype=torch.int64),
    }
