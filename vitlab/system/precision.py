"""Precision of matrix products: fp32, or autocast to bf16 or fp16."""

from typing import Literal

import torch

from vitlab.config.errors import ConfigError
from vitlab.system.hardware import computes, describe

Precision = Literal["auto", "fp32", "bf16", "fp16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def resolve(precision: Precision, device: torch.device) -> Literal["fp32", "bf16", "fp16"]:
    """The precision of a run: `auto` is bf16 if the hardware supports it natively, else fp32.

    A CPU that only emulates bf16 is many times slower with it: 84 times on an AVX2 server.

    Raises:
        ConfigError: a precision that the device does not support.
    """
    if device.type == "cuda":
        native = torch.cuda.get_device_capability(device) >= (8, 0)
        if precision == "bf16" and not native:
            raise ConfigError(f"fit.precision=bf16: {torch.cuda.get_device_name(device)} has no bf16; use fp16 or fp32")
    elif device.type != "cpu":
        native = False  # until somebody has measured it there
        if precision in ("bf16", "fp16") and not (
            torch.amp.is_autocast_available(device.type) and computes(device, DTYPES[precision])
        ):
            raise ConfigError(f"fit.precision={precision}: {describe(device)} cannot compute in it: use fp32")
    else:
        able = torch.cpu.get_capabilities()
        native = any(able.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    if precision == "auto":
        return "bf16" if native else "fp32"
    return precision


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Autocast to this precision, one of `DTYPES`; off for fp32."""
    return torch.autocast(device.type, dtype=DTYPES[precision], enabled=precision != "fp32")
