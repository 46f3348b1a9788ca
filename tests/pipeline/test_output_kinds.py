"""An output is a run's or a comparison's; neither begins in the other's place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline import auto_reduction
from pipeline.auto_reduction import run_auto
from pipeline.command_line import parse_command
from pipeline.errors import UserError
from pipeline.places import located
from pipeline.run_folder import prepare, read_run
from pipeline.storage import open_output
from tests.checkpoint import save_checkpoint
from tests.pipeline.compare_runs import run_compare, words, write_corpus
from tests.pipeline.echo_job import echo_parts, run_echo
from tests.pipeline.output_rows import CONFIG


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture
def compared(tmp_path: Path, model: Path, store_in: Callable[[Path], str]) -> Path:
    """A folder with a corpus and, in `out`, a finished comparison on it."""
    write_corpus(tmp_path / "corpus", shards=1)
    store_in(tmp_path)
    assert run_compare(words(tmp_path, model, "--settings", "random:4", "--repeats", "1")).exit_code == 0
    return tmp_path


def content(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in (folder / "out").rglob("*") if path.is_file()}


def test_no_run_begins_in_a_comparisons_output(compared: Path, model: Path) -> None:
    before = content(compared)
    for more in ((), ("--overwrite",)):
        with pytest.raises(UserError, match=r"out holds a comparison of settings; choose another --output$"):
            run_echo(compared, "--prompt", "x", *more)
        assert content(compared) == before
    again = run_compare(words(compared, model, "--settings", "random:4,stride:4", "--repeats", "1"))
    assert again.exit_code == 0
    assert [row["setting"] for row in again.summary["settings"]] == ["dense", "random:4", "stride:4"]


@pytest.mark.parametrize("more", [(), ("--overwrite",)])
def test_a_run_that_chooses_its_reduction_is_refused_there_before_it_compares(
    compared: Path, more: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_comparison(*_: object) -> None:
        raise AssertionError("compared for a run that cannot begin")

    monkeypatch.setattr(auto_reduction, "_compared", no_comparison)
    given = ["--input", f"{compared}/corpus", "--output", f"{compared}/out", "--model", "m", *more]
    config = located(parse_command([*given, "--reduction", "auto", "--min-fidelity", "0.9"]), inside_job=False)
    with pytest.raises(UserError, match=r"out holds a comparison of settings; choose another --output$"):
        run_auto(config, echo_parts())


def test_a_run_below_a_comparisons_output_is_its_own(compared: Path) -> None:
    assert run_echo(compared, "--output", f"{compared}/out/run").exit_code == 0
    assert (compared / "out/run/_SUCCESS").exists()


def test_no_comparison_begins_in_a_runs_output(compared: Path, model: Path) -> None:
    assert run_echo(compared, "--output", f"{compared}/run").exit_code == 0
    with pytest.raises(UserError, match="holds the output of an annotation run; choose another --output"):
        run_compare(words(compared, model, "--output", f"{compared}/run", "--overwrite"))


def test_a_run_that_stands_beside_a_comparison_goes_on_but_does_not_begin_again(tmp_path: Path) -> None:
    output = open_output(str(tmp_path / "out"))
    prepare(output, CONFIG)
    output.put_atomic("comparison.json", b'{"program": "ficoco-annotate"}')
    assert prepare(output, CONFIG).resumed
    with pytest.raises(UserError, match="holds a comparison of settings"):
        prepare(output, CONFIG, overwrite=True)
    assert read_run(output) is not None
