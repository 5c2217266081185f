"""Examples per CPU-second of training two towers of ids on MovieLens 100K: tfrec against PyTorch.

Ours is that of ``train_two_tower.py``. The peer is a plain loop: ``Embedding(sparse=True)``, in-batch cross-entropy of
the same shape and the sparse Adagrad of torch, batches gathered in memory. PyTorch stays in an environment of its own:

    python3 -m venv torch-env && torch-env/bin/pip install torch==2.13.0 numpy --index-url URL
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
from common import Cost, Measure, Worker, alternate, answer, arguments, cost_of
from train_two_tower import BATCH, RATE, WIDTH, compare, movielens

EXAMPLE = "TFREC_DATA=folder python benchmarks/train_two_tower_torch.py --torch-python torch-env/bin/python"


def main() -> None:
    parser = arguments(str(__doc__), EXAMPLE)
    parser.add_argument("--torch-python", help="the Python of an environment with torch and numpy")
    parser.add_argument("--events", help="be PyTorch's side, on this .npz file")
    options = parser.parse_args()
    if options.events:
        answer(torch_epochs(options.events))
    elif not options.torch_python or not Path(options.torch_python).exists():
        print(f"skipped: --torch-python must be a Python with torch; got {options.torch_python}", file=sys.stderr)
    else:
        run(options.torch_python, options.rounds, options.results)


def run(torch_python: str, rounds: int, results: Path) -> None:
    sibling = Path(__file__).with_name("train_two_tower.py")
    with tempfile.TemporaryDirectory() as folder:
        events, path = movielens(), Path(folder) / "events.npz"
        np.savez(path, user=events["user"], item=events["item"])
        our_command = [sys.executable, str(sibling), "--side", "ours"]
        peer_command = [torch_python, __file__, "--events", str(path)]
        with Worker(our_command, TMPDIR=folder) as ours, Worker(peer_command) as peer:
            compare(results, "train_two_tower_torch", *alternate(ours, peer, rounds), ["tensorflow", "keras"])


def torch_epochs(path: str) -> Measure:
    """Measures an epoch of PyTorch."""
    import torch

    events = np.load(path)
    users, items = (torch.from_numpy(events[name].astype(np.int64)) for name in ("user", "item"))
    user_table = torch.nn.Embedding(int(users.max()) + 1, WIDTH, sparse=True)
    item_table = torch.nn.Embedding(int(items.max()) + 1, WIDTH, sparse=True)
    optimizer = torch.optim.Adagrad([*user_table.parameters(), *item_table.parameters()], lr=RATE)
    labels, steps = torch.arange(BATCH), len(users) // BATCH

    def epoch() -> None:
        for chosen in torch.randperm(len(users))[: steps * BATCH].reshape(steps, BATCH):
            optimizer.zero_grad()
            logits = user_table(users[chosen]) @ item_table(items[chosen]).T
            torch.nn.functional.cross_entropy(logits, labels).backward()
            optimizer.step()

    def measure() -> Cost:
        cost = cost_of(epoch)
        return Cost(cost.cpu / (steps * BATCH), cost.wall / (steps * BATCH))

    return measure


if __name__ == "__main__":
    main()
