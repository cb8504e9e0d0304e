"""The memory that holds one expert's image: a sealed memfd owned by the server. Knows nothing of what is in it.

Nothing here, and nothing in the file's form (`vllm_worker/coe_weight_image.py`), depends on the device that reads it.
"""

from __future__ import annotations

import fcntl
import os

_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW


class WeightImage:
    """Empty at first; an engine opens `path`, writes once and seals it. It vanishes with us, even on SIGKILL."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._descriptor = self._fresh()
        self.path = f"/proc/{os.getpid()}/fd/{self._descriptor}"

    @property
    def size_bytes(self) -> int:
        return 0 if self._descriptor < 0 else os.fstat(self._descriptor).st_size

    @property
    def sealed(self) -> bool:
        """True once nobody, we included, can change, shorten or lengthen the image."""
        return self._descriptor >= 0 and fcntl.fcntl(self._descriptor, fcntl.F_GET_SEALS) & _SEALS == _SEALS

    def renew(self) -> None:
        """Empty again, at the same path; for an image that its engine would not use."""
        fresh = self._fresh()
        os.dup2(fresh, self._descriptor, inheritable=False)
        os.close(fresh)

    def close(self) -> None:
        """Give the memory back; engines that still have it open keep it alive. Closing twice is fine."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _fresh(self) -> int:
        # Linux allows 249 bytes for the name, which only shows in /proc.
        return os.memfd_create(f"coe-image-{self._name}"[:200], os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
