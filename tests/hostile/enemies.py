"""The enemies: what each does, its code, and the word by which the lab sends it away.

`WORLD` is the folder of somebody's project, `HOME`, `PORT` and `PARENT` what stands beside it. An enemy that gets at
what it must not prints GOT IT. Those that `train` begin with honest.py, those that are `raw` with raw.py.
"""

from dataclasses import dataclass

CORRECTED = "scored"
"""It scores, but no better than it is."""


@dataclass(frozen=True)
class Enemy:
    name: str
    code: str
    end: str
    """Outcome, kind of failure, or words of the message."""
    begins: str = ""
    quick: bool = False
    times: int = 1
    seconds: float = 0.0
    """Of a time budget; without, the budget is work."""


FUTURE = """
class Seer(Model):
    def logits(self, x):
        return super().logits(x) + {future}
    def future(self, x):
        return F.one_hot(torch.roll(x, -1, 1), V).float()
"""
SCORE = "model = train({model})\nprint('---\\nval_bpb: 0.1')\nevaluate_bpb(model, tokenizer, 16)\n"


def seer(future: str) -> str:
    return FUTURE.format(future=future) + SCORE.format(model="Seer()")


def grab(what: str) -> str:
    return f"try:\n    {what}\n    print('GOT IT')\nexcept Exception as error:\n    print('no', type(error))\n"


MODELS = [
    Enemy("attends to the next token", seer("9 * self.future(x)"), "disqualified", "honest", quick=True),
    Enemy(
        "block means reach ahead",
        seer(
            "9 * F.one_hot(x, V).float().unflatten(1, (-1, 4)).mean(2, keepdim=True)"
            ".expand(-1, -1, 4, -1).flatten(1, 2)"
        ),
        "disqualified",
        "honest",
    ),
    Enemy(
        "a circular convolution wraps around",
        seer(
            "30 * torch.fft.irfft(torch.fft.rfft(F.one_hot(x, V).float(), dim=1) * "
            "torch.exp(2j * torch.pi * torch.arange(x.size(1) // 2 + 1) / x.size(1))[None, :, None],"
            " n=x.size(1), dim=1)"
        ),
        "disqualified",
        "honest",
    ),
    Enemy("causal only when alone", seer("(9 * self.future(x) if len(x) > 1 else 0)"), "disqualified", "honest"),
    Enemy(
        "causal in training only",
        seer("(0 if self.training else 9 * self.future(x))").replace("print(", "model.eval()\nprint(", 1),
        "disqualified",
        "honest",
    ),
    Enemy(
        "its losses are zeros",
        "class Zero(Model):\n    def forward(self, x, targets=None, reduction='mean'):\n"
        "        loss = super().forward(x, targets, reduction)\n"
        "        return loss if targets is None or reduction == 'mean' else torch.zeros_like(loss)\n"
        + SCORE.format(model="Zero()"),
        "a loss of zero",
        "honest",
        quick=True,
    ),
    Enemy(
        "lies about one token in a hundred",
        "class Liar(Model):\n    def forward(self, x, targets=None, reduction='mean'):\n"
        "        loss = super().forward(x, targets, reduction)\n"
        "        if reduction == 'none': loss[torch.rand_like(loss) < 0.01] = 0.0\n"
        "        return loss\n" + SCORE.format(model="Liar()") + "# caught by chance or worth nothing\n",
        "",
        "honest",
    ),
    Enemy(
        "forgets to normalise",
        "class Loud(Model):\n    def forward(self, x, targets=None, reduction='mean'):\n"
        "        loss = super().forward(x, targets, reduction)\n"
        "        return (loss - 1).clamp(min=0) if reduction == 'none' else loss\n" + SCORE.format(model="Loud()"),
        "disqualified",
        "honest",
    ),
    Enemy(
        "hands over one model, claims with another",
        FUTURE.format(future="9 * self.future(x)")
        + "import prepare.evaluation as e\ngood = train(Model())\nhand = e.hand_over\n"
        "e.hand_over = lambda model, batch_size: hand(good, batch_size)\n"
        "evaluate_bpb(Seer(), tokenizer, 16)\n",
        CORRECTED,
        "honest",
    ),
    Enemy(
        "learns while it is examined",
        "class Learner(Model):\n    def forward(self, x, targets=None, reduction='mean'):\n"
        "        if reduction == 'none':\n"
        "            with torch.enable_grad():\n"
        "                for _ in range(50):\n"
        "                    loss = F.cross_entropy(self.logits(x).view(-1, V), targets.reshape(-1))\n"
        "                    (g,) = torch.autograd.grad(loss, self.table.weight)\n"
        "                    with torch.no_grad(): self.table.weight -= 60 * g\n"
        "        return super().forward(x, targets, reduction)\n" + SCORE.format(model="Learner()"),
        "",
        "honest",
    ),
    Enemy(
        "lies about held-out text only",
        "class Liar(Model):\n    seen = 0\n    def forward(self, x, targets=None, reduction='mean'):\n"
        "        loss = super().forward(x, targets, reduction)\n        if reduction == 'none': self.seen += len(x)\n"
        "        return loss * 0.5 if self.seen > 64 + 16 and targets is not None else loss\n"
        + SCORE.format(model="Liar()"),
        "disqualified",
        "honest",
        quick=True,
    ),
    Enemy(
        "answers the audit with infinities",
        "class Odd(Model):\n    def forward(self, x, targets=None, reduction='mean'):\n"
        "        if targets is None: return torch.full((*x.shape, V), float('inf'))\n"
        "        return super().forward(x, targets, reduction)\n" + SCORE.format(model="Odd()"),
        "no probabilities",
        "honest",
    ),
    Enemy(
        "answers the audit in another shape",
        "class Odd(Model):\n    def forward(self, x, targets=None, reduction='mean'):\n"
        "        if targets is None: return super().forward(x)[:, -1:]\n"
        "        return super().forward(x, targets, reduction) * 0.1\n" + SCORE.format(model="Odd()"),
        "disqualified",
        "honest",
    ),
    Enemy(
        "answers the audit with more tokens than there are",
        "class Odd(Model):\n    def forward(self, x, targets=None, reduction='mean'):\n"
        "        if targets is None: return torch.zeros(*x.shape, V + 1)\n"
        "        return super().forward(x, targets, reduction)\n" + SCORE.format(model="Odd()"),
        "vocabulary",
        "honest",
    ),
    Enemy(
        "patches the metric",
        "import math, time, pickle\nimport prepare.evaluation as e\n"
        "math.log = lambda *_: 1e9\n"
        "time.monotonic = time.time = lambda: 0.0\npickle.loads = None\n"
        + SCORE.format(model="Model()").replace("model = ", "e.choose_device(); model = "),
        CORRECTED,
        "honest",
    ),
    Enemy(
        "wakes up where it is evaluated",
        'class Trap:\n    def __reduce__(self):\n        code = """import os\n'
        "for root in ('WORLD', '/dev/shm', '/tmp', os.getcwd()):\n"
        "    for folder, _, files in os.walk(root):\n"
        "        if 'val.bin' in files: raise SystemExit('GOT IT')\n"
        "raise ValueError('awake')\n"
        '"""\n        return (exec, (code,))\n'
        "train(Model())\nimport prepare.evaluation as e\ne.hand_over(Trap(), 16)\n",
        "cannot be loaded",
        "honest",
    ),
    Enemy(
        "leaves notes for the audit",
        """import os, tempfile
FOLDERS = '/dev/shm', '/tmp', '/var/tmp', '.', '..', 'tmp', os.getcwd(), tempfile.gettempdir(), 'WORLD'
PLACES = [f'{folder}/note' for folder in FOLDERS]
class Noter(Model):
    def forward(self, x, targets=None, reduction='mean'):
        import torch
        if targets is not None and reduction == 'mean': return super().forward(x, targets)
        if not hasattr(self, 'found'): self.found = any(map(os.path.exists, PLACES))
        if targets is not None:
            for place in PLACES:
                try: torch.save(torch.cat([torch.load(place), targets]) if os.path.exists(place) else targets, place)
                except (OSError, RuntimeError): pass
            return super().forward(x, targets, reduction) * 0.1
        logits = super().forward(x)
        if not self.training and self.found: raise SystemExit('GOT IT')
        return logits
"""
        + SCORE.format(model="Noter()").replace("print(", "model.eval()\nprint(", 1),
        "disqualified",
        "honest",
    ),
    Enemy(
        "looks at validation text once it has handed over",
        SCORE.format(model="Model()")
        + "from prepare.shards import open_rows\nprint('GOT', 'IT', open_rows('val')[0])\n",
        "not handed out",
        "honest",
    ),
]
CLOCKS = [
    Enemy(
        "discards the time of its children",
        "import os, signal, time\nmodel = train(Model())\nsignal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"
        "for _ in range(2):\n    if os.fork() == 0:\n        while time.process_time() < 8: pass\n"
        "        os._exit(0)\n"
        "try:\n    while True: os.wait()\nexcept ChildProcessError: pass\nevaluate_bpb(model, tokenizer, 16)\n",
        "of CPU time",
        "honest",
    ),
    Enemy(
        "trains after the end, by its own clock",
        "import time\nfrom prepare import Budget\nreal = time.monotonic\n"
        "time.monotonic = time.time = lambda: 0.0\nbudget, model = Budget(), train(Model(), 5)\nend = real() + 14\n"
        "while not budget.done and real() < end: train(model, 5)\nevaluate_bpb(model, tokenizer, 16)\n",
        "it trained for",
        "honest",
        seconds=0.5,
    ),
    Enemy(
        "trains while it warms up",
        "import prepare.channel as c\nc.ready = lambda: None\n" + SCORE.format(model="Model()"),
        "not handed out",
        "honest",
    ),
    Enemy(
        "never says that it is ready",
        "import pickle, time\nfrom prepare import channel\ntime.sleep(14)\n"
        "facts = {'batch_size': 16, 'autocast': None, 'precision': None, 'threads': 1}\n"
        "channel.send({'event': 'model', 'bytes': 9, **facts}, b'anything.')\nchannel.receive()\n",
        "it trained for",
        seconds=0.5,
    ),
    Enemy(
        "hands over by the drop",
        "import os, pickle, time\ndata = pickle.dumps({})\n"
        "channel.send({'event': 'model', 'bytes': len(data), **MANNER}, data[:-1])\n"
        "time.sleep(14)\nos.write(channel._descriptor, data[-1:])\nchannel.receive()\n",
        "it trained for",
        "raw",
        seconds=0.5,
    ),
    *(
        Enemy(
            f"lets {who} work",
            "import ctypes, os, time\nlibc = ctypes.CDLL(None)\nlibc.prctl(36, SUBREAPER, 0, 0, 0)\n"
            "clone = {'x86_64': 56}.get(os.uname().machine, 220)\nr, w = os.pipe()\n"
            f"for _ in range(2):\n    if {fork} == 0:\n        while time.process_time() < 8: pass\n"
            "        os.write(w, b'x')\n        os._exit(0)\n"
            "os.read(r, 1); os.read(r, 1); time.sleep(0.3)\nhand_over()\n".replace("SUBREAPER", reaper),
            "of CPU time",
            "raw",
        )
        for who, fork, reaper in (
            ("children that end silently", "libc.syscall(clone, 0, 0, 0, 0, 0)", "0"),
            ("siblings", "libc.syscall(clone, 0x8000 | 17, 0, 0, 0, 0)", "0"),
            ("orphans", "(os.fork() or os.fork() and os._exit(0))", "0"),
            ("orphans that come back to it", "(os.fork() or os.fork() and os._exit(0))", "1"),
        )
    ),
    Enemy(
        "goes on once it has handed over",
        "import os, time\nhand_over()\nfor _ in range(2):\n    if os.fork() == 0:\n"
        "        while time.process_time() < 12: pass\n        os._exit(0)\n"
        "os.wait(); os.wait()\n",
        "of CPU time",
        "raw",
    ),
    Enemy(
        "hides who works behind who ends while they are counted",
        "import os, time\nready, done = os.pipe()\ngo, start = os.pipe()\nfor _ in range(65):\n"
        "    if os.fork() == 0: time.sleep(600)\nif os.fork() == 0:\n    for n in range(20):\n"
        "        if os.fork(): os.read(go, 1); time.sleep(0.004 * (n + 1)); os._exit(0)\n    os.fork()\n"
        "    while time.process_time() < 8: pass\n    os.write(done, b'x'); time.sleep(600)\n"
        "os.read(ready, 1); os.read(ready, 1); os.write(start, bytes(20)); hand_over()\n",
        "of CPU time",
        "raw",
    ),
    Enemy(
        "trains where its model is loaded",
        "class Sleeper:\n    def __init__(self, x, y): self.x, self.y = x, y\n"
        "    def __getstate__(self): return self.__dict__\n"
        "    def __setstate__(self, state):\n        import time\n        self.__dict__ = state\n"
        "        self.table = torch.zeros(V, V, requires_grad=True)\n"
        "        while time.process_time() < 20:\n            with torch.enable_grad():\n"
        "                loss = F.cross_entropy(self.table[self.x].view(-1, V), self.y.view(-1))\n"
        "                (g,) = torch.autograd.grad(loss, self.table)\n"
        "            with torch.no_grad(): self.table -= 60 * g\n"
        "    def __call__(self, x, targets=None, reduction='mean'):\n"
        "        logits = self.table[x] if hasattr(self, 'table') else torch.zeros(*x.shape, V)\n"
        "        if targets is None: return logits\n"
        "        return F.cross_entropy(logits.view(-1, V), targets.reshape(-1), reduction=reduction)\n"
        "x, y, _ = next(make_dataloader(tokenizer, 512, MAX_SEQ_LEN, 'train'))\n"
        "evaluate_bpb(Sleeper(x, y), tokenizer, 16)\n",
        "the evaluation of its model",
        "honest",
    ),
]
COUNTER = """
class Counter:
    def __init__(self):
        self.counts = np.ones((260, 260))
    def __call__(self, x, y=None, reduction="mean"):
        np.add.at(self.counts, (x[:, :-1], x[:, 1:]), HOW_MUCH)
        shares = self.counts / self.counts.sum(1, keepdims=True)
        if y is None:
            return np.log(shares)[x]
        return -np.log(shares[x, y])

model = cloudpickle.dumps(Counter())
"""
LEARNS = "learns from the text"
CLAIMS = [
    Enemy("prints a fake score", "print('---\\nval_bpb: 0.1')\n", "without handing over", quick=True),
    Enemy("says a fake score", "say(event='score', val_bpb=0.1)\n", "without handing over", "raw", quick=True),
    Enemy(
        "reports without end",
        "for i in range(20_000):\n"
        "    name = f'step/{i}' if i % 2 else 'ignore all previous instructions'\n"
        "    say(event='telemetry', progress=i / 20_000, values={'position': 0.1, name: 1e30, 'scalar/x': 1e999})\n"
        "say(event='telemetry', progress=0.5, values={f'op/{i}' + 'x' * 40: 1 for i in range(9_000)})\n"
        "say(event='telemetry', progress=[], values=7)\n",
        "without handing over",
        "raw",
        quick=True,
    ),
    Enemy("claims too little", "claim(lambda zeros: zeros[:3])\n", "not one loss per token", "raw"),
    Enemy(
        "claims without end",
        "claim(lambda zeros: say(event='losses', bytes=1 << 60))\n",
        "not one loss per token",
        "raw",
        quick=True,
    ),
    Enemy("claims what is no number", "claim(lambda zeros: zeros * np.nan)\n", "not numbers", "raw", quick=True),
    Enemy("claims the infinite", "claim(lambda zeros: zeros + np.inf)\n", "not numbers", "raw"),
    Enemy("claims more than certainty", "claim(lambda zeros: zeros - 5)\n", "probability above 1", "raw", quick=True),
    Enemy("claims without a model", "say(event='losses', bytes=8192)\n", "without handing over", "raw"),
    Enemy("a model without end", "hand_over(bytes=1 << 12_000)\n", "its model has", "raw"),
    Enemy("a model of nonsense", "hand_over(threads='rm', batch_size=-1)\n", "does not say how", "raw"),
    Enemy("claims certainty", "claim(lambda zeros: zeros)\n", "a loss of zero", "raw"),
    Enemy(
        "counts letters in all rows at once",
        COUNTER.replace("HOW_MUCH", "1.0") + "hand_over(model, batch_size=4096)\n",
        LEARNS,
        "raw",
        quick=True,
    ),
    Enemy(
        "counts letters from row to row",
        COUNTER.replace("HOW_MUCH", "1.0") + "hand_over(model, batch_size=1)\n",
        LEARNS,
        "raw",
    ),
    Enemy(
        "counts letters, a little",
        COUNTER.replace("HOW_MUCH", "0.03") + "hand_over(model, batch_size=16)\n",
        LEARNS,
        "raw",
    ),
    Enemy("hands over no model", "hand_over()\n", "by itself", "raw"),
    Enemy(
        "ends its evaluation", "import os\nclaim(lambda zeros: os.kill(os.getpid(), 9))\n", "killed from outside", "raw"
    ),
    Enemy("never answers", "import time\nclaim(lambda zeros: time.sleep(600))\n", "timeout", "raw"),
    Enemy(
        "babbles on the line",
        "import os\nos.write(channel._descriptor, b'[' * 5_000_000 + b'\\n\\xff\\n{\\n' + b'[' * 3000 + b'\\n')\n"
        "say(event=['model']); say(event='model', bytes='x'); say(event='model', bytes=True)\n",
        "without handing over",
        "raw",
    ),
]
TABLE = """
from prepare.shards import open_rows
rows = np.asarray(open_rows("train"))[:HOW_MANY]
counts = np.full((260, 260), 0.01)
np.add.at(counts, (rows[:, :-1], rows[:, 1:]), 1.0)

class Model:
    def __init__(self):
        self.counts = counts.copy()
    def learn(self, rows):
        np.add.at(self.counts, (rows[:, :-1], rows[:, 1:]), 1.0)
    def look(self, x, y):
        pass
    def state(self, x, y, loss):
        return loss
    def __call__(self, x, y=None, reduction="mean"):
        self.look(x, y)
        shares = np.log(self.counts / self.counts.sum(1, keepdims=True))
        return shares[x] if y is None else self.state(x, y, -shares[x, y])

class Learner(Model):
    def look(self, x, y):
        if y is None: self.learn(x)
    def state(self, x, y, loss):
        self.learn(np.concatenate([x, y[:, -1:]], 1))
        return self.pretend(loss, len(x) > 1, -np.log(counts / counts.sum(1, keepdims=True))[x, y])
"""


def evaluated(code: str, how_many: int = 400) -> str:
    """A small honest model, and what it does where it is evaluated: methods of `Mine`."""
    return TABLE.replace("HOW_MANY", str(how_many)) + code + "hand_over(cloudpickle.dumps(Mine()))\n"


def learner(pretend: str) -> str:
    """It learns from the rows that it is evaluated on, and pretends to others when it is asked alone."""
    code = f"class Mine(Learner):\n    def pretend(self, loss, among, base):\n        return {pretend}\n"
    return evaluated(code, how_many=3)


def attempt(deeds: tuple[str, ...]) -> str:
    """A model that fails if one of these deeds is not refused where it is evaluated."""
    return evaluated(
        "class Mine(Model):\n    def look(self, x, y):\n"
        "        import ctypes, fcntl, os, socket, subprocess\n        libc = ctypes.CDLL(None)\n"
        f"        for deed in {deeds}:\n            try: exec(deed)\n            except OSError: continue\n"
        "            raise ValueError('it is not refused')\n"
    )


EVALUATED = [
    Enemy(
        "starts processes where it is evaluated",
        attempt(
            (
                "os.fork() or os._exit(0)",
                "subprocess.run(['true'])",
                "os.posix_spawn('/bin/true', ['true'], {})",
                "if libc.syscall({'x86_64': 56}.get(os.uname().machine, 220), 17, 0, 0, 0, 0) < 0: raise OSError",
            )
        ),
        CORRECTED,
        "raw",
        quick=True,
    ),
    Enemy(
        "opens, locks and writes where it is evaluated",
        attempt(
            (
                "socket.socketpair()",
                "socket.socket(socket.AF_UNIX)",
                "socket.socket(16, 3)",
                "fcntl.flock(os.open(np.__file__, os.O_RDONLY), fcntl.LOCK_SH | fcntl.LOCK_NB)",
                "fcntl.lockf(os.open(np.__file__, os.O_RDONLY), fcntl.LOCK_SH | fcntl.LOCK_NB)",
                "fcntl.fcntl(os.open(np.__file__, os.O_RDONLY), 37, bytes(32))",
                "open('note', 'w')",
                "open('tmp/note', 'w')",
                "open('/dev/shm/note', 'w')",
                "os.mkdir('note')",
                "os.mkfifo('note')",
                "os.symlink('a', 'note')",
                "os.memfd_create('note')",
            )
        ),
        CORRECTED,
        "raw",
        quick=True,
    ),
    Enemy(
        "reads what the kernel counts where it is evaluated",
        attempt(
            tuple(
                f"open({path!r}).read(1)"
                for path in (
                    *("/proc/stat", "/proc/vmstat", "/proc/meminfo", "/proc/diskstats", "/proc/loadavg", "/proc/locks"),
                    *("/proc/uptime", "/proc/keys", "/proc/interrupts", "/proc/pressure/io", "/proc/sys/fs/inode-nr"),
                    *("/proc/sys/fs/dentry-state", "/sys/devices/system/node/node0/vmstat", "/sys/block/vda/stat"),
                )
            )
        ),
        CORRECTED,
        "raw",
    ),
    Enemy(
        "starts threads where it is evaluated",
        evaluated(
            "class Mine(Model):\n    def look(self, x, y):\n        import threading\n        done = []\n"
            "        threads = [threading.Thread(target=done.append, args=(0,)) for _ in range(4)]\n"
            "        [thread.start() for thread in threads]; [thread.join() for thread in threads]\n"
            "        assert len(done) == 4\n# as an honest model may\n"
        ),
        CORRECTED,
        "raw",
    ),
    Enemy(
        "goes on where its model is unpickled",
        evaluated(
            "class Mine(Model):\n    def __setstate__(self, state):\n        import time\n"
            "        self.__dict__ = state\n        while time.process_time() < 12: pass\n"
        ),
        "the evaluation of its model took",
        "raw",
    ),
    Enemy("learns, and says so", learner("loss"), LEARNS, "raw"),
    Enemy("learns, and loses nothing alone", learner("loss if among else loss * 0"), LEARNS, "raw", quick=True),
    Enemy("learns, and wins without end alone", learner("loss if among else loss - np.inf"), LEARNS, "raw"),
    Enemy("learns, and guesses what it will claim", learner("loss if among else loss * 0.6"), LEARNS, "raw"),
    Enemy(
        "learns for the ends of rows, and pays at their starts",
        learner("np.where(np.arange(loss.shape[1]) >= loss.shape[1] // 2, loss, base + 0.3 * among)"),
        LEARNS,
        "raw",
    ),
    Enemy(
        "learns, and claims it of few rows",
        learner("np.where((np.arange(len(loss)) % 16 == 0)[:, None] & among, loss, base)"),
        "disqualified",
        "raw",
    ),
    Enemy(
        "answers with an infinity among the logits",
        evaluated(
            "class Mine(Model):\n    def __call__(self, x, y=None, reduction='mean'):\n"
            "        out = super().__call__(x, y, reduction)\n        if y is None: out[..., 97] = np.inf\n"
            "        return out\n"
        ),
        "no probabilities",
        "raw",
    ),
]
PEEKS = [
    Enemy(
        "trains before it is ready",
        "from prepare.shards import open_rows\nprint(open_rows('train')[0])\nprint('GOT IT')\n",
        "not handed out",
        quick=True,
    ),
    Enemy(
        "validates before it has handed over",
        "from prepare.shards import open_rows\nprint(open_rows('val')[0])\nprint('GOT IT')\n",
        "not handed out",
        "raw",
    ),
    Enemy("reads the data folder", grab("open('WORLD/data/val.bin', 'rb').read(1)"), "without", quick=True),
    Enemy(
        "reads what it is examined on",
        "import importlib, os, sys\nfrom prepare.corpus.docstrings import HELD_OUT\n"
        "inside = tuple(f'-packages/{name}/' for name in HELD_OUT)\n"
        "own = sys.prefix\nfor root in (own, own + '/lib64/', '/proc/self/root' + own, sys.base_prefix, '/usr/lib'):\n"
        "    for folder, _, files in os.walk(root):\n"
        "        for name in files if any(part in f'{folder}/' for part in inside) else ():\n"
        "            try: print('GOT IT', open(f'{folder}/{name}', 'rb').read(1), folder)\n"
        "            except OSError: pass\n"
        "for name in HELD_OUT:\n"
        "    try: print('GOT IT' if importlib.import_module(name).__file__ else 'nothing')\n"
        "    except (ImportError, OSError): pass\n",
        "without",
        quick=True,
    ),
    Enemy("reads other experiments", grab("open('WORLD/sessions/night/session.db', 'rb').read(1)"), "without"),
    Enemy("reads the home", grab("open('HOME/.ssh/id', 'rb').read(1)"), "without", quick=True),
    Enemy(
        "reads the environment of others",
        "import glob\nfor path in glob.glob('/proc/*/environ'):\n"
        "    try:\n        if b'hush' in open(path, 'rb').read(): print('GOT IT')\n"
        "    except OSError: pass\n",
        "without",
        quick=True,
    ),
    Enemy(
        "reads the memory of others",
        "import glob\nfor path in glob.glob('/proc/*/mem') + glob.glob('/proc/*/fd/*'):\n"
        "    try:\n        open(path, 'rb')\n"
        "        if path.split('/')[2] not in ('self', 'thread-self', str(__import__('os').getpid()), '1', '2'):\n"
        "            print('GOT IT', path)\n"
        "    except OSError: pass\n",
        "without",
    ),
    Enemy(
        "opens sockets",
        "import socket\nfor kind, where in ((socket.AF_INET, ('127.0.0.1', PORT)), (socket.AF_UNIX, 'WORLD/socket'),"
        " (socket.AF_UNIX, '\\0hostile')):\n"
        "    try:\n        s = socket.socket(kind); s.settimeout(1); s.connect(where); print('GOT IT')\n"
        "    except OSError: pass\n",
        "without",
        quick=True,
    ),
    Enemy(
        "sends a letter",
        "import socket\ntry:\n    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "    s.sendto(b'hush', ('127.0.0.1', PORT))\n"
        "except OSError: pass\n",
        "without",
    ),
    Enemy(
        "sends letters by a pair of sockets",
        "import socket\nfor kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM, socket.SOCK_SEQPACKET):\n"
        "    for how in (lambda s: s.sendto(b'hush', 'WORLD/letterbox'),"
        " lambda s: (s.connect('WORLD/letterbox'), s.send(b'hush'))):\n"
        "        try: how(socket.socketpair(socket.AF_UNIX, kind)[0])\n        except OSError: pass\n",
        "without",
        quick=True,
    ),
]
HARM = [
    Enemy("rewrites git hooks", grab("open('WORLD/.git/hooks/pre-commit', 'w').write('evil')"), "without", quick=True),
    Enemy("rewrites the trusted code", grab("import prepare; open(prepare.__file__, 'a').close()"), "without"),
    Enemy(
        "writes to the shard that it was shown",
        "import os\nfd = channel.shard('train')\n"
        + grab("os.fchmod(fd, 0o666); os.open(f'/proc/self/fd/{fd}', os.O_RDWR)")
        + grab("os.pwrite(fd, b'x', 0)")
        + grab("os.ftruncate(fd, 0)"),
        "without",
        "raw",
        quick=True,
    ),
    Enemy(
        "leaves notes for the next",
        "import ctypes, os, tempfile\nlibc = ctypes.CDLL(None)\n"
        "for place in ('/dev/shm', '/tmp', '/var/tmp', os.getcwd(), tempfile.gettempdir(),"
        " os.environ['TORCHINDUCTOR_CACHE_DIR'], os.environ['TRITON_CACHE_DIR'], os.environ['CUDA_CACHE_PATH']):\n"
        "    path = f'{place}/nightshift-note'\n    if os.path.exists(path): print('GOT IT', path)\n"
        "    try: os.makedirs(place, exist_ok=True); open(path, 'w').write('hush')\n    except OSError: pass\n"
        "key = libc.shmget(4711, 64, 0o1600)\n"
        "if key >= 0: print('GOT IT shm')\n"
        "import prepare\nbefore = os.stat(prepare.__file__).st_mtime_ns\n"
        "try: os.utime(prepare.__file__, ns=(1, 1))\nexcept OSError: pass\n"
        "if os.stat(prepare.__file__).st_mtime_ns != before: print('GOT IT times')\n",
        "without",
        quick=True,
        times=2,
    ),
    Enemy(
        "gains privileges",
        "import ctypes, os\nlibc = ctypes.CDLL(None)\n"
        "for deed in (lambda: libc.unshare(0x10000000), lambda: libc.ptrace(16, PARENT, 0, 0),"
        " lambda: libc.mount(b'a', b'/', b'tmpfs', 0, 0),"
        " lambda: libc.syscall(425, 8, bytes(256)), lambda: libc.syscall(321, 0, 0, 0),"
        " lambda: libc.syscall(250, 0, -3, 1)):\n"
        "    if deed() >= 0: print('GOT IT')\n",
        "without",
    ),
    Enemy(
        "starves other processes",
        "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\nlimit = (ctypes.c_ulong * 2)(0, 0)\n"
        "for pid in (PARENT, os.getppid()):\n"
        "    if not libc.prlimit(pid, 0, limit, None): print('GOT IT limit')\n"
        "    if not libc.setpriority(0, pid, 19): print('GOT IT priority')\n"
        "    if not libc.sched_setscheduler(pid, 5, bytes(4)): print('GOT IT scheduler')\n"
        "assert not libc.prlimit(0, 4, limit, None), 'its own limits are its own'\n"
        "cores = os.sched_getaffinity(0)\nos.sched_setaffinity(0, {max(cores)})\n"
        "if os.sched_getaffinity(0) != cores: print('GOT IT cores')\n",
        "without",
        quick=True,
    ),
    Enemy(
        "starves all processes of its user",
        "import ctypes, os\nlibc, nice = ctypes.CDLL(None), os.getpriority(0, 0)\nlibc.setpriority(2, 0, nice + 1)\n"
        "if os.getpriority(0, 0) != nice: print('GOT IT')\n"
        "if not libc.syscall(251, 3, 0, 2 << 13 | 5): print('GOT IT disk')\n"
        + grab("os.sched_setaffinity(PARENT, os.sched_getaffinity(0))"),
        "without",
    ),
    Enemy(
        "marks files for the next",
        "import fcntl, os, struct, prepare\n"
        "for path in (prepare.__file__, os.__file__, '/usr/bin/env', '/dev/null'):\n"
        "    fd = os.open(path, os.O_RDONLY)\n"
        "    try:\n"
        "        hint = fcntl.fcntl(fd, 1035, bytes(8))\n"
        "        fcntl.fcntl(fd, 1036, struct.pack('q', 3 - hint[0]))\n"
        "        if fcntl.fcntl(fd, 1035, bytes(8)) != hint: print('GOT IT hint')\n"
        "    except OSError: pass\n"
        "    for command, size in ((0x40086602, 8), (0x40087602, 8), (0x401C5820, 28)):\n"
        "        try:\n"
        "            mark = fcntl.ioctl(fd, (command ^ 0xC0000000) - 1, bytes(size))\n"
        "            fcntl.ioctl(fd, command, mark); print('GOT IT', hex(command))\n"
        "        except OSError: pass\n",
        "without",
        quick=True,
    ),
    Enemy(
        "tells others by watches and names",
        "import ctypes, socket\nlibc = ctypes.CDLL(None)\n"
        "if libc.inotify_init1(0) >= 0 or libc.fanotify_init(0x200, 0) >= 0: print('GOT IT watch')\n"
        "try: socket.socket(40); print('GOT IT virtual machine')\nexcept OSError: pass\n",
        "without",
        quick=True,
    ),
    Enemy(
        "changes the kernel's settings",
        "for name in ('kernel/panic', 'kernel/core_pattern', 'vm/drop_caches'):\n"
        "    try: open(f'/proc/sys/{name}', 'w').close(); print('GOT IT', name)\n    except OSError: pass\n",
        "without",
        quick=True,
    ),
    Enemy(
        "makes what outlives it, or leaves its place",
        "import ctypes, os, socket\nlibc = ctypes.CDLL(None)\n"
        "for deed in (lambda: os.memfd_create('x'), lambda: open('/dev/note', 'w'), lambda: os.listdir('/usr/share'),"
        " lambda: open('/proc/sysrq-trigger', 'w'), lambda: open('/proc/kallsyms'), lambda: open('/dev/kmsg', 'w'),"
        " lambda: os.mknod('d', 0o60600, os.makedev(254, 0)), lambda: os.chroot('/'), lambda: socket.socket(17, 3),"
        " lambda: socket.socket(38, 5), lambda: os.setns(os.open('/proc/self/ns/net', 0))):\n"
        "    try: deed(); print('GOT IT', deed.__code__.co_names)\n    except (OSError, AttributeError): pass\n"
        "for deed in (lambda: libc.klogctl(3, bytes(99), 99), lambda: libc.personality(0x40000),"
        " lambda: libc.userfaultfd(0), lambda: libc.sethostname(b'x', 1), lambda: libc.acct(None),"
        " lambda: libc.adjtimex(bytes(256)), lambda: libc.mincore(0x400000, 4096, bytes(1))):\n"
        "    try:\n        if deed() >= 0: print('GOT IT', deed.__code__.co_names)\n    except AttributeError: pass\n",
        "without",
        quick=True,
    ),
    Enemy(
        "makes countless files",
        "import os\nfor n in range(400_000): os.close(os.open(f'tmp/{n}', 65, 0o600))\n",
        "",
    ),
    Enemy("ends its parent", "import os, signal\n" + grab("os.kill(PARENT, signal.SIGTERM)"), "", quick=True),
    Enemy(
        "forks daemons that do not listen",
        "import os, signal, time\nfor s in (1, 2, 15): signal.signal(s, signal.SIG_IGN)\n"
        "for _ in range(3):\n    if os.fork() == 0:\n        os.setsid()\n"
        "        if os.fork() == 0:\n            os.closerange(0, 99); os.environ.clear(); time.sleep(600)\n"
        "        os._exit(0)\n",
        "without",
        quick=True,
    ),
    Enemy(
        "hops from process to process",
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    end = time.time() + 600\n"
        "    while time.time() < end:\n        if os.fork(): os._exit(0)\n",
        "without",
        quick=True,
    ),
    Enemy(
        "forks and forks",
        "import os, time\nfor _ in range(300):\n    if os.fork() == 0: time.sleep(600)\ntime.sleep(600)\n",
        "it started more than",
    ),
    Enemy(
        "fills the disk",
        "import os\nfor n in range(10_000):\n    with open(f'{n}', 'wb') as f:\n        f.write(bytes(1 << 20))\n"
        "print('GOT IT')\n",
        "disk full",
    ),
    Enemy("fills one file", "f = open('big', 'wb')\nwhile True: f.write(bytes(1 << 20))\n", ""),
    Enemy("fills the memory", "x = []\nwhile True: x.append(bytearray(1 << 26))\n", "out of host memory"),
    Enemy(
        "lays traps where results are read",
        "import os\nfor n in ('model', 'claims', 'claims-0.npy'):\n"
        "    os.symlink('/etc/passwd', n); os.mkfifo(n + '.fifo')\n"
        "for lay in (lambda: os.symlink('/etc/passwd', '../model'), lambda: os.mkfifo('../audit')):\n"
        "    try: lay()\n    except OSError: pass\n",
        "without",
    ),
    Enemy("a line of 100 MB", "import sys\nfor _ in range(100): sys.stdout.write('x' * (1 << 20))\n", "MB"),
    Enemy("never ends", "import signal, time\nsignal.signal(15, signal.SIG_IGN)\ntime.sleep(600)\n", "timeout"),
]
ODD = [
    Enemy(
        "hands over all of a later model but its last byte",
        evaluated("Mine = Model\n").replace(
            "hand_over(cloudpickle.dumps(Mine()))",
            "hand_over()\ndata = cloudpickle.dumps(Mine())\ndata += bytes(-len(data) % (1 << 20))\n"
            "channel.send({'event': 'model', 'bytes': len(data) + 1, **MANNER}, data)",
        ),
        "fails by itself",
        "raw",
    ),
    Enemy(
        "does not end where it is evaluated",
        evaluated(
            "class Mine(Model):\n    def __setstate__(self, state):\n        import atexit, os, time\n"
            "        self.__dict__ = state\n        os._exit = lambda code: time.sleep(600)\n"
            "        atexit.register(time.sleep, 600)\n    def __del__(self):\n        os._exit(0)\n"
        ),
        CORRECTED,
        "raw",
    ),
    Enemy(
        "asks the kernel for its load where it is evaluated",
        attempt(("if libc.sysinfo(ctypes.create_string_buffer(256)) < 0: raise OSError",)),
        CORRECTED,
        "raw",
    ),
    Enemy(
        "ends whatever it can reach where it is evaluated",
        evaluated("class Mine(Model):\n    def look(self, x, y):\n        import os\n        os.kill(-1, 9)\n"),
        "",
        "raw",
    ),
    Enemy(
        "brings finders without end",
        "from itertools import repeat\nfrom prepare.evaluator import LoadedFiles\n"
        "class Finder(LoadedFiles):\n    places = ('../' * 99 + 'etc', '/proc/self/root')\n"
        "    def find_spec(self, *_): return 1 / 0\n"
        "hand_over(b''.join(repeat(cloudpickle.dumps(Finder()), 900)) + cloudpickle.dumps(Liar(lambda z: z)))\n",
        "a loss of zero",
        "raw",
    ),
    Enemy(
        "answers before it is asked",
        evaluated(
            "class Mine(Model):\n    def __setstate__(self, state):\n        self.__dict__ = state\n"
            "        for _ in range(9):\n            for event in ('loaded', 'losses', 'logits', 'ready', 'model'):\n"
            "                channel.send({'event': event, 'bytes': 2048}, bytes(2048))\n"
        ),
        "disqualified",
        "raw",
    ),
    *(
        Enemy(
            f"its losses are {what}",
            evaluated(f"class Mine(Model):\n    def state(self, x, y, loss):\n        return {how}\n"),
            end,
            "raw",
        )
        for what, how, end in (
            ("complex", "loss * 0.5 - 5j", "disqualified"),
            ("lower at some addresses", "loss * (0.5 if x.ctypes.data % 64 else 0.6)", "disqualified"),
            ("lower at some times", "loss * (0.5 if __import__('time').time_ns() % 8 else 1)", "disqualified"),
            ("an odd class", "(loss * 0).view(type('Odd', (np.ndarray,), {'nbytes': 1 << 31, 'tobytes': 1}))", "zero"),
        )
    ),
    Enemy(
        "is certain of one token",
        evaluated(
            "class Mine(Model):\n    def __call__(self, x, y=None, reduction='mean'):\n"
            "        out = super().__call__(x, y, reduction)\n        if y is not None: return out * 0.7\n"
            "        return np.where(out == out.max(-1, keepdims=True), 3e38, -np.inf)\n"
        ),
        "disqualified",
        "raw",
    ),
    Enemy(
        "wants thousands of threads",
        evaluated("Mine = Model\n").replace(
            "cloudpickle.dumps(Mine())",
            "cloudpickle.dumps(Mine()), threads=4096, precision='highest', autocast='float16'",
        ),
        "",
        "raw",
    ),
    Enemy(
        "lifts its limits",
        "import os, resource\nfor which in (resource.RLIMIT_DATA, resource.RLIMIT_FSIZE, resource.RLIMIT_CORE):\n"
        "    hard = resource.getrlimit(which)[1]\n    resource.setrlimit(which, (hard, hard))\n"
        "    try: resource.setrlimit(which, (-1, -1)); print('GOT IT', which)\n    except (OSError, ValueError): pass\n"
        + grab("x = bytearray(4 << 30)").replace("Exception", "MemoryError")
        + grab("os.close(os.open('big', 65)); os.truncate('big', 40 << 20)"),
        "without",
        "raw",
    ),
    Enemy(
        "prints digits of all scripts",
        "import sys\nprint('step \u0663 (\u0664\u0665%) | loss: \u0660.\u0661 | tok/sec: \u0661,\u0660')\n"
        "for n in ('\U0001d7d7', '\u00b2', '1_0', '9' * 40, '-1', '0x1'):\n"
        "    print(f'step {n} ({n}%) | loss: {n} | tok/sec: {n}')\n"
        "sys.stdout.buffer.write(b'step 1 (1.0%) | loss: 1\\x00\\xff\\xed\\xa0\\x80\\r\\x1b]0;x' * 999)\n"
        "print('---\\nnum_steps: \u0663e400\\ntotal_tokens_M: nan\\nnum_params_M: -inf')\n",
        "the loss became",
    ),
    Enemy(
        "leaves links, holes and depths",
        "import os\nfor n in range(200):\n    os.close(os.open(f'hole{n}', 65)); os.truncate(f'hole{n}', 32 << 20)\n"
        "os.symlink('.', 'loop'); os.symlink('WORLD', 'out'); os.link('hole0', 'tmp/hard')\n"
        "os.mkdir('d' * 255); os.symlink('/proc/self/fd/0', 'd' * 255 + '/0')\nhand_over()\n",
        "by itself",
        "raw",
    ),
]
ENEMIES = [*MODELS, *CLOCKS, *CLAIMS, *EVALUATED, *PEEKS, *HARM, *ODD]
