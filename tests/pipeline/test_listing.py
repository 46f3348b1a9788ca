"""Inputs -> shards: nothing is missed, nothing comes twice, names are unique and stay, secrets stay out."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from unittest.mock import Mock

import boto3
import fsspec
import pytest
from moto.server import ThreadedMotoServer

from pipeline import remote_search
from pipeline.errors import UserError, nearest
from pipeline.limits import ReadLimits
from pipeline.listing import list_shards, redact
from pipeline.records import ShardRef
from pipeline.shards import SourceError, read_shard
from tests.pipeline.shard_bytes import JPEG, QUICK, Reading, numbered, tar_bytes


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())


def names(*inputs: str | Path, known: dict[str, str] | None = None) -> list[str]:
    return [ref.name for ref in list_shards([str(text) for text in inputs], known)]


def test_brace_ranges_keep_their_zeros(tmp_path: Path) -> None:
    touch(tmp_path, "00008.tar", "00009.tar", "00010.tar")
    refs = list_shards([f"{tmp_path}/{{00008..00010}}.tar"])
    assert [ref.name for ref in refs] == ["00008.tar", "00009.tar", "00010.tar"]
    assert [ref.url for ref in refs] == [str(tmp_path / name) for name in ("00008.tar", "00009.tar", "00010.tar")]
    assert [ref.size for ref in refs] == [9, 9, 9]


def test_brace_lists_and_products(tmp_path: Path) -> None:
    touch(tmp_path, "train/0.tar", "train/1.tar", "val/0.tar")
    refs = list_shards([f"{tmp_path}/{{train,val}}/{{0..1}}.tar"])
    assert [(ref.name, ref.missing) for ref in refs] == [
        ("train/0.tar", False),
        ("train/1.tar", False),
        ("val/0.tar", False),
        ("val/1.tar", True),
    ]


def test_a_missing_shard_is_listed_as_missing(tmp_path: Path) -> None:
    touch(tmp_path, "0.tar", "2.tar")
    refs = list_shards([f"{tmp_path}/{{0..2}}.tar"])
    assert [(ref.missing, ref.fingerprint == "", ref.size is None) for ref in refs] == [
        (False, False, False),
        (True, True, True),
        (False, False, False),
    ]


def test_a_folder_gives_all_its_shards_at_any_depth(tmp_path: Path) -> None:
    touch(tmp_path, "b.tar.gz", "a.tar", "c.tgz", "d.TAR.ZST", "a_stats.json", "sub/x.tar", ".hidden/y.tar", "._a.tar")
    assert names(tmp_path) == ["a.tar", "b.tar.gz", "c.tgz", "d.TAR.ZST", "sub/x.tar"]


def test_linked_folders_are_followed_once(tmp_path: Path) -> None:
    touch(tmp_path, "in/a.tar", "elsewhere/b.tar")
    (tmp_path / "in/link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/back").symlink_to(tmp_path / "in")
    assert names(tmp_path / "in") == ["a.tar", "link/b.tar"]


def test_globs_are_named_from_the_folder_before_the_first_wildcard(tmp_path: Path) -> None:
    touch(tmp_path, "2023/a.tar", "2024/a.tar", "2024/deep/b.tar", "2024/a_stats.json")
    assert names(tmp_path / "*/*.tar") == ["2023/a.tar", "2024/a.tar"]
    assert names(tmp_path / "**/*") == ["2023/a.tar", "2024/a.tar", "2024/deep/b.tar"]
    assert names(tmp_path / "2024/[a-c].tar") == ["a.tar"]


def test_a_path_that_exists_is_no_pattern(tmp_path: Path) -> None:
    touch(tmp_path, "odd [1] {a,b}*.tar")
    assert names(tmp_path / "odd [1] {a,b}*.tar") == ["odd [1] {a,b}*.tar"]


def test_file_urls_and_relative_paths_are_the_same_file(tmp_path: Path, monkeypatch, caplog) -> None:
    touch(tmp_path, "a b.tar")
    monkeypatch.chdir(tmp_path)
    with caplog.at_level(logging.WARNING):
        refs = list_shards(["a b.tar", f"file://{tmp_path}/a%20b.tar", "./a b.tar", str(tmp_path)])
    assert [(ref.name, ref.url) for ref in refs] == [("a b.tar", str(tmp_path / "a b.tar"))]
    assert "Given more than once, and read once (1)" in caplog.text


def test_equal_names_get_as_many_parents_as_they_need(tmp_path: Path) -> None:
    touch(tmp_path, "x/train/0.tar", "y/train/0.tar", "y/train/1.tar", "z/0.tar")
    given = [tmp_path / "x/train/0.tar", tmp_path / "y/train", tmp_path / "z/0.tar"]
    assert names(*given) == ["x/train/0.tar", "y/train/0.tar", "1.tar", "z/0.tar"]


def test_names_of_an_earlier_run_stay(tmp_path: Path) -> None:
    touch(tmp_path, "x/0.tar", "y/0.tar")
    (first,) = list_shards([str(tmp_path / "x")])
    assert first.name == "0.tar"
    known = {redact(first.url): first.name}
    assert names(tmp_path / "y", tmp_path / "x", known=known) == ["y/0.tar", "0.tar"]
    assert names(tmp_path / "y", known=known) == ["y/0.tar"]


def test_the_fingerprint_changes_with_the_file(tmp_path: Path) -> None:
    touch(tmp_path, "0.tar")
    before = list_shards([str(tmp_path)])[0]
    assert list_shards([str(tmp_path)])[0] == before
    os.utime(tmp_path / "0.tar", ns=(1, 1))
    assert list_shards([str(tmp_path)])[0].fingerprint != before.fingerprint


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ([], "no input"),
        ([" "], "an input is empty"),
        (["{base}/nothing.tar"], "no shard found, looked for {base}/nothing.tar"),
        (["{base}/{{0..9}}.tar"], "and 7 more"),
        (["{base}/*.tar"], "no shard (.tar, .tar.gz, .tgz, .tar.zst) in {base}/*.tar"),
        (["{base}"], "no shard (.tar, .tar.gz, .tgz, .tar.zst) in {base}"),
        (["{base}/{{0..3.tar"], "the braces in {base}/{{0..3.tar do not match"),
        (["{base}/{{0..99999999}}.tar"], "names more than 10000000 shards"),
        (["{base}/a\0.tar"], "holds a NUL character"),
        (["{base}/" + "x" * 300 + ".tar"], "no shard found"),
        (["nosuch://bucket/a.tar"], "cannot be listed"),
    ],
)
def test_inputs_that_give_nothing_are_refused_in_a_sentence(tmp_path: Path, given: list[str], sentence: str) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError) as caught:
        list_shards([text.format(base=tmp_path) for text in given])
    assert sentence.format(base=tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_many_shards_are_listed_in_seconds(tmp_path: Path) -> None:
    (tmp_path / "000000.tar").touch()
    start = time.process_time()
    assert len(list_shards([f"{tmp_path}/{{000000..029999}}.tar"])) == 30_000
    assert time.process_time() - start < 4


@pytest.mark.parametrize(
    ("url", "stored"),
    [
        ("/a/b?c.tar", "/a/b?c.tar"),
        ("file:///a/b.tar", "file:///a/b.tar"),
        ("s3://bucket/x/{0..3}.tar", "s3://bucket/x/{0..3}.tar"),
        ("s3://bucket/x/?.tar", "s3://bucket/x/?.tar"),
        ("s3://KEY:SEC/RET@bucket/x.tar", "s3://bucket/x.tar"),
        ("s3://bucket/x@y.tar", "s3://bucket/x@y.tar"),
        ("s3://bucket/x.tar?secret_key=SECRET", "s3://bucket/x.tar"),
        ("https://user:SECRET@host:8080/a@b.tar", "https://host:8080/a@b.tar"),
        ("https://h/a.tar?X-Amz-Signature=SECRET&X-Amz-Date=1&versionId=3", "https://h/a.tar?versionId=3"),
        ("https://h/a.tar?sv=1&sig=SECRET&se=2", "https://h/a.tar"),
        ("https://h/a.tar?access_token=SECRET#SECRET", "https://h/a.tar"),
        ("postgresql://me:SECRET@db/mlflow", "postgresql://db/mlflow"),
        ("cannot reach 'https://me:SECRET@h/x?token=SECRET'", "cannot reach 'https://h/x'"),
    ],
)
def test_credentials_are_redacted(url: str, stored: str) -> None:
    assert redact(url) == stored
    assert "SECRET" not in redact(url)
    assert redact(redact(url)) == redact(url)


def test_unknown_parameters_tell_files_apart_without_being_stored() -> None:
    one, two = redact("https://h/get?shard=SECRET1"), redact("https://h/get?shard=SECRET2")
    assert one != two
    assert "SECRET" not in one + two


def test_the_nearest_name_is_suggested() -> None:
    assert nearest("Keep-Token", ["keep-tokens", "model"]) == "keep-tokens"
    assert nearest("zzz", ["keep-tokens", "model"]) is None


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
