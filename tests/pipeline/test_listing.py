"""Inputs -> shards: nothing is missed, nothing comes twice, names are unique and stay, secrets stay out."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

import pytest

from pipeline.errors import UserError, nearest
from pipeline.listing import list_shards, redact


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
