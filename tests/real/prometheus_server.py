"""A Prometheus of our own: the distribution's, with our rules, scraping one gateway every second."""

import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from math import isnan
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import pytest
import yaml

from tests.support.patience import PATIENCE_S
from tests.support.ports import free_port

Series = list[dict[str, Any]]


class Prometheus:
    """A context manager; ready when entered, its data goes with `folder`."""

    def __init__(self, folder: Path, target: str, rules: Sequence[Path]) -> None:
        """`target`: host:port, scraped as the job `penstock`."""
        self._port = free_port()
        self._folder = folder
        scraped = {"job_name": "penstock", "static_configs": [{"targets": [target]}]}
        config = {
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(path) for path in rules],
            "scrape_configs": [scraped],
        }
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))

    def __enter__(self) -> Self:
        binary = shutil.which("prometheus")
        if binary is None:
            pytest.fail("no prometheus on PATH; run `make engines`")
        command = [
            binary, f"--config.file={self._folder / 'prometheus.yml'}", f"--storage.tsdb.path={self._folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{self._port}", "--log.level=warn",
        ]  # fmt: skip
        with (self._folder / "prometheus.log").open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        self._http = httpx.Client(base_url=f"http://127.0.0.1:{self._port}", timeout=PATIENCE_S)
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                if self._http.get("/-/ready").is_success:
                    return self
            except httpx.TransportError:
                pass
            time.sleep(0.05)
        self._process.kill()
        pytest.fail(f"Prometheus is not ready; its log:\n{(self._folder / 'prometheus.log').read_text()[-4000:]}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()
        self._process.terminate()
        self._process.wait(20)

    def over(self, expr: str, start_s: float, end_s: float) -> Series:
        """The series of a query over a time, a step a second; without those that are no number throughout."""
        asked = {"query": expr, "start": start_s, "end": end_s, "step": 1}
        found: Series = self._data("query_range", asked)["result"]
        return [series for series in found if any(not isnan(float(value)) for _, value in series["values"])]

    def at(self, expr: str, when_s: float) -> Series:
        """... of one moment."""
        found: Series = self._data("query", {"query": expr, "time": when_s})["result"]
        return [series for series in found if not isnan(float(series["value"][1]))]

    def label_values(self, label: str, match: str) -> list[str]:
        """What Grafana asks for `label_values(match, label)`."""
        found: list[str] = self._data(f"label/{label}/values", {"match[]": match})
        return found

    def rules(self) -> list[dict[str, Any]]:
        """All of them as they were evaluated last."""
        return [rule for group in self._data("rules", {})["groups"] for rule in group["rules"]]

    def _data(self, path: str, asked: Mapping[str, Any]) -> Any:
        answer = self._http.get(f"/api/v1/{path}", params=asked)
        assert answer.is_success, f"{asked}: {answer.text}"
        return answer.json()["data"]
