"""The wheel in an empty environment, run from an empty folder."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from conftest import runs

ROOT = Path(__file__).parents[1]


def command(words: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command without anything of this checkout on its path."""
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.install
@pytest.mark.timeout(3600)
def test_wheel_works_in_an_empty_environment(tmp_path: Path) -> None:
    dist, folder = tmp_path / "dist", tmp_path / "empty"
    folder.mkdir()
    built = command([sys.executable, "-m", "build", "--wheel", "--outdir", str(dist), str(ROOT)], tmp_path)
    assert built.returncode == 0, built.stderr
    wheel = next(dist.glob("*.whl"))
    venv.create(tmp_path / "venv", with_pip=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    constraints = str(ROOT / "constraints.txt")
    installed = command([python, "-m", "pip", "install", "-q", "-c", constraints, str(wheel)], tmp_path)
    assert installed.returncode == 0, installed.stderr

    where = command([python, "-c", "import tracker; print(tracker.__file__)"], folder)
    assert where.stdout.startswith(str(tmp_path / "venv"))
    ran = command([python, "-m", "tracker", "+codec=nnc"], folder)
    assert ran.returncode == 0, ran.stderr
    assert "rate" in ran.stdout and "transparent" in ran.stdout
    (run,) = runs(folder, "compression")
    assert run.info.status == "FINISHED"

    bitstream = folder / "mlruns" / "artifacts" / run.info.run_id / "artifacts" / "bitstream"
    decoded = command([python, "-m", "tracker.decode", str(bitstream), "out.safetensors"], folder)
    assert decoded.returncode == 0, decoded.stderr
    assert (folder / "out.safetensors").stat().st_size > 200_000

    # Hydra finds the sweeper, and the sweeper its search spaces.
    swept = command([python, "-m", "tracker", "-m", "+codec=nnc", "+sweep=nnc", "hydra.sweeper.n_trials=2"], folder)
    assert swept.returncode == 0, swept.stderr
    (sweep,) = runs(folder, "sweep")
    assert sweep.data.metrics["sweep/trials"] == 2

    # The extras are not there: one line says what to install.
    missing = command([python, "-m", "tracker", "anchor=timm", "data=digits", "anchor.model=resnet18"], folder)
    assert missing.returncode == 1
    assert missing.stderr.count("\n") == 1 and "tracker[timm]" in missing.stderr, missing.stderr
