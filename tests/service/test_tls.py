"""Encrypted ports: certificates of the server, of its clients, and new ones while it runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from audit.v1 import info_pb2, info_pb2_grpc
from service import watched
from service.channel import Identity
from service.client import BasinClient, ServiceError
from service.config import ConfigError, load_settings
from service.server import start_server
from tests.service.certificates import Authority
from tests.service.helpers import LONG, SERVING, SMALL, Client, eventually, small


def test_only_those_who_believe_the_authority_get_through(
    launch: Callable[..., Client], tmp_path: Path, prompts: list[str]
) -> None:
    """Encrypted audits work; plain text and clients that know another authority do not. The port for health does."""
    authority, stranger = Authority.new("ours"), Authority.new("theirs")
    certificate, key = authority.issue("basin", tmp_path / "server")
    ca, foreign = authority.write(tmp_path / "ca.crt"), stranger.write(tmp_path / "foreign.crt")
    own = launch(tls={"certificate": certificate, "key": key}, health="127.0.0.1:0")
    with BasinClient(f"https://{own.address}", identity=Identity(ca=ca), timeout=LONG) as client:
        assert client.audit(small(prompts[0])).cost.evaluations == SMALL
    for target, identity in ((own.address, Identity()), (own.address, Identity(ca=foreign))):
        with BasinClient(target, identity=identity, timeout=LONG, patience=0) as client:
            with pytest.raises(ServiceError) as refused:
                client.info()
            assert refused.value.code is grpc.StatusCode.UNAVAILABLE
    with grpc.insecure_channel(own.health_address) as channel:
        for service in ("", "readiness", "liveness", "startup"):
            request = health_pb2.HealthCheckRequest(service=service)
            assert health_pb2_grpc.HealthStub(channel).Check(request, timeout=LONG).status == SERVING
        with pytest.raises(grpc.RpcError) as none:
            info_pb2_grpc.InfoServiceStub(channel).GetInfo(info_pb2.GetInfoRequest(), timeout=LONG)
        assert none.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert own.metric("basin_certificate_expiry_timestamp_seconds") == pytest.approx(time.time() + 86_400, abs=3600)


def test_clients_show_certificates(launch: Callable[..., Client], tmp_path: Path, prompts: list[str]) -> None:
    """With mutual TLS a client without a certificate of the authority gets nowhere; one with it has a name."""
    authority, stranger = Authority.new("ours"), Authority.new("theirs")
    certificate, key = authority.issue("basin", tmp_path / "server")
    ca, journal = authority.write(tmp_path / "ca.crt"), tmp_path / "audit.log"
    own = launch(tls={"certificate": certificate, "key": key, "client_ca": ca}, audit_log=str(journal))
    for identity in (Identity(ca=ca), Identity("", ca, *stranger.issue("mallory", tmp_path / "mallory"))):
        with (
            BasinClient(own.address, identity=identity, timeout=LONG) as client,
            pytest.raises(ServiceError) as refused,
        ):
            client.info()
        assert refused.value.code is grpc.StatusCode.UNAVAILABLE
    identity = Identity("", ca, *authority.issue("alice", tmp_path / "alice"))
    with BasinClient(own.address, identity=identity, timeout=LONG) as client:
        client.audit(small(prompts[0]))
    assert '"client": "alice"' in journal.read_text()


def test_a_new_certificate_needs_no_restart(
    launch: Callable[..., Client], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Handshakes see the files as they are; files that do not fit leave everything as it was."""
    monkeypatch.setattr(watched, "GLANCE", 0.0)
    one, other = Authority.new("one"), Authority.new("other")
    certificate, key = one.issue("basin", tmp_path / "server")
    own = launch(tls={"certificate": certificate, "key": key})
    trusted = {name: authority.write(tmp_path / f"{name}.crt") for name, authority in (("one", one), ("other", other))}

    def believed() -> set[str]:
        found = set()
        for name, ca in trusted.items():
            with suppress(ServiceError), BasinClient(own.address, identity=Identity(ca=ca), timeout=LONG) as client:
                client.info()
                found.add(name)
        return found

    assert believed() == {"one"}
    expiry = own.metric("basin_certificate_expiry_timestamp_seconds")
    new, new_key = other.issue("basin", tmp_path / "new", days=9)
    new.replace(certificate)  # without its key
    assert believed() == {"one"}
    assert own.metric("basin_certificate_expiry_timestamp_seconds") == expiry
    new_key.replace(key)
    eventually(lambda: believed() == {"other"})
    assert own.metric("basin_certificate_expiry_timestamp_seconds") > expiry + 7 * 86_400


def test_a_new_authority_of_clients_needs_no_restart(
    launch: Callable[..., Client], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clients of the new one get through, those of the old one no longer; what is none leaves all as it was."""
    monkeypatch.setattr(watched, "GLANCE", 0.0)
    ours, one, other = (Authority.new(name) for name in ("ours", "one", "other"))
    certificate, key = ours.issue("basin", tmp_path / "server")
    ca, clients = ours.write(tmp_path / "ca.crt"), one.write(tmp_path / "clients.crt")
    own = launch(tls={"certificate": certificate, "key": key, "client_ca": clients})
    identities = {
        authority.name: Identity("", ca, *authority.issue("alice", tmp_path / authority.name))
        for authority in (one, other)
    }

    def admitted() -> set[str]:
        found = set()
        for name, identity in identities.items():
            with suppress(ServiceError), BasinClient(own.address, identity=identity, timeout=LONG) as client:
                client.info()
                found.add(name)
        return found

    assert admitted() == {"one"}
    other.write(clients)
    eventually(lambda: admitted() == {"other"})
    clients.write_text("no PEM")
    assert admitted() == {"other"}


@pytest.mark.parametrize(
    ("broken", "text"),
    [
        ({"key": None}, "give both a certificate and its key"),
        ({"certificate": "missing.crt"}, "tls: .*missing.crt: No such file"),
        ({"certificate": "text"}, "text holds no certificate"),
        ({"key": "text"}, "text holds no key"),
        ({"key": "other"}, "is not the key of"),
        ({"client_ca": "text"}, "text holds no certificate"),
        ({"certificate": None, "key": None, "client_ca": "text"}, "client_ca needs a certificate"),
    ],
)
def test_files_that_do_not_fit_end_the_start(broken: dict[str, str | None], text: str, tmp_path: Path) -> None:
    """With one line that says which."""
    authority = Authority.new("ours")
    certificate, key = authority.issue("basin", tmp_path / "server")
    _, other = authority.issue("other", tmp_path / "other")
    (tmp_path / "text").write_text("no PEM")
    files = {"missing.crt": tmp_path / "missing.crt", "text": tmp_path / "text", "other": other, None: None}
    tls = {"certificate": certificate, "key": key, **{name: files[file] for name, file in broken.items()}}
    with pytest.raises(ConfigError, match=text):
        start_server(load_settings(listen="127.0.0.1:0", metrics="off", tls=tls))
