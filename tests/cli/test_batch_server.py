"""`basin batch submit`, `status`, `results` and `cancel` against a real server."""

from __future__ import annotations

import itertools
import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import grpc
import pytest
from pyarrow import parquet

from audit.demo import prompts
from service.client import BasinClient, ServiceError
from service.remote_batch import fetch
from service.store.engine import connect
from service.store.records import FAILED
from service.store.store import Store
from tests.cli.conftest import CHEAP, Basin, Result, is_one_error, serving
from tests.service.runs import make_up, plain_report

#: Audits that take long enough for something to happen meanwhile, and such as never end.
SLOW = ("--seeds", "4", "--minimum-seeds", "4", "--steps", "25", "--guidance", "1", "--curvature", "off")
ENDLESS = ("--seeds", "64", "--minimum-seeds", "64", "--steps", "900", "--guidance", "1", "--curvature", "off")

_unused = itertools.count(10_000, 1000)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Three prompts with a column beside them."""
    rows = [{"prompt": prompt, "number": number} for number, prompt in enumerate(prompts()[:3])]
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def remote(basin: Basin, server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Basin]:
    """`basin batch` of this server; what a test leaves at work is cancelled."""
    monkeypatch.setenv("BASIN_SERVER", server)
    yield lambda *arguments: basin("batch", *arguments)
    with BasinClient(server) as client:
        for left in list(client.batches(state="BATCH_STATE_RUNNING")):
            client.cancel_batch(left.id)


def submit(remote: Basin, file: Path, *flags: object, how: Sequence[object] = CHEAP) -> str:
    """The id of a batch whose answers are not known yet."""
    result = remote("submit", "--prompts", file, "--seed", next(_unused), *how, *flags)
    assert (result.code, result.err) == (0, "")
    (id_,) = result.out.split()
    return id_


def state_of(remote: Basin, id_: str) -> str:
    """As `status` tells it."""
    told = json.loads(remote("status", id_, "--format", "json").out)
    return str(told["progress"]["state"]).removeprefix("BATCH_STATE_").lower()


def rows_of(result: Result) -> list[dict[str, Any]]:
    """Lines of JSON."""
    return [json.loads(line) for line in result.out.splitlines()]


def test_submit_prints_an_id_that_the_others_take(remote: Basin, file: Path) -> None:
    """Nothing else stands on stdout, so that a script can go on with it."""
    id_ = submit(remote, file)
    watched = remote("status", id_, "--wait")
    assert watched.code == 0
    assert id_ in watched.out
    assert "done" in watched.out
    assert "undecided" in watched.out
    (told,) = rows_of(remote("status", id_, "--format", "json"))
    assert told["id"] == id_
    assert told["progress"]["state"] == "BATCH_STATE_DONE"
    assert told["spec"]["checkpoints"] == ["demo"]
    found = rows_of(remote("results", id_))
    assert [row["prompt"] for row in found] == prompts()[:3]
    assert [row["number"] for row in found] == [0, 1, 2]
    counted = Counter(row["outcome"] for row in found)
    assert {name: int(count) for name, count in told["outcomes"][0]["prompts"].items()} == counted


def test_submit_and_wait(remote: Basin, file: Path) -> None:
    """The id comes first, what was found when it is found."""
    result = remote("submit", "--prompts", file, "--seed", next(_unused), *CHEAP, "--wait")
    assert result.code == 0
    id_, *table = result.out.splitlines()
    assert state_of(remote, id_) == "done"
    assert "demo" in table[-1]


def test_submit_twice_with_one_request_id(remote: Basin, file: Path) -> None:
    """It is the same batch, unless it is another one."""
    seed = next(_unused)
    first, again = (
        remote("submit", "--prompts", file, "--seed", seed, *CHEAP, "--request-id", "mine").out for _ in range(2)
    )
    assert first == again
    refused = remote("submit", "--prompts", file, "--seed", seed + 1, *CHEAP, "--request-id", "mine")
    assert is_one_error(refused, "request id", "another batch")


def test_submit_a_prompt_set_of_the_server(remote: Basin) -> None:
    """Its prompts need not be here; nor need the file of a set that is known here."""
    for flag in ("--prompt-set", "--prompts"):
        result = remote("submit", flag, "demo", "--seed", next(_unused), *ENDLESS)
        (told,) = rows_of(remote("status", result.out.strip(), "--format", "json"))
        assert int(told["progress"]["prompts"]) == len(prompts())
        assert remote("cancel", result.out.strip()).code == 0


def test_the_list(remote: Basin, file: Path) -> None:
    """All batches, or those in a state, or of a checkpoint."""
    id_ = submit(remote, file, how=ENDLESS)
    assert id_ in remote("status").out
    newest, *_ = rows_of(remote("status", "--format", "json"))
    assert newest["id"] == id_
    assert [row["id"] for row in rows_of(remote("status", "--state", "running", "--format", "json"))] == [id_]
    assert id_ not in remote("status", "--state", "done").out
    assert id_ in remote("status", "--checkpoint", "demo").out
    assert rows_of(remote("status", "--checkpoint", "other", "--format", "json")) == []
    cancelled = remote("cancel", id_)
    assert (cancelled.code, cancelled.err) == (0, "")
    assert "cancelled" in cancelled.out
    assert "cancelled" in remote("cancel", id_).out
    assert [row["outcome"] for row in rows_of(remote("results", id_))] == 3 * ["open"]


def test_results_in_a_run_folder(remote: Basin, basin: Basin, file: Path, tmp_path: Path) -> None:
    """They are those that are printed, with all that a local run leaves, and `basin report` reads them."""
    run = tmp_path / "run"
    id_ = submit(remote, file, "--reference", "demo", "--false-discoveries", "0.3", "--pictures", "all")
    fetched = remote("results", id_, "--wait", "--out", run)
    assert fetched.code == 0
    printed = rows_of(remote("results", id_))
    written = [json.loads(line) for line in (run / "results.jsonl").read_text().splitlines()]
    assert written == printed
    assert [row["prompt"] for row in parquet.read_table(run / "results.parquet").to_pylist()] == prompts()[:3]
    assert basin("report", run).code == 0
    report = json.loads((run / "report.json").read_text())
    (checkpoint,) = report["checkpoints"]
    counted = Counter(row["outcome"] for row in printed)
    assert {name: checkpoint["outcomes"][name]["count"] for name in counted} == counted
    before = {path.name: path.read_bytes() for path in run.glob("re*.*")}
    assert remote("results", id_, "--out", run).code == 0
    assert basin("report", run).code == 0
    assert {path.name: path.read_bytes() for path in run.glob("re*.*")} == before


def test_results_are_fetched_again_when_there_are_more(remote: Basin, basin: Basin, tmp_path: Path) -> None:
    """What came since is added, until the batch has ended; the page may be had at any time."""
    file, run = tmp_path / "many.txt", tmp_path / "run"
    file.write_text("".join(f"more and more {number}\n" for number in range(12)))
    id_ = submit(remote, file, how=SLOW)
    while not json.loads(remote("status", id_, "--format", "json").out)["progress"].get("done"):
        time.sleep(0.05)
    counts = []
    for wait in ((), ("--wait",)):
        assert remote("results", id_, *wait, "--out", run).code == 0
        rows = [json.loads(line) for line in (run / "results.jsonl").read_text().splitlines()]
        assert len(rows) == 12
        counts.append(sum(row["outcome"] == "open" for row in rows))
        assert basin("report", run).code == 0
    assert counts[0] > counts[1] == 0
    assert rows == rows_of(remote("results", id_))


def test_results_of_what_was_cancelled(remote: Basin, basin: Basin, file: Path, tmp_path: Path) -> None:
    """What was not audited is open, wherever it is read, and no reason to stop a release, or not to."""
    id_ = submit(remote, file, how=ENDLESS)
    remote("cancel", id_)
    printed = remote("results", id_)
    assert (printed.code, printed.err) == (0, "")
    for flags in (("--fail-on", "failed > 2"), ("--fail-on", "memorized > 0"), ("--wait",)):
        again = remote("results", id_, *flags)
        assert (again.code, again.out) == (2, printed.out)
        assert again.err.splitlines()[-1] == "error: the batch has ended, cancelled"
        fetched = remote("results", id_, "--out", tmp_path / "run", *flags)
        assert (fetched.code, fetched.err.splitlines()[-1]) == (2, "error: the batch has ended, cancelled")
        assert "demo" in fetched.out
    written = [json.loads(line) for line in (tmp_path / "run" / "results.jsonl").read_text().splitlines()]
    assert written == rows_of(printed)
    assert basin("report", tmp_path / "run").code == 0


def test_waiting_for_what_is_cancelled(remote: Basin, server: str, file: Path) -> None:
    """It ends with 2, after everything is printed that there is."""

    def cancel(known: set[str]) -> None:
        with BasinClient(server) as client:
            while not (new := {one.id for one in client.batches()} - known):
                time.sleep(0.05)
            client.cancel_batch(new.pop())

    with BasinClient(server) as client, ThreadPoolExecutor(1) as other:
        cancelled = other.submit(cancel, {one.id for one in client.batches()})
        waited = remote("submit", "--prompts", file, "--seed", next(_unused), *ENDLESS, "--wait")
        cancelled.result()
    assert (waited.code, waited.err.splitlines()[-1]) == (2, "error: the batch has ended, cancelled")
    id_, *table = waited.out.splitlines()
    assert "demo" in table[-1]
    for form in ("table", "json"):
        watched = remote("status", id_, "--wait", "--format", form)
        assert (watched.code, watched.err.splitlines()[-1]) == (2, "error: the batch has ended, cancelled")
        assert id_ in watched.out
        assert remote("status", id_, "--format", form).code == 0


def test_a_condition_needs_an_audit(remote: Basin, tmp_path: Path) -> None:
    """Where every prompt failed, none is judged, whatever it says."""
    file = tmp_path / "long.txt"
    file.write_text("shirt " * 600)
    id_ = submit(remote, file)
    assert remote("results", id_, "--wait").code == 0
    for out in ((), ("--out", tmp_path / "run")):
        for condition in ("memorized > 0", "failed > 0"):
            result = remote("results", id_, "--fail-on", condition, *out)
            assert result.code == 2
            why = "error: no condition is judged: none of the prompts could be audited (demo)"
            assert result.err.splitlines()[-1] == why
            assert result.out
    assert (tmp_path / "run" / "results.jsonl").exists()


def test_a_batch_that_failed(basin: Basin, tmp_path: Path) -> None:
    """Its note is told as it is, whatever it holds."""
    note, run = "the store is in runs/[rc1]/x[/tmp]", tmp_path / "run"
    url = f"sqlite:///{make_up(run, 2, plain_report(), lambda report, position: None)}/basin.db"
    with closing(Store(connect(url))) as store:
        (batch,) = store.batches()
        store.set_state(batch.id, FAILED, note)
    with serving(url) as address:
        told = basin("batch", "status", batch.id, "--server", address)
        assert told.code == 0
        assert note in " ".join(told.out.split())
        assert basin("batch", "results", batch.id, "--server", address).code == 0
        for command in (("status", "--wait"), ("results", "--wait"), ("results", "--fail-on", "failed > 0")):
            failed = basin("batch", command[0], batch.id, *command[1:], "--server", address)
            assert (failed.code, failed.err.splitlines()[-1]) == (2, f"error: the batch has ended, failed: {note}")


def test_a_server_that_starts_again_is_waited_for(
    basin: Basin, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long it is away; what is wrong otherwise ends the wait."""
    url, look = f"sqlite:///{tmp_path}/basin.db", BasinClient.batch
    looks: list[str] = []
    with ExitStack() as first, ExitStack() as second, ThreadPoolExecutor(1) as other:
        address = first.enter_context(serving(url))

        def restart(self: BasinClient, id_: str) -> Any:
            looks.append(id_)
            if len(looks) == 2:
                first.close()
            if len(looks) == 4:
                other.submit(second.enter_context, serving(url, address))
            return look(self, id_)

        monkeypatch.setattr(BasinClient, "batch", restart)
        result = basin("batch", "submit", "--prompts", file, *SLOW, "--wait", "--server", address)
        assert result.code == 0, result
        assert len(looks) > 4
        assert "demo" in result.out
        assert is_one_error(basin("batch", "status", "nope", "--wait", "--server", address), "no batch 'nope'")


def test_a_condition_that_holds(remote: Basin, file: Path, tmp_path: Path) -> None:
    """It exits with 3 and says which, results printed or fetched; one that does not hold exits with 0."""
    id_ = submit(remote, file)
    for out in ((), ("--out", tmp_path / "run")):
        result = remote("results", id_, "--wait", "--fail-on", "prompts >= 3", "--fail-on", "prompts > 3", *out)
        assert result.code == 3
        assert result.err.splitlines()[-1] == "tripped: prompts >= 3 (demo)"
        assert remote("results", id_, "--fail-on", "failed > 0", *out).code == 0


def test_a_condition_waits_for_the_end(remote: Basin, file: Path) -> None:
    """What a batch says before is no reason to stop a release, or not to."""
    id_ = submit(remote, file, how=ENDLESS)
    assert is_one_error(remote("results", id_, "--fail-on", "memorized > 0"), "has not ended", "--wait")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ((), ["--prompts", "--prompt-set"]),
        (("--prompts", "{file}", "--prompt-set", "demo"), ["--prompts", "--prompt-set"]),
        (("--prompts", "missing.txt"), ["missing.txt"]),
        (("--prompts", "{folder}"), [""]),
        (("--prompts", "{folder}/bad.jsonl"), ["bad.jsonl, line 2", "no JSON"]),
        (("--prompts", "{folder}/empty.txt"), ["empty.txt holds no prompts"]),
        (("--prompts", "{folder}/long.txt"), ["4,097 characters"]),
        (("--prompts", "{folder}/deep.jsonl"), ["extra is nested", "deep"]),
        (("--prompts", "{folder}/large.jsonl"), ["too many digits"]),
        (("--prompt-set", "missing"), ["no prompt set 'missing'"]),
        (("--prompts", "{file}", "--checkpoint", "missing"), ["missing"]),
        (("--prompts", "{file}", "--checkpoint", "demo", "--checkpoint", "demo"), ["twice"]),
        (("--prompts", "{file}", "--reference", "missing"), ["missing"]),
        (("--prompts", "{file}", "--steps", "0"), ["steps"]),
        (("--prompts", "{file}", "--seeds", "0"), ["seeds"]),
        (("--prompts", "{file}", "--size", "x"), ["size"]),
        (("--prompts", "{file}", "--request-id", 65 * "x"), ["request id", "64"]),
    ],
)
def test_a_batch_that_is_refused(
    remote: Basin, file: Path, tmp_path: Path, flags: Sequence[str], words: Sequence[str]
) -> None:
    """Whatever is wrong is said in one line, with exit code 2, and nothing is taken in."""
    (tmp_path / "bad.jsonl").write_text('{"prompt": "x"}\n{"prompt"\n')
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "long.txt").write_text("short\n" + 4097 * "x")
    (tmp_path / "deep.jsonl").write_text('{"prompt": "x", "deep": ' + 200 * "[" + 200 * "]" + "}")
    (tmp_path / "large.jsonl").write_text('{"prompt": "x"}\n{"prompt": "y", "id": 9007199254740993}\n')
    before = remote("status", "--format", "json").out
    given = [flag.format(file=file, folder=tmp_path) for flag in flags]
    assert is_one_error(remote("submit", *given), *words)
    assert remote("status", "--format", "json").out == before


@pytest.mark.parametrize(
    "command",
    [
        ("submit", "--prompt-set", "demo"),
        ("status",),
        ("status", "x", "--wait"),
        ("results", "x"),
        ("results", "x", "--out", "run"),
        ("cancel", "x"),
    ],
)
def test_no_server(basin: Basin, command: Sequence[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody there: one line, and nothing is left behind."""
    monkeypatch.chdir(tmp_path)
    result = basin("batch", *command, "--server", "127.0.0.1:1")
    assert is_one_error(result, "no server answers at 127.0.0.1:1")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["status", "results", "cancel"])
def test_unknown_batch(remote: Basin, command: str, tmp_path: Path) -> None:
    """One line with its name."""
    assert is_one_error(remote(command, "nope"), "no batch 'nope'")
    if command == "results":
        assert is_one_error(remote(command, "nope", "--out", tmp_path / "run"), "no batch 'nope'")
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("status", "--wait"), ["--wait", "id"]),
        (("status", "--state", "asleep"), ["asleep", "paused"]),
        (("results", "x", "--fail-on", "memorized >"), ["condition"]),
    ],
)
def test_flags_that_make_no_sense(remote: Basin, arguments: Sequence[str], words: Sequence[str]) -> None:
    """They are refused before anybody is asked."""
    assert is_one_error(remote(*arguments), *words)


def test_a_server_that_goes_away_leaves_no_folder(
    remote: Basin, server: str, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the folder was not there, and nothing is known yet of what was to come into it."""
    id_ = submit(remote, file)
    with BasinClient(server) as client:
        all_results = client.batch_results

        def break_off(batch: str) -> Iterator[Any]:
            yield next(all_results(batch))
            raise ServiceError("nobody answers", code=grpc.StatusCode.UNAVAILABLE)

        monkeypatch.setattr(client, "batch_results", break_off)
        with pytest.raises(ServiceError):
            fetch(client, id_, tmp_path / "new" / "run")
    assert list(tmp_path.iterdir()) == [file]


def test_a_folder_of_another_batch(remote: Basin, basin: Basin, file: Path, tmp_path: Path) -> None:
    """Nor one of something else: it is left as it is."""
    first, second = submit(remote, file), submit(remote, file)
    run = tmp_path / "run"
    assert remote("results", first, "--wait", "--out", run).code == 0
    before = (run / "results.jsonl").read_bytes()
    assert is_one_error(remote("results", second, "--out", run), "holds another batch")
    assert (run / "results.jsonl").read_bytes() == before
    away = ("--out", tmp_path / "away", "--store", f"sqlite:///{tmp_path}/away.db")
    assert basin("batch", "run", "--checkpoint", "demo", "--prompts", file, *CHEAP, *away).code == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "away").iterdir()}
    assert is_one_error(remote("results", first, "--out", tmp_path / "away"), "holds another batch")
    assert {path.name: path.read_bytes() for path in (tmp_path / "away").iterdir()} == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("")
    assert is_one_error(remote("results", first, "--out", tmp_path / "mine"), "holds no batch")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["file"]
