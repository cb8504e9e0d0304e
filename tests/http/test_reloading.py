"""What a reload needed for a moment is given back, whether it changed something or was refused."""

import asyncio
from types import SimpleNamespace

import pytest

from coe_server.errors import ConfigError, ReloadRefused
from coe_server.http.routes import admin as reloading
from coe_server.http.routes.admin import Fresh, Reloader


def test_memory_is_given_back_after_a_reload_and_after_a_refused_one(monkeypatch):
    told = []
    monkeypatch.setattr(reloading, "give_back_free_memory", lambda: told.append(service.serving))
    old, new = (SimpleNamespace(router=SimpleNamespace(version=name), embedder=None) for name in ("old", "new"))
    keyring = SimpleNamespace(since=lambda _: {})
    service = SimpleNamespace(serving=old, guard=SimpleNamespace(keyring=keyring), log_prompts=False, learner=None)

    def refuse(_):
        raise ConfigError("no such key")

    with pytest.raises(ReloadRefused):
        asyncio.run(Reloader(service, refuse).reload())
    assert told == [old]
    asyncio.run(Reloader(service, lambda _: Fresh(new, service.guard, False, ())).reload())
    assert told == [old, new]
