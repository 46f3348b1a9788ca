"""`jobs/verify_output.py`: an output against its input, question by question."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

from PIL import Image

from pipeline.commit import commit_shard
from pipeline.ledger import Ledger, decode_report
from pipeline.listing import list_shards
from pipeline.part_names import file_stem, quarantine_path, report_path
from pipeline.records import Rejection, Sample, ShardRef
from pipeline.run_folder import RunFolder, prepare
from pipeline.shards import read_shard
from pipeline.storage import open_output
from tests.pipeline.output_rows import CONFIG, answer, report

REPOSITORY = Path(__file__).resolve().parents[2]


def corpus(path: Path, samples: int) -> None:
    """A shard with two questions per image; the last sample's image is missing."""
    with tarfile.open(path, "w") as archive:
        for number in range(samples):
            image = io.BytesIO()
            Image.new("RGB", (8, 8)).save(image, "JPEG")
            members = {"json": json.dumps({"questions": ["What?", "Where?"]}).encode(), "jpg": image.getvalue()}
            if number == samples - 1:
                del members["jpg"]
            for extension, content in members.items():
                member = tarfile.TarInfo(f"{number:05d}.{extension}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


def annotate(folder: RunFolder, ref: ShardRef) -> None:
    """Answer a shard without a model."""
    answers, rejections, samples = [], [], 0
    for item in read_shard(ref, "Describe."):
        if isinstance(item, Sample):
            samples += 1
            answers += [answer(0, ref.name, key=item.key, question_index=one.index) for one in item.questions]
        elif isinstance(item, Rejection):
            samples += 1
            rejections.append(item)
    done = replace(report(ref.name, ref.fingerprint), url=ref.url, samples=samples)
    commit_shard(folder.output, done, answers, rejections, folder.provenance)


def command(*arguments: str) -> tuple[int, list[str], str]:
    ended = subprocess.run(
        [sys.executable, "jobs/verify_output.py", *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    return ended.returncode, ended.stdout.splitlines(), ended.stderr


def test_the_command_compares_output_and_input_question_by_question(tmp_path: Path) -> None:
    for number in range(2):
        corpus(tmp_path / f"0000{number}.tar", 3 + number)
    folder = prepare(open_output(str(tmp_path / "out")), {**CONFIG, "prompt": "Describe."})
    pattern = str(tmp_path / "{00000..00001}.tar")
    refs = list_shards([pattern])
    for ref in refs:
        annotate(folder, ref)
    folder.succeed(Ledger(folder.output).scan().totals)
    arguments = ("--output", str(tmp_path / "out"), "--input", pattern)

    status, lines, _ = command(*arguments)
    assert (status, len(lines)) == (0, 1)
    summary = json.loads(lines[-1])
    assert (summary["ok"], summary["answers"], summary["shards"]) == (True, 10, 2)

    stem = file_stem(refs[0].name, refs[0].url)
    path = report_path(stem)
    lost = decode_report(folder.output.read(path))
    folder.output.delete(quarantine_path(stem))
    kept = [answer(0, "00000.tar", key="00000", question_index=n) for n in range(2)]
    commit_shard(folder.output, replace(lost, url=refs[0].url), kept, [], folder.provenance)
    folder.succeed(Ledger(folder.output).scan().totals)
    status, lines, _ = command(*arguments)
    assert status == 1
    assert any("00000.tar: 4 questions of the input are not in the output" in line for line in lines)
    assert json.loads(lines[-1])["findings"] == len(lines) - 1
    assert command(*arguments, "--skip-keys")[0] == 0


def test_the_command_says_in_one_line_what_it_cannot_do(tmp_path: Path) -> None:
    status, lines, errors = command("--output", str(tmp_path))
    assert (status, lines) == (2, [])
    assert errors == f"verify_output: {tmp_path} has no run.json, so it is no output of a run; check --output\n"
