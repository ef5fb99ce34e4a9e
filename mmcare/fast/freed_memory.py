"""The memory of maps that are freed, kept for the next image."""

from __future__ import annotations

import torch


def keep_freed_memory() -> None:
    """Spare the passes to come the page faults of fetching their maps' memory from the system, each time anew.

    A setting of the whole process, for Linux with glibc; elsewhere it does nothing. From the call on the process keeps
    up to 64 MiB that it has freed. docs/speed.md has what that gains.

    glibc takes blocks above a threshold from the system and gives them back when freed, and so it does with what is
    free at the end of its heap. It raises the thresholds when it sees a block freed that is larger, to the block's size
    and twice that, up to 32 and 64 MiB (mallopt(3), ``M_MMAP_THRESHOLD``). Here it sees one. The block is never
    touched, and so takes no memory. Thresholds that the environment sets stay, and so do other allocators'.
    """
    torch.empty(2**25 - 2**13, dtype=torch.uint8)
