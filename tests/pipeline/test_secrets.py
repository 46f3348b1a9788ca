"""Planted credentials, on every way a run can end: they are in no file, no line of output and no error."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from s3fs import S3FileSystem

from jobs.caption_corpus import main
from pipeline.errors import UserError
from pipeline.job import JobResult
from pipeline.locations import redact_urls, without_secrets
from tests.pipeline.echo_job import run_echo
from tests.pipeline.shard_bytes import numbered, tar_bytes

SECRET = "planted-secret"
VARIABLES = (
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN"),
    *("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"),
)
NOWHERE = "127.0.0.1:9"


class Site(BaseHTTPRequestHandler):
    """Says that every shard is there. Gives `good.tar` and `cut.tar`; answers the others with the status they name."""

    def do_HEAD(self) -> None:
        self._answer(200, SHARD)

    def do_GET(self) -> None:
        name = self.path.split("?")[0].rpartition("/")[2].removesuffix(".tar")
        if name in ("good", "cut"):
            self._answer(200, SHARD if name == "good" else SHARD[:2000])
        else:
            self._answer(int(name) if name.isdigit() else 404, b"")

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Keep the test's output clean."""


SHARD = tar_bytes(numbered(2))


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://me:{SECRET}@127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def folder(tmp_path: Path, store_in: Callable[[Path], str], monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in VARIABLES:
        monkeypatch.setenv(name, SECRET)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{NOWHERE}")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setattr("pipeline.tracking.RETRY_SECONDS", 0.05)
    monkeypatch.setattr("pipeline.tracking.CLOSE_SECONDS", 1.0)
    S3FileSystem.clear_instance_cache()
    store_in(tmp_path)
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "0.tar").write_bytes(SHARD)
    return tmp_path


@pytest.fixture
def nothing_shown(
    folder: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> Iterator[Callable[[str], None]]:
    """Takes what else a run has said; everything else is looked through at the test's end."""
    caplog.set_level(logging.INFO)
    said: list[str] = []
    yield said.append
    shown = "".join([*capfd.readouterr(), caplog.text, *said])
    assert shown
    assert SECRET not in shown
    assert [path for path in folder.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()] == []


def test_a_run_on_signed_urls(folder: Path, site: str, nothing_shown: Callable[[str], None]) -> None:
    result = run_echo(folder, "--input", f"{site}/good.tar?X-Amz-Signature={SECRET}&id=7")
    nothing_shown(str(result.summary))
    assert result.summary["answers"] == 4


@pytest.mark.parametrize("name", ["cut", "403", "404"])
def test_a_shard_that_ends_in_quarantine(folder: Path, site: str, name: str, nothing_shown) -> None:
    result = run_echo(folder, "--input", f"{site}/{name}.tar?token={SECRET}", "--read-attempts", "1")
    nothing_shown(str(result.summary))
    assert result.summary["quarantined"] == 1


def test_a_shard_whose_storage_stays_down(folder: Path, site: str, nothing_shown) -> None:
    more = ("--input", f"{site}/503.tar?sig={SECRET}", "--read-attempts", "1", "--max-attempts", "1")
    result: JobResult = run_echo(folder, *more)
    nothing_shown(str(result.summary))
    assert "503" in str(result.summary["failed_shards"])


@pytest.mark.parametrize(
    "uri",
    [
        f"http://me:{SECRET}@{NOWHERE}",
        f"postgresql://me:{SECRET}@{NOWHERE}/mlflow?password={SECRET}",
        f"nonsense://me:{SECRET}@{NOWHERE}",
    ],
)
def test_tracking_that_fails(folder: Path, uri: str, nothing_shown) -> None:
    result = run_echo(folder, "--tracking-uri", uri)
    nothing_shown(str(result.summary))
    assert result.summary["answers"] == 2


@pytest.mark.parametrize(
    "more",
    [
        ("--input", f"https://me:{SECRET}@{NOWHERE}/a.tar?sig={SECRET}"),
        ("--input", f"s3://{SECRET}:{SECRET}@bucket/*.tar"),
        ("--input", f"nonsense://me:{SECRET}@host/a.tar"),
        ("--input", f"s3://me:{SECRET}@bucket/{{1..x"),
        ("--output", f"s3://key:{SECRET}@bucket/out"),
        ("--output", f"nonsense://me:{SECRET}@host/out"),
        ("--output", f"https://me:{SECRET}@{NOWHERE}/out?sig={SECRET}"),
    ],
)
def test_storage_that_cannot_be_listed_or_written(
    folder: Path, more: tuple[str, str], monkeypatch, nothing_shown
) -> None:
    monkeypatch.setattr("pipeline.limits.ReadLimits.__init__.__defaults__", quick_defaults())
    with pytest.raises(UserError) as caught:
        run_echo(folder, *more)
    nothing_shown(str(caught.value))


def quick_defaults() -> tuple[object, ...]:
    """Those of the limits, with one attempt."""
    from pipeline.limits import ReadLimits

    *others, _, seconds = ReadLimits.__init__.__defaults__ or ()
    return (*others, 1, seconds)


@pytest.mark.parametrize(
    "words",
    [
        [f"s3://key:{SECRET}@bucket/a.tar"],
        [f"--inptu=s3://key:{SECRET}@bucket/a.tar"],
        ["--device", f"http://me:{SECRET}@host"],
        ["--seed", f"http://me:{SECRET}@host"],
        ["--config", f"https://me:{SECRET}@host/run.yaml?sig={SECRET}"],
        ["--config", "{folder}/broken.yaml"],
        ["--input", "{folder}/corpus", "--output", "{folder}/o", "--model", f"https://me:{SECRET}@{NOWHERE}/model"],
    ],
)
def test_a_command_line_that_is_refused(folder: Path, words: list[str], nothing_shown, monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    outside = folder.parent / f"{folder.name}.yaml"
    outside.write_text(f"tracking_uri: http://me:{SECRET}@host: [\n")
    given = [word.replace("{folder}/broken.yaml", str(outside)).replace("{folder}", str(folder)) for word in words]
    assert main(given) == 2


@pytest.mark.parametrize("rest", [": it is away", "', said the server", " (403)", ", and more"])
def test_redacting_twice_is_as_redacting_once(rest: str) -> None:
    text = f"cannot read https://me:{SECRET}@h/get?shard={SECRET}&id=3{rest}"
    once = redact_urls(text)
    assert SECRET not in once
    assert redact_urls(once) == once


def test_what_a_library_says_of_a_part_of_a_url_is_hidden() -> None:
    url = f"s3://key:{SECRET}@bucket/a.tar"
    assert without_secrets(f"no bucket key:{SECRET}@bucket, or {url}", url) == "no bucket bucket, or s3://bucket/a.tar"
