"""Several nodes: the same command typed on each of them. Here both are this machine."""

import signal
import socket
import subprocess

import pytest

from mlmx.driver.command import Group
from mlmx.settings import settings_problems
from mlmx.stage import StageDir
from tests.faults.test_group import in_the_midst, same
from tests.integration.chains import BITEXT, ROOT, SECONDS, command, environment, mlmx, results, stage, summaries
from tests.processes import running, until

TRAINING = ["trainer.micro_batch_tokens=256", "trainer.max_steps=60", "trainer.checkpoint_every_steps=4"]


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture
def node(prepared):
    """Type a command as the next node does; returns its process."""
    rendezvous = f"127.0.0.1:{free_port()}"
    started = []

    def begin(*settings, number_of_nodes=2):
        nodes = [f"parallel.num_nodes={number_of_nodes}", f"parallel.rendezvous='{rendezvous}'"]
        log = (prepared.parent / f"node{len(started)}.txt").open("w")
        arguments = command(*TRAINING, *nodes, *settings, outputs=prepared)
        started.append(subprocess.Popen(arguments, cwd=ROOT, env=environment(), stdout=log, stderr=log))
        log.close()
        return started[-1]

    yield begin
    for process in started:
        if process.poll() is None:
            process.kill()
            process.wait()
    until(lambda: not running(prepared), SECONDS / 4, "nothing is left of the nodes")


def said(prepared, number):
    return (prepared.parent / f"node{number}.txt").read_text()


def joined(prepared):
    return [number for number in range(2) if "joins" in said(prepared, number)]


@pytest.mark.slow
@pytest.mark.timeout(4 * SECONDS)
def test_two_nodes_train_as_two_processes_of_one_do(node, prepared, tmp_path_factory):
    alone = tmp_path_factory.mktemp("alone") / "outputs"
    mlmx(*TRAINING, *BITEXT, "parallel.num_processes=2", outputs=alone)
    nodes = [node(*BITEXT), node(*BITEXT)]
    assert [process.wait(SECONDS) for process in nodes] == [0, 0], said(prepared, 0) + said(prepared, 1)
    assert stage(prepared, "pretrain").result()["num_processes"] == 2
    assert same(results(prepared), results(alone))
    # One drove the training, the other joined; the evaluation was done by one, and the other waited for it.
    assert len(joined(prepared)) == 1
    assert (said(prepared, 0) + said(prepared, 1)).count("running in") == 2
    one, two = summaries(prepared)
    assert one["status"] == two["status"] == "finished"
    assert one["scores"] == two["scores"] != []


@pytest.mark.slow
@pytest.mark.timeout(4 * SECONDS)
def test_a_failure_on_one_node_is_told_on_both_and_the_next_call_goes_on(node, prepared):
    nodes = [node("task=[]"), node("task=[]")]
    until(lambda: in_the_midst(prepared), SECONDS, "the training is in its midst")
    (follower,) = joined(prepared)
    nodes[follower].send_signal(signal.SIGKILL)
    nodes[follower].wait()
    assert nodes[1 - follower].wait(SECONDS) == 1
    assert "pretrain tlm failed" in said(prepared, 1 - follower)
    until(lambda: not running(prepared), SECONDS / 4, "nothing is left running")
    again = [node("task=[]"), node("task=[]")]
    assert [process.wait(SECONDS) for process in again] == [0, 0]
    assert stage(prepared, "pretrain").finished


@pytest.mark.slow
@pytest.mark.timeout(4 * SECONDS)
def test_ctrl_c_on_one_node_saves_and_ends_both(node, prepared):
    nodes = [node("task=[]"), node("task=[]")]
    until(lambda: in_the_midst(prepared), SECONDS, "the training is in its midst")
    nodes[0].send_signal(signal.SIGINT)
    assert nodes[0].wait(SECONDS) in (-2, 130)
    assert nodes[1].wait(SECONDS) == 1
    assert not stage(prepared, "pretrain").finished
    assert list(stage(prepared, "pretrain").checkpoints_dir.glob("step-*"))


@pytest.mark.slow
@pytest.mark.timeout(2 * SECONDS)
def test_a_node_that_stays_alone_says_so(node, prepared):
    alone = node("task=[]", "parallel.timeout_seconds=5")
    assert alone.wait(SECONDS) == 1
    assert "there were not 2 nodes at parallel.rendezvous=127.0.0.1:" in said(prepared, 0)
    assert "within parallel.timeout_seconds=5" in said(prepared, 0)


def test_what_is_typed_for_torchrun():
    parallel = {
        "num_processes": 8, "num_nodes": 4, "rendezvous": "node1:29500", "max_restarts": 2, "timeout_seconds": 600,
        "num_threads": None, "device": "auto",
    }  # fmt: skip
    words = Group.of("pretrain", parallel).command(StageDir("x"), "worker", "abc")
    for word in ("--nnodes=4", "--nproc-per-node=8", "--rdzv-endpoint=node1:29500", "--rdzv-id=abc", "--max-restarts=2"):
        assert word in words
    assert Group.of("eval", parallel).size == 32
    assert Group.of("prepare", parallel).size == 1
    assert "--nnodes=4" not in Group.of("prepare", parallel).command(StageDir("x"), "worker", "abc")


@pytest.mark.parametrize(
    ("parallel", "told"),
    [
        ({"num_nodes": 2, "rendezvous": None}, "must be given for 2 nodes"),
        ({"num_nodes": 1, "rendezvous": "a:1"}, "has no effect on one node"),
        ({"num_nodes": 2, "rendezvous": "a"}, "is not valid"),
    ],
)
def test_nodes_need_a_place_to_meet(parallel, told):
    found = {problem.where: problem.message for problem in settings_problems({"parallel": parallel})}
    assert told in found["parallel.rendezvous"]
