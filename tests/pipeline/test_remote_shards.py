"""Shards in remote storage: listed, looked up, read with retries, and told from those that are not there."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from unittest.mock import Mock

import boto3
import fsspec
import pytest
from moto.server import ThreadedMotoServer

from pipeline import remote_search
from pipeline.errors import UserError
from pipeline.limits import ReadLimits
from pipeline.listing import list_shards
from pipeline.records import ShardRef
from pipeline.shards import SourceError, read_shard
from tests.pipeline.shard_bytes import JPEG, QUICK, Reading, numbered, tar_bytes


def names(*inputs: str | Path, known: dict[str, str] | None = None) -> list[str]:
    return [ref.name for ref in list_shards([str(text) for text in inputs], known)]


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    filesystem = fsspec.filesystem("memory")
    filesystem.pipe({f"/corpus/{index}.tar": tar_bytes(numbered(index + 1)) for index in range(3)})
    filesystem.pipe("/corpus/deep/9.tar.gz", b"x")
    filesystem.pipe("/corpus/0_stats.json", b"{}")
    yield filesystem
    filesystem.rm("/corpus", recursive=True)


def test_any_fsspec_url_is_listed_and_read(memory: fsspec.AbstractFileSystem) -> None:
    assert names("memory://corpus") == ["0.tar", "1.tar", "2.tar", "deep/9.tar.gz"]
    assert names("memory://corpus/*.tar") == ["0.tar", "1.tar", "2.tar"]
    refs = list_shards(["memory://corpus/{0..3}.tar"])
    assert [(ref.name, ref.missing) for ref in refs] == [
        ("0.tar", False),
        ("1.tar", False),
        ("2.tar", False),
        ("3.tar", True),
    ]
    assert len(Reading(refs[2]).samples) == 3
    assert Reading(ShardRef("x", "memory://corpus/x.tar")).reasons == ["the shard is missing"]


class Flaky:
    """A remote file whose reads are short, and fail after the first as long as there are `failures`."""

    def __init__(self, file, failures: list[Exception]) -> None:
        self.file, self.failures = file, failures

    def read(self, size: int) -> bytes:
        if self.failures and self.file.tell():
            raise self.failures.pop()
        return self.file.read(min(size, 1000))

    def close(self) -> None:
        self.file.close()


def test_reads_that_fail_are_tried_again_where_they_were(memory: fsspec.AbstractFileSystem, monkeypatch) -> None:
    failures: list[Exception] = []
    opened = memory.open
    opens: list[str] = []

    def flaky(path: str, mode: str = "rb", block_size: int | None = None) -> Flaky:
        opens.append(path)
        if opens == ["/corpus/2.tar"]:
            failures.extend([OSError("503 Slow Down"), TimeoutError()])
        return Flaky(opened(path, mode), failures)

    monkeypatch.setattr(memory, "open", flaky)
    assert len(Reading(ShardRef("2.tar", "memory://corpus/2.tar")).samples) == 3
    assert opens.count("/corpus/2.tar") == 3


def test_storage_that_stays_down_is_no_damage(memory: fsspec.AbstractFileSystem, monkeypatch) -> None:
    def down(path: str, mode: str = "rb", block_size: int | None = None) -> None:
        raise OSError("503 from memory://me:SECRET@corpus/2.tar")

    monkeypatch.setattr(memory, "open", down)
    with pytest.raises(SourceError, match="in 3 attempts: 503") as caught:
        list(read_shard(ShardRef("2.tar", "memory://corpus/2.tar"), None, QUICK))
    assert "SECRET" not in str(caught.value)


class Site(BaseHTTPRequestHandler):
    """Answers for ``/<status>/...`` with that status, and otherwise with a shard, without ranges."""

    def do_GET(self) -> None:
        status = int(self.path.split("/")[1])
        body = tar_bytes([("a.jpg", JPEG + bytes(12_000_000)), ("b.jpg", JPEG)]) if status == 200 else b""
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_HEAD(self) -> None:
        self.do_GET()

    def log_message(self, *_: object) -> None:
        """Keep the test's output clean."""


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_http_shards_are_streamed(site: str) -> None:
    refs = list_shards([f"{site}/200/{{0..1}}.tar?sig=SECRET"])
    assert [ref.name for ref in refs] == ["0.tar", "1.tar"]
    assert refs[0].size is not None
    assert Reading(refs[0], "Describe.").identities == [("a", 0), ("b", 0)]


def test_http_failures_are_told_from_missing_files(site: str, monkeypatch) -> None:
    monkeypatch.setattr(remote_search, "ReadLimits", lambda: ReadLimits(attempts=2, retry_seconds=0))
    refs = list_shards([f"{site}/200/a.tar", f"{site}/404/a.tar"])
    assert [ref.missing for ref in refs] == [False, True]
    for status in (403, 503):
        with pytest.raises(UserError, match=f"cannot be listed: HTTP status {status}"):
            list_shards([f"{site}/{status}/a.tar"])
    assert Reading(ShardRef("a", f"{site}/404/a.tar")).reasons == ["the shard is missing"]
    assert Reading(ShardRef("a", f"{site}/403/a.tar")).reasons == ["the shard may not be read (permission denied)"]
    with pytest.raises(SourceError, match="HTTP status 503"):
        Reading(ShardRef("a", f"{site}/503/a.tar"))


@pytest.fixture(scope="module")
def s3() -> Iterator[boto3.session.Session.client]:
    server = ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        client = boto3.client("s3")
        client.create_bucket(Bucket="corpus")
        for index in range(20):
            client.put_object(Bucket="corpus", Key=f"train/{index:05d}.tar", Body=tar_bytes(numbered(index % 3 + 1)))
        client.put_object(Bucket="corpus", Key="train/00000_stats.json", Body=b'{"successes": 2}')
        client.put_object(Bucket="corpus", Key="val/big.tar", Body=tar_bytes([("a.jpg", JPEG + bytes(20_000_000))]))
        yield client
    server.stop()


def test_s3_is_listed_with_etags(s3) -> None:
    refs = list_shards(["s3://corpus"])
    assert len(refs) == 21
    assert (refs[0].name, refs[0].url) == ("train/00000.tar", "s3://corpus/train/00000.tar")
    etag = s3.head_object(Bucket="corpus", Key="train/00000.tar")["ETag"].strip('"')
    assert refs[0].fingerprint == f"{refs[0].size}-{etag}"
    assert names("s3://corpus/train/*1.tar") == ["00001.tar", "00011.tar"]
    assert names("s3://corpus/val/big.tar", "s3://corpus/train/00003.tar") == ["big.tar", "00003.tar"]


@pytest.mark.parametrize("count", [3, 25])
def test_s3_files_named_one_by_one_are_looked_up(s3, count: int, monkeypatch) -> None:
    look = Mock(side_effect=remote_search._info)
    monkeypatch.setattr(remote_search, "_info", look)
    refs = list_shards([f"s3://corpus/train/{{00018..{17 + count:05d}}}.tar"])
    assert look.call_count == (count if count < 16 else 0)  # many in one folder take one listing
    assert [ref.missing for ref in refs] == [index > 1 for index in range(count)]
    assert refs[:2] == [ref for ref in list_shards(["s3://corpus/train"]) if ref.name in ("00018.tar", "00019.tar")]


def test_s3_shards_are_read_and_compared_with_their_stats(s3) -> None:
    refs = list_shards(["s3://corpus/train/{00000..00002}.tar"])
    assert [len(Reading(ref).samples) for ref in refs] == [1, 2, 3]
    assert Reading(refs[0]).reasons == ["the shard holds 1 samples of the 2 that its index names"]
    assert Reading(refs[1]).end.complete
    assert len(Reading(list_shards(["s3://corpus/val"])[0], "Describe.").samples[0].image) > 20_000_000


def test_s3_that_gives_nothing_is_refused_in_a_sentence(s3) -> None:
    for url in ("s3://corpus/nothing/", "s3://corpus/*.tar", "s3://no-such-bucket/x/"):
        with pytest.raises(UserError, match="no shard"):
            list_shards([url])


def test_storage_that_cannot_be_listed_is_refused_without_secrets(monkeypatch) -> None:
    monkeypatch.setattr(remote_search, "ReadLimits", lambda: ReadLimits(attempts=2, retry_seconds=0))
    with pytest.raises(UserError, match="cannot be listed") as caught:
        list_shards(["https://me:SECRET@127.0.0.1:9/a.tar?sig=SECRET"])
    assert "SECRET" not in str(caught.value)
