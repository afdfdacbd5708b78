"""A PostgreSQL server of the tests' own, from the distribution's package."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

# apt puts each major version into a folder of its own; the newest one serves.
INSTALLED = Path("/usr/lib/postgresql")

# Tests lose nothing in a power cut; commits stay synchronous, since a test kills the server.
_FAST = "-c fsync=off -c full_page_writes=off"


def installed() -> Path | None:
    """Return the folder of the server's programs, None when there are none."""
    found = [path.parent for path in INSTALLED.glob("*/bin/postgres")]
    return max(found, key=lambda path: float(path.parent.name), default=None)


class PostgresServer:
    """One cluster in a temporary folder, reached by a socket there: no port that another run may want."""

    def __init__(self, programs: Path) -> None:
        self._programs = programs
        self._folder = Path(tempfile.mkdtemp(prefix="sttream-pg-"))
        self._databases = 0
        if os.geteuid() == 0:  # the server refuses to run as root
            shutil.chown(self._folder, "postgres", "postgres")
        self._run("initdb", "--username=postgres", "--auth=trust", "--no-sync", "--encoding=UTF8", "--locale=C.UTF-8")

    def start(self) -> None:
        sockets = f"-c listen_addresses='' -c unix_socket_directories={self._folder}"
        self._run("pg_ctl", "start", "--wait", f"--log={self._folder / 'log'}", f"--options={sockets} {_FAST}")

    def stop(self) -> None:
        self._run("pg_ctl", "stop", "--wait", "--mode=immediate")

    def remove(self) -> None:
        shutil.rmtree(self._folder)

    def new_database(self) -> str:
        """Return the URL of an empty database."""
        self._databases += 1
        name = f"test_{self._databases}"
        self._run("createdb", f"--host={self._folder}", "--username=postgres", name)
        return f"postgresql://postgres@/{name}?host={self._folder}"

    def _run(self, program: str, *args: str) -> None:
        as_postgres = ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups"] if os.geteuid() == 0 else []
        # The server inherits standard output: a pipe would never end.
        with tempfile.TemporaryFile() as output:
            done = subprocess.run(
                [*as_postgres, self._programs / program, *args],
                env={"PATH": os.environ["PATH"], "PGDATA": str(self._folder / "data"), "LC_ALL": "C.UTF-8"},
                cwd=self._folder,
                stdout=output,
                stderr=output,
                timeout=60,
                check=False,
            )
            output.seek(0)
            assert done.returncode == 0, f"{program}: {output.read().decode()}"
