"""The only wrapper of accelerate: device, processes, and what differs between one of them and many."""

from __future__ import annotations

import os
from typing import Literal, TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from pico_contract.errors import UserError
from torch import nn

Device = Literal["auto", "cpu", "cuda", "mps"]
ModuleT = TypeVar("ModuleT", bound=nn.Module)


class Runtime:
    """Where this process computes. Precision stays ours (autocast in the loop): accelerate's state would refuse a
    second run of another precision in the same process, and its own accumulation would divide the loss again."""

    def __init__(self, device: Device) -> None:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise UserError(
                f"this version trains in one process, but was started as one of {os.environ['WORLD_SIZE']}"
                " (WORLD_SIZE): start it without torchrun or accelerate launch"
            )
        _require(device)
        AcceleratorState._reset_state(reset_partial_state=True)
        self.accelerator = Accelerator(cpu=device == "cpu", mixed_precision="no", gradient_accumulation_steps=1)
        self.device: torch.device = self.accelerator.device
        self.processes: int = self.accelerator.num_processes

    def wrap(self, model: ModuleT) -> ModuleT:
        """`model` on this process's device, wrapped for gradient exchange where there are several processes.

        The one that was wrapped before is let go: after a rebuild accelerate alone would hold it.
        """
        self.accelerator.free_memory()
        return self.accelerator.prepare_model(model)

    def autocast(self, precision: str) -> torch.autocast:
        """Autocast to bfloat16 for "bf16"; does nothing for "fp32". Master weights stay float32."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=precision == "bf16")

    def precision(self, wanted: str) -> str:
        """`wanted`, with "auto" resolved: bf16 on CUDA, fp32 elsewhere."""
        if wanted != "auto":
            return wanted
        return "bf16" if self.device.type == "cuda" else "fp32"


def _require(device: Device) -> None:
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available.get(device, True):
        raise UserError(f'train.device: this machine has no "{device}" device; choose "auto" or "cpu"')
