"""A local Postgres with logical replication switched on."""

from __future__ import annotations

import hashlib
import os
import pwd
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path

from deploy.local import install
from deploy.local.processes import HOST, run
from deploy.local.server import Server

SUPERUSER = "postgres"
FALLBACK_ROOT = Path("/var/lib/ctxpipe")
LOGICAL_SETTINGS: Mapping[str, str] = {
    "wal_level": "logical",
    "max_replication_slots": "32",
    "max_wal_senders": "32",
    "max_connections": "200",
    # a world-writable directory for sockets can't be taken for granted, and every client here speaks TCP
    "unix_socket_directories": "",
}


class PostgresServer(Server):
    """One Postgres cluster, reached over TCP as the superuser `postgres`.

    password: given, connections must present it; else local connections are trusted. settings: postgresql.conf values.
    Postgres refuses to run as root, so as root it runs as an unprivileged user; where that user can't reach the wanted
    data directory (a checkout under a private home), the data lies under /var/lib/ctxpipe instead.
    """

    kind = "postgres"
    stop_signal = signal.SIGINT  # "fast": disconnect the clients, flush, end

    def __init__(
        self,
        data_dir: Path,
        port: int,
        *,
        name: str | None = None,
        log_dir: Path | None = None,
        password: str | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(data_dir, port, name=name, log_dir=log_dir)
        self.user = unprivileged_user()
        self.data_dir = reachable(data_dir, self.user)
        self.password = password
        self.settings = {**LOGICAL_SETTINGS, **(settings or {})}

    @property
    def address(self) -> str:
        return self.dsn("postgres")

    def dsn(self, database: str) -> str:
        """The address of one database of this server."""
        secret = f":{self.password}" if self.password else ""
        return f"postgresql://{SUPERUSER}{secret}@{HOST}:{self.port}/{database}"

    def prepare(self) -> None:
        if (self.data_dir / "PG_VERSION").exists():
            return
        self.data_dir.mkdir(parents=True, exist_ok=True)
        if self.user:
            record = pwd.getpwnam(self.user)
            os.chown(self.data_dir, record.pw_uid, record.pw_gid)
        self.data_dir.chmod(0o700)
        words = [install.postgres_program("initdb"), "-D", str(self.data_dir), "-U", SUPERUSER, "-E", "UTF8"]
        words += ["--locale", "C.UTF-8" if os.uname().sysname == "Linux" else "C", "--no-instructions"]
        password_file = self.data_dir.parent / f".{self.name}.password"
        if self.password:
            password_file.write_text(self.password)
            password_file.chmod(0o644)
            words += ["-A", "scram-sha-256", "--pwfile", str(password_file)]
        else:
            words += ["-A", "trust"]
        run(words, "Creating the Postgres data directory", self.user)
        password_file.unlink(missing_ok=True)

    def command(self) -> list[str]:
        words = [install.postgres_program("postgres"), "-D", str(self.data_dir), "-p", str(self.port), "-h", HOST]
        for name, value in self.settings.items():
            words += ["-c", f"{name}={value}"]
        return words

    def answers(self) -> bool:
        probe = [install.postgres_program("pg_isready"), "-q", "-h", HOST, "-p", str(self.port), "-U", SUPERUSER]
        return subprocess.run([*probe, "-d", "postgres"], check=False, capture_output=True).returncode == 0


def unprivileged_user() -> str | None:
    """The user to run Postgres as when we are root, None when we are not."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name).pw_name
        except KeyError:
            continue
    return None


def reachable(wanted: Path, user: str | None) -> Path:
    """The wanted directory where `user` may walk to it, else a stable place of its own under /var/lib/ctxpipe."""
    if user is None:
        return wanted
    existing = next(parent for parent in wanted.absolute().parents if parent.exists())
    walk = subprocess.run(
        ["test", "-x", str(existing)], user=user, group=pwd.getpwnam(user).pw_gid, extra_groups=[], check=False
    )
    if walk.returncode == 0:
        return wanted
    digest = hashlib.sha256(str(wanted.absolute()).encode()).hexdigest()[:16]
    return FALLBACK_ROOT / digest / wanted.name
