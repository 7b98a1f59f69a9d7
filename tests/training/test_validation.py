"""`--metrics`: evaluations in the background, their log lines, and that training stays the same."""

import contextlib
import json
import os
import sys
import time
from pathlib import Path

import pytest

from fastgan.cli.train import main
from fastgan.errors import UserError
from fastgan.files import remove_unfinished
from fastgan.metrics import registry
from fastgan.runs import config as configuration
from fastgan.runs.checkpoint import BEST_FILE_NAME, FILE_NAME, read_header
from fastgan.runs.log import measured
from fastgan.runs.process import ENDS_WITH_STDIN, Interrupt
from fastgan.training import validation
from fastgan.training.validation import SNAPSHOT_NAME, BackgroundEvaluation
from tests.support.commands import error_of
from tests.support.extras import needs_network
from tests.support.processes import LONG, Process, start, wait_for
from tests.support.tiny_run import arguments, assert_same_checkpoint, log_lines, train

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_cache")]
METRICS = ["--metrics", "fd", "--metrics-samples", "8"]


@pytest.fixture
def programs(monkeypatch):
    """Programs that replace the command in turn; their arguments are the checkpoint and the file for results."""
    given = []
    run = lambda config, checkpoint, found: [sys.executable, "-S", "-c", given.pop(0), str(checkpoint), str(found)]
    monkeypatch.setattr(validation, "command", run)
    monkeypatch.setattr(registry, "require", lambda *_: None)
    return given


def reporting(value):
    """A program that reports `value`, after checking that the checkpoint exists."""
    return (
        f"import sys\nassert len(open(sys.argv[1], 'rb').read()) > 1000\n"
        f'open(sys.argv[2], \'w\').write(\'{{"samples": {{"images": 8, "fd": {value}}}}}\')'
    )


class Recorded:
    """A log that keeps its lines."""

    def __init__(self):
        self.lines = []

    def write(self, step, images, values):
        self.lines.append((step, images, values))


class At:
    """A training's state after so many images."""

    def __init__(self, images):
        self.step, self.images = images // 4, images


@pytest.fixture
def evaluations(tmp_path, programs):
    """Evaluations of a folder with one checkpoint."""
    (tmp_path / FILE_NAME).write_bytes(bytes(2000))
    output = configuration.OutputOptions(metrics="fd")
    made = BackgroundEvaluation(configuration.Config(output=output, machine=configuration.MachineOptions(device="cpu")))
    yield made
    made.close()
    assert {path.name for path in tmp_path.iterdir()} - {BEST_FILE_NAME} == {FILE_NAME}, "something is left over"


def wait(evaluations, log):
    end = time.monotonic() + LONG
    while evaluations._process is not None and time.monotonic() < end:
        evaluations.collect(log)
        time.sleep(0.01)


@needs_network
def test_metrics_equal_those_of_the_command_and_do_not_change_the_training(folder, tmp_path, capsys):
    from fastgan.cli.evaluate import main as evaluate

    plain = train(folder, tmp_path / "plain")
    run = train(folder, tmp_path / "run", *METRICS, "--metrics-interval", "0")
    assert_same_checkpoint(run, plain)
    lines = log_lines(run)
    assert [line for line in lines if "fd" not in line] == log_lines(plain)
    (found,) = measured(run)
    assert found == lines[-1] and (found["step"], found["images"]) == (12, 48) and not measured(plain)
    assert f"metrics    after 48 images: fd {found['fd']:.4g}" in capsys.readouterr().out
    assert {path.name for path in run.iterdir()} == {path.name for path in plain.iterdir()} | {BEST_FILE_NAME}
    again = tmp_path / "again.json"
    assert evaluate(["--checkpoint", str(run), "--metrics", "fd", "--samples", "8", "--json", str(again)]) == 0
    assert float(f"{json.loads(again.read_text())['samples']['fd']:.6g}") == found["fd"]


def test_a_checkpoint_is_saved_for_each_evaluation(folder, tmp_path, programs):
    """Every result is in the log once, also the last and those of a resumed run."""
    plain = train(folder, tmp_path / "plain", "--checkpoint-interval", "0")
    programs += [reporting(1), reporting(2), reporting(3), reporting(4)]
    run = tmp_path / "run"
    options = [*METRICS, "--checkpoint-interval", "0", "--metrics-interval", "16"]
    assert main(arguments(folder, run, *options, "--images", "32")) == 0
    assert measured(run)[-1]["images"] == 32
    before = measured(run)
    assert main(["--resume", str(run), "--images", "48"]) == 0
    assert_same_checkpoint(run, plain)
    assert measured(run)[: len(before)] == before
    assert [line["images"] for line in measured(run)][-2:] == [32, 48]


@pytest.mark.parametrize("values, best", [((3, 1, 2), 32), ((3, 2, 1), 48), ((1, 1, 2), 16)])
def test_the_best_checkpoint_is_kept(folder, tmp_path, programs, values, best):
    """The first metric decides, lower is better; also across stop and resume."""
    programs += map(reporting, values)
    run = tmp_path / "run"
    for images in (16, 32, 48):  # measured at the end of each part
        going_on = ["--resume", str(run), "--images", str(images)]
        options = [*METRICS, "--checkpoint-interval", "0", "--metrics-interval", "0", "--images", "16"]
        assert main(arguments(folder, run, *options) if images == 16 else going_on) == 0
    assert [line["fd"] for line in measured(run)] == list(values)
    assert read_header(run / BEST_FILE_NAME).images == best


def test_the_best_value_may_be_the_highest():
    better = {name for name, metric in registry.METRICS.items() if metric.higher}
    assert better == {"pr", "pr-lite2", "pr-inception", "is", "eqt", "eqt-frac", "eqr"}


def test_another_network_than_the_one_that_taught_chooses_the_best_checkpoint(monkeypatch):
    required = []
    monkeypatch.setattr(registry, "require", lambda metrics, weights: required.append(metrics))
    for discriminator in ("own", "projected"):
        network = configuration.NetworkOptions(discriminator=discriminator)
        BackgroundEvaluation(configuration.Config(network=network, output=configuration.OutputOptions(metrics="kid")))
    assert required == [("kid",), ("kid-lite2", "kid")]


def test_one_evaluation_runs_at_a_time(evaluations, programs, tmp_path, capsys):
    programs += ["import sys, time\nwhile True: time.sleep(0.01)", reporting(5)]
    log = Recorded()
    evaluations.start(tmp_path / FILE_NAME, At(16))
    assert os.getpriority(os.PRIO_PROCESS, evaluations._process.pid) == 19
    evaluations.start(tmp_path / FILE_NAME, At(32))
    assert "metrics    not taken after 32 images: those of 16 are not ready yet" in capsys.readouterr().out
    evaluations.collect(log)
    assert not log.lines and len(programs) == 1
    evaluations._process.kill()
    wait(evaluations, log)
    evaluations.start(tmp_path / FILE_NAME, At(48))
    wait(evaluations, log)
    assert log.lines == [(12, 48, {"fd": 5})]


def test_the_evaluated_file_is_the_one_saved_at_the_start(evaluations, programs, tmp_path):
    """A later save replaces the checkpoint, not the file under evaluation."""
    programs += [f"import time\ntime.sleep(0.3)\n{reporting(5)}"]
    evaluations.start(tmp_path / FILE_NAME, At(16))
    (tmp_path / "next").write_bytes(b"short")
    os.replace(tmp_path / "next", tmp_path / FILE_NAME)
    log = Recorded()
    wait(evaluations, log)
    assert log.lines == [(4, 16, {"fd": 5})]


def test_a_failed_evaluation_prints_one_line(evaluations, programs, tmp_path, capsys, monkeypatch):
    programs += ["import sys\nprint('loading')\nsys.exit('error: there is no room')", "import os\nos._exit(3)"]
    log = Recorded()
    for _ in range(2):
        evaluations.start(tmp_path / FILE_NAME, At(16))
        wait(evaluations, log)
    monkeypatch.setattr(validation, "command", lambda *_: [str(tmp_path / "nothing")])
    evaluations.start(tmp_path / FILE_NAME, At(16))
    said = capsys.readouterr().out.splitlines()
    assert said[:2] == [
        "metrics    not taken after 16 images: there is no room; the training goes on without",
        "metrics    not taken after 16 images: it ended with status 3; the training goes on without",
    ]
    assert len(said) == 3 and "No such file" in said[2] and not log.lines


def test_the_end_waits_for_the_last_two_evaluations(evaluations, programs, tmp_path):
    programs += [f"import time\ntime.sleep(0.3)\n{reporting(5)}", reporting(6)]
    log = Recorded()
    evaluations.start(tmp_path / FILE_NAME, At(16))
    evaluations.finish(tmp_path / FILE_NAME, At(32), log, Interrupt())
    assert log.lines == [(4, 16, {"fd": 5}), (8, 32, {"fd": 6})]


def test_a_stopped_run_does_not_wait_for_evaluations(evaluations, programs, tmp_path, capsys):
    programs += ["import time\ntime.sleep(600)"]
    interrupt = Interrupt()
    interrupt.signum = 2
    evaluations.start(tmp_path / FILE_NAME, At(16))
    evaluations.finish(tmp_path / FILE_NAME, At(32), Recorded(), interrupt)
    assert "python -m fastgan.evaluate --metrics fd takes them" in capsys.readouterr().out
    assert (tmp_path / SNAPSHOT_NAME).exists()  # until the end, which the fixture checks


def test_an_evaluation_ended_by_the_run_s_ctrl_c_is_no_failure(evaluations, programs, tmp_path, capsys):
    programs += ["import sys\nsys.exit(130)"]
    evaluations.start(tmp_path / FILE_NAME, At(16))
    log = Recorded()
    wait(evaluations, log)
    assert not log.lines and not capsys.readouterr().out


def _evaluate_for_ever(folder):
    waiting = "import os, sys, time\nfrom fastgan.runs import process\nprocess.end_with_stdin()\n"
    waiting += "open(sys.argv[2], 'w').write(str(os.getpid()))\ntime.sleep(600)"
    validation.command = lambda config, checkpoint, found: [sys.executable, "-S", "-c", waiting, "", str(found)]
    registry.require = lambda *_: None
    output = configuration.OutputOptions(metrics="fd")
    config = configuration.Config(output=output, machine=configuration.MachineOptions(device="cpu"))
    BackgroundEvaluation(config).start(folder / FILE_NAME, At(16))
    time.sleep(600)


def test_an_evaluation_ends_with_a_training_that_is_killed(tmp_path):
    (tmp_path / FILE_NAME).write_bytes(bytes(2000))
    training, told = Process(_evaluate_for_ever, tmp_path), tmp_path / validation.RESULTS_NAME
    wait_for(lambda: told.exists() and told.read_text(), training)
    evaluation = int(told.read_text())
    training.kill()
    training.communicate()
    with contextlib.suppress(ProcessLookupError):
        end = time.monotonic() + LONG
        while time.monotonic() < end:
            os.kill(evaluation, 0)
            if Path(f"/proc/{evaluation}/stat").read_text().split()[2] == "Z":  # nobody waits for it
                break
            time.sleep(0.01)
        else:
            pytest.fail("the evaluation goes on")
    remove_unfinished(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]


def test_the_command_of_an_evaluation_ends_with_its_training():
    process = start(["--checkpoint", "nothing"], module="evaluate", **{ENDS_WITH_STDIN: "1"})
    assert process.communicate()[0] == "" and process.returncode == 1  # stdin is empty


def test_the_evaluation_is_not_distributed_and_has_one_thread(evaluations, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "4")
    environment = evaluations._environment()
    assert not {"RANK", "WORLD_SIZE"} & environment.keys() and environment["OMP_NUM_THREADS"] == "1"


def test_impossible_metrics_are_refused_at_the_start(folder, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    monkeypatch.setenv("FASTGAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(registry, "require_packages", lambda network: None)
    for options, says in (
        (["--metrics", "kid,fed"], "--metrics kid,fed: there is no metric fed; choose from kid, fd"),
        (["--metrics", "fid"], "metrics with features of Inception need its weights"),
        (["--metrics", "kid", "--metrics-samples", "3"], "--metrics-samples 3: must be at least 4"),
        (["--metrics", "kid", "--metrics-interval", "-1"], "--metrics-interval -1: must be at least 0"),
    ):
        assert says in error_of(main, arguments(folder, run, *options), capsys)
        assert not run.exists()


def test_the_command_of_an_evaluation(tmp_path):
    output = configuration.OutputOptions(metrics="fid,kid", metrics_samples=9, inception_weights="w.pth")
    argv = validation.command(configuration.Config(output=output), tmp_path / "c", tmp_path / "f")
    assert argv[:4] == [sys.executable, "-m", "fastgan", "evaluate"]
    import tyro

    from fastgan.cli.evaluate import Options

    given = tyro.cli(Options, args=argv[4:])
    assert (given.metrics, given.samples, given.inception_weights, given.floor) == ("fid,kid", 9, "w.pth", False)
    assert (given.checkpoint, given.json, given.device) == (str(tmp_path / "c"), str(tmp_path / "f"), "auto")


def test_metrics_without_their_packages_are_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(UserError, match='need the extra "fid", which is not installed'):
        BackgroundEvaluation(configuration.Config(output=configuration.OutputOptions(metrics="is")))
