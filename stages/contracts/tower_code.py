"""The code that computes the inputs of the towers."""

from __future__ import annotations

from stages.contracts.code import code_digest

TOWER = ("stages.features.history", "stages.candidate.onnx_towers")
"""A step that imports this module depends on both, as with ``release_code.SHARED``."""


def tower_code() -> str:
    """Return the digest of ``TOWER``."""
    return code_digest(*TOWER)
