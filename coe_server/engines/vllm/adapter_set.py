"""Pure: which adapters an engine answers for, which it answered for before, and which of them it has loaded."""

from __future__ import annotations

from collections.abc import Iterable

from coe_server.engines.adapter import Adapter


class AdapterSet:
    """Those of one engine over all its runs."""

    def __init__(self, adapters: Iterable[Adapter]) -> None:
        self._known = {one.name: one for one in adapters}
        self._former: dict[str, Adapter] = {}  # for requests that chose them before they went
        self.absent: set[str] = set()  # not loaded: they came while it ran, or were unloaded

    def __contains__(self, name: str) -> bool:
        return name in self._known or name in self._former

    def get(self, name: str) -> Adapter | None:
        return self._known.get(name) or self._former.get(name)

    def take(self, adapters: Iterable[Adapter]) -> frozenset[str]:
        """Have exactly these from now on; the others are former ones. Returns the names that came."""
        wanted = {one.name: one for one in adapters}
        for name in self._known.keys() - wanted.keys():
            self._former[name] = self._known.pop(name)
        came = frozenset(wanted.keys() - self._known.keys())
        for name in came:
            self._former.pop(name, None)
        self.absent |= came
        self._known = wanted | self._known
        return came

    def seen(self, adapters: Iterable[Adapter]) -> tuple[Adapter, ...]:
        """Those of them that an engine can start with: one that it never loaded could keep its base from starting."""
        return tuple(one for one in adapters if one.name not in self.absent)

    def begin(self, adapters: Iterable[Adapter]) -> None:
        """A new run started with these: it has no others of the former ones."""
        self.absent |= self._former.keys() - {one.name for one in adapters}

    def load(self, adapter: Adapter) -> None:
        """The running engine has taken it, which counts unless another one has its name by now."""
        if adapter in (self._known.get(adapter.name), self._former.get(adapter.name)):
            self.absent.discard(adapter.name)

    @property
    def to_unload(self) -> list[str]:
        """Former ones that are loaded."""
        return sorted(self._former.keys() - self.absent)
