"""Fresh processes: what is measured in one owes nothing to what ran before it.

A child is a module of this folder. It is given its task as JSON and answers in lines of JSON on
its standard output; all else that it writes goes to standard error.
"""

import importlib.util
import json
import os
import platform
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

from vaebench.system.device import resolve_device
from vaebench.system.info import fingerprint

ROOT = Path(__file__).resolve().parent.parent


class ChildError(RuntimeError):
    """A child process failed; the message ends with what it said last."""


class Child:
    """A running child: tell it a line, get a line of JSON back; a context manager.

    ``cache`` is the folder in which its compiler keeps its results; None leaves the user's.
    """

    def __init__(self, module: str, task: dict[str, Any], cache: str | None = None) -> None:
        environment = dict(os.environ)
        if cache is not None:
            environment["TORCHINDUCTOR_CACHE_DIR"] = cache
        self.process = subprocess.Popen(
            [sys.executable, "-m", f"benchmarks.{module}", json.dumps(task)],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let it end."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()

    def tell(self, word: str) -> None:
        """Send a line."""
        assert self.process.stdin
        print(word, file=self.process.stdin, flush=True)

    def answer(self) -> dict[str, Any]:
        """Wait for the next line of JSON.

        Raises:
            ChildError: the child ended without one; it said why on standard error.
        """
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            status = self.process.wait()
            raise ChildError(f"{self.process.args!r} ended with status {status}")
        answer = json.loads(line)
        assert isinstance(answer, dict)
        return answer


def in_fresh_process(module: str, task: dict[str, Any], cache: str | None = None) -> dict[str, Any]:
    """Run a child that gives one answer."""
    with Child(module, task, cache) as child:
        return child.answer()


def reply(answer: dict[str, Any]) -> None:
    """Answer, in a child."""
    print(json.dumps(answer), flush=True)


def peak_memory() -> int:
    """Bytes of host memory that this process has held at most."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024


def commit() -> str:
    """Name the commit that is measured; ``+`` marks code that differs from it."""
    measured = ["--", "vaebench", "benchmarks", ":!benchmarks/results"]
    name = _git("rev-parse", "--short=12", "HEAD")
    if name is None:
        return "unknown"
    return name if _git("diff", "--quiet", "HEAD", *measured) is not None else name + "+"


def _git(*words: str) -> str | None:
    try:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def described(device: str, data: str, command: str) -> dict[str, Any]:
    """What every stored result says about itself."""
    return {
        "machine": fingerprint(resolve_device(device)),
        "commit": commit(),
        "command": command,
        "data": data,
    }


def has_jax() -> bool:
    """Tell whether the extra ``peers`` is installed, without importing it."""
    return importlib.util.find_spec("jax") is not None
