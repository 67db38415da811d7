"""A receiver of model updates that is killed again and again, between updates and during them.

    python benchmarks/receiver_kills.py [--kills 20]

A network of ResNet-20's shapes gets ten updates, each applied by ``python -m tracker.update.receiver``, which gets
SIGKILL at a random time, until so many were killed. Must hold: after each kill the folder has the state before the
update or the one after it, and in the end the state is that of a receiver that nobody killed.
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from tracker.anchors.resnet_cifar import CifarResNet
from tracker.bitstream import encode_bitstream
from tracker.codecs.base import Context
from tracker.codecs.chain import Codec
from tracker.codecs.nnc import Nnc
from tracker.update.delta import applied, encode_update
from tracker.update.modes import MODES
from tracker.update.receiver import Receiver
from tracker.update.state import State

UPDATES = 10


def made(folder: Path) -> tuple[list[Path], list[State]]:
    """Updates, the first of them a whole model, and the states that they lead to."""
    torch.manual_seed(0)
    codec = Codec({}, "nnc", Nnc(qp=-24))
    context = Context(lambda model, inputs: model(inputs), lambda: (), 0, "cpu")
    tensors = dict(CifarResNet(3).state_dict())
    folders, states = [folder / "0"], list[State]()
    folders[0].mkdir()
    encode_bitstream(codec, tensors, None, folders[0], context)
    states.append(applied(None, folders[0]))
    for number in range(1, UPDATES + 1):
        before = tensors
        tensors = {n: t + 0.01 * torch.randn(t.shape) if t.is_floating_point() else t + 1 for n, t in tensors.items()}
        folders.append(folder / str(number))
        folders[-1].mkdir()
        encode_update(codec, tensors, MODES["context"], states[-1], before, folders[-1], context)
        states.append(applied(states[-1], folders[-1]))
    return folders, states


def killed(command: list[str], seconds: float | None) -> bool:
    """Whether a process was killed after some seconds, before it ended by itself."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


def main() -> None:
    """Kill, and end with status 1 where something was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    chosen = parser.parse_args()
    random.seed(0)
    with tempfile.TemporaryDirectory() as scratch:
        folders, states = made(Path(scratch))
        place = Path(scratch) / "state"
        command = [sys.executable, "-m", "tracker.update.receiver", str(place)]
        began = time.monotonic()
        killed([*command, str(folders[0])], None)
        took, kills, outcomes, number = time.monotonic() - began, 0, [0, 0], 1
        while kills < chosen.kills:
            was = killed([*command, str(folders[number])], random.uniform(0.5, 1.0) * took)
            kills += was
            found = Receiver(place).state
            after = [state.digest for state in states[number - 1 : number + 1]].index(found.digest if found else "")
            outcomes[after] += was
            number += after
            if number > UPDATES:  # begin again
                killed([*command, str(folders[0])], None)
                number = 1
        for folder in folders[number:]:
            killed([*command, str(folder)], None)
        found = Receiver(place).state
    lost = found is None or found.digest != states[-1].digest
    print(
        f"{kills} kills in {UPDATES} updates: {outcomes[0]} left the state before the update, {outcomes[1]} the one "
        f"after it; in the end {'something is lost' if lost else 'nothing was lost'}"
    )
    sys.exit(int(lost))


if __name__ == "__main__":
    main()
