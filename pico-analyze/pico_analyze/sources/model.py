"""The model of one step: which of its tensors are matrices of modules, and how each is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    """Where the matrix of a module is stored, and its scales if it is quantised."""

    weight: TensorInfo
    scale: TensorInfo | None = None


class Model:
    """One model. Modules are the names of its floating-point matrices without `.weight`."""

    def __init__(self, files: Files) -> None:
        self.files = files
        self.place = files.place

    def config(self) -> Mapping[str, Any]:
        """config.json, {} if there is none; DamagedError if it does not parse."""
        return self.files.read_json(MODEL_CONFIG) if MODEL_CONFIG in self.files.names() else {}

    def weight_files(self) -> list[str]:
        """The files that hold its weights; errors as `formats.weight_files`."""
        return formats.weight_files(self.place, self.files.names(), self.files.read_json)

    @cached_property
    def modules(self) -> dict[str, StoredMatrix]:
        """Module -> where its matrix is, from headers alone.

        Raises:
            UnsupportedError: the weights are in a form that is not read.
            DamagedError: a header cannot be read, two tensors are of one module, or there is no
                matrix.
        """
        stored = self._stored
        found: dict[str, StoredMatrix] = {}
        dtypes = {name: one.dtype for name, one in stored.items()}
        for name, one in stored.items():
            if (
                len(one.shape) != 2
                or 0 in one.shape
                or one.dtype not in _FLOATS
                or quantised.is_scale(name, dtypes)
            ):
                continue
            module = names.canonical(
                adapters.module_name(name) if self._is_adapter else name
            ).removesuffix(".weight")
            if module in found:
                raise DamagedError(f'{self.place} names the module "{module}" twice')
            scale = quantised.scale_name(name, stored) if one.dtype in quantised.FLOAT8 else None
            found[module] = StoredMatrix(one, stored[scale] if scale else None)
        if not found:
            raise DamagedError(f"{self.place} holds no floating-point matrix")
        return found

    def stored(self) -> list[TensorInfo]:
        """Every tensor, also those that are not offered as modules; errors as `modules`."""
        return list(self._stored.values())

    def read(self, module: str) -> torch.Tensor | None:
        """The matrix of a module in its stored dtype, float8 dequantised to float32; None if there
        is none.

        Of an adapter's module `X` also `X.lora_scale`, (1,).
        """
        if self._is_adapter and module.endswith(_LORA_SCALE):
            return self._adapter_scale(module.removesuffix(_LORA_SCALE))
        matrix = self.modules.get(module)
        if matrix is None:
            return None
        weight = self.files.read(matrix.weight)
        if matrix.scale is None:
            return weight.float() if matrix.weight.dtype in quantised.FLOAT8 else weight
        place = f'{self.place}: "{matrix.scale.name}"'
        return quantised.dequantise(place, weight, self.files.read(matrix.scale), self.config())

    def content_id(self) -> str:
        """Equal for two models if the bytes of their weight files are."""
        return self.files.content_id(self.weight_files())

    def fingerprint(self) -> str:
        """Changes whenever anything does that the matrices depend on: weights, and configurations
        beside them."""
        beside = (MODEL_CONFIG, formats.ADAPTER_CONFIG)
        present = self.files.names()
        return self.files.content_id(
            [*self.weight_files(), *(name for name in beside if name in present)]
        )

    def size(self) -> int:
        """Bytes of the files that hold its weights."""
        return self.files.size(self.weight_files())

    @cached_property
    def _stored(self) -> dict[str, TensorInfo]:
        stored: Sequence[TensorInfo] = [
            one for file in self.weight_files() for one in self.files.header(file)
        ]
        by_name = {one.name: one for one in stored}
        dtypes = {name: one.dtype for name, one in by_name.items()}
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
        return torch.tensor(
            [adapters.scale(self.place, module, factor.weight.shape[0], self._adapter_config)]
        )
