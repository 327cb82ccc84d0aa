"""bfloat16 autocast, on devices that compute bfloat16 natively.

A CPU without bfloat16 instructions emulates them, 10 to 50 times slower than float32.
"""

from contextlib import AbstractContextManager, nullcontext

import torch


def native_bfloat16(device: torch.device | str) -> bool:
    """Whether the device multiplies bfloat16 matrices in hardware."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8  # Ampere or later
    if device.type != "cpu":
        return False
    if torch.backends.cpu.get_cpu_capability().startswith("AVX"):
        avx512_bf16 = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
        if avx512_bf16 is not None:  # torch 2.6 and later
            return avx512_bf16()
    try:  # on ARM: bfloat16 instructions, and a PyTorch that uses them (not on macOS)
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except (AttributeError, RuntimeError):
        return False


def precision(device: torch.device | str, bf16: bool) -> str:
    """What `autocast` computes in: "bfloat16" where it is asked for and native, else "float32"."""
    return "bfloat16" if bf16 and native_bfloat16(device) else "float32"


def autocast(device: torch.device | str, bf16: bool) -> AbstractContextManager:
    """A context of bfloat16 autocast where it is asked for and native to the device; else of
    float32, which changes nothing."""
    if precision(device, bf16) == "float32":
        return nullcontext()
    return torch.autocast(torch.device(device).type, torch.bfloat16)
