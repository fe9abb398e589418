"""Which device and precision a command runs in."""

import os
import re

import torch

from vidiff.cli.output import warn
from vidiff.errors import ConfigError, did_you_mean
from vidiff.tensors import fast_bfloat16

DTYPES = ("float32", "bfloat16", "float16")


def chosen_device(name: str | None) -> torch.device:
    """Return the named device, or the best there is.

    Raises:
        ConfigError: if this machine has no such device, or vidiff does not run on it.
    """
    if name is None:
        if not torch.cuda.is_available():
            return torch.device("cpu")
        rank = os.environ.get("LOCAL_RANK")  # of the processes on this machine, if a launcher started several
        return torch.device("cuda" if rank is None else f"cuda:{rank}")
    if name == "mps":
        raise ConfigError("mps: sampling computes its coefficients in float64, which mps lacks; use --device cpu")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise ConfigError(f"unknown device {name!r}; use cpu, cuda or cuda:1")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"{name}: this machine has {torch.cuda.device_count()} CUDA devices; use --device cpu")
    return device


def checked_dtype(name: str, device: torch.device | None = None) -> str:
    """Return ``name`` if it is a dtype that networks run in, and warn if it is none that ``device`` is made for.

    Raises:
        ConfigError: if there is no such dtype.
    """
    if name not in DTYPES:
        raise ConfigError(f"unknown dtype {name!r}.{did_you_mean(name, DTYPES)} Use one of {', '.join(DTYPES)}.")
    if name == "bfloat16" and device is not None and not fast_bfloat16(device):
        warn("this CPU has no instructions for bfloat16 and takes up to 100 times as long; try --dtype float32")
    return name
