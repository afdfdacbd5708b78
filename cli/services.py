"""Verbs that run services and show their settings."""

from __future__ import annotations

import asyncio
import contextlib
import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli import parameters
from cli.output import own_command, print_json, print_table

if TYPE_CHECKING:
    from common.settings import Settings
    from deploy.plan import Plan


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address that the producer listens on.")
@click.option(
    "--port",
    type=click.IntRange(1, 65000),
    default=8010,
    show_default=True,
    envvar="STTREAM_HTTP_PORT",
    help="Port of the producer; the embedded server takes the next.",
)
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path),
    default=Path("sttream-data"),
    show_default=True,
    help="Folder of everything that is kept.",
)
@click.option("--consumers", type=click.IntRange(0, 64), default=1, show_default=True, help="How many consumers.")
@click.option(
    "--audio",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    multiple=True,
    metavar="DIR",
    help="A folder that recordings may lie in; may be repeated.  [default: STTREAM_AUDIO_ROOTS, or the current folder]",
)
@click.option(
    "--accept-data-loss", is_flag=True, help="Begin anew when the data folder has lost its queue (`sttream setup -h`)."
)
def up(host: str, port: int, data_dir: Path, consumers: int, audio: tuple[Path, ...], accept_data_loss: bool) -> None:
    """Run everything on this machine.

    An embedded server, a producer, consumers and a writer. Ctrl-C stops; what was accepted goes on at the next start.
    Settings of the environment (STTREAM_MODEL, …) are kept, except for those of folders, ports and the server.
    """
    from deploy.plan import ignored, make_plan

    plan = make_plan(host=host, port=port, data_dir=data_dir, consumers=consumers, audio=audio)
    if replaced := ignored():
        click.echo(f"not used by `up`, which brings its own: {', '.join(replaced)}", err=True)
    with contextlib.suppress(asyncio.CancelledError):  # stopped as asked
        asyncio.run(_up(plan, accept_data_loss))
    click.echo(f"stopped; {plan.data.path} keeps the data")


async def _up(plan: Plan, accept_data_loss: bool) -> None:
    """Run the stack, its logs on standard error, until a signal cancels this."""
    from cli.setup import begin_anew
    from deploy.local import running_stack

    prepare = (lambda: begin_anew(plan.settings)) if accept_data_loss else None
    async with running_stack(plan, lambda line: click.echo(line, err=True), prepare):
        click.echo(_banner(plan))
        await asyncio.Event().wait()


def _banner(plan: Plan) -> str:
    settings = plan.settings
    roots = ", ".join(str(root) for root in settings.audio_roots)
    return f"""\

sttream is ready    {plan.url}    Ctrl-C stops it
  data              {plan.data.path}
  recordings below  {roots}
  transcripts       {plan.data.results}
  model             {settings.model} on {settings.device}

  {own_command()} submit FILE --wait --url {plan.url}
  curl -F file=@FILE {plan.url}/v1/jobs
  redis-cli -p {plan.redis_port} XPENDING '{{{settings.queue}}}:jobs:normal' transcribers
"""


@click.command()
def producer() -> None:
    """Run the HTTP producer."""
    from common.process import run_service
    from producer.app import serve

    run_service("producer", serve, _settings())


@click.command()
@click.option(
    "--gpus",
    metavar="all|LIST",
    help="Start and watch one process a GPU: `all`, or indices or UUIDs with commas between, as CUDA_VISIBLE_DEVICES "
    "takes them.",
)
@click.option("--on-gpu", hidden=True, help="Set by --gpus for each process: bound to its log lines as `gpu`.")
def consumer(gpus: str | None, on_gpu: str | None) -> None:
    """Run a consumer, which transcribes.

    With --gpus it runs one on each GPU and starts again what dies. A signal drains all of them, a second one ends them
    at once. Where STTREAM_METRICS_PORT is set, the first GPU has that port and each other one the next.
    """
    from common.process import run_service

    settings = _settings()
    if gpus is not None:
        from deploy.gpus import consumers, keep_running

        services = consumers(gpus, settings)
        run_service("supervisor", lambda _, stop: keep_running(services, stop), settings)
    from consumer.service import serve_consumer

    run_service("consumer", serve_consumer, settings, **({"gpu": on_gpu} if on_gpu else {}))


@click.command()
def writer() -> None:
    """Run a writer, which stores transcripts."""
    from common.process import run_service
    from consumer.service import serve_writer

    run_service("writer", serve_writer, _settings())


@click.command()
@parameters.as_json
def config(as_json: bool) -> None:
    """Show this shell's settings and where each came from.

    A running `up` has others: it brings its own server, folders and ports. Passwords are hidden.
    """
    from common.settings import origins

    settings, found = _settings(), origins()
    rows = {name: _visible(getattr(settings, name)) for name in type(settings).model_fields}
    if as_json:
        print_json({name: {"value": value, "from": found[name]} for name, value in rows.items()})
    else:
        print_table(("setting", "value", "from"), [(name, _told(value), found[name]) for name, value in rows.items()])
        click.echo("this shell's settings; a running `up` has its own server, folders and ports", err=True)


def _visible(value: object) -> object:
    """Return a setting's value in JSON's terms, without passwords."""
    from pydantic import SecretStr

    if isinstance(value, SecretStr):
        return visible_url(value.get_secret_value())
    if isinstance(value, tuple):
        return [str(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _told(value: object) -> str:
    if isinstance(value, list):
        return ":".join(value)
    return "" if value is None else str(value)


def visible_url(url: str) -> str:
    """Return a URL with its password hidden: the one before `@`, and any among the parameters."""
    hidden = re.sub(r"(://[^:/?#]*):.*@", r"\1:***@", url)
    return re.sub(r"([?&][^=&]*pass[^=&]*=)[^&#]*", r"\1***", hidden)


def _settings() -> Settings:
    from common.settings import load_settings

    return load_settings()
