"""Secrets that settings name: kept by the server, taken out of what others can see."""

import pytest

from coe_server.config.environment import Environment, secret_variables
from coe_server.errors import ConfigError


def test_what_was_taken_out_is_known_to_the_environment_alone():
    variables = {"KEY": " s3cret\n", "PATH": "/bin"}
    environment = Environment(variables)
    environment.take_out(["KEY", "NOT_SET"])
    assert variables == {"PATH": "/bin"}
    environment.take_out(["KEY"])  # a reload names it again
    assert environment.secret("keys.api_key_env", "KEY") == "s3cret"
    with pytest.raises(ConfigError, match=r"^keys\.api_key_env: the environment variable 'NOT_SET' is not set$"):
        environment.secret("keys.api_key_env", "NOT_SET")


def test_what_was_not_taken_out_is_read_as_it_is_now():
    variables = {}
    environment = Environment(variables)
    variables["KEY"] = "s3cret"
    assert environment.secret("keys.api_key_env", "KEY") == "s3cret"
    assert environment.without(["KEY"]) == {}
    assert environment.without([]) == variables


def test_every_variable_that_settings_name_as_a_secret_is_found():
    settings = {
        "keys": {"api_key_env": "OWN", "admin_key_env": None},
        "router": {"embeddings": {"api_key_env": "EMBEDDER", "model": "m"}},
        "experts": [
            {"name": "a", "api_key_env": "HOSTED", "headers": {"X-A": "{env.FIRST}:{env.SECOND}", "X-B": "plain"}},
            {"name": "b", "model": "m"},
        ],
    }
    assert secret_variables(settings) == {"OWN", "EMBEDDER", "HOSTED", "FIRST", "SECOND"}


def test_what_every_engine_gets_is_no_secret_of_ours_though_a_setting_names_it():
    """Engines download with the hub's token, and no program starts without a PATH."""
    settings = {"headers": {"X-A": "{env.USER} on {env.PATH}"}, "api_key_env": "HF_TOKEN"}
    assert secret_variables(settings) == frozenset()
