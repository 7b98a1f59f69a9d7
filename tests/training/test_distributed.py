"""Training with several processes."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from fastgan.data.loader import ImageLoader
from fastgan.distributed import Ranks
from fastgan.errors import UserError
from fastgan.runs import checkpoint
from fastgan.runs import config as configuration
from fastgan.runs.process import finish_step_on_signal
from fastgan.training import configure, loop
from tests.support import ranks_worker
from tests.support.tiny_run import arguments, assert_same_checkpoint, log_lines, make_folder, tensors, train

pytestmark = pytest.mark.slow  # starts processes

PROCESSES = 2


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def environment(**more) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"} | more


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """Folder with the results of two processes for each case."""
    folder, port = tmp_path_factory.mktemp("ranks"), str(free_port())
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.support.ranks_worker", str(folder)],
            env=environment(RANK=str(rank), WORLD_SIZE=str(PROCESSES), MASTER_ADDR="127.0.0.1", MASTER_PORT=port),
            cwd=Path(__file__).parents[2],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(PROCESSES)
    ]
    for process in processes:
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output
    return folder


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


def test_previous_max_returns_one_process_s_value_to_all_at_the_next_call(together):
    """So all stop after the same step, with the same exit status. That the workers have ended shows that the first may
    have work left after the others."""
    for rank in range(PROCESSES):
        assert json.loads((together / f"heard-{rank}.json").read_text()) == [0, 0, signal.SIGUSR1, 0]


# The command -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("data") / "images")


OPTIONS = ("--arch", "mlp", "--device", "cpu", "--batch", "8", "--images", "96")


def torchrun(folder, out, *more, restarts=0) -> subprocess.Popen:
    run = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(PROCESSES)]
    run += ["--max-restarts", str(restarts), "--monitor-interval", "0.1", "--module", "fastgan.train"]
    return subprocess.Popen(
        [sys.executable, *run, *arguments(folder, out, *OPTIONS, *more)],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


@pytest.fixture(scope="module")
def unbroken(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "unbroken"
    process = torchrun(folder, out)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    return out, output


def test_the_command_trains_like_one_process(folder, unbroken, tmp_path):
    out, output = unbroken
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


def workers(out: Path) -> list[int]:
    """Processes that train into `out`, without torchrun itself."""
    found = []
    for status in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = status.read_bytes().decode().split("\0")
        except OSError:
            continue
        if str(out) in words and "torch.distributed.run" not in words:
            found.append(int(status.parent.name))
    return found


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="looks for processes in /proc")
def test_a_run_that_loses_a_process_resumes_from_its_checkpoint(folder, unbroken, tmp_path):
    """torchrun restarts all processes, and the same command resumes the run."""
    out = tmp_path / "run"
    process = torchrun(folder, out, "--resume", "auto", restarts=1)
    end = time.monotonic() + 60
    while len(log_lines(out)) < 3 or not (out / checkpoint.FILE_NAME).exists():
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.01)
    os.kill(max(workers(out)), signal.SIGKILL)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert re.search(r"error: another process of this run is gone .*--resume", output)
    assert "resumed at" in output
    assert_same_checkpoint(out, unbroken[0])
    assert log_lines(out) == log_lines(unbroken[0])


def test_ctrl_c_stops_all_processes_after_the_same_step(folder, unbroken, tmp_path):
    """torchrun gets the signal and passes it on."""
    out = tmp_path / "run"
    process = torchrun(folder, out, "--images", "100000")
    end = time.monotonic() + 60
    while len(log_lines(out)) < 2:
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "go on with: python -m fastgan.train --resume" in output
    assert checkpoint.read_header(out).images == log_lines(out)[-1]["images"] > 8


# Parts ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mirror", [False, True])
def test_shares_make_up_the_batch(folder, mirror):
    from fastgan.data import open_dataset

    dataset = open_dataset(str(folder), 8, 1)
    load = lambda share: ImageLoader(
        dataset, torch.device("cpu"), 3, lambda _: 12, share=share, labels=True, mirror=mirror
    )
    whole, shares = load((0, 1)).batch(24), [load((rank, 3)).batch(24) for rank in range(3)]
    assert torch.equal(torch.cat([each.images for each in shares]), whole.images)
    assert torch.equal(torch.cat([each.labels for each in shares]), whole.labels)


@pytest.mark.parametrize(
    "arch, batch, batch_gpu, processes, message",
    [
        ("mlp", 32, 0, 3, "--batch 32: must be a multiple of 3"),
        ("stylegan2", 24, 0, 4, "--batch 24: must be a multiple of 4 for each of 4 processes, as the discriminator"),
        ("mlp", 24, 8, 2, "--batch-gpu 8: must divide the 12 images of a process"),
    ],
)
def test_a_batch_that_cannot_be_shared_is_refused(arch, batch, batch_gpu, processes, message):
    config = configure.resolve(
        configuration.Config(
            network=configuration.NetworkOptions(arch=arch),
            training=configuration.TrainingOptions(batch=batch, batch_gpu=batch_gpu),
        )
    )
    with pytest.raises(UserError, match=re.escape(message)):
        configure.check_processes(config, processes)
        configure.check_groups(config, 4, processes)


def test_previous_max_of_one_process_is_its_value():
    assert [Ranks().previous_max(wish) for wish in (0, 15)] == [0, 15]


def test_a_signal_of_another_process_stops_this_one_too():
    """A later signal of its own still counts as its first, and does not end the process at once."""
    with finish_step_on_signal() as interrupt:
        interrupt.received = signal.SIGUSR1
        assert interrupt and interrupt.exit_code == 128 + signal.SIGUSR1
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupt.exit_code == 128 + signal.SIGTERM


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
