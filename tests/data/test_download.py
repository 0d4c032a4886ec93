"""Download: every wait is bounded, and a failure leaves the folder as it was.

The servers are on this machine. Four tests run torchvision itself; in the others a stand-in of a
few lines takes its place in the child process, which then misbehaves within milliseconds.
"""

import contextlib
import errno
import gzip
import hashlib
import os
import signal
import socket
import struct
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import vaebench
from vaebench.data import download
from vaebench.data.download import DownloadError, fetch_mnist

SIZES = {
    "train-images-idx3-ubyte": (6, 5, 4),
    "train-labels-idx1-ubyte": (6,),
    "t10k-images-idx3-ubyte": (2, 5, 4),
    "t10k-labels-idx1-ubyte": (2,),
}


def idx(shape: tuple[int, ...]) -> bytes:
    """Return an IDX file of zeros."""
    count = 1
    for length in shape:
        count *= length
    return struct.pack(f">BBBB{len(shape)}I", 0, 0, 8, len(shape), *shape) + bytes(count)


FILES = {name: idx(shape) for name, shape in SIZES.items()}
MD5S = {name: hashlib.md5(content).hexdigest() for name, content in FILES.items()}
PACKED = {f"{name}.gz": gzip.compress(content) for name, content in FILES.items()}
RESOURCES = [(name, hashlib.md5(content).hexdigest()) for name, content in PACKED.items()]


def listing(folder: Path) -> dict[str, bytes | None]:
    """Return everything under ``folder``, itself included, with its contents."""
    paths = [folder, *folder.rglob("*")] if folder.exists() else []
    return {str(path): path.read_bytes() if path.is_file() else None for path in paths}


def failure(root: Path, call: Callable[[], None]) -> str:
    """Return the one-line message of the DownloadError of ``call``, which changes nothing."""
    before = listing(root.parent)
    with pytest.raises(DownloadError) as caught:
        call()
    assert str(caught.value).isprintable()
    assert listing(root.parent) == before
    return str(caught.value)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a destination that does not exist yet, two levels deep."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "new" / "data"


# torchvision itself


@contextlib.contextmanager
def serving(answers: dict[str, bytes]) -> Iterator[str]:
    """Serve ``answers`` by file name on this machine; yield the address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = answers[self.path.rpartition("/")[2]]
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            # torchvision asks once for the address alone and closes.
            with contextlib.suppress(ConnectionError):
                self.wfile.write(content)

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def dribbling() -> Iterator[str]:
    """Accept connections and send a header that never ends; yield the address."""
    over = threading.Event()

    def serve(listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while not over.is_set():
                connection, _ = listener.accept()
                with connection, contextlib.suppress(OSError):
                    connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
                    while not over.wait(0.1):
                        connection.sendall(b"x")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(60)
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        finally:
            over.set()
            thread.join()


def refusing() -> str:
    """Return the address of a port on this machine where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}/"


def test_torchvision_fills_the_folder(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with serving(PACKED) as address:
        fetch_mnist(root, MD5S, mirrors=[refusing(), address], resources=RESOURCES)
    raw = root / "MNIST" / "raw"
    assert {path.name: path.read_bytes() for path in raw.iterdir()} == FILES
    assert [path.name for path in root.iterdir()] == ["MNIST"]
    assert capfd.readouterr() == ("", "")


def test_refused_and_cut_off(root: Path) -> None:
    name = next(iter(PACKED))
    with serving({**PACKED, name: PACKED[name][:-5]}) as address:
        mirrors = [refusing(), address]
        message = failure(
            root, lambda: fetch_mnist(root, MD5S, mirrors=mirrors, resources=RESOURCES)
        )
    for word in (name, "refused", "corrupted"):
        assert word in message


def test_another_mirror_is_asked_after_a_damaged_file(root: Path) -> None:
    name = next(iter(PACKED))
    with serving({**PACKED, name: PACKED[name][:-5]}) as bad, serving(PACKED) as good:
        fetch_mnist(root, MD5S, mirrors=[bad, good], resources=RESOURCES)
    assert {path.name for path in (root / "MNIST" / "raw").iterdir()} == set(FILES)


def test_server_that_never_answers(root: Path) -> None:
    with dribbling() as address:
        message = failure(
            root,
            lambda: fetch_mnist(root, MD5S, patience=1, mirrors=[address], resources=RESOURCES),
        )
    assert "nothing arrived for 1 s" in message


# a stand-in for torchvision

HEAD = """
import os, sys, time, pathlib, signal
FILES = {files!r}
class MNIST:
    mirrors, resources = ("http://here/",), ()
    def __init__(self, root, train, download):
        raw = pathlib.Path(root, "MNIST", "raw")
        raw.mkdir(parents=True)
        def put(**changes):
            for name, content in {{**FILES, **changes}}.items():
                (raw / name).write_bytes(content)
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Return a function that makes the body of torchvision's MNIST class what it is given."""
    package = tmp_path / "packages" / "torchvision"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.syspath_prepend(str(package.parent))

    def write(body: str) -> None:
        text = HEAD.format(files=FILES) + textwrap.indent(textwrap.dedent(body), " " * 8)
        (package / "datasets.py").write_text(text)

    return write


def test_slow_but_steady_goes_on(root: Path, stand_in: Callable[[str], None]) -> None:
    stand_in("""
        for n in range(12):
            (raw / "part").write_bytes(bytes(n + 1))
            time.sleep(0.15)
        put()
    """)
    began = time.monotonic()
    fetch_mnist(root, MD5S, patience=1)
    assert time.monotonic() - began > 1.5
    assert set(listing(root)) == {str(path) for path in [root, *root.rglob("*")]}
    assert {path.name for path in (root / "MNIST" / "raw").iterdir()} == set(FILES)


MISCHIEF = {
    "silent": ("time.sleep(60)", "nothing arrived for 0.5 s (0 bytes before)"),
    "stalls": ("put(); time.sleep(60)", "nothing arrived for 0.5 s"),
    "deaf": (
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "while True: pass",
        "nothing arrived",
    ),
    "error": ("raise RuntimeError('first\\nsecond\\x1b[0m')", "RuntimeError: first second"),
    "exit": ("sys.exit(3)", "ended with status"),
    "abort": ("os.kill(os.getpid(), 9)", "ended with status"),
    "nothing": ("pass", "train-images-idx3-ubyte did not arrive"),
    "short": (
        "put(**{'t10k-labels-idx1-ubyte': FILES['t10k-labels-idx1-ubyte'][:-1]})",
        "t10k-labels-idx1-ubyte arrived damaged",
    ),
    "endless": ("while True: (raw / 'x').open('ab').write(bytes(4096)); time.sleep(0.01)", "MiB"),
}


@pytest.mark.parametrize("case", MISCHIEF)
def test_mischief(
    root: Path,
    stand_in: Callable[[str], None],
    case: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    body, word = MISCHIEF[case]
    monkeypatch.setattr(download, "_MOST_BYTES", 1 << 16)
    stand_in(f"print('noise'); print('noise', file=sys.stderr)\n{body}")
    began = time.monotonic()
    assert word in failure(root, lambda: fetch_mnist(root, MD5S, patience=0.5))
    assert time.monotonic() - began < 20
    assert capfd.readouterr() == ("", "")


def test_torchvision_missing_or_slow(
    root: Path, stand_in: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in("pass")
    package = root.parents[1] / "packages" / "torchvision"
    (package / "__init__.py").write_text("raise ImportError('no torchvision')")
    assert "no torchvision" in failure(root, lambda: fetch_mnist(root, MD5S))
    (package / "__init__.py").write_text("import time; time.sleep(60)")
    monkeypatch.setattr(download, "_START_LIMIT", 0.5)
    assert "did not start" in failure(root, lambda: fetch_mnist(root, MD5S))


def test_files_that_are_there_stay(root: Path, stand_in: Callable[[str], None]) -> None:
    stand_in("put()")
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    own = raw / next(iter(FILES))
    own.write_bytes(b"own")
    fetch_mnist(root, MD5S)
    assert own.read_bytes() == b"own"
    assert {path.name for path in raw.iterdir()} == set(FILES)


def test_unwritable_folder(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = root.parents[1] / "file"
    file.touch()
    assert "cannot download into" in failure(root, lambda: fetch_mnist(file / "x\ny", MD5S))

    def refuse(**kwargs: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    assert "Read-only" in failure(root, lambda: fetch_mnist(root, MD5S))


def alive(pid: int) -> bool:
    """Return whether a process runs, zombies aside."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at /proc")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGKILL"])
def test_child_ends_with_its_parent(
    root: Path, stand_in: Callable[[str], None], name: str, tmp_path: Path
) -> None:
    note = tmp_path / "pid"
    stand_in(f"pathlib.Path({str(note)!r}).write_text(str(os.getpid())); time.sleep(60)")
    root.mkdir(parents=True)
    code = (
        "import sys, pathlib; from vaebench.data.download import fetch_mnist\n"
        f"sys.path.insert(0, {str(tmp_path / 'packages')!r})\n"
        f"fetch_mnist(pathlib.Path({str(root)!r}), {MD5S!r})"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(vaebench.__path__[0]).parent)}
    with subprocess.Popen([sys.executable, "-c", code], env=env, stderr=subprocess.DEVNULL) as run:
        wait(lambda: note.exists() and note.read_text() != "")
        run.send_signal(getattr(signal, name))
    wait(lambda: not alive(int(note.read_text())))
    assert list(root.iterdir()) == []


def wait(condition: Callable[[], bool]) -> None:
    """Return when ``condition`` holds; fail after 20 s."""
    limit = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.02)
