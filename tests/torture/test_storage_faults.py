"""Storage that is full, read-only, slow or out of its mind while a run goes on; afterwards the same command ends it."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from s3fs import S3FileSystem

from tests.torture.flaky_s3 import FlakyS3, flaky_s3
from tests.torture.processes import kill, until
from tests.torture.scene import Scene, check_output

pytestmark = pytest.mark.torture


@pytest.fixture
def mounted(scene: Scene) -> Iterator[Path]:
    """The output, on a file system of its own of 2 MB."""
    scene.output.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(scene.output)]
    if subprocess.run(words, check=False, capture_output=True).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield scene.output
    scene.close()
    subprocess.run(["umount", str(scene.output)], check=True)


def fill(folder: Path) -> Path:
    """Take all room that is left."""
    balloon = folder / "balloon"
    with balloon.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return balloon


def test_a_disk_that_gets_full_ends_the_run_with_advice(scene: Scene, mounted: Path) -> None:
    run = scene.start_threads("--max-attempts", "20", nap=0.5)
    scene.reported(2)
    balloon = fill(mounted)
    said = run.ends(1)
    assert "the disk is full; make room and run the same command again" in said
    done = scene.reports()
    assert done < 24
    full = scene.start_threads(nap=0.0)
    assert "the disk is full" in full.ends(None)
    assert full.process.returncode != 0
    assert scene.reports() == done
    balloon.unlink()
    scene.start_threads(nap=0.0).ends(0)
    scene.check()


def test_an_output_that_becomes_read_only_ends_the_run_with_advice(scene: Scene, mounted: Path) -> None:
    run = scene.start_threads("--max-attempts", "20", nap=0.5)
    scene.reported(2)

    def remounted(how: str) -> bool:
        words = ["mount", "-o", f"remount,{how}", str(mounted)]
        return subprocess.run(words, check=False, capture_output=True).returncode == 0

    until(lambda: remounted("ro"), "a moment in which no file is open")
    assert "the file system is read-only; choose another --output" in run.ends(1)
    again = scene.start_threads(nap=0.0)
    assert "the file system is read-only" in again.ends(None)
    assert again.process.returncode != 0
    assert remounted("rw")
    scene.start_threads(nap=0.0).ends(0)
    scene.check()


NO_ROOM = 'mount -t tmpfs -o size=1m tmpfs /dev/shm && mount -t tmpfs -o size=20m tmpfs "$RAY_TMPDIR" && exec "$@"'


def test_a_ray_without_room_for_its_object_store_does_the_work(scene: Scene) -> None:
    """Shards and reports do not go through the store, which here has less room than it asks for."""
    apart = ["unshare", "--mount", "--propagation", "private"]
    if subprocess.run([*apart, "mount", "-t", "tmpfs", "tmpfs", "/mnt"], check=False, capture_output=True).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    words = [sys.executable, "-m", "tests.torture.ray_echo", str(scene.log), "0", *scene.options()]
    words += ["--replicas", "2", "--cpus-per-replica", "0.5"]
    scene.launch([*apart, "sh", "-c", NO_ROOM, "sh", *words], {}).ends(0)
    scene.check()


@pytest.fixture
def s3(chance: random.Random, monkeypatch: pytest.MonkeyPatch) -> Iterator[FlakyS3]:
    with flaky_s3(chance) as service:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        monkeypatch.setenv("AWS_ENDPOINT_URL", service.address)
        S3FileSystem.clear_instance_cache()
        yield service
        S3FileSystem.clear_instance_cache()


def test_s3_that_refuses_at_random_and_for_a_while_altogether_loses_nothing(scene: Scene, s3: FlakyS3) -> None:
    bucket = f"torture-{os.getpid()}"
    client = boto3.client("s3")
    client.create_bucket(Bucket=bucket)
    for path in sorted(scene.corpus.glob("*.tar"))[:12]:
        client.upload_file(str(path), bucket, f"corpus/{path.name}")
    words = ["--input", f"s3://{bucket}/corpus", "--model", "echo", "--tracking-uri", scene.store, "--log-every", "1"]
    echo = [sys.executable, "-m", "tests.pipeline.echo_job"]

    def start(output: str, nap: str = "0"):
        return scene.launch([*echo, nap, *words, "--output", f"s3://{bucket}/{output}", "--max-attempts", "20"], {})

    start("quiet").ends(0)
    s3.trouble = 0.3
    run = start("out", "0.3")
    run.says(r"shards [1-9]\d*/12")
    kill(run.session)
    run.ends(-signal.SIGKILL)
    again = start("out", "0.3")
    again.says(r"shards [1-9]\d*/12")
    s3.trouble, before = 1.0, s3.refused
    until(lambda: s3.refused >= before + 15, "an outage that is noticed")
    s3.trouble = 0.3
    again.ends(0)
    assert s3.lost > 3
    s3.trouble = 0.0
    for name in ("quiet", "out"):
        for file in client.list_objects_v2(Bucket=bucket, Prefix=f"{name}/")["Contents"]:
            target = scene.folder / "s3" / file["Key"]
            target.parent.mkdir(parents=True, exist_ok=True)
            client.download_file(bucket, file["Key"], str(target))
    copies = scene.folder / "s3"
    check_output(copies / "out", copies / "quiet", f"s3://{bucket}/corpus", 36)
