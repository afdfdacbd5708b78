"""URLs of sentinels and clusters, and what is believed about the primary."""

from __future__ import annotations

import pytest

from common.topology import DOUBT_EVERY_S, Cluster, Sentinels, parse_url


@pytest.mark.parametrize(
    ("url", "seeds", "service", "client_url"),
    [
        ("redis://user:pw@a:1/2", (), None, "redis://user:pw@a:1/2"),
        ("unix:///run/redis.sock", (), None, "unix:///run/redis.sock"),
        ("redis+sentinel://a,b:2/main", (("a", 26379), ("b", 2)), "main", "redis://a/0?"),
        ("redis+sentinel://u:p%2Fw@a:1/main/3?x=%26", (("a", 1),), "main", "redis://u:p%2Fw@a:1/3?x=%26"),
        ("rediss+sentinel://[::1]:7,[::2]/m%20n", (("::1", 7), ("::2", 26379)), "m n", "rediss://[::1]:7/0?"),
        ("redis+cluster://:pw@a,b:2", (("a", 6379), ("b", 2)), None, "redis://:pw@a/0?"),
        ("rediss+cluster://a/0?ssl_ca_certs=c.pem", (("a", 6379),), None, "rediss://a/0?ssl_ca_certs=c.pem"),
    ],
)
def test_a_url_is_taken_apart(url, seeds, service, client_url):
    """What is not ours to read, such as TLS options, goes to the client library as it is."""
    found = parse_url(url)

    assert (found.seeds, found.service, found.client_url) == (seeds, service, client_url)


@pytest.mark.parametrize(
    ("query", "seed_login"),
    [
        ("", {}),
        ("?sentinel_password=hush", {"username": None, "password": "hush"}),
        ("?sentinel_username=me&sentinel_password=a%20b", {"username": "me", "password": "a b"}),
        ("?sentinel_password=", {"username": None, "password": None}),
    ],
)
def test_sentinels_may_have_a_login_of_their_own(query, seed_login):
    """They do not share users with the servers they watch; often they have none."""
    found = parse_url(f"redis+sentinel://u:p@a/main{query}")

    assert found.seed_login == seed_login
    assert "sentinel" not in found.client_url


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://:hush@a", "expected redis://HOST:PORT/DB"),
        ("redis://:hush/x@a", "written as %XX"),
        ("redis+sentinel://:hush@a", "no service is named"),
        ("redis+sentinel://:hush@a/main/one", "no service is named"),
        ("redis+sentinel://:hush@/main", "expected redis://HOST:PORT/DB"),
        ("redis+sentinel://:hush@a,,b/main", "expected redis://HOST:PORT/DB"),
        ("redis+sentinel://:hu@sh@a:b@c:d/main", "expected redis://HOST:PORT/DB"),
        ("redis+cluster://:hush@a:70000", "expected redis://HOST:PORT/DB"),
        ("redis+cluster://:hush@a/1", "a cluster's keys are in database 0"),
    ],
)
def test_a_wrong_url_is_told_without_repeating_it(url, says):
    """It is logged, and holds a password."""
    with pytest.raises(ValueError, match=says) as caught:
        parse_url(url)

    assert "hush" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_a_url_does_not_print_its_passwords():
    """It may end up in a traceback or a log."""
    assert "hush" not in repr(parse_url("redis+sentinel://:hush-1@a/main?sentinel_password=hush-2"))


SLOTS = [
    [0, 5000, ["a", 1, "id-a"], ["b", 2, "id-b"]],
    [5001, 16383, [None, 3, "id-c"]],
]


@pytest.mark.parametrize(
    ("queue", "primary"),
    [
        ("sttream", ("a", 1)),  # slot 4552
        ("calls", ("asked", 3)),  # slot 14033, of a node that leaves out its name
    ],
)
def test_the_owner_of_the_queues_slot_is_the_primary(queue, primary):
    """All keys of the queue are there: they share its hash tag."""
    assert Cluster([], queue).learn(("asked", 9), SLOTS) == primary


def test_a_slot_that_nobody_owns_has_no_primary():
    """A node was taken out, and its slots are not given away yet."""
    assert Cluster([], "calls").learn(("asked", 9), SLOTS[:1]) is None


def test_who_answered_is_asked_first_and_learnt_nodes_last():
    """A seed that is down costs its time-out once, and a cluster whose seeds are all gone is still found."""
    cluster = Cluster([("down", 1), ("asked", 9)], "sttream")
    cluster.learn(("asked", 9), SLOTS)

    assert cluster.order == [("asked", 9), ("down", 1), ("a", 1), ("b", 2), ("asked", 3)]


def test_whoever_named_a_server_that_cannot_be_used_is_asked_last():
    """A sentinel that was cut off goes on naming the old primary."""
    sentinels = Sentinels([("old", 1), ("good", 1)], "main")
    sentinels.learn(("old", 1), ["a", "1"])
    sentinels.distrust()

    assert sentinels.order == [("good", 1), ("old", 1)]


def test_a_view_ends_when_another_primary_is_named():
    """Connections to the old one that nobody has used since must not be used either."""
    sentinels = Sentinels([("s", 1)], "main")
    views = []
    for primary in ("a", "a", "b"):
        sentinels.learn(("s", 1), [primary, "1"])
        views.append(sentinels.view)

    assert views == [1, 1, 2]


def test_a_view_is_doubted_once_however_many_connections_had_it():
    """All readers of a process are told at the same time: the last must not close what the first has opened since."""
    now_s = 0.0
    sentinels = Sentinels([("s", 1)], "main", clock=lambda: now_s)
    sentinels.doubt(0)
    sentinels.doubt(0)
    sentinels.doubt(1)  # told again by the same server: it will be for as long as its trouble lasts
    assert sentinels.view == 1

    now_s = DOUBT_EVERY_S
    sentinels.doubt(1)
    assert sentinels.view == 2


def test_whoever_a_node_sends_us_to_is_asked_first():
    """Two nodes know at once that a slot has moved; the others hear of it later."""
    cluster = Cluster([("a", 1), ("b", 2)], "sttream")
    cluster.doubt(0, [("b", 2)])

    assert cluster.order == [("b", 2), ("a", 1)]
