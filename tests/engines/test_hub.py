"""What the hub tells of a model that is not here: its size, or a sentence."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path

import pytest

from coe_server.engines.hub import HubSource, hub_config, hub_size
from coe_server.errors import ConfigError
from tests.engines.stand_in_hub import serving_hub
from tests.engines.test_model_size import LLAMA31_8B

NAME = "org/small"
FILES = {
    "config.json": json.dumps(LLAMA31_8B).encode(),
    "model-00001-of-00002.safetensors": bytes(300),
    "model-00002-of-00002.safetensors": bytes(200),
    "consolidated.safetensors": bytes(500),
    "pytorch_model.bin": bytes(500),
}


def source(endpoint: str, **more: str) -> HubSource:
    return HubSource(NAME, {"HF_ENDPOINT": endpoint, **more})


def test_the_size_is_that_of_the_files_that_are_loaded() -> None:
    with serving_hub({NAME: FILES}) as hub:
        assert hub_size(source(hub.endpoint)) == 500
        assert not any("resolve" in asked for asked in hub.asked), "no file is fetched for it"


def test_a_mirror_that_lists_no_sizes_has_a_config() -> None:
    with serving_hub({NAME: FILES}, sizes=False) as hub:
        assert hub_size(source(hub.endpoint)) == pytest.approx(16.06e9, rel=0.03)


def test_the_config_is_read_without_a_download(tmp_path: Path) -> None:
    with serving_hub({NAME: FILES}) as hub:
        assert hub_config(source(hub.endpoint, HF_HOME=str(tmp_path))) == LLAMA31_8B
    assert not any(tmp_path.iterdir())


def test_the_token_of_the_environment_is_sent() -> None:
    with serving_hub({NAME: FILES}, token="hf_secret") as hub:
        assert hub_size(source(hub.endpoint, HF_TOKEN="hf_secret")) == 500
        with pytest.raises(ConfigError, match=r"needs a token with access to it \(HF_TOKEN\)"):
            hub_size(source(hub.endpoint))


@pytest.mark.parametrize("token", ["hf_secret\n", " hf_secret", "hf_secret\r\n"])
def test_blanks_and_newlines_around_the_token_are_left_out(token: str) -> None:
    with serving_hub({NAME: FILES}, token="hf_secret") as hub:
        assert hub_size(source(hub.endpoint, HF_TOKEN=token)) == 500
        assert hub_size(source(hub.endpoint, HF_TOKEN=" ", HUGGING_FACE_HUB_TOKEN=token)) == 500


@pytest.mark.parametrize("token", ["hf_se\ncret", "\ufeffhf_secret", '"hf_secret"'])
def test_a_token_that_cannot_be_sent_is_refused_and_not_shown(token: str) -> None:
    with serving_hub({NAME: FILES}) as hub, pytest.raises(ConfigError, match="variable 'HF_TOKEN' has") as refused:
        hub_size(source(hub.endpoint, HF_TOKEN=token))
    assert "secret" not in str(refused.value)
    assert hub.asked == []


def test_a_model_that_is_not_there_is_said() -> None:
    with serving_hub({}) as hub, pytest.raises(ConfigError, match=rf"'{NAME}' is not on {re.escape(hub.endpoint)}"):
        hub_size(source(hub.endpoint))


def test_without_a_network_there_is_a_sentence() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{closed.getsockname()[1]}"
        with pytest.raises(ConfigError, match=rf"^{re.escape(endpoint)} cannot be reached"):
            hub_size(source(endpoint), within_seconds=60)


def test_a_hub_that_answers_nothing_is_given_up() -> None:
    silent, refused = serving_hub({NAME: FILES}, silent=True), r"did not answer within 0\.3 s"
    with silent as hub, pytest.raises(ConfigError, match=refused):
        hub_size(source(hub.endpoint), within_seconds=0.3)


def test_offline_nothing_is_asked() -> None:
    with serving_hub({NAME: FILES}) as hub:
        with pytest.raises(ConfigError, match="HF_HUB_OFFLINE"):
            hub_size(source(hub.endpoint, HF_HUB_OFFLINE="1"))
        assert hub.asked == []


def test_a_repository_without_weights_and_config_tells_nothing() -> None:
    with serving_hub({NAME: {"README.md": b"x"}}) as hub, pytest.raises(ConfigError, match="holds no weights"):
        hub_size(source(hub.endpoint))
