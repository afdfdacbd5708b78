"""The `sttream` command: its verbs, and how errors become messages and exit codes."""

from __future__ import annotations

from typing import Any

import click

from cli import batch, demo, jobs, prune, queue, services, setup, submit
from cli.exits import INTERRUPTED, exit_code_of
from cli.output import complain
from common import __version__
from common.errors import SttreamError

_SECTIONS = {
    "One machine": (services.up, demo.demo),
    "Services": (services.producer, services.consumer, services.writer, setup.setup, services.config),
    "Jobs": (submit.submit, batch.batch, jobs.status, jobs.cancel, jobs.transcript, jobs.search, jobs.events),
    "Queue": (queue.queue, queue.dead, prune.prune),
}


class _Verbs(click.Group):
    """The verbs by section; the project's own errors end a verb with their message and exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except SttreamError as exc:
            complain(str(exc))
            ctx.exit(exit_code_of(exc))
        except KeyboardInterrupt:
            ctx.exit(INTERRUPTED)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, commands in _SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(command.name or "", command.get_short_help_str(70)) for command in commands])


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="sttream")
def sttream() -> None:
    """Speech to text over Redis Streams.

    `sttream up` runs everything on this machine; `sttream submit FILE --wait` transcribes a recording.

    Exit codes: 0 done, 1 the job failed, 2 wrong use, 3 a service cannot be reached, 4 data were lost.
    """


for _commands in _SECTIONS.values():
    for _command in _commands:
        sttream.add_command(_command)


def main() -> None:
    """Run the command line."""
    sttream(prog_name="sttream")


if __name__ == "__main__":
    main()
