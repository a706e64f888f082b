"""High dynamic range pictures as ordinary ones."""

from functools import cache
from typing import Literal

import numpy as np

REFERENCE_WHITE = 203.0  # nits of a white page in HDR video (ITU-R BT.2408)
_KNEE = 0.7  # brightness (1: white) above which highlights are squeezed together
# Linear BT.2020 -> linear BT.709 (ITU-R BT.2087).
_TO_BT709 = np.array(
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], dtype=np.float32
)


def hdr_to_srgb(frame: np.ndarray, transfer: Literal["pq", "hlg"]) -> np.ndarray:
    """A BT.2020 HDR picture as sRGB: white stays near white, highlights above it are squeezed, not cut.

    Args:
        frame: uint16 RGB over the full range, (h, w, 3), coded by `transfer`.
        transfer: "pq" (SMPTE ST 2084, HDR10) or "hlg" (ARIB STD-B67).

    Returns:
        uint8 RGB, (h, w, 3).
    """
    light = np.clip(_light(transfer)[frame] @ _TO_BT709.T, 0, None)
    above = np.maximum(light - _KNEE, 0) / (1 - _KNEE)
    light = np.minimum(light, _KNEE) + (1 - _KNEE) * (1 - np.exp(-above))
    return _srgb()[(light * 4095 + 0.5).astype(np.uint16)]


@cache
def _light(transfer: str) -> np.ndarray:
    """Light of each 16-bit code, 1 for reference white; float32 (65536,)."""
    signal = np.linspace(0, 1, 65536)
    if transfer == "pq":
        root = signal ** (1 / 78.84375)
        nits = 10000 * (np.maximum(root - 0.8359375, 0) / (18.8515625 - 18.6875 * root)) ** (1 / 0.1593017578125)
    else:
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        scene = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)
        nits = 1000 * scene**1.2  # a screen of 1000 nits
    return (nits / REFERENCE_WHITE).astype(np.float32)


@cache
def _srgb() -> np.ndarray:
    """sRGB code of each of 4096 steps of light; uint8 (4096,)."""
    light = np.linspace(0, 1, 4096)
    code = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return (255 * code + 0.5).astype(np.uint8)
