"""The breaker itself, short: real services, real faults, and a verdict."""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bench.breaker.faults import FAULTS, deal
from bench.breaker.processes import ROOT
from bench.breaker.sabotage import LEAKED, LOST

# Alone it takes half a minute; a whole suite may run beside it.
LIMIT_S = 300


def chaos(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "bench" / "chaos.py"), "--folder", str(tmp_path), "--json", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)


@pytest.mark.slow
@pytest.mark.timeout(LIMIT_S + 30)
@pytest.mark.parametrize(("server", "seed"), [("valkey", 101), ("redis", 102)])
def test_nothing_is_lost_and_nothing_is_twice(tmp_path, server, seed):
    """The promise, on both servers, whatever dies."""
    if server == "redis" and not shutil.which("redis-server", path="/usr/bin"):
        reason = "there is no /usr/bin/redis-server; install it with: apt-get install redis-server"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    run = chaos(tmp_path, "--server", server, "--seed", str(seed), "--jobs", "150", "--faults", "15")
    print(run.stderr, run.stdout)
    assert run.returncode == 0, run.stdout
    report = json.loads(run.stdout)
    assert sum(report["faults"].values()) + sum(report["left_out"].values()) == 15
    assert report["outcomes"]["completed"] > 100
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.timeout(LIMIT_S + 30)
def test_a_job_that_is_lost_and_a_key_that_is_left_are_named(tmp_path):
    """A breaker that cannot fail proves nothing: harm done by hand at the end of a quiet run is its verdict."""
    run = chaos(tmp_path, "--seed", "103", "--jobs", "20", "--faults", "0", "--sabotage")
    assert run.returncode == 1
    found = json.loads(run.stdout)["violations"]
    assert any(LOST in wrong and "accepted and has no row" in wrong for wrong in found)
    assert f"key {LEAKED} has no time to live" in found


def test_a_full_deck_of_faults_holds_each_as_often_as_its_weight_says():
    """A long run must meet every kind, not only the likely ones."""
    weights = {fault.name: fault.weight for fault in FAULTS}
    dealt = [fault.name for fault in deal(2 * sum(weights.values()), random.Random(1))]
    assert {name: dealt.count(name) for name in weights} == {name: 2 * weight for name, weight in weights.items()}


def test_the_same_seed_deals_the_same_faults():
    """A failing seed can be repeated."""
    hands = [[fault.name for fault in deal(50, random.Random(7))] for _ in range(2)]
    assert hands[0] == hands[1]
