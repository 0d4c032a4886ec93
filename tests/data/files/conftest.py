"""No network, no environment, a folder of one's own."""

from pathlib import Path

import pytest

from vaebench.data import load as data_module
from vaebench.data.download import DownloadError


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keep every test away from the network, the environment and the repository's ``data``."""

    def offline(root: Path, md5s: object) -> None:
        raise DownloadError("no network")

    monkeypatch.setattr(data_module, "fetch_mnist", offline)
    monkeypatch.delenv("VAEBENCH_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
