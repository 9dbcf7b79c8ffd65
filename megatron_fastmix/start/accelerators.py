"""The accelerators that ranks started here would see."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
from pathlib import Path

from megatron_fastmix.errors import ConfigError

VISIBLE = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")


def visible_accelerators() -> list[str]:
    """The GPUs that a process started here would see, as CUDA_VISIBLE_DEVICES names them; none
    under DS_ACCELERATOR=cpu, and none where the machine has none.

    Asks the driver's own tool, since importing torch takes seconds; where that lists none, or is
    not there, but a device of the driver is (ROCm, containers), torch. Raises `ConfigError` where
    there is a device and torch cannot use it: training on the CPU instead would go unnoticed for
    hours.
    """
    if os.environ.get("DS_ACCELERATOR") == "cpu":
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    entries = map(str.strip, (visible or "").split(","))
    named = list(itertools.takewhile(_is_device, entries))
    if shutil.which("nvidia-smi"):
        if visible is not None:
            return named
        listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
        count = sum(line.startswith("GPU") for line in listing.stdout.splitlines())
        if count or "No devices" in listing.stdout + listing.stderr:
            return [str(index) for index in range(count)]
        # Its library is not the driver's, as after an update.
    devices = device_files()
    if not devices:
        return []
    count, why = _torch_count()
    if not count:
        if hidden_on_purpose():
            return []
        raise ConfigError(
            f"this machine has {devices[0]}, but torch sees no accelerator ({why}): install a "
            "torch built for it, or give the container the driver (DS_ACCELERATOR=cpu: CPU)"
        )
    return (named or [str(index) for index in range(count)])[:count]


def hidden_on_purpose() -> bool:
    """Whether the environment shows this process no device: nothing, -1, or what SLURM writes for a
    job without any."""
    values = [os.environ[name].strip() for name in VISIBLE if name in os.environ]
    return any(not _is_device(value.partition(",")[0].strip()) for value in values)


def _is_device(entry: str) -> bool:
    """Whether an entry of CUDA_VISIBLE_DEVICES is a device; those behind one that is none are
    hidden, too."""
    return entry not in ("", "-1", "NoDevFiles")


def device_files(root: Path = Path("/")) -> list[str]:
    """Devices of NVIDIA's driver, and of AMD's where a node of it is a GPU."""
    found = sorted(str(path) for path in (root / "dev").glob("nvidia[0-9]*"))
    nodes = (root / "sys/class/kfd/kfd/topology/nodes").glob("*/gpu_id")
    if any(_is_gpu(node) for node in nodes):
        found.append(str(root / "dev/kfd"))
    return found


def _is_gpu(node: Path) -> bool:
    try:
        return node.read_text().strip() not in ("", "0")
    except OSError:  # of a GPU that this container is not given
        return False


def _torch_count() -> tuple[int, str]:
    """Accelerators that torch sees in a process of its own, and what build of torch it is."""
    code = "import torch; print(torch.cuda.device_count(), torch.__version__)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if answer.returncode:
        lines = answer.stderr.strip().splitlines()
        return 0, lines[-1] if lines else "it cannot be imported"
    count, version = answer.stdout.split()
    return int(count), f"torch {version}"
