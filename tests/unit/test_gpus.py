"""What `sttream consumer --gpus` decides before it starts a process: which GPUs, and what each consumer is told."""

import re
import sys

import pytest

from common.errors import SettingsError
from common.settings import load_settings
from deploy.gpus import chosen, consumers


def finding(number):
    """Return a command that finds so many GPUs, in place of the library's count."""
    return (sys.executable, "-c", f"print({number})")


def told(text, environ=None):
    """Return the environments of the consumers of two GPUs."""
    environ = environ or {}
    return [service.environ for service in consumers(text, load_settings(environ), environ, finding(2))]


@pytest.mark.parametrize(
    ("text", "visible", "found", "names"),
    [
        ("all", None, 3, ("0", "1", "2")),
        (" all ", "4,7", 2, ("4", "7")),
        ("all", "GPU-8f2a, GPU-77b0", 2, ("GPU-8f2a", "GPU-77b0")),
        ("all", "MIG-1a,MIG-2b", 1, ("MIG-1a", "MIG-2b")),  # CUDA shows a process one instance, however many are named
        ("0, 2", None, 0, ("0", "2")),  # named ones are not looked for
        ("GPU-8f2a5b1c-0d3e", None, 0, ("GPU-8f2a5b1c-0d3e",)),
        ("MIG-GPU-8f2a/1/0", None, 0, ("MIG-GPU-8f2a/1/0",)),
        ("7", "4,7", 0, ("7",)),
    ],
)
def test_gpus_are_those_that_exist_or_are_named(text, visible, found, names):
    """An orchestrator that gives a job two of eight GPUs says so in CUDA_VISIBLE_DEVICES, and it must be obeyed."""
    environ = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert chosen(text, environ, finding(found)) == names


@pytest.mark.parametrize(
    ("text", "visible", "says"),
    [
        ("all", None, "CUDA finds no GPU (CUDA_VISIBLE_DEVICES is not set; the NVIDIA driver knows "),
        ("all", "", "CUDA finds no GPU (CUDA_VISIBLE_DEVICES is ''; "),
        ("0", "", "expected some of CUDA_VISIBLE_DEVICES="),
        ("0", "4,7", "expected some of CUDA_VISIBLE_DEVICES=4,7, by the same names"),
        ("two", None, "'two' is no GPU; expected `all`, or indices or UUIDs: 0,2"),
        ("-1", None, "'-1' is no GPU"),
        ("0,1,0", None, "expected each GPU once"),
        (",", None, "expected each GPU once"),
    ],
)
def test_what_is_no_gpu_is_refused(text, visible, says):
    """A consumer that silently ran on the CPU, or on another job's GPU, would be found out by its slowness."""
    environ = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    with pytest.raises(SettingsError, match=re.escape(says)):
        chosen(text, environ, finding(0))


def test_a_gpu_that_is_missing_among_the_visible_ones_is_told():
    """CUDA ignores what comes after a name that it does not know: a lost GPU would take others with it unseen."""
    with pytest.raises(SettingsError, match="=4,9,5 names 3 GPUs, and CUDA finds 1 of them: it stops at the first"):
        chosen("all", {"CUDA_VISIBLE_DEVICES": "4,9,5"}, finding(1))


def test_a_count_that_fails_says_why():
    """A broken installation is not a machine without GPUs."""
    broken = (sys.executable, "-c", "raise ImportError('libcublas')")
    with pytest.raises(SettingsError, match=r"cannot be counted \(exit 1: ImportError: libcublas\); name them"):
        chosen("all", {}, broken)


def test_gpus_are_counted_in_the_order_in_which_they_are_used():
    """Index 1 must mean the same GPU to the count, to the consumer and to nvidia-smi."""
    tells = (sys.executable, "-c", "import os, sys; sys.exit(os.environ['CUDA_DEVICE_ORDER'])")
    for environ, order in (({}, "PCI_BUS_ID"), ({"CUDA_DEVICE_ORDER": "FASTEST_FIRST"}, "FASTEST_FIRST")):
        with pytest.raises(SettingsError, match=rf"exit 1: {order}\)"):
            chosen("all", environ, tells)
        assert [found["CUDA_DEVICE_ORDER"] for found in told("0,1", environ)] == [order, order]


def test_each_consumer_sees_its_gpu_only():
    """A fault of one GPU must end one process, and no process may hold memory of another's GPU."""
    assert [found["CUDA_VISIBLE_DEVICES"] for found in told("all", {"CUDA_VISIBLE_DEVICES": "4,7"})] == ["4", "7"]
    assert {found["STTREAM_DEVICE"] for found in told("all", {"STTREAM_DEVICE": "auto"})} == {"cuda"}


@pytest.mark.parametrize(("port", "ports"), [("9100", ["9100", "9101"]), ("0", ["0", "0"])])
def test_each_consumer_has_a_health_port_of_its_own(port, ports):
    """Prometheus knows where to ask: from the port that was set upwards; 0 stays any free one."""
    assert [found["STTREAM_METRICS_PORT"] for found in told("0,1", {"STTREAM_METRICS_PORT": port})] == ports


def test_settings_from_files_make_way_for_those_of_each_consumer(tmp_path):
    """A consumer that finds both the variable and its _FILE refuses to start."""
    (tmp_path / "port").write_text("9100\n")
    environ = {"STTREAM_METRICS_PORT_FILE": str(tmp_path / "port"), "STTREAM_QUEUE": "calls"}
    for number, found in enumerate(told("0,1", environ)):
        settings = load_settings(found)
        assert (settings.metrics_port, settings.device, settings.queue) == (9100 + number, "cuda", "calls")


@pytest.mark.parametrize(
    ("environ", "says"),
    [
        ({"STTREAM_DEVICE": "cpu"}, "STTREAM_DEVICE=cpu and --gpus exclude each other"),
        ({"STTREAM_METRICS_PORT": "65535"}, "STTREAM_METRICS_PORT=65535: each of 2 GPUs takes the next port"),
    ],
)
def test_settings_that_several_gpus_cannot_have_are_refused(environ, says):
    """Said once, before the first process, instead of by each in its log."""
    with pytest.raises(SettingsError, match=says):
        told("0,1", environ)
