"""A cluster: what is asked of it, and a night on a real one whose nodes and driver are killed."""

import contextlib
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from orchestrator.cluster import STORE, ClusterRunner, connect, name_attempt, plan_shares
from orchestrator.core.events import Aborted, EvaluationPlan, Failed, Granted, Scored
from orchestrator.lab import guardian
from prepare.command import UserError
from tests.test_cli import opened, wait_until
from tests.workplace import SCRIPTS, TINY, begun, environment, orchestrate, workplace

A100, H100 = "accelerator_type:A100", "accelerator_type:H100"


@pytest.mark.parametrize(
    ("nodes", "wanted", "planned"),
    [
        ([{"CPU": 8}, {"CPU": 4}, {}], "auto", (2, 2, {"num_cpus": 4})),
        ([{"CPU": 8}, {"CPU": 4}], "3", (3, 2, {"num_cpus": 4})),
        ([{"CPU": 1}] * 3, "3", (3, 1, {"num_cpus": 1})),
        ([{"GPU": 8, "CPU": 64, A100: 1}] * 2, "auto", (16, 1, {"num_gpus": 1, "accelerator_type": "A100"})),
        ([{"GPU": 1, A100: 1}, {"GPU": 8, H100: 1}], "4", (4, 1, {"num_gpus": 1, "accelerator_type": "H100"})),
        ([{"GPU": 2, "CPU": 1}], "auto", (2, 1, {"num_gpus": 1})),
    ],
)
def test_what_a_run_takes_of_a_cluster(nodes, wanted, planned):
    assert plan_shares(nodes, wanted) == planned


def test_a_session_stays_with_its_model_of_gpu():
    nodes = [{"GPU": 2, A100: 1}, {"GPU": 8, H100: 1}]
    assert plan_shares(nodes, "4", "A100", fewer=True) == (2, 1, {"num_gpus": 1, "accelerator_type": "A100"})
    with pytest.raises(UserError, match="--slots 4: the cluster has 2 A100"):
        plan_shares(nodes, "4", "A100")
    with pytest.raises(UserError, match="the cluster has 0 A100"):
        plan_shares(nodes[1:], "4", "A100", fewer=True)


def test_data_for_a_cpu_need_no_gpu():
    assert plan_shares([{"GPU": 8, "CPU": 16, A100: 1}], "4", cpu=True) == (4, 4, {"num_cpus": 4})
    with pytest.raises(UserError, match="the cluster has 16 CPUs"):
        plan_shares([{"GPU": 8, "CPU": 16, A100: 1}], "17", cpu=True)


def test_an_attempt_is_named_by_its_work_and_not_by_the_number_of_its_run():
    plan = EvaluationPlan(audit="always", confirmed=False, incumbent=0)
    granted = Granted(experiment=3, run=1, slot=0, seed=5, plan=plan)
    name = name_attempt("may", granted, "a")
    assert name.startswith("may-3-")
    assert name == name_attempt("may", granted.model_copy(update={"run": 2, "slot": 1}), "a")
    others = {"experiment": 4}, {"seed": 6}, {"plan": plan.model_copy(update={"confirmed": True})}
    different = [name_attempt("may", granted.model_copy(update=other), "a") for other in others]
    assert len({name, name_attempt("may", granted, "b"), *different}) == 5


async def test_a_cluster_that_is_lost_before_a_run_has_its_place_is_no_crash():
    class LostError(Exception):
        pass

    def refuse(_):
        raise LostError("the head has gone")

    errors = SimpleNamespace(RayError=LostError, ActorUnavailableError=LostError, RayTaskError=ValueError)
    runner = ClusterRunner(SimpleNamespace(exceptions=errors, remote=refuse), "may", {}, None, None, str, None)
    outcome = await runner.run(Granted(experiment=3, run=2, slot=0, seed=5), "a")
    assert outcome == Aborted(experiment=3, run=2, reason="lost on the cluster: the head has gone")


@pytest.mark.parametrize("address", ["", "here", "ray://", "http://head:1", "head:port", "head:123456"])
def test_an_address_that_is_none(address):
    with pytest.raises(UserError, match="give auto, HOST:PORT or ray://HOST:PORT"):
        connect(address)


def test_without_ray_one_line_says_what_to_install(tmp_path):
    code = (
        "import sys; sys.modules['ray'] = None; from orchestrator.cli.main import main; "
        "main(['--offline', '--cluster', 'auto'])"
    )
    folder = workplace(tmp_path / "place")
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, cwd=folder, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "nightshift: --cluster needs Ray: pip install -e '.[cluster]' in this folder\n"


SILENCE = """
import sys, threading, time
from functools import partial
from pathlib import Path
from orchestrator.core.events import Granted, SessionProfile
from orchestrator.cluster import RemoteAttempt
from orchestrator.lab.reported import build_runner
from orchestrator.lab.tree import ScriptTree
from prepare.manifest import MANIFEST_FILE, load

data = Path(sys.argv[1])
profile = SessionProfile(
    name="cpu", budget_kind="work", budget=1, expected_seconds=60, data_hash=load(data).digest
)
attempt = RemoteAttempt("may", load(data).digest, 6.0)
for name in (*load(data).files, MANIFEST_FILE):
    attempt.receive(name, (data / name).read_bytes(), True)
granted = Granted(experiment=1, run=1, slot=0, seed=5)
attempt.train(partial(build_runner, profile, ScriptTree(), 1), granted, Path("train.py").read_text(), 0, False, True)
while not Path("seen").exists():
    attempt.report()
time.sleep(600)  # its end would look like that of a run without a driver
"""


def test_a_run_without_a_driver_ends_itself_with_all_its_processes(tmp_path):
    folder = workplace(tmp_path / "place", TINY.replace("time.sleep(0.004)", "time.sleep(9)"))
    store, words = tmp_path / "store", [sys.executable, "-c", SILENCE, "data"]
    attempt = subprocess.Popen(words, cwd=folder, env=environment(**{STORE: str(store)}))
    wait_until(lambda: guardian.find_tagged(f"{store}/"))
    (folder / "seen").touch()
    assert attempt.wait(150) == 0
    wait_until(lambda: not guardian.find_tagged(f"{store}/"))
    assert {path.name for path in (store / "runs").iterdir()} == {"may.lock", "may"}
    code = "from orchestrator.cluster import RemoteAttempt; RemoteAttempt('june', '', 9)"
    subprocess.run([sys.executable, "-c", code], env=environment(**{STORE: str(store)}), check=True)
    assert {path.name for path in (store / "runs").iterdir()} == {"june.lock"}


def test_a_driver_has_its_patience_once_what_was_left_is_removed(tmp_path):
    (tmp_path / "runs").mkdir()
    for number in range(40):  # each is looked after for 30 ms at least
        (tmp_path / f"runs/{number}.lock").touch()
    code = "import time; from orchestrator.cluster import RemoteAttempt; begun = time.monotonic()\n"
    code += "assert RemoteAttempt('june', '', 900).heard > begun + 1"
    subprocess.run([sys.executable, "-c", code], env=environment(**{STORE: str(tmp_path)}), check=True)


AGAIN = """
import os, sys
from functools import partial
from pathlib import Path
from orchestrator.core.events import Granted, SessionProfile
from orchestrator.cluster import RemoteAttempt
from orchestrator.lab.reported import build_runner
from orchestrator.lab.tree import ScriptTree
from prepare.manifest import MANIFEST_FILE, load

data, until = Path("data"), sys.argv[1]
profile = SessionProfile(name="cpu", budget_kind="work", budget=1, expected_seconds=60, data_hash=load(data).digest)
attempt = RemoteAttempt("v1.5-ab-1-cd", load(data).digest, 200.0)
for name in (*load(data).files, MANIFEST_FILE) if not attempt.report()[1] else ():
    if name != MANIFEST_FILE:
        attempt.receive(name, b"half", True)  # a driver was killed here, and the next begins again
    if until == "half":
        os._exit(9)
    attempt.receive(name, (data / name).read_bytes(), True)
granted = Granted(experiment=1, run=1, slot=0, seed=5)
source = "import time; time.sleep(600)" if until == "train" else Path("train.py").read_text()
attempt.train(partial(build_runner, profile, ScriptTree(), 1), granted, source, 0, False, True)
while until == "train" and not attempt.folder.joinpath("claims").is_symlink():
    attempt.report()
if until == "train":
    os._exit(9)
print(attempt.training.result()[0].kind)
os._exit(0)
"""


def test_what_an_attempt_left_when_it_was_killed_does_not_hold_up_its_next_try(tmp_path):
    folder, store = workplace(tmp_path / "place"), tmp_path / "store"

    def attempt(until: str) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-c", AGAIN, until]
        env = environment(**{STORE: str(store)})
        return subprocess.run(words, cwd=folder, env=env, stdout=subprocess.PIPE, text=True, check=False, timeout=200)

    assert attempt("half").returncode == 9
    assert attempt("train").returncode == 9
    assert attempt("end").stdout == "scored\n"
    assert {path.name for path in (store / "runs").iterdir()} == {"v1.5-ab-1-cd.lock"}


def test_attempts_of_a_session_with_a_dot_in_its_name_have_locks_of_their_own(tmp_path):
    code = "from orchestrator.cluster import RemoteAttempt; [RemoteAttempt(f'v1.5-{n}', '', 9) for n in 'ab']"
    subprocess.run([sys.executable, "-c", code], env=environment(**{STORE: str(tmp_path)}), check=True)
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"v1.5-a.lock", "v1.5-b.lock"}


@contextlib.contextmanager
def real_cluster(stores: Path):
    """Three nodes: the address, and a function that kills one as a power failure does."""
    pytest.importorskip("ray")
    with tempfile.TemporaryDirectory() as folder:  # that of a test has too long a path
        words = [sys.executable, str(SCRIPTS / "nodes.py"), folder, str(stores)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with subprocess.Popen(words, env=environment(), text=True, **pipes) as nodes:

            def kill() -> None:
                nodes.stdin.write("kill\n")
                nodes.stdin.flush()

            address = nodes.stdout.readline().strip()
            assert address, "the cluster did not start"
            try:
                yield address, kill
            finally:
                nodes.stdin.close()


def list_actors(address: str) -> str:
    code = (
        "import ray, sys; ray.init(sys.argv[1], logging_level='ERROR', log_to_driver=False);"
        "print(*[actor['name'] for actor in ray.util.list_named_actors(all_namespaces=True)])"
    )
    words = [sys.executable, "-c", code, address]
    return subprocess.run(words, env=environment(**LOOPBACK), capture_output=True, text=True, check=True).stdout.strip()


LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
TRAIN = TINY.replace("time.sleep(0.004)", "time.sleep(0.05)")
DRIVER = """
import asyncio, sys
from functools import partial
from pathlib import Path
from orchestrator.core.events import Granted, SessionProfile
from orchestrator.cluster import ClusterRunner, connect
from orchestrator.lab.reported import build_runner
from orchestrator.lab.tree import ScriptTree
from prepare.manifest import load

data = Path("data")
profile = SessionProfile(
    name="cpu", budget_kind="work", budget=1, expected_seconds=60, data_hash=load(data).digest
)
runner = ClusterRunner(
    connect(sys.argv[1]), "may", {"num_cpus": 1}, partial(build_runner, profile, ScriptTree(), 1), data, str,
    lambda _, point, rate: print(point, flush=True), unsafe=True, silent=6.0,
)
asyncio.run(runner.run(Granted(experiment=1, run=1, slot=0, seed=5), Path("train.py").read_text()))
"""


@pytest.mark.soak
def test_a_run_is_heard_of_as_it_trains_and_ends_itself_without_its_driver(tmp_path):
    folder = workplace(tmp_path / "place", TINY.replace("time.sleep(0.004)", "time.sleep(0.5)"))
    stores = tmp_path / "stores"
    with real_cluster(stores) as (address, _):
        words = [sys.executable, "-c", DRIVER, address]
        with subprocess.Popen(words, cwd=folder, env=environment(**LOOPBACK), stdout=subprocess.PIPE) as driver:
            try:
                points = [driver.stdout.readline() for _ in range(20)]  # it takes longer than its patience with silence
                assert all(points), "the run has ended before its driver"
            finally:
                driver.kill()
        wait_until(lambda: not list_actors(address), 60)
        wait_until(lambda: not guardian.find_tagged(f"{stores}/"))
    assert list(stores.glob("*/runs/may-*/runs")), "it trained to its end"


@pytest.mark.soak
def test_a_night_on_three_nodes_survives_a_node_and_its_driver(tmp_path):
    ledger, stores = tmp_path / "ledger", tmp_path / "stores"
    done = f"print(os.environ['NIGHTSHIFT_SEED'], hash(open('train.py').read()), file=open({str(ledger)!r}, 'a'))\n"
    folder = workplace(tmp_path / "place", TRAIN + done)

    def count(kind) -> int:
        with contextlib.closing(opened(folder)) as session:
            return sum(isinstance(record.event, kind) for record in session.records)

    with real_cluster(stores) as (address, kill), contextlib.ExitStack() as stack:
        night = "--offline", "--hours", "1", "--session", "night", "--max-experiments", "12", "--seed", "3", "--unsafe"
        life = stack.enter_context(begun(folder, *night, "--cluster", address, **LOOPBACK))
        stack.callback(life.kill)
        wait_until((folder / "sessions/night/session.db").exists, 900)
        wait_until(lambda: count(Scored) >= 4 and len(guardian.find_tagged(f"{stores}/")) >= 3, 1800)
        kill()
        wait_until(lambda: count(Aborted) >= 1 and count(Scored) >= 6, 1800)
        wait_until(lambda: guardian.find_tagged(f"{stores}/"), 900)
        life.kill()
        life.wait()
        before = count(Scored)
        wait_until(
            lambda: len(ledger.read_text().splitlines()) > before and not guardian.find_tagged(f"{stores}/"), 900
        )
        resumed = orchestrate(folder, "resume", "night", **LOOPBACK)
        assert resumed.returncode == 0, resumed.stdout + resumed.stderr
        assert "Traceback" not in resumed.stdout + resumed.stderr
        assert not list_actors(address)
        assert not guardian.find_tagged(f"{stores}/")
    with contextlib.closing(opened(folder)) as session:
        events, state = [record.event for record in session.records], session.state
    assert before < count(Scored)
    assert len(state.tried) == 12
    assert not [event for event in events if isinstance(event, Failed)]
    assert all("lost on the cluster" in event.reason for event in events if isinstance(event, Aborted))
    completed, lost = Counter(ledger.read_text().splitlines()), sum(isinstance(event, Aborted) for event in events)
    again = completed.total() - len(completed)
    assert again <= lost, "it was trained twice to completion, and not because its node died as it was scored"
    assert completed.total() >= count(Scored)  # a node may die after the training, and a candidate be overtaken
