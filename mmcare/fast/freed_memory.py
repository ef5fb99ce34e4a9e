"""Keeping the memory of freed maps for the next image."""

from __future__ import annotations

import torch


def keep_freed_memory() -> None:
    """Keep up to 64 MiB of freed memory in this process, so that forward passes cause fewer page faults.

    The setting is process-wide and works on Linux with glibc; elsewhere it does nothing. docs/speed.md has the gains.

    glibc maps blocks above one threshold directly from the system and returns them when they are freed; above another,
    it also returns free memory at the end of its heap. Freeing a mapped block raises the first threshold to the size of
    the block and the second to twice that, up to 32 and 64 MiB (mallopt(3), ``M_MMAP_THRESHOLD``). This function frees
    such a block. The block is never touched, so it takes no memory. Thresholds set in the environment and other
    allocators are not affected.
    """
    torch.empty(2**25 - 2**13, dtype=torch.uint8)
