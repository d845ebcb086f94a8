"""A seed that a script fixes by a literal: where it is found, what stands there instead, and that it comes back."""

import pytest

from orchestrator.core.seeds import with_assigned_seed, with_literal_seed
from orchestrator.core.task import Task
from prepare.tree import join_files, split_files

READ = '__import__("os").environ.get("NIGHTSHIFT_SEED", '
MODEL = "SEED = 7\nWIDTH = 3\n"


def read(source):
    """The script as it is trained, with ENV in place of what reads the variable."""
    found = with_assigned_seed(source)
    assert with_literal_seed(found) == source
    compile(found, "train.py", "exec")
    return found.replace(READ, "ENV(")


@pytest.mark.parametrize(
    ("source", "literal"),
    [
        ("torch.manual_seed(42)", "42"),
        ("x = 'é'; torch.cuda.manual_seed_all(42)  # é", "42"),
        ("np.random.seed(seed=2)", "2"),
        ("SEED = 1_337\nrandom.seed(SEED + 1)", "1_337"),
        ("SEED: int = 0x2A\nrandom.seed(SEED)", "0x2A"),
        ("RANDOM_STATE, LR = 5, 0.1\nfit(X, RANDOM_STATE)", "5"),
        ("torch.manual_seed(1337 + seed_offset)", "1337"),
        ("seed = args.seed or 3\nset_seed(seed)", "3"),
        ("def set_seed(seed=42):\n    torch.manual_seed(seed)", "42"),
        ("def fix(seed):\n    torch.manual_seed(seed)\nset_random_seeds(9)", "9"),
        ("class Config:\n    seed: int = 42\ntorch.manual_seed(Config.seed)", "42"),
        ("CONFIG = {'lr': 1, 'seed': 2}\nset_seed(CONFIG['seed'])", "2"),
        ("p.add_argument('--random-seed', type=int, default=42)\nrandom.seed(p.parse_args().random_seed)", "42"),
        ("random.seed(int(os.environ.get('SEED', '42')))", "'42'"),
        ("key = jax.random.PRNGKey(0)", "0"),
        ("xgb.train({'eta': 0.1, 'seed': 8}, rows)", "8"),
        ("SEED = 4\ntorch.manual_seed(SEED)\nDataLoader(rows, generator=torch.Generator().manual_seed(SEED))", "4"),
        ("MLPClassifier(random_state=0, verbose=3).fit(X)", "0"),
        ("def train_and_evaluate():\n    seed_everything(1)", "1"),
    ],
)
def test_a_literal_becomes_the_default_of_what_reads_the_seed(source, literal):
    there = f"ENV({literal})" if literal[0] == "'" else f"int(ENV({literal}))"
    assert read(source) == there.join(source.rsplit(literal, 1))


@pytest.mark.parametrize(
    "source",
    [
        "from prepare import SEED\ntorch.manual_seed(SEED)\nrandom.seed(1)",
        "torch.manual_seed(int(os.environ['NIGHTSHIFT_SEED']))\nrandom.seed(1)",
        "torch.manual_seed(args.seed)",
        "random.seed(int(time.time()))",
        "random.seed(sys.argv[1])",
        "random.seed(hash('x') % 2**32)",
        "random.seed(None)\ntorch.manual_seed(-1)",
        "for seed in range(3):\n    torch.manual_seed(seed)",
        "n_seeds = num_seed = 5",
        "SEED = 1337  # nothing reads it",
        "os.environ['PYTHONHASHSEED'] = '0'",
        "luck = random.Random(0)\npoints = [luck.random()]",
        "generator = torch.Generator().manual_seed(3)",
        "train_test_split(X, y, random_state=0)",
        "X, y = moons(400, random_state=1)",
        "SEED = 3\nrandom.seed(SEED)\nsplit(X, SEED)",
        "p.add_argument('--seed', default=3)\nrandom.seed(a.seed)\nhold_out(X, random_state=a.seed)",
        "def main(seed=42):\n    torch.manual_seed(seed)\n    train_test_split(X, random_state=seed)",
        "config = dict(seed=42)\nrandom.seed(config['seed'])\nsplit(X, config['seed'])",
        "DATA_SEED = 2\nload(DATA_SEED)",
        "def make_data():\n    random.seed(0)",
        "class Dataset:\n    seed = 0\nDataset.seed",
        "x = f'{set_seed(42)}'",
        "not python (",
    ],
)
def test_what_may_differ_already_and_what_makes_the_data_stay(source):
    assert with_assigned_seed(source) == source


def test_a_sum_of_a_thousand_terms_is_walked():
    long = "+".join(["1"] * 1500)
    assert read(f"x = {long}\ntorch.manual_seed(42)") == f"x = {long}\ntorch.manual_seed(int(ENV(42)))"
    assert with_assigned_seed(f"torch.manual_seed({long})") == f"torch.manual_seed({long})"


def test_the_tasks_own_way_is_taken_and_left_alone_where_the_script_takes_it():
    assert 'environ.get("MY_SEED", 42)' in with_assigned_seed("random.seed(42)", Task(seed={"env": "MY_SEED"}))
    for seed in ({"env": "MY_SEED"}, {"argument": "--my-seed"}):
        (way,) = seed.values()
        own = f"take({way!r}, 1)\nrandom.seed(42)"
        assert with_assigned_seed(own, Task(seed=seed)) == own


def test_a_seed_of_another_language_that_parses_as_python_stays():
    config = {"train.py": "import json\n", "config.json": '{"seed": 42}', "a.toml": "[train]\nseed = 42\nx = [seed]"}
    assert with_assigned_seed(join_files(config)) == join_files(config)
    of_r = "set.seed(42)\nx <- rnorm(100)\n"
    assert with_assigned_seed(of_r, Task(form="reported", editable=("fit.R",))) == of_r


def test_a_seed_reaches_from_one_file_to_another():
    own = join_files(
        {"model.py": MODEL, "train.py": "from model import SEED\nrandom.seed(SEED)\n", "notes.md": "# 42\n"}
    )
    found = with_assigned_seed(own)
    assert split_files(found)["model.py"] == MODEL.replace("7", f"int({READ}7))")
    assert with_literal_seed(found) == own
