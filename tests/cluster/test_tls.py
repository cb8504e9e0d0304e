"""HTTPS between a front and its nodes, with certificates of both sides; and a server over HTTPS for anyone."""

import subprocess
from contextlib import ExitStack

import pytest

from coe_server.app import build_server
from coe_server.commands.experts import RunningServer
from coe_server.config.environment import Environment
from coe_server.config.schema import ServerConfig
from coe_server.errors import CoeError, ConfigError
from tests.cluster.servers import ENVIRONMENT, expert, front_settings, in_thread, node_settings
from tests.patience import until

# FastAPI silences it with a filter that is not per thread, and here several servers start in threads.
pytestmark = pytest.mark.filterwarnings("ignore::pydantic.warnings.UnsupportedFieldAttributeWarning")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """A folder with an authority (`ca.pem`), and a certificate with its key for `node`, `front` and a `stranger`."""
    folder = tmp_path_factory.mktemp("certificates")

    def openssl(*words):
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True, timeout=120)

    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    for authority in ("ca", "other-ca"):
        made = ("-keyout", f"{authority}.key", "-out", f"{authority}.pem", "-subj", f"/CN={authority}", "-days", "2")
        openssl("req", "-x509", *curve, *made)
    for name, authority in (("node", "ca"), ("front", "ca"), ("stranger", "other-ca")):
        (folder / f"{name}.ext").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n")
        openssl("req", *curve, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        signed = ("-CA", f"{authority}.pem", "-CAkey", f"{authority}.key", "-CAcreateserial", "-extfile", f"{name}.ext")
        openssl("x509", "-req", "-in", f"{name}.csr", *signed, "-out", f"{name}.pem", "-days", "2")
    return folder


def https(folder, **tls):
    own = {"certificate": str(folder / "node.pem"), "key": str(folder / "node.key")}
    return {"shutdown_seconds": 1, "tls": {**own, **{name: str(folder / file) for name, file in tls.items()}}}


def front_of(port, folder, **files):
    one = {"name": "left", "address": f"https://127.0.0.1:{port}", "api_key_env": "COE_NODE_KEY"}
    return front_settings({}, nodes=[{**one, **{name: str(folder / file) for name, file in files.items()}}])


def test_a_front_reaches_a_node_over_https_with_its_authority(certificates):
    with ExitStack() as held:
        node = held.enter_context(in_thread(node_settings([expert("coder")], http=https(certificates))))
        front = held.enter_context(in_thread(front_of(node.port, certificates, ca_file="ca.pem")))
        front.until_usable("left")
        status, headers, body = front.chat("coder", stream=True)
        assert (status, headers["x-coe-node"], body.endswith(b"data: [DONE]\n\n")) == (200, "left", True)


def test_a_node_of_another_authority_gets_no_key(certificates):
    with ExitStack() as held:
        node = held.enter_context(in_thread(node_settings([expert("coder")], http=https(certificates))))
        front = held.enter_context(in_thread(front_of(node.port, certificates, ca_file="other-ca.pem")))
        until(lambda: "certificate verify failed" in (front.nodes()["left"]["why"] or "").lower())


def test_a_node_may_ask_for_the_certificate_of_its_fronts(certificates):
    mutual = https(certificates, client_ca="ca.pem")
    with ExitStack() as held:
        node = held.enter_context(in_thread(node_settings([expert("coder")], http=mutual)))
        own = {"ca_file": "ca.pem", "certificate": "front.pem", "key": "front.key"}
        front = held.enter_context(in_thread(front_of(node.port, certificates, **own)))
        front.until_usable("left")
        strange = {"ca_file": "ca.pem", "certificate": "stranger.pem", "key": "stranger.key"}
        other = held.enter_context(in_thread(front_of(node.port, certificates, **strange)))
        until(lambda: other.nodes()["left"]["why"] not in {None, "no answer yet"})
        assert front.chat("coder")[0] == 200


def test_coe_experts_asks_a_server_over_https(certificates):
    plain = node_settings([expert("coder")], role="server", keys={}, http=https(certificates))
    with in_thread(plain) as server:
        url = f"https://127.0.0.1:{server.port}"
        until(lambda: RunningServer(url, certificate=certificates / "node.pem").look().experts)
        with pytest.raises(CoeError, match="certificate verify failed"):
            RunningServer(url, certificate=certificates / "stranger.pem").experts()


def test_a_file_that_is_no_certificate_stops_the_start(certificates):
    config = ServerConfig.model_validate(front_of(1, certificates, ca_file="node.ext"))
    config._environment = Environment(dict(ENVIRONMENT))
    with pytest.raises(ConfigError, match=r"nodes\.left\.ca_file: .*node\.ext cannot be read as certificates"):
        build_server(config)
