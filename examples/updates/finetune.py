"""Fine-tune a classifier, and keep a checkpoint of each epoch: what a server would send to devices as it learns.

    python finetune.py checkpoints anchor=digits
    python finetune.py checkpoints --epochs 10 anchor=resnet20_cifar10 data.root=FOLDER

Words with an equals sign are those of `python -m tracker`. The anchor itself is the first checkpoint; it is trained on
the data set's calibration split with labels, of which neither the search nor the report split has an image.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from safetensors.torch import save_file
from torch.utils.data import default_collate

from tracker.__main__ import config_folder
from tracker.scenarios.job import Job, read_job

BATCH = 64


def job_of(words: list[str]) -> Job:
    """The anchor, the data and the task that words of the command line name."""
    with initialize_config_dir(config_folder(), version_base="1.3"):
        config = OmegaConf.to_container(compose("config", words), resolve=True)
    return read_job(config, words, Path(), time.perf_counter())  # type: ignore[arg-type]


def main() -> None:
    """Train, and write a file for each epoch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="for the checkpoints")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--rate", type=float, default=1e-3, help="of stochastic gradient descent with momentum")
    parser.add_argument("words", nargs="*", default=["anchor=digits"])
    chosen = parser.parse_intermixed_args()
    job = job_of(chosen.words)
    model = job.anchor.build()
    model.load_state_dict(dict(job.anchor.weights()), strict=False)
    samples = job.data.training()
    pairs = [
        (job.anchor.preprocess(sample), job.task.target(label))
        for sample, label in map(samples.__getitem__, range(len(samples)))
    ]
    inputs, labels = default_collate(pairs)
    optimiser = torch.optim.SGD(model.parameters(), lr=chosen.rate, momentum=0.9)
    torch.manual_seed(0)
    chosen.folder.mkdir(parents=True, exist_ok=True)
    for epoch in range(chosen.epochs + 1):
        if epoch:
            train(model, inputs, labels, optimiser)
        tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
        save_file(tensors, chosen.folder / f"epoch{epoch:02}.safetensors")


def train(model: torch.nn.Module, inputs: torch.Tensor, labels: torch.Tensor, optimiser: torch.optim.Optimizer) -> None:
    """One epoch; half of the images are mirrored, if they are images."""
    model.train()
    for places in torch.randperm(len(inputs)).split(BATCH):
        given = inputs[places]
        if given.ndim == 4 and given.shape[1] == 3:
            given = torch.where(torch.rand(len(given), 1, 1, 1) < 0.5, given, given.flip(3))
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(model(given), labels[places]).backward()
        optimiser.step()
    model.eval()


if __name__ == "__main__":
    main()
