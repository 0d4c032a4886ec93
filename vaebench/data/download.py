"""Download MNIST with torchvision, with every wait bounded and nothing half-written left.

torchvision runs in a process of its own, which fills a temporary folder inside the destination.
A call that waits for a name server or a silent host cannot be bounded from within; a process can
be ended from outside. The parent watches the folder and ends the child when nothing arrives.
"""

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from vaebench.errors import InputError

RAW = Path("MNIST", "raw")  # where torchvision keeps the files under its root
_START_LIMIT = 120.0  # seconds to import torchvision: no network in it, but slow on a cold disk
_MOST_BYTES = 256 << 20  # MNIST is 66 MB, packed and unpacked together
_POLL = 0.05


class DownloadError(InputError):
    """MNIST could not be downloaded; the message says why, in one line."""


def fetch_mnist(
    root: Path,
    md5s: Mapping[str, str],
    *,
    patience: float = 10.0,
    mirrors: Sequence[str] | None = None,
    resources: Sequence[tuple[str, str]] | None = None,
) -> None:
    """Download MNIST into ``root/MNIST/raw``, the layout of ``torchvision.datasets.MNIST``.

    Files appear there whole and checked, or not at all; files that are there already stay.

    Args:
        root: the destination; made if it does not exist, and removed again if nothing came.
        md5s: file names and the md5 of their unpacked bytes.
        patience: seconds without a new byte after which the download is given up.
        mirrors: base addresses to ask instead of torchvision's own.
        resources: (archive name, md5 of the archive) instead of torchvision's own.

    Raises:
        DownloadError: ``root`` cannot be written, or the files did not come, or not as published.
    """
    try:
        with _workspace(root) as work:
            _run_child(work, patience, mirrors, resources)
            _check(work / "root" / RAW, md5s)
            _install(work / "root" / RAW, root / RAW, md5s)
    except OSError as error:
        raise DownloadError(
            f"cannot download into {str(root)!r}: {error.strerror or error}"
        ) from error


@contextlib.contextmanager
def _workspace(root: Path) -> Iterator[Path]:
    """Make a temporary folder in ``root``; afterwards remove it, and what else is still empty."""
    absent = [folder for folder in (root, *root.parents) if not folder.exists()]
    try:
        root.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=".download-", dir=root))
        try:
            yield work
        finally:
            shutil.rmtree(work, ignore_errors=True)
    finally:
        for folder in absent:
            with contextlib.suppress(OSError):
                folder.rmdir()  # refuses, as it should, when a file has been put there


def _run_child(
    work: Path,
    patience: float,
    mirrors: Sequence[str] | None,
    resources: Sequence[tuple[str, str]] | None,
) -> None:
    """Run `_child` to its end, or end it when it falls silent."""
    order = {"work": str(work), "patience": patience, "mirrors": mirrors, "resources": resources}
    # The child is to find the same packages as this process, however this one found them.
    search = os.pathsep.join(folder or os.getcwd() for folder in sys.path)
    child = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"from {__name__} import _child; _child()",
            json.dumps(order),
        ],
        env={**os.environ, "PYTHONPATH": search},
        stdin=subprocess.PIPE,  # closes when this process dies: the child ends with it
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C reaches this process alone, which then ends the child
    )
    with child:
        try:
            _watch(child, work, patience)
        finally:
            if child.poll() is None:
                _kill(child)
    if child.returncode != 0:
        why = f"the download process ended with status {child.returncode}"
        with contextlib.suppress(OSError):
            why = (work / "error").read_text(encoding="utf-8")
        raise DownloadError(why)


def _kill(child: "subprocess.Popen[bytes]") -> None:
    """End the child and whatever it may have started."""
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
    else:
        child.kill()


def _watch(child: "subprocess.Popen[bytes]", work: Path, patience: float) -> None:
    """Return when the child ends; raise DownloadError when nothing has arrived for too long."""
    arrived, deadline = None, time.monotonic() + _START_LIMIT
    while child.poll() is None:
        now = time.monotonic()
        if (work / "ready").exists():
            size = _size(work / "root")
            if size > _MOST_BYTES:
                raise DownloadError(f"over {_MOST_BYTES >> 20} MiB arrived, more than MNIST")
            if size != arrived:
                arrived, deadline = size, now + patience
        if now > deadline:
            if arrived is None:
                raise DownloadError(f"torchvision did not start within {_START_LIMIT:.0f} s")
            raise DownloadError(f"nothing arrived for {patience:g} s ({arrived} bytes before)")
        time.sleep(_POLL)


def _size(folder: Path) -> int:
    """Return the bytes of all files under ``folder``, which may change meanwhile."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            total += path.stat().st_size if path.is_file() else 0
    return total


def _check(raw: Path, md5s: Mapping[str, str]) -> None:
    """Raise DownloadError unless every file has arrived with the published bytes."""
    for name, md5 in md5s.items():
        if not (raw / name).is_file():
            raise DownloadError(f"{name} did not arrive")
        found = hashlib.md5((raw / name).read_bytes(), usedforsecurity=False).hexdigest()
        if found != md5:
            raise DownloadError(f"{name} arrived damaged: md5 {found}, not {md5}")


def _install(source: Path, target: Path, names: Mapping[str, str]) -> None:
    """Move the checked files into ``target``, each in one atomic step."""
    target.mkdir(parents=True, exist_ok=True)
    for name in names:
        if not (target / name).exists():
            os.replace(source / name, target / name)


def _child() -> None:
    """Download with torchvision; the body of the child process, which ends with this function."""
    order = json.loads(sys.argv[1])
    work = Path(order["work"])
    errors: list[Exception] = []
    threading.Thread(target=_end_with_parent, args=(work,), daemon=True).start()
    try:
        import socket

        from torchvision.datasets import MNIST

        # Half of the parent's patience, so that a silent first mirror leaves time for a second.
        socket.setdefaulttimeout(order["patience"] / 2)
        MNIST.resources = order["resources"] or MNIST.resources
        (work / "root").mkdir()
        (work / "ready").touch()
        # One by one: after a damaged file torchvision 0.26 asks no other mirror.
        for mirror in order["mirrors"] or MNIST.mirrors:
            MNIST.mirrors = [mirror]
            try:
                MNIST(str(work / "root"), train=False, download=True)
                os._exit(0)  # at once: an ordinary exit would wait for libraries to unload
            except Exception as error:
                errors.append(error)
    except Exception as error:
        errors.append(error)
    # Whatever it was, the parent is to say it in one line.
    words = " ".join("; ".join(f"{type(error).__name__}: {error}" for error in errors).split())
    line = "".join(c if c.isprintable() else "?" for c in words[:500])
    (work / "error").write_text(line, encoding="utf-8")
    os._exit(1)


def _end_with_parent(work: Path) -> None:
    """Wait for the pipe from the parent to close, which is its death; then clean up and end."""
    with contextlib.suppress(OSError):
        os.read(0, 1)
    shutil.rmtree(work, ignore_errors=True)
    os._exit(1)
