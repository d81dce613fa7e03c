"""Write the rows and the graph of recipes/digit-pairs.yaml: pairs of scikit-learn's digits, and a network for them.

The scans are those of calibration_data/digits/make.py, as 64 grey values of 0 to 16. Of each split half of the pairs
show the same digit; no scan is in two pairs of calibration or evaluation, nor in two splits. The same versions of the
packages write the same bytes on one machine.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration_data.digits.make import SEED
from calibration_data.making import make_into

SPLITS = {"fit": 597, "calibration": 500, "evaluation": 700}
WIDTH, VECTOR = 256, 32
STEPS, BATCH_PAIRS, LEARNING_RATE = 600, 128, 2e-3
GRAPH = "model.onnx"

Scans = NDArray[np.float32]
Pairs = list[tuple[int, int]]


def read_splits() -> dict[str, tuple[Scans, NDArray[Any]]]:
    """Return the scans of each split, float32 [scans, 64], and their digits."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.default_rng(SEED).permutation(len(digits.data))
    ends = np.cumsum(list(SPLITS.values()))
    parts = np.split(order[: ends[-1]], ends[:-1])
    return {
        split: (digits.data[part].astype(np.float32), digits.target[part])
        for split, part in zip(SPLITS, parts, strict=True)
    }


def pair_scans(digits: NDArray[Any]) -> Pairs:
    """Pair each scan with one other at most: half of the pairs are of one digit."""
    draw = np.random.default_rng([SEED, len(digits)])
    by_digit = {digit: list(draw.permutation(np.flatnonzero(digits == digit))) for digit in np.unique(digits)}
    pairs: Pairs = []
    for scans in by_digit.values():
        pairs += [(int(scans.pop()), int(scans.pop())) for _ in range(len(scans) // 4)]
    rest = draw.permutation(np.concatenate([scans for scans in by_digit.values() if scans]))
    half = len(rest) // 2
    pairs += [
        (int(a), int(b)) for a, b in zip(rest[:half], rest[half : 2 * half], strict=True) if digits[a] != digits[b]
    ]
    return [pairs[at] for at in draw.permutation(len(pairs))]


def write_rows(folder: Path) -> None:
    """Write calibration.parquet and evaluation.parquet: columns `left`, `right` and `same`."""
    import datasets

    datasets.disable_progress_bars()
    for split, (scans, digits) in read_splits().items():
        if split == "fit":
            continue
        pairs = pair_scans(digits)
        columns = {
            "left": [scans[left].tolist() for left, _ in pairs],
            "right": [scans[right].tolist() for _, right in pairs],
            "same": [bool(digits[left] == digits[right]) for left, right in pairs],
        }
        datasets.Dataset.from_dict(columns).to_parquet(str(folder / f"{split}.parquet"))


def train(folder: Path, *, steps: int = STEPS) -> float:
    """Train the network on pairs of the split fit, export it, and return the share of evaluation that it gets right."""
    import torch
    from torch.nn import functional

    class Compare(torch.nn.Module):
        """Two scans to the logit that they show one digit: the cosine of their vectors, scaled."""

        def __init__(self) -> None:
            super().__init__()
            self.encoder = torch.nn.Sequential(
                torch.nn.Linear(64, WIDTH), torch.nn.ReLU(), torch.nn.Linear(WIDTH, WIDTH), torch.nn.ReLU(),
                torch.nn.Linear(WIDTH, VECTOR),
            )  # fmt: skip
            self.scale = torch.nn.Parameter(torch.tensor([8.0, -4.0]))

        def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
            one, other = (functional.normalize(self.encoder(each), dim=-1) for each in (left, right))
            return (one * other).sum(-1) * self.scale[0] + self.scale[1]

    torch.manual_seed(SEED)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    splits, draw, network = read_splits(), np.random.default_rng(SEED), Compare()
    optimizer = torch.optim.AdamW(network.parameters(), LEARNING_RATE, weight_decay=0.01)
    scans, digits = torch.from_numpy(splits["fit"][0]) / 16, splits["fit"][1]
    of_digit = [np.flatnonzero(digits == digit) for digit in range(10)]
    for _ in range(steps):
        left = draw.integers(len(digits), size=BATCH_PAIRS)
        right = draw.integers(len(digits), size=BATCH_PAIRS)
        right[::2] = [draw.choice(of_digit[digits[at]]) for at in left[::2]]
        same = torch.from_numpy((digits[left] == digits[right]).astype(np.float32))
        noise = 0.1 * torch.randn(2, BATCH_PAIRS, 64)
        logits = network(scans[left] + noise[0], scans[right] + noise[1])
        loss = functional.binary_cross_entropy_with_logits(logits, same)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    torch.set_num_threads(threads)
    network.eval()
    export(network, folder / GRAPH)
    scans, digits = torch.from_numpy(splits["evaluation"][0]) / 16, splits["evaluation"][1]
    pairs = np.array(pair_scans(digits))
    with torch.inference_mode():
        given = network(scans[pairs[:, 0]], scans[pairs[:, 1]]).numpy() > 0
    return float((given == (digits[pairs[:, 0]] == digits[pairs[:, 1]])).mean())


def export(network: Any, graph: Path) -> None:
    """Write the network as an ONNX graph: `left` and `right` [batch, 64] to `logit` [batch]."""
    import contextlib
    import io
    import warnings

    import torch

    batch = torch.export.Dim("batch")
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (torch.zeros(2, 64), torch.zeros(2, 64)),
            graph,
            input_names=["left", "right"],
            output_names=["logit"],
            dynamo=True,
            dynamic_shapes=({0: batch}, {0: batch}),
            external_data=False,
            verbose=False,
        )


def make(rows: Path, checkpoint: Path) -> str:
    """Write both, and say how good the graph is."""
    write_rows(rows)
    return f"{train(checkpoint):.1%} of the evaluation pairs in PyTorch"


if __name__ == "__main__":
    make_into(Path(".enginery/digit-pairs"), __doc__, make)
