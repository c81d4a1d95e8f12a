"""Who owns a run folder: one job at a time writes it.

RUN/.owner holds numbered records; the highest one is the owner's. To claim the folder is to create
the next number, which only one of several can do, on shared file systems too. A record is alive

- on its own machine, as long as its process is;
- from elsewhere, as long as its time is refreshed, by the clock of the file system;
- but not if the batch system has started the same job again since.

Numbers are never used twice, so whoever is slow to see that an owner is dead takes nothing from the
next one: the highest number stays, emptied, when its owner is done. Besides, every process that
writes the folder holds a lock that the kernel releases with it, and a new owner waits for it: ranks
may need a moment to follow their launcher. This module does not know what is written.
"""

import fcntl
import json
import os
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from moe_megatron.errors import CheckpointError, NoRoomError, OccupiedError
from moe_megatron.platform.disk import FULL
from moe_megatron.platform.processes import Process, machine
from moe_megatron.reading import parse_json, read_text

OWNER = ".owner"
TOKEN_VARIABLE = "MOE_MEGATRON_OWNER"
"""Environment variable with which a launcher tells its ranks that the folder is theirs."""
STALE_SECONDS = 60.0
"""Age of a record of another machine from which on its owner is dead."""

_MOST_BYTES = 2**16
_WRITERS = "writers"
_PATIENCE_SECONDS = 30.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Owner:
    """The job that writes a run folder."""

    host: str
    pid: int
    process: str
    machine: str
    """See `platform.processes.machine`."""
    since: float
    """When it claimed the folder, in seconds since 1970."""
    job: str | None
    """Its number in the batch system."""
    restart: int
    """How often the batch system has started it again."""
    token: str

    @classmethod
    def this(cls) -> "Owner":
        """This process."""
        return cls(
            host=socket.gethostname(),
            pid=os.getpid(),
            process=str(Process.this()),
            machine=machine(),
            since=time.time(),
            job=os.environ.get("SLURM_JOB_ID"),
            restart=int(os.environ.get("SLURM_RESTART_COUNT") or 0),
            token=uuid.uuid4().hex,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """A folder that is ours."""

    run_dir: Path
    owner: Owner
    record: Path
    created: bool
    """Whether the folder did not exist before."""

    @property
    def lost(self) -> str | None:
        """Why the folder is no longer ours; None if it is."""
        if not self.record.exists():
            newer = _records(self.run_dir)
            if not newer:
                return f"the run folder {self.run_dir} was removed while the run was writing to it"
        elif int(self.record.name) == max(_records(self.run_dir), default=0):
            return None
        return f"another job has taken the run folder {self.run_dir}, as if this one were dead"

    def refresh(self) -> None:
        """Show other machines that the owner is alive."""
        with suppress(OSError):
            os.utime(self.record)


def claim(run_dir: Path) -> Claim:
    """Become the owner of a folder, which is created if it does not exist.

    Raises:
        OccupiedError: Another job owns it.
        CheckpointError: It cannot be written.
    """
    created = not run_dir.exists()
    try:
        (run_dir / OWNER).mkdir(parents=True, exist_ok=True)
        owner, record = _claim(run_dir)
    except OSError as error:
        kind = NoRoomError if error.errno in FULL else CheckpointError
        raise kind(
            f"the run directory {run_dir} cannot be written ({error.strerror}). Change its "
            "permissions or free space, or choose another one with --run-dir."
        ) from error
    ours = Claim(run_dir=run_dir, owner=owner, record=record, created=created)
    try:
        _wait_for_writers(run_dir)
    except BaseException:
        release(ours)
        raise
    return ours


def _claim(run_dir: Path) -> tuple[Owner, Path]:
    owner = Owner.this()
    draft = run_dir / OWNER / f".{owner.token}"
    draft.write_text(json.dumps(asdict(owner)), encoding="utf-8")
    try:
        while True:
            number = max(_records(run_dir), default=0)
            present = _read(run_dir, number)
            if present is not None and is_alive(run_dir, number, present, owner):
                raise _occupied(run_dir, present)
            record = run_dir / OWNER / str(number + 1)
            try:
                record.hardlink_to(draft)
            except FileExistsError:
                continue  # another one was faster
            if max(_records(run_dir)) == number + 1:
                return owner, record
            record.unlink()  # we were slow, and the number was one of the past
    finally:
        draft.unlink(missing_ok=True)


def owner_of(run_dir: Path) -> Owner | None:
    """Who owned the folder last, alive or dead; None if it was released."""
    return _read(run_dir, max(_records(run_dir), default=0))


def outlast(run_dir: Path, job: str, *, patience: float = STALE_SECONDS + 5) -> None:
    """Wait until another job that owned the folder is known to be dead.

    The next job of a chain starts seconds after one that was killed, which from another machine
    looks alive for `STALE_SECONDS`. If it does live, `claim` says so.
    """
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        number = max(_records(run_dir), default=0)
        owner = _read(run_dir, number)
        if owner is None or owner.job in (None, job):
            return
        if not is_alive(run_dir, number, owner, Owner.this()):
            return
        time.sleep(0.5)


def is_alive(run_dir: Path, number: int, owner: Owner, asking: Owner) -> bool:
    """Whether the owner of a record can still write, as far as somebody else can know."""
    if owner.machine == asking.machine:
        process = Process.read(owner.process)
        return process is not None and process.is_alive
    if owner.job is not None and owner.job == asking.job and asking.restart > owner.restart:
        return False
    # Both times are of the file system, whose clock may differ from ours.
    probe = run_dir / OWNER / f".{asking.token}.now"
    probe.touch()
    try:
        age = probe.stat().st_mtime - (run_dir / OWNER / str(number)).stat().st_mtime
    except FileNotFoundError:  # released meanwhile
        return False
    finally:
        probe.unlink(missing_ok=True)
    return age < STALE_SECONDS


def release(ours: Claim) -> None:
    """Give the folder back; one that this claim created, and that is empty, is removed."""
    folder = ours.record.parent
    with suppress(OSError):
        if ours.lost is not None:
            return
        for number in _records(ours.run_dir):
            if number < int(ours.record.name):
                (folder / str(number)).unlink(missing_ok=True)
        ours.record.write_text("")
        if ours.created and set(os.listdir(ours.run_dir)) == {OWNER}:
            (folder / _WRITERS).unlink(missing_ok=True)
            ours.record.unlink()
            folder.rmdir()
            ours.run_dir.rmdir()


def is_ours(run_dir: Path) -> bool:
    """Whether the launcher of this process owns the folder."""
    token = os.environ.get(TOKEN_VARIABLE)
    owner = owner_of(run_dir) if token else None
    return owner is not None and owner.token == token


@contextmanager
def writing(run_dir: Path) -> Iterator[None]:
    """Mark this process, and what it forks, as a writer of the folder."""
    descriptor = os.open(run_dir / OWNER / _WRITERS, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        with suppress(OSError):  # not every file system has locks
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        yield
    finally:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def _wait_for_writers(run_dir: Path) -> None:
    """Wait until no process of an earlier job on this machine writes the folder."""
    descriptor = os.open(run_dir / OWNER / _WRITERS, os.O_RDWR | os.O_CREAT, 0o666)
    deadline = time.monotonic() + _PATIENCE_SECONDS
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise OccupiedError(
                        f"processes of an earlier job still write to the run folder {run_dir}; "
                        "stop them, or choose another --run-dir."
                    ) from None
                time.sleep(0.1)
            except OSError:
                return
    finally:
        os.close(descriptor)


def _records(run_dir: Path) -> list[int]:
    try:
        return [int(name) for name in os.listdir(run_dir / OWNER) if name.isdecimal()]
    except OSError:
        return []


def _read(run_dir: Path, number: int) -> Owner | None:
    try:
        text = read_text(run_dir / OWNER / str(number), _MOST_BYTES)
        return Owner(**parse_json(text)) if text else None
    except (OSError, ValueError, TypeError):
        return None


def _occupied(run_dir: Path, owner: Owner) -> OccupiedError:
    started = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(owner.since))
    job = f" (job {owner.job})" if owner.job else ""
    return OccupiedError(
        f"run folder {run_dir} belongs to pid {owner.pid}{job} on {owner.host}, started at "
        f"{started}; stop it, or choose another --run-dir."
    )
