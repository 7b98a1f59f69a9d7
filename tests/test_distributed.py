"""Several processes: the group itself, and whole trainings, which equal those of one process."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fastgan.distributed import Ranks
from fastgan.errors import UserError
from fastgan.runs import checkpoint
from fastgan.runs import config as configuration
from fastgan.training import configure, loop
from tests.support import ranks_worker
from tests.support.processes import LONG, Process, rank_environments, start_ranks, wait_for
from tests.support.tiny_run import arguments, assert_same_checkpoint, log_lines, make_folder, tensors, train

PROCESSES = 2


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """Folder with the results of two processes for each case."""
    folder = tmp_path_factory.mktemp("ranks")
    processes = [
        Process(ranks_worker.main, folder, environment=os.environ | environment)
        for environment in rank_environments(PROCESSES)
    ]
    for process in processes:
        output, _ = process.communicate()
        assert process.returncode == 0, output
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("case", ranks_worker.CASES)
def test_two_processes_train_like_one_with_the_same_micro_batches(together, case):
    """Batch norm, minibatch stddev and relativistic pairs see the same groups of samples."""
    (ours, means, sent_early), (others, _, _) = (torch.load(together / f"{case}-{i}.pt") for i in range(PROCESSES))
    for name, value in ours.items():
        assert torch.equal(value, others[name]), f"{name}: the two have not made the same steps"
    torch.set_default_dtype(torch.float64)
    try:
        size = ranks_worker.CASES[case][2].get("batch_gpu", ranks_worker.BATCH // PROCESSES)
        _, expected, expected_means = ranks_worker.train(case, Ranks(), batch_gpu=size)
    finally:
        torch.set_default_dtype(torch.float32)
    assert ours.keys() == expected.keys()
    # An instance norm takes the bias before it away: its gradient is rounding, which Adam makes a step of.
    atol = 1e-6 if case == "stylegan" else 1e-9
    for name, value in ours.items():
        torch.testing.assert_close(
            value, expected[name], rtol=1e-6, atol=atol, msg=lambda text, name=name: f"{name}: {text}"
        )
    assert means == pytest.approx(expected_means, rel=1e-6, abs=1e-9)
    growing = case in ("pggan", "stylegan")  # a part of their generators is not reached
    assert all(sent_early.values()) or growing, "gradients travel while backward goes on"


@pytest.mark.slow
def test_previous_max_returns_one_process_s_value_to_all_at_the_next_call(together):
    """So all stop after the same step, with the same exit status. That the workers have ended shows that the first may
    have work left after the others."""
    for rank in range(PROCESSES):
        assert json.loads((together / f"received-{rank}.json").read_text()) == [0, 0, signal.SIGUSR1, 0]


# The command -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("data") / "images")


OPTIONS = ("--arch", "mlp", "--device", "cpu", "--batch", "8", "--images", "96")


def train_together(folder, out, *more) -> str:
    """Train in several processes; returns what the first one prints."""
    processes = start_ranks(PROCESSES, arguments(folder, out, *OPTIONS, *more))
    outputs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * PROCESSES, outputs
    return outputs[0]


@pytest.mark.slow
def test_the_command_trains_like_one_process(folder, tmp_path):
    out = tmp_path / "together"
    output = train_together(folder, out)
    alone = train(folder, tmp_path / "alone", *OPTIONS, "--batch-gpu", "4")
    ours, theirs = tensors(out), tensors(alone)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        np.testing.assert_allclose(value, theirs[name], rtol=1e-3, atol=1e-5, err_msg=name)
    for mine, other in zip(log_lines(out), log_lines(alone), strict=True):
        assert mine == pytest.approx(other, rel=1e-3, abs=1e-4)
    assert output.count("samples ") == output.count("checkpoint ") == 1, "one process speaks for all"
    assert "in 2 processes" in output
    assert {path.name for path in out.iterdir()} == {path.name for path in alone.iterdir()}


def workers(out: Path) -> set[int]:
    """Processes that train into `out`, without torchrun itself."""
    found = set()
    for status in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = status.read_bytes().decode().split("\0")
        except OSError:
            continue
        if str(out) in words and "torch.distributed.run" not in words:
            found.add(int(status.parent.name))
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="looks for processes in /proc")
def test_a_run_that_loses_a_process_resumes_from_its_checkpoint_and_stops_at_ctrl_c(folder, tmp_path):
    """torchrun restarts all processes, and the same command resumes the run. Ctrl-C, which torchrun passes on, stops
    all after the same step."""
    out = tmp_path / "run"
    run = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(PROCESSES), "--max-restarts", "1"]
    run += ["--monitor-interval", "0.1", "--module", "fastgan.train"]
    run += arguments(folder, out, *OPTIONS, "--images", "1000000", "--resume", "auto")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    with open(tmp_path / "output", "w+") as output:
        process = subprocess.Popen(
            [sys.executable, *run], env=environment, stdout=output, stderr=output, start_new_session=True
        )
        try:
            wait_for(lambda: len(log_lines(out)) >= 3 and (out / checkpoint.FILE_NAME).exists(), process)
            first = workers(out)
            os.kill(max(first), signal.SIGKILL)
            wait_for(lambda: not first & workers(out), process)
            lines = len(log_lines(out))
            wait_for(lambda: len(log_lines(out)) > lines, process)
            os.killpg(process.pid, signal.SIGINT)
            assert process.wait(LONG) != 0
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        output.seek(0)
        printed = output.read()
    assert re.search(r"error: another process of this run is gone .*--resume", printed)
    assert "resumed at" in printed and "go on with: python -m fastgan.train --resume" in printed
    images = checkpoint.read_header(out).images
    assert images == log_lines(out)[-1]["images"]
    train_together(folder, tmp_path / "unbroken", "--images", str(images))
    assert_same_checkpoint(out, tmp_path / "unbroken")
    assert log_lines(out) == log_lines(tmp_path / "unbroken")


# Parts ---------------------------------------------------------------------------------------------------------------


def test_previous_max_of_one_process_is_its_value():
    assert [Ranks().previous_max(wish) for wish in (0, 15)] == [0, 15]


class SecondRank(Ranks):
    """The second of two processes, which receives `values` from the first."""

    def __init__(self, *values):
        super().__init__(rank=1, world_size=2)
        self.values = json.dumps(values)

    def broadcast(self, value):
        return self.values


def test_processes_with_other_options_than_the_first_are_refused():
    """They would wait for each other for ever."""
    config, other = (
        configure.resolve(configuration.Config(training=configuration.TrainingOptions(batch=batch)))
        for batch in (16, 32)
    )
    first = configuration.to_dict(config)
    loop._require_same_start(config, None, SecondRank(first, None))
    with pytest.raises(UserError, match=r"^--batch 32: is 16 in the first process"):
        loop._require_same_start(other, None, SecondRank(first, None))
    with pytest.raises(UserError, match=r"^the first process goes on at 4,096 images, this one begins; .* same one"):
        loop._require_same_start(config, None, SecondRank(first, 4096))
