"""The startup taint of a node: taken when kubelet lists the driver, never sooner, nothing else."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fusefs.errors import ConfigError
from fusefs.kubernetes.taint import (
    LOOKS_S,
    PAUSES_S,
    ApiServer,
    StartupTaint,
    api_server_of,
    check_taint_key,
)
from tests.conftest import ExpectedWarnings
from tests.kubernetes.api_server import Stub, make_authority, open_api_server

DRIVER = "fusefs.csi"
KEY = "fusefs.csi/not-ready"
NODE = "node-1"

OURS = {"key": KEY, "effect": "NoExecute"}
OTHER = {"key": "example.com/gpu", "value": "h100", "effect": "NoSchedule"}
THIRD = {"key": "fusefs.csi/not-ready-2", "effect": "NoSchedule"}

LIMIT_S = 30.0


class Pauses:
    """Stands in for sleeping: counts, and does in each pause what a test lined up.

    The mutable state of Pauses is what is to come, and the seconds that were asked for.
    """

    def __init__(self, *then: Callable[[], object]) -> None:
        self._then = list(then)
        self.slept: list[float] = []

    def __call__(self, seconds: float) -> None:
        """Take no time at all."""
        self.slept.append(seconds)
        assert len(self.slept) < 100, "it goes on and on"
        if self._then:
            self._then.pop(0)()


def _nothing() -> None:
    """What happens in most pauses."""


@pytest.fixture
def stub(tmp_path: Path) -> Iterator[Stub]:
    """An API server with one node, which is tainted, and lists the driver."""
    account = tmp_path / "serviceaccount"
    account.mkdir()
    with open_api_server(account) as stub:
        stub.drivers[NODE] = [{"name": "other.csi"}, {"name": DRIVER}]
        stub.taints[NODE] = [OTHER, OURS, THIRD]
        yield stub


def _registered() -> threading.Event:
    event = threading.Event()
    event.set()
    return event


def _taint(stub: Stub, pauses: Pauses, api: ApiServer | None = None) -> StartupTaint:
    return StartupTaint(KEY, NODE, DRIVER, api or stub.api, _registered(), pauses)


def test_the_taint_goes_and_the_others_stay(stub: Stub) -> None:
    """Of a node's taints the one with our key goes, in one patch that says what was there."""
    _taint(stub, pauses := Pauses()).run()
    assert stub.taints[NODE] == [OTHER, THIRD]
    assert stub.patches == [
        [
            {"op": "test", "path": "/spec/taints/1", "value": OURS},
            {"op": "remove", "path": "/spec/taints/1"},
        ]
    ]
    assert pauses.slept == list(LOOKS_S)


def test_all_effects_of_the_taint_go(stub: Stub) -> None:
    """A key may be there with several effects and values: none is left."""
    stub.taints[NODE] = [OURS, OTHER, {**OURS, "effect": "NoSchedule", "value": "x"}]
    _taint(stub, Pauses()).run()
    assert stub.taints[NODE] == [OTHER]
    assert len(stub.patches) == 1


def test_a_node_without_the_taint_is_left_alone(stub: Stub) -> None:
    """What is not there is not taken: no patch, and the thread ends by itself."""
    for taints in ([OTHER, THIRD], []):
        stub.taints[NODE] = list(taints)
        _taint(stub, Pauses()).run()
        assert stub.taints[NODE] == taints
    assert stub.patches == []
    assert set(stub.requests) == {"GET csinodes", "GET nodes"}


def test_a_driver_that_is_not_listed_keeps_the_taint(stub: Stub) -> None:
    """The node is not even looked at until its CSINode is there and lists the driver."""
    del stub.drivers[NODE]

    def other() -> None:
        stub.drivers[NODE] = [{"name": "other.csi"}, {"name": f"{DRIVER}.old"}]

    def listed() -> None:
        assert stub.requests == ["GET csinodes"] * 4
        assert stub.taints[NODE] == [OTHER, OURS, THIRD]
        stub.drivers[NODE] = [{"name": DRIVER}]

    pauses = Pauses(_nothing, lambda: stub.drivers.update({NODE: None}), other, listed)
    _taint(stub, pauses).run()
    assert stub.taints[NODE] == [OTHER, THIRD]
    assert stub.requests[4:8] == ["GET csinodes", "GET nodes", "PATCH nodes", "GET nodes"]
    assert pauses.slept[:4] == list(PAUSES_S[:4])


def test_what_a_csinode_says_of_before_a_reboot_is_not_believed(stub: Stub) -> None:
    """Nothing is asked until kubelet has registered this plugin itself."""
    asked: list[list[str]] = []

    class Registered(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            asked.append(list(stub.requests))
            return True

    StartupTaint(KEY, NODE, DRIVER, stub.api, Registered(), Pauses()).run()
    assert asked == [[]]
    assert stub.taints[NODE] == [OTHER, THIRD]


@pytest.mark.parametrize("status", [409, 422])
def test_a_conflict_is_tried_again_without_a_word(stub: Stub, status: int) -> None:
    """Somebody changed the node at the same time: it is looked at again, and no trouble."""
    stub.answers.extend([("PATCH nodes", status)] * 2)
    _taint(stub, Pauses()).run()
    assert stub.taints[NODE] == [OTHER, THIRD]
    assert stub.requests.count("PATCH nodes") == 3


def test_a_taint_that_comes_in_between_is_not_taken_for_ours(stub: Stub) -> None:
    """A patch that was made of an older look removes nothing; the next one does."""

    def insert() -> None:
        if len(stub.patches) == 1:
            stub.taints[NODE] = [THIRD, {**OTHER, "key": "new"}, OURS]

    stub.on_patch = insert
    _taint(stub, Pauses()).run()
    assert stub.taints[NODE] == [THIRD, {**OTHER, "key": "new"}]
    assert len(stub.patches) == 2


def test_a_taint_that_comes_back_goes_again(stub: Stub) -> None:
    """Who made the node may put the taint on it once more, when it gets to know it."""
    again = Pauses(_nothing, lambda: stub.taints[NODE].append(OURS))
    _taint(stub, again).run()
    assert stub.taints[NODE] == [OTHER, THIRD]
    assert len(stub.patches) == 2


@pytest.mark.parametrize("refused", ["GET csinodes", "GET nodes", "PATCH nodes"])
def test_a_missing_right_is_named_once(
    stub: Stub, refused: str, expect_warning: ExpectedWarnings, caplog: pytest.LogCaptureFixture
) -> None:
    """However often it is refused, one sentence says which right is missing; then it goes on."""
    verb, resource = refused.lower().split()
    expect_warning(rf"forbids to {verb} {resource} \(403\): give .* rbac\.create=true")
    stub.answers.extend([(refused, 403)] * 5)
    _taint(stub, Pauses()).run()
    assert stub.taints[NODE] == [OTHER, THIRD]
    assert stub.requests.count(refused) >= 6
    assert [record.levelname for record in caplog.records].count("WARNING") == 1
    assert "hunter2" not in caplog.text


def test_a_token_is_read_anew(stub: Stub) -> None:
    """Kubelet replaces tokens every hour: each request has the one of now."""
    del stub.drivers[NODE]

    def replace() -> None:
        stub.said_token("second")
        stub.drivers[NODE] = [{"name": DRIVER}]

    _taint(stub, Pauses(replace)).run()
    assert stub.taints[NODE] == [OTHER, THIRD]


def _expire(stub: Stub) -> Callable[[], None]:
    stub.token = "another"
    return lambda: stub.said_token("renewed")


def _lose_token(stub: Stub) -> Callable[[], None]:
    (stub.account / "token").unlink()
    return lambda: stub.said_token("back")


def _break_token(stub: Stub) -> Callable[[], None]:
    stub.said_token("hunter2\nhunter2")
    return lambda: stub.said_token("whole")


def _lose_authority(stub: Stub) -> Callable[[], None]:
    path = stub.account / "ca.crt"
    text = path.read_text()
    path.unlink()

    def restore() -> None:
        path.write_text(text)

    return restore


def _strange_authority(stub: Stub) -> Callable[[], None]:
    restore = _lose_authority(stub)
    make_authority(stub.account)
    return restore


def _fail(stub: Stub) -> Callable[[], None]:
    stub.answers.extend([("GET csinodes", 503)] * 3)
    return _nothing


def _speak_html(stub: Stub) -> Callable[[], None]:
    stub.page = "<html>log in, please</html>"
    return lambda: setattr(stub, "page", "")


def _forget_node(stub: Stub) -> Callable[[], None]:
    taints = stub.taints.pop(NODE)
    return lambda: stub.taints.update({NODE: taints})


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (_expire, r"does not accept the token .*\(401\)"),
        (_lose_token, r"no token .* automountServiceAccountToken: true"),
        (_break_token, r"no token .* automountServiceAccountToken: true"),
        (_lose_authority, r"no certificate of the cluster's authority"),
        (_strange_authority, r"cannot be asked \(\w.*\): look at"),
        (_fail, r"answered 503 to GET csinodes"),
        (_speak_html, r"does not answer as one does"),
        (_forget_node, r"knows no node-1 among nodes \(404\): --node-id"),
    ],
)
def test_a_trouble_is_told_once_and_outlived(
    stub: Stub,
    harm: Callable[[Stub], Callable[[], None]],
    said: str,
    expect_warning: ExpectedWarnings,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Whatever is wrong with the cluster: one sentence, and the taint goes when it is right."""
    expect_warning(said)
    heal = harm(stub)
    _taint(stub, Pauses(_nothing, _nothing, heal)).run()
    assert stub.taints[NODE] == [OTHER, THIRD]
    assert [record.levelname for record in caplog.records].count("WARNING") == 1
    assert "hunter2" not in caplog.text


def test_an_api_server_that_is_away_is_waited_for(
    stub: Stub, expect_warning: ExpectedWarnings
) -> None:
    """Nobody listens: one sentence, and pauses that grow to half a minute."""
    expect_warning(r"at 127\.0\.0\.1 port 1 cannot be asked \(Connection refused\)")
    away = ApiServer("127.0.0.1", 1, stub.account)

    class Enough(Exception):
        """The test has seen what it wanted."""

    def stop() -> None:
        raise Enough

    pauses = Pauses(*[_nothing] * 10, stop)
    with pytest.raises(Enough):
        _taint(stub, pauses, away).run()
    assert pauses.slept == [*PAUSES_S, 30.0, 30.0]


def test_what_nobody_thought_of_ends_the_thread_only(
    stub: Stub, expect_warning: ExpectedWarnings
) -> None:
    """The plugin goes on; the log says what to do."""
    expect_warning(r"the taint fusefs\.csi/not-ready is not looked after: restart this pod")
    stub.drivers[NODE] = ["not an object"]
    _taint(stub, Pauses()).start()
    for thread in threading.enumerate():
        if thread.name == "taint":
            thread.join(LIMIT_S)
    assert stub.taints[NODE] == [OTHER, OURS, THIRD]


@pytest.mark.parametrize("key", ["a", "node.example.com/not-ready", "fusefs.csi/Not_Ready.1"])
def test_keys_of_taints(key: str) -> None:
    """What Kubernetes takes for a key is one."""
    assert check_taint_key(key) == key


@pytest.mark.parametrize("key", ["-", "a b", "Example.com/x", "a/b/c", "a/", "/a", "a=b", "x" * 64])
def test_keys_that_no_taint_can_have(key: str) -> None:
    """A misspelt key would be waited for in vain: it is refused."""
    with pytest.raises(ConfigError, match="--startup-taint"):
        check_taint_key(key)


def test_where_the_api_server_is() -> None:
    """Kubernetes says it to every pod; elsewhere the option is refused."""
    here = {"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "6443"}
    assert api_server_of(here) == ApiServer("fd00::1", 6443)
    for wrong in ({}, {**here, "KUBERNETES_SERVICE_PORT": "tcp://10.0.0.1:443"}):
        with pytest.raises(ConfigError, match="works in a pod only"):
            api_server_of(wrong)
