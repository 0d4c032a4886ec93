"""Standard streams as callers leave them: no command is stopped by them, none ends in a trace."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vaebench.cli.streams import IN_ASCII, _encodable
from vaebench.data.strokes import make_strokes

PLOT = Path(__file__).parents[2] / "scripts" / "plot.py"
PYTHON = sys.executable


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, its data beside it."""
    folder = tmp_path_factory.mktemp("streams")
    images = make_strokes(200, seed=3)[0].numpy()
    np.savez(folder / "small.npz", x_train=images[:170], x_test=images[170:])
    _in_shell("...", _train(folder, folder / "small.npz"), folder)
    return folder / "run"


def _train(folder: Path, data: Path) -> str:
    return (
        f"{PYTHON} -m vaebench.train --data {data} --out {folder}/run --device cpu --threads 1 "
        "--hidden-dim 16 --latent-dim 2 --batch-size 64 --epochs 2"
    )


# What a shell does to the streams of the command in the place of the dots.
STREAMS = {
    "stdout closed": "... >&-",
    "stderr closed": "... 2>&-",
    "all closed": "... <&- >&- 2>&-",
    "stdout full": "... >/dev/full",
    "both full": "... >/dev/full 2>&1",
    "a reader of one byte": "... | head -c 1",
    "a reader of one byte of both": "... 2>&1 | head -c 1",
    "ASCII": "export PYTHONIOENCODING=ascii; ...",
    "the plainest locale": "export LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0; ...",
}
# All that commands do to streams, without torch.
TALKATIVE = r"""
import sys, time, warnings
from pathlib import Path
from tqdm.auto import tqdm
from vaebench.cli.command import run
from vaebench.cli.streams import complain, say
def work(argv):
    for i in tqdm(range(3), file=sys.stderr):
        time.sleep(0.02)  # so that a short reader is gone
        say(f"± {i} \udcff")
        complain("± \udcff")
        print("± \udcff")
        warnings.warn("± \udcff")
    Path(argv[0]).write_text("result" * 20)
    return 0
sys.exit(run(work, sys.argv[1:], interrupted=""))
"""


def _in_shell(streams: str, words: str, place: Path) -> "subprocess.CompletedProcess[str]":
    """Run a command with such streams; see that it ended well."""
    line = streams.replace("...", f"{{ {words}; echo $? >{place}/status; }}")
    done = subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, errors="replace", timeout=120
    )
    assert (place / "status").read_text() == "0\n", done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr
    return done


@pytest.mark.parametrize("streams", STREAMS)
def test_any_stream_will_do(streams: str, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(TALKATIVE, encoding="utf-8")
    words = f"{PYTHON} {tmp_path}/program.py {tmp_path}/result"
    done = _in_shell(STREAMS[streams], words, tmp_path)
    assert (tmp_path / "result").stat().st_size == 120
    said = [text for text in done.stderr.splitlines() if "cannot be written" in text]
    reason = {"stdout full": "No space left on device", "a reader of one byte": "Broken pipe"}
    if streams in reason:
        expected = f"vaebench: stdout cannot be written ({reason[streams]}): going on without it"
        assert said == [expected]
    else:
        assert said == []


@pytest.mark.parametrize(
    ("command", "streams"),
    [
        pytest.param("train", "stderr closed", marks=pytest.mark.slow),
        ("train", "all closed"),
        pytest.param("evaluate", "the plainest locale", marks=pytest.mark.slow),
        pytest.param("plot", "a reader of one byte of both", marks=pytest.mark.slow),
    ],
)
def test_every_command_writes_its_result(
    command: str, streams: str, run: Path, tmp_path: Path
) -> None:
    words, result = {
        "train": (_train(tmp_path, run.with_name("small.npz")), "run/result.json"),
        "evaluate": (
            f"{PYTHON} -m vaebench.evaluate {run} --samples 2 --out {tmp_path}/evaluation.json",
            "evaluation.json",
        ),
        "plot": (f"{PYTHON} {PLOT} {run} curves --out {tmp_path}", "curves.png"),
    }[command]
    _in_shell(STREAMS[streams], words, tmp_path)
    assert (tmp_path / result).stat().st_size > 100


def test_a_closed_stream_gives_no_file_its_number(run: Path, tmp_path: Path) -> None:
    """Else what a library writes to stderr goes into whatever was opened next."""
    code = (
        "import os, sys; from vaebench.cli.command import run\n"
        "def work(argv):\n"
        "    file = open(sys.argv[1], 'w')\n"
        "    os.write(2, b'a library complains')\n"
        "    return file.write('content') and 0\n"
        "sys.exit(run(work, [], interrupted=''))"
    )
    out = tmp_path / "file"
    line = f'{PYTHON} -c "{code}" {out} 2>&-'
    assert subprocess.run(["bash", "-c", line], timeout=60).returncode == 0
    assert out.read_text() == "content"


def test_help_for_a_short_reader(tmp_path: Path) -> None:
    for program in ("-m vaebench.train", "-m vaebench.evaluate"):
        _in_shell("... | head -n 1", f"{PYTHON} {program} --help", tmp_path)


def test_what_a_stream_cannot_write_is_written_otherwise(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "evaluation.json"
    done = subprocess.run(
        [PYTHON, "-m", "vaebench.evaluate", str(run), "--samples", "2", "--out", str(out)],
        capture_output=True, timeout=60, env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    error = json.loads(out.read_text())["standard_error"]
    assert f"+/- {error:.2f} nats".encode() in done.stdout
    assert _encodable("é ± 1 \udcff", "ascii") == "\\xe9 +/- 1 \\udcff"
    assert _encodable("é ± 1 \udcff", "utf-8") == "é +/- 1 \\udcff"
    assert all(plain.isascii() for plain in IN_ASCII.values())
