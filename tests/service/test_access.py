"""Who may call: tokens, scopes, what is closed, what the audit log tells, and quotas."""

from __future__ import annotations

import io
import json
import shutil
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import jwt
import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric import ec
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from hypothesis import given
from hypothesis import strategies as st

from audit.v1 import audit_pb2, batch_pb2
from service import watched
from service.access import ANYBODY, NEEDED, digest_of
from service.channel import Identity
from service.client import BasinClient, ServiceError
from service.config import ConfigError, load_settings
from service.config_parts import Quota, QuotaPart
from service.log import make_logger
from service.quotas import Quotas
from service.server import METHODS, start_server
from service.status import QuotaExceeded
from tests.service.batch_calls import cancel, create, delete, ended, parts_of, results, spec, upload
from tests.service.helpers import (
    LONG,
    SERVING,
    SMALL,
    Client,
    endless,
    eventually,
    failure,
    failure_of,
    small,
    until_sampling,
)

ISSUER, AUDIENCE = "https://issuer.example", "basin"


def tokens(file: Path, **scopes: list[str]) -> Path:
    """A file of tokens, whose holders are their own tokens."""
    content = {name: {"sha256": digest_of(name), "scopes": own} for name, own in scopes.items()}
    file.write_text(yaml.safe_dump(content))
    return file


def as_client(client: Client, token: str) -> BasinClient:
    """A client that shows a token."""
    return BasinClient(client.address, timeout=LONG, identity=Identity(token=token))


def refusal(call: Callable[[], object]) -> tuple[grpc.StatusCode, str]:
    """Code and reason of a call that is refused."""
    with pytest.raises(ServiceError) as refused:
        call()
    return refused.value.code, refused.value.reason


def test_scopes(launch: Callable[..., Client], tmp_path: Path, prompts: list[str]) -> None:
    """A token opens what its scopes say; health needs none."""
    own = launch(auth={"tokens": tokens(tmp_path / "tokens", alice=["audit"], root=["admin"])})
    unknown = grpc.StatusCode.UNAUTHENTICATED
    with as_client(own, "alice") as alice, as_client(own, "root") as root, as_client(own, "eve") as eve:
        assert alice.audit(small(prompts[0])).cost.evaluations == SMALL
        assert alice.info().version
        assert refusal(lambda: alice.unload_checkpoint("demo")) == (grpc.StatusCode.PERMISSION_DENIED, "SCOPE_MISSING")
        assert refusal(lambda: list(alice.batches())) == (grpc.StatusCode.PERMISSION_DENIED, "SCOPE_MISSING")
        assert refusal(lambda: root.audit(small(prompts[0]))) == (grpc.StatusCode.PERMISSION_DENIED, "SCOPE_MISSING")
        assert root.load_checkpoint("demo").id == "demo"
        assert refusal(eve.info) == (unknown, "TOKEN_INVALID")
    assert failure(lambda: own.audit(small(prompts[0]))).reason == "TOKEN_MISSING"
    assert (
        failure(lambda: own.audits.Audit(small(prompts[0]), metadata=[("authorization", "Basic YTpi")])).code is unknown
    )
    assert own.health() == SERVING
    assert own.metric("basin_errors_total", reason="SCOPE_MISSING") == 3
    assert own.metric("basin_rpcs_total", method="InfoService/GetInfo", code="UNAUTHENTICATED") == 1


def test_every_method_that_does_something_has_a_scope() -> None:
    """Those without one only tell what is there."""
    free = {method for method in METHODS if not any(needed.endswith(f".{method}") for needed in NEEDED)}
    assert free == {
        "CheckpointService/ListCheckpoints", "ReferenceService/ListReferences", "ReferenceService/GetReference",
        "InfoService/GetInfo",
    }  # fmt: skip


def test_tokens_change_without_a_restart(
    launch: Callable[..., Client], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new token counts, an old one no longer; a file that holds nonsense leaves all as it was."""
    monkeypatch.setattr(watched, "GLANCE", 0.0)
    file = tokens(tmp_path / "tokens", alice=["audit"])
    own = launch(auth={"tokens": file})
    with as_client(own, "alice") as alice, as_client(own, "bob") as bob:
        alice.info()
        tokens(file, bob=["audit"])
        bob.info()
        assert refusal(alice.info)[1] == "TOKEN_INVALID"
        file.write_text("bob: {sha256: bob}")
        bob.info()


@pytest.fixture(scope="module")
def signing() -> tuple[ec.EllipticCurvePrivateKey, dict[str, Any]]:
    """A key, and what others may know of it."""
    key = ec.generate_private_key(ec.SECP256R1())
    public = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(key.public_key()))
    return key, {"keys": [{**public, "kid": "one", "alg": "ES256", "use": "sig"}]}


def signed(key: Any, algorithm: str = "ES256", kid: str = "one", **claims: Any) -> str:
    """A token like those of an identity provider."""
    usual = {"iss": ISSUER, "aud": AUDIENCE, "sub": "carol", "exp": time.time() + 60, "scope": "openid audit"}
    content = {name: value for name, value in {**usual, **claims}.items() if value is not None}
    return jwt.encode(content, key, algorithm, headers={"kid": kid})


def test_tokens_of_an_identity_provider(
    launch: Callable[..., Client],
    tmp_path: Path,
    signing: tuple[ec.EllipticCurvePrivateKey, dict[str, Any]],
    prompts: list[str],
) -> None:
    """Signed, for us, by whom we believe, and now: anything else is refused. Their names reach the audit log."""
    key, jwks = signing
    (tmp_path / "jwks.json").write_text(json.dumps(jwks))
    settings = {"jwks": tmp_path / "jwks.json", "issuer": ISSUER, "audience": AUDIENCE}
    journal = tmp_path / "audit.log"
    own = launch(auth={"jwt": settings}, audit_log=str(journal), audit_log_prompts=True)
    with as_client(own, signed(key)) as carol:
        carol.audit(small(prompts[0]))
        assert refusal(lambda: list(carol.batches()))[1] == "SCOPE_MISSING"
    line, refused = map(json.loads, journal.read_text().splitlines())
    assert (line["client"], line["prompt"], line["code"]) == ("carol", prompts[0], "OK")
    assert (refused["client"], refused["reason"]) == ("carol", "SCOPE_MISSING")
    with as_client(own, signed(key, scope=["batch"])) as other:
        assert list(other.batches()) == []
    secret = jwks["keys"][0]["x"]
    for token, reason in (
        (signed(key, exp=time.time() - 60), "TOKEN_EXPIRED"),
        (signed(key, exp=None), "TOKEN_INVALID"),
        (signed(key, iss="https://elsewhere.example"), "TOKEN_INVALID"),
        (signed(key, aud="another"), "TOKEN_INVALID"),
        (signed(key, sub=None), "TOKEN_INVALID"),
        (signed(key, kid="two"), "TOKEN_INVALID"),
        (signed(ec.generate_private_key(ec.SECP256R1())), "TOKEN_INVALID"),
        (signed(secret, "HS256"), "TOKEN_INVALID"),
        (signed(None, "none"), "TOKEN_INVALID"),
        (signed(key)[:-8], "TOKEN_INVALID"),
        ("a.b.c", "TOKEN_INVALID"),
    ):
        with as_client(own, token) as stranger:
            assert refusal(stranger.info) == (grpc.StatusCode.UNAUTHENTICATED, reason)


def test_keys_of_an_identity_provider_change_without_a_restart(
    launch: Callable[..., Client],
    tmp_path: Path,
    signing: tuple[ec.EllipticCurvePrivateKey, dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Tokens of a new key count, those of the old one no longer; a file that holds nonsense leaves all as it was."""
    monkeypatch.setattr(watched, "GLANCE", 0.0)
    key, jwks = signing
    (tmp_path / "jwks.json").write_text(json.dumps(jwks))
    own = launch(auth={"jwt": {"jwks": tmp_path / "jwks.json", "issuer": ISSUER, "audience": AUDIENCE}})
    new = ec.generate_private_key(ec.SECP256R1())
    with as_client(own, signed(key)) as carol, as_client(own, signed(new, kid="two")) as dave:
        carol.info()
        assert refusal(dave.info)[1] == "TOKEN_INVALID"
        public = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(new.public_key()))
        (tmp_path / "jwks.json").write_text(json.dumps({"keys": [{**public, "kid": "two", "alg": "ES256"}]}))
        dave.info()
        assert refusal(carol.info)[1] == "TOKEN_INVALID"
        (tmp_path / "jwks.json").write_text("{}")
        dave.info()


@pytest.mark.parametrize(
    ("auth", "content", "text"),
    [
        ("tokens", "alice: [", "it is no YAML"),
        ("tokens", "alice: {sha256: short, scopes: [audit]}", "alice.sha256"),
        ("tokens", f"alice: {{sha256: {64 * 'a'}, scopes: [everything]}}", "alice.scopes"),
        ("tokens", None, "No such file"),
        ("jwks", "{}", "it is no set of keys"),
        ("jwks", "[]", "it is no set of keys"),
        ("jwks", "no", "it is no set of keys"),
    ],
)
def test_files_of_no_use_end_the_start(auth: str, content: str | None, text: str, tmp_path: Path) -> None:
    """With one line, which does not quote them."""
    if content is not None:
        (tmp_path / "file").write_text(content)
    jwks = {"jwks": tmp_path / "file", "issuer": ISSUER, "audience": AUDIENCE}
    settings = {"tokens": tmp_path / "file"} if auth == "tokens" else {"jwt": jwks}
    with pytest.raises(ConfigError, match=f"^auth.*{text}"):
        start_server(load_settings(listen="127.0.0.1:0", metrics="off", auth=settings))


def test_what_the_operator_closes_stays_closed(launch: Callable[..., Client]) -> None:
    """Reflection, calls that change what is there, and loading."""
    closed, fixed = launch(reflection=False, admin=False), launch(model_control="start")
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    for client, answers in ((closed, False), (fixed, True)):
        call = reflection_pb2_grpc.ServerReflectionStub(client.channel).ServerReflectionInfo(
            iter([request]), timeout=LONG
        )
        if answers:
            assert next(iter(call)).list_services_response.service
        else:
            with pytest.raises(grpc.RpcError) as none:
                next(iter(call))
            assert none.value.code() is grpc.StatusCode.UNIMPLEMENTED
    with as_client(closed, "") as client:
        for call in (lambda: client.unload_checkpoint("demo"), lambda: client.delete_batch("any")):
            assert refusal(call) == (grpc.StatusCode.FAILED_PRECONDITION, "ADMIN_CLOSED")
    with as_client(fixed, "") as client:
        for change in (client.load_checkpoint, client.unload_checkpoint):
            assert refusal(lambda change=change: change("demo"))[1] == "MODEL_CONTROL_CLOSED"


def test_the_audit_log_tells_who_asked_what(launch: Callable[..., Client], tmp_path: Path, prompts: list[str]) -> None:
    """One line a call, refused ones too, with the digest in place of the prompt; others may rotate the file."""
    journal = tmp_path / "audit.log"
    own = launch(audit_log=str(journal))
    report = own.audit(small(prompts[0], request_id="mine"))
    failure(lambda: own.audit(small(" ")))
    first, second = map(json.loads, journal.read_text().splitlines())
    assert prompts[0] not in journal.read_text()
    assert first["prompt_sha256"] == digest_of(prompts[0])
    assert (first["method"], first["code"], first["checkpoint"]) == ("AuditService/Audit", "OK", "demo")
    assert (
        first["verdict"]
        == audit_pb2.DESCRIPTOR.pool.FindEnumTypeByName("audit.v1.Verdict").values_by_number[report.verdict].name
    )
    assert first["evaluations"] == SMALL
    assert (second["code"], second["reason"]) == ("INVALID_ARGUMENT", "PROMPT_EMPTY")
    journal.rename(tmp_path / "audit.log.1")
    own.audit(small(prompts[0]))
    assert len(journal.read_text().splitlines()) == 1


def test_the_audit_log_tells_which_batch(launch: Callable[..., Client], tmp_path: Path) -> None:
    """Every call about a batch, the one that took it in too; refused calls have the id that was asked for."""
    journal = tmp_path / "audit.log"
    own = launch(audit_log=str(journal), batches={"store": f"sqlite:///{tmp_path}/basin.db"})
    made = [create(own, ["created"]), upload(own, parts_of(spec(), ["uploaded"]))]
    for id_ in made:
        ended(own, id_)
        results(own, id_)
        delete(own, id_)
    failure(lambda: cancel(own, "nope"))
    told = Counter((line["method"], line["batch"]) for line in map(json.loads, journal.read_text().splitlines()))
    calls = [
        "Operations/WaitOperation",
        *(f"BatchService/{name}" for name in ("GetBatch", "StreamBatchResults", "DeleteBatch")),
    ]
    assert told == Counter(
        [(f"BatchService/{name}Batch", id_) for name, id_ in zip(("Create", "Upload"), made, strict=True)]
        + [(call, id_) for call in calls for id_ in made]
        + [("BatchService/CancelBatch", "nope")]
    )


def test_an_audit_log_that_cannot_be_written_ends_the_start(tmp_path: Path) -> None:
    """It would be missed when it is needed."""
    with pytest.raises(ConfigError, match=r"^audit_log: .* cannot be written: No such file"):
        start_server(load_settings(listen="127.0.0.1:0", metrics="off", audit_log=str(tmp_path / "gone" / "audit.log")))


def test_an_audit_log_that_cannot_be_written_any_more_fails_no_call(tmp_path: Path, prompts: list[str]) -> None:
    """The server's log says so; once there is a place for it, it goes on."""
    log, journal = io.StringIO(), tmp_path / "logs" / "audit.log"
    journal.parent.mkdir()
    settings = load_settings(listen="127.0.0.1:0", metrics="off", audit_log=str(journal))
    with start_server(settings, make_logger("info", "json", log)) as server:
        assert server.wait_ready(LONG)
        client = Client.of(server)
        shutil.rmtree(journal.parent)
        for _ in range(2):
            assert client.audit(small(prompts[0])).cost.evaluations == SMALL
        assert log.getvalue().count("audit log not written") == 2
        journal.parent.mkdir()
        client.audit(small(prompts[0]))
        assert len(journal.read_text().splitlines()) == 1


def test_quotas(launch: Callable[..., Client], tmp_path: Path, prompts: list[str]) -> None:
    """A client that has used up its share is put off, and nobody else; audits and batches take from the same share."""
    file = tokens(tmp_path / "tokens", alice=["audit", "batch"], bob=["audit"])
    quota = {"evaluations_per_second": 0.01, "burst_evaluations": SMALL + 2}
    own = launch(auth={"tokens": file}, quotas={"clients": {"alice": quota}})
    with as_client(own, "alice") as alice, as_client(own, "bob") as bob:
        alice.patience = 0
        for _ in range(2):  # the second one owes
            alice.audit(small(prompts[0]))
        with pytest.raises(ServiceError) as refused:
            alice.audit(small(prompts[0]))
        assert (refused.value.code, refused.value.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED")
        assert refused.value.retry_seconds == pytest.approx(100 * (SMALL - 2), rel=0.2)
        spec = batch_pb2.BatchSpec(budget=small("").budget, sampler=small("").sampler)
        assert refusal(lambda: alice.submit(spec, [batch_pb2.BatchPrompt(prompt="x")]))[1] == "QUOTA_EXCEEDED"
        for _ in range(4):
            bob.audit(small(prompts[0]))


def test_a_batch_takes_its_share_once_and_only_where_it_is_taken_in(
    launch: Callable[..., Client], tmp_path: Path
) -> None:
    """One that the store refuses costs nothing; the same again neither; of many at once, no two have the last bit."""
    quota = {"evaluations_per_second": 0.001, "burst_evaluations": SMALL + 2}
    own = launch(quotas={"default": quota}, batches={"store": f"sqlite:///{tmp_path}/basin.db"})
    how = spec()
    first = create(own, ["of a few evaluations"], how, request_id="mine")
    assert create(own, ["of a few evaluations"], how, request_id="mine") == first
    assert failure(lambda: create(own, ["another"], request_id="mine")).reason == "REQUEST_ID_REUSED"
    with ThreadPoolExecutor(4) as callers:
        calls = [callers.submit(create, own, [f"the rest {number}"]) for number in range(4)]
    refused = [failure_of(error) for call in calls if isinstance(error := call.exception(), grpc.RpcError)]
    assert [one.reason for one in refused] == 3 * ["QUOTA_EXCEEDED"]
    assert all(one.code is grpc.StatusCode.RESOURCE_EXHAUSTED and one.retry_seconds for one in refused)


def test_what_was_not_done_is_given_back(launch: Callable[..., Client], prompts: list[str]) -> None:
    """An audit that is stopped costs what it made."""
    own = launch(quotas={"default": {"evaluations_per_second": 0.001, "burst_evaluations": 57_000}})
    call = own.stream(endless(prompts[0]))
    until_sampling(call)
    assert failure(lambda: own.audit(small(prompts[0]))).reason == "QUOTA_EXCEEDED"
    call.cancel()
    eventually(lambda: own.metric("basin_audits_in_flight") == 0)
    own.audit(small(prompts[0]))


@given(st.lists(st.tuples(st.floats(0, 100), st.integers(1, 500)), max_size=40))
def test_a_bucket_never_gives_more_than_flows_in(steps: list[tuple[float, int]]) -> None:
    """Over any time: the burst, what flowed in, and one request that may owe."""
    now = [0.0]
    quotas = Quotas(QuotaPart(default=Quota(evaluations_per_second=10, burst_evaluations=100)), lambda: now[0])
    given_out, largest = 0, max((size for _, size in steps), default=0)
    for pause, size in steps:
        now[0] += pause
        with suppress(QuotaExceeded):
            quotas.check(ANYBODY.name)
            quotas.take(ANYBODY.name, size)
            given_out += size
        assert given_out <= 100 + 10 * now[0] + largest
