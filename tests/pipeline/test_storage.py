"""Whole-file writes on a local disk and on real S3 protocol; errors that say what to do."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from moto.server import ThreadedMotoServer
from s3fs import S3FileSystem
from werkzeug.serving import make_server
from werkzeug.wsgi import get_input_stream

from pipeline import file_stores
from pipeline.commit import commit_shard
from pipeline.driver_lock import DriverLock
from pipeline.errors import UserError
from pipeline.ledger import Ledger
from pipeline.run_folder import prepare
from pipeline.storage import Output, StorageError, open_output
from pipeline.verification import verify
from tests.pipeline.output_rows import CONFIG, answer, report

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def s3_address() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(s3_address: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """The URL of an empty folder in a bucket of its own."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "planted-key-id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted-secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_address)
    S3FileSystem.clear_instance_cache()
    bucket = f"bucket-{abs(hash(tmp_path)):x}"
    boto3.client("s3").create_bucket(Bucket=bucket)
    return f"s3://{bucket}/runs/one"


@pytest.fixture(params=["local", "s3", "memory"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> Output:
    if request.param == "local":
        return open_output(str(tmp_path / "out"))
    if request.param == "memory":
        return open_output(f"memory://{tmp_path.name}/out")
    return open_output(request.getfixturevalue("s3"))


def test_a_file_written_is_read_listed_replaced_and_deleted(output: Output) -> None:
    output.check_writable()
    assert output.list() == []
    output.put_atomic("data/b.parquet", b"12345")
    output.put_atomic("data/deeper/a.parquet", b"1")
    output.put_atomic("run.json", b"{}")
    output.put_atomic("data/b.parquet", b"123")
    assert [(file.path, file.size) for file in output.list()] == [
        ("data/b.parquet", 3),
        ("data/deeper/a.parquet", 1),
        ("run.json", 2),
    ]
    assert [file.path for file in output.list("data")] == ["data/b.parquet", "data/deeper/a.parquet"]
    assert output.list("ledger") == []
    assert output.read("data/b.parquet") == b"123"
    assert dict(output.read_many(["run.json", "gone.json"])) == {"run.json": b"{}", "gone.json": None}
    assert output.exists("run.json")
    output.delete("run.json")
    output.delete("run.json")
    assert not output.exists("run.json")
    with pytest.raises(FileNotFoundError):
        output.read("run.json")


def test_many_local_files_come_in_order_each_with_its_own_content(tmp_path: Path) -> None:
    wanted = [f"ledger/{number:04d}.json" for number in range(3 * file_stores.FILES_PER_READER + 5)]
    (tmp_path / "ledger").mkdir()
    for path in wanted[::2]:
        (tmp_path / path).write_text(path)
    found = list(open_output(str(tmp_path)).read_many(wanted))
    assert found == [(path, path.encode() if number % 2 == 0 else None) for number, path in enumerate(wanted)]


def test_put_new_never_replaces_a_file(output: Output) -> None:
    assert output.put_new("driver.lock", b"first")
    assert not output.put_new("driver.lock", b"second")
    assert output.read("driver.lock") == b"first"


def test_a_file_is_replaced_only_while_it_is_as_expected(output: Output) -> None:
    assert not output.put_instead("driver.lock", b"mine", expected=b"")
    output.put_atomic("driver.lock", b"theirs")
    assert not output.put_instead("driver.lock", b"mine", expected=b"another's")
    assert output.read("driver.lock") == b"theirs"
    assert output.put_instead("driver.lock", b"mine", expected=b"theirs")
    assert output.read("driver.lock") == b"mine"


def test_of_many_that_replace_a_file_at_the_same_moment_one_does(s3: str) -> None:
    """On S3, whoever comes between another's look and write makes that write fail."""
    outputs = [open_output(s3) for _ in range(6)]
    for attempt in range(3):
        outputs[0].put_atomic("driver.lock", b"dead")
        start = threading.Barrier(len(outputs))

        def replace(number: int, start: threading.Barrier = start, attempt: int = attempt) -> bool:
            start.wait()
            return outputs[number].put_instead("driver.lock", f"{attempt} {number}".encode(), expected=b"dead")

        with ThreadPoolExecutor(len(outputs)) as pool:
            done = list(pool.map(replace, range(len(outputs))))
        assert done.count(True) == 1
        assert outputs[0].read("driver.lock") == f"{attempt} {done.index(True)}".encode()


def test_an_output_pickles(output: Output) -> None:
    output.put_atomic("run.json", b"{}")
    assert pickle.loads(pickle.dumps(output)).read("run.json") == b"{}"


def test_a_process_killed_before_the_rename_leaves_the_old_file(tmp_path: Path) -> None:
    open_output(str(tmp_path)).put_atomic("data/part.parquet", b"old")
    write = f"open_output({str(tmp_path)!r}).put_atomic('data/part.parquet', b'new')"
    program = f"from pipeline.storage import open_output\n{write}"
    ended = subprocess.run(
        [sys.executable, "-c", program],
        cwd=REPOSITORY,
        env={**os.environ, "FICOCO_FAULT": "temporary-written"},
        check=False,
    )
    assert ended.returncode == -signal.SIGKILL
    assert (tmp_path / "data/part.parquet").read_bytes() == b"old"
    assert [path.name.startswith(".part.parquet.") for path in (tmp_path / "data").glob("*.tmp")] == [True]


def test_a_full_disk_is_named_and_leaves_no_temporary_file(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", small], check=False, capture_output=True
    ).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    try:
        output = open_output(str(small))
        with pytest.raises(StorageError, match=r"cannot write data/part\.parquet in .*the disk is full; make room"):
            output.put_atomic("data/part.parquet", os.urandom(200_000))
        assert output.list() == []
    finally:
        subprocess.run(["umount", small], check=True)


def test_an_unwritable_output_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="a part of the path is a file"):
        open_output(str(tmp_path / "file")).check_writable()
    with pytest.raises(StorageError, match=r"cannot write \.probe-.* in /proc/ficoco"):
        open_output("/proc/ficoco").check_writable()


def test_read_only_storage_is_named(tmp_path: Path) -> None:
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", tmp_path], check=False, capture_output=True
    ).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    try:
        with pytest.raises(StorageError, match="the file system is read-only"):
            open_output(str(tmp_path)).check_writable()
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_a_missing_bucket_is_one_sentence(s3: str) -> None:
    with pytest.raises(StorageError, match=r"cannot write .*no such folder or bucket"):
        open_output("s3://no-such-bucket-here/out").check_writable()


def test_an_unknown_scheme_is_one_sentence() -> None:
    with pytest.raises(UserError, match=r"cannot open the output floppy://a: .*use a local folder or a URL"):
        open_output("floppy://a")


class Flaky:
    """An S3 that refuses two requests out of three, with 503 and 500 in turn."""

    def __init__(self) -> None:
        self.service = DomainDispatcherApplication(create_backend_app)
        self.asked = 0
        self.always_down = False

    def __call__(self, environment: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        self.asked += 1
        if self.always_down or self.asked % 3:
            get_input_stream(environment).read()
            start_response("503 Slow Down" if self.asked % 2 else "500 Internal Server Error", [])
            return [b""]
        return self.service(environment, start_response)


@pytest.fixture
def flaky(s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Flaky]:
    """The S3 of `s3`, made unreliable; its backoff is shortened."""
    service = Flaky()
    server = make_server("127.0.0.1", 0, service, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    S3FileSystem.clear_instance_cache()
    yield service
    server.shutdown()
    S3FileSystem.clear_instance_cache()


def test_flaking_storage_is_retried(s3: str, flaky: Flaky) -> None:
    output = open_output(s3)
    output.put_atomic("data/part.parquet", b"1")
    assert output.read("data/part.parquet") == b"1"
    assert flaky.asked == 6


def test_storage_that_stays_down_is_one_sentence_after_the_stated_time(s3: str, flaky: Flaky) -> None:
    output = open_output(s3, timeout=6)
    output.put_atomic("run.json", b"{}")
    assert not output.trouble
    flaky.always_down, flaky.asked = True, 0
    told = r"cannot write data/part\.parquet in s3://.*has not answered for 6 s.*then run the same command again"
    with pytest.raises(StorageError, match=told):
        output.put_atomic("data/part.parquet", b"1")
    assert flaky.asked >= 2
    assert output.trouble == f"{s3} has not answered for 6 s"
    flaky.always_down = False
    output.put_atomic("data/part.parquet", b"1")
    assert not output.trouble


def test_reports_that_cannot_be_read_just_now_are_not_taken_for_damaged_ones(s3: str, flaky: Flaky) -> None:
    output = open_output(s3, timeout=6)
    paths = [f"ledger/{number}.json" for number in range(5)]
    for path in paths:
        output.put_atomic(path, path.encode())
    assert dict(output.read_many(paths)) == {path: path.encode() for path in paths}
    flaky.always_down = True
    with pytest.raises(StorageError, match="has not answered for 6 s"):
        list(output.read_many(paths))


def test_a_run_on_s3_is_committed_locked_and_verified(s3: str) -> None:
    output = open_output(s3)
    with DriverLock(output):
        with pytest.raises(UserError, match="another run is writing to s3://"):
            DriverLock(output).acquire()
        folder = prepare(output, CONFIG)
        for number in range(8):
            name = f"{number:05d}.tar"
            commit_shard(output, report(name), [answer(n, name) for n in range(3)], [], folder.provenance)
        scan = Ledger(output).scan()
        assert (scan.totals.shards, scan.totals.answers) == (8, 24)
        folder.succeed(scan.totals)
    assert verify(output).findings == []
    assert "driver.lock" not in {file.path for file in output.list()}


def test_credentials_in_the_url_are_not_shown() -> None:
    assert "planted" not in open_output("memory://user:planted@host/out").url
