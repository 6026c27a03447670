"""The model of one step: its modules, and how the matrix of each is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from pico_contract import names
from pico_contract.errors import DamagedError
from pico_contract.layout import MODEL_CONFIG

from pico_analyze.sources import adapters, formats, quantised
from pico_analyze.sources.files import Files, TensorInfo

_FLOATS = ("F64", "F32", "F16", "BF16", *quantised.FLOAT8)
_LORA_SCALE = ".lora_scale"


@dataclass(frozen=True)
class StoredMatrix:
    """The stored tensors of a module: its matrix, and its scales if it is quantised."""

    weight: TensorInfo
    scale: TensorInfo | None = None


class Model:
    """One model, whose modules are the names of its floating-point matrices without `.weight`."""

    def __init__(self, files: Files) -> None:
        self.files = files
        self.place = files.place

    def config(self) -> Mapping[str, Any]:
        """Read config.json; {} if there is none, DamagedError if it does not parse."""
        return self.files.read_json(MODEL_CONFIG) if MODEL_CONFIG in self.files.names() else {}

    def weight_files(self) -> list[str]:
        """List the files that contain its weights; errors as for `formats.weight_files`."""
        return formats.weight_files(self.place, self.files.names(), self.files.read_json)

    @cached_property
    def modules(self) -> dict[str, StoredMatrix]:
        """Module -> its stored matrix, from headers alone.

        Raises:
            UnsupportedError: the weights are in a form that is not read.
            DamagedError: a header cannot be read, two tensors belong to one module, or there is no
                matrix.
        """
        modules: dict[str, StoredMatrix] = {}
        dtypes = {name: tensor.dtype for name, tensor in self._stored.items()}
        for name, tensor in self._stored.items():
            if not _is_float_matrix(tensor) or quantised.is_scale(name, dtypes):
                continue
            module = self._module_of(name)
            if module in modules:
                raise DamagedError(f'{self.place} names the module "{module}" twice')
            modules[module] = StoredMatrix(tensor, self._scale_of(tensor))
        if not modules:
            raise DamagedError(f"{self.place} holds no floating-point matrix")
        return modules

    def _module_of(self, tensor: str) -> str:
        name = adapters.module_name(tensor) if self._is_adapter else tensor
        return names.canonical(name).removesuffix(".weight")

    def _scale_of(self, weight: TensorInfo) -> TensorInfo | None:
        if weight.dtype not in quantised.FLOAT8:
            return None
        name = quantised.scale_name(weight.name, self._stored)
        return self._stored[name] if name else None

    def stored(self) -> list[TensorInfo]:
        """List every tensor, modules or not; errors as for `modules`."""
        return list(self._stored.values())

    def read(self, module: str) -> torch.Tensor | None:
        """Read the matrix of a module in its stored dtype, or float8 dequantised to float32.

        None if there is none. An adapter's module `X` also has `X.lora_scale`, (1,).
        """
        if self._is_adapter and module.endswith(_LORA_SCALE):
            return self._adapter_scale(module.removesuffix(_LORA_SCALE))
        matrix = self.modules.get(module)
        if matrix is None:
            return None
        weight = self.files.read(matrix.weight)
        if matrix.weight.dtype not in quantised.FLOAT8:
            return weight
        if matrix.scale is None:
            return weight.float()
        scale = self.files.read(matrix.scale)
        place = f'{self.place}: "{matrix.scale.name}"'
        return quantised.dequantise(place, weight, scale, self.config())

    def content_id(self) -> str:
        """Return a text that is equal for two models if the bytes of their weight files are."""
        return self.files.content_id(self.weight_files())

    def fingerprint(self) -> str:
        """Identify the bytes that the matrices depend on: weights, and the configurations."""
        present = self.files.names()
        # They give the scale of an adapter and the block size of float8 scales.
        configurations = (MODEL_CONFIG, formats.ADAPTER_CONFIG)
        files = self.weight_files() + [name for name in configurations if name in present]
        return self.files.content_id(files)

    def size(self) -> int:
        """Return the bytes of the files that contain its weights."""
        return self.files.size(self.weight_files())

    @cached_property
    def _stored(self) -> dict[str, TensorInfo]:
        by_name: dict[str, TensorInfo] = {}
        for file in self.weight_files():
            by_name.update({tensor.name: tensor for tensor in self.files.header(file)})
        dtypes = {name: tensor.dtype for name, tensor in by_name.items()}
        # Packed integers look like matrices but are not the weights.
        quantised.refuse_packed(self.place, dtypes, self.config)
        if self._is_adapter:
            adapters.check(self.place, self._adapter_config)
        return by_name

    @cached_property
    def _is_adapter(self) -> bool:
        return self.weight_files() == [formats.ADAPTER]

    @cached_property
    def _adapter_config(self) -> Mapping[str, Any]:
        name = formats.ADAPTER_CONFIG
        return self.files.read_json(name) if name in self.files.names() else {}

    def _adapter_scale(self, module: str) -> torch.Tensor | None:
        factor = self.modules.get(names.lora_A(module).removesuffix(".weight"))
        if factor is None:
            return None
        rank = factor.weight.shape[0]
        return torch.tensor([adapters.scale(self.place, module, rank, self._adapter_config)])


def _is_float_matrix(tensor: TensorInfo) -> bool:
    return len(tensor.shape) == 2 and 0 not in tensor.shape and tensor.dtype in _FLOATS
