"""A device that is not the CPU on a machine that has only that: it computes there, and refuses to mix.

Tensors of it say that they are on ``ELSEWHERE`` and hold their values on the CPU. As on a GPU, an
operation on tensors of both fails unless it copies from one to the other, or one is a number, and NumPy cannot read
them. So what a step forgets to move is found without a GPU; kernels and streams are not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

ELSEWHERE = torch.device("meta")
_COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)


class Remote(torch.Tensor):
    """A tensor elsewhere; ``held`` has its values."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor):
        remote = torch.Tensor._make_wrapper_subclass(
            cls, held.shape, held.stride(), held.storage_offset(), dtype=held.dtype, device=ELSEWHERE
        )
        remote.held = held
        return remote

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        raise AssertionError(f"{operation} outside of the device's context")


@contextmanager
def device_elsewhere() -> Iterator[torch.device]:
    """Yield the device, which exists within this context."""
    with _FromNumbers(), _Operations():
        yield ELSEWHERE


class _FromNumbers(TorchFunctionMode):
    """``torch.tensor`` makes its values before anything is dispatched: here, then, and moves them."""

    def __torch_function__(self, function, types, args=(), kwargs=None) -> Any:
        kwargs = dict(kwargs or {})
        if function is torch.tensor and torch.device(kwargs.get("device") or "cpu") == ELSEWHERE:
            return function(*args, **{**kwargs, "device": "cpu"}).to(ELSEWHERE)
        return function(*args, **kwargs)


class _Operations(TorchDispatchMode):
    def __torch_dispatch__(self, operation, types, args=(), kwargs=None) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)]
        remote = [each for each in tensors if isinstance(each, Remote)]
        here = [each for each in tensors if not isinstance(each, Remote) and each.dim() > 0]
        if remote and here and operation not in _COPIES:
            raise RuntimeError(f"{operation}: tensors on {here[0].device} and {ELSEWHERE}")
        to_remote = bool(remote)
        if operation is torch.ops.aten.copy_.default:
            to_remote = isinstance(args[0], Remote)
        elif kwargs.get("device") is not None:
            to_remote = torch.device(kwargs["device"]) == ELSEWHERE
            kwargs["device"] = torch.device("cpu")
        held_args, held_kwargs = tree_map_only(Remote, lambda each: each.held, (args, kwargs))
        found = operation(*held_args, **held_kwargs)
        known = {id(each.held): each for each in remote}

        def own(each: torch.Tensor) -> torch.Tensor:
            if id(each) in known:
                return known[id(each)]  # what an operation changed in place
            return Remote(each) if to_remote else each

        return tree_map_only(torch.Tensor, own, found)
