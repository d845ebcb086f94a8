"""What a run prints, as it is read: the log, the steps, the summary, and reasons to stop it."""

import json
import math
import random
import re
import time
from itertools import count, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.description import SERIES
from orchestrator.core.events import EvaluationPlan, Point, PruningThreshold, RunMetrics, RunResult, SessionProfile
from orchestrator.lab import failures
from orchestrator.lab.failures import Prune
from orchestrator.lab.log import (
    HEAD,
    MAX_LINE,
    MAX_RAW_LINE,
    TAIL,
    Transcript,
    parse_progress,
)
from orchestrator.lab.monitor import POINTS, STANDSTILL, RunLimits, RunMonitor, set_limits

UPSTREAM = (
    "\rstep 00123 (45.6%) | loss: 3.210000 | lrm: 1.00 | dt: 310ms | tok/sec: 1,690,123 | mfu: 39.8% | epoch: 1 | "
    "remaining: 163s    "
)
SUMMARY = """
---
val_bpb:          0.997900
training_seconds: 300.1
total_seconds:    325.9
peak_vram_mb:     45060.2
mfu_percent:      39.80
total_tokens_M:   499.6
num_steps:        953
num_params_M:     50.3
depth:            8
"""


def rows(data, size=None):
    """The lines of a log, read in pieces of `size` bytes."""
    transcript = Transcript()
    size = size or max(len(data), 1)
    for start in range(0, len(data), size):
        list(transcript.feed(data[start : start + size]))
    list(transcript.feed(b"", last=True))
    return transcript.log.split("\n")


class Clock:
    """Seconds that pass only when a test says so."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def line(number, percent, loss):
    return f"step {number:05d} ({percent:.1f}%) | loss: {loss} | lrm: 1.00 | tok/sec: 1,000\n".encode()


def monitor_run(clock, **limit):
    return RunMonitor(RunLimits(**{"wall": 1000.0, **limit}), clock)


def begin_training(monitor):
    monitor.training_began = monitor.read_clock()


def watch(monitor, clock, seconds):
    """Let time pass while the orchestrator is awake, and return its last reason to stop."""
    for _ in range(seconds):
        clock.now += 1
        reason = monitor.stop_reason
    return reason


def test_upstreams_progress_line_is_understood():
    found = parse_progress(UPSTREAM)
    assert (found.number, found.progress, found.loss, found.tokens_per_second) == (123, 0.456, 3.21, 1690123.0)


@pytest.mark.parametrize(
    "text",
    [
        *["", "step", "step one (1%) | loss: 2", "loss: 3.2", "step 1 () | loss: 1", "step 1 (1.2.3%) | loss: 1"],
        *[f"step 1 (1%) | loss: {text}" for text in ("?!", "--", ", lr: 1", "0,93", "tensor(5.6)")],
    ],
)
def test_other_lines_are_no_progress(text):
    assert parse_progress(text) is None


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        *[("nan", "nan"), ("nan, lr: 0.1", "nan"), ("-inf", "-inf"), ("1" * 50 + "e-49", "1.1111111111111112")],
        *[("5.678, lr: 0.1", "5.678"), ("5.678; lr: 0.1", "5.678"), ("1,234.5", "1234.5"), ("93.5%", "93.5")],
    ],
)
def test_a_loss_may_be_any_number_however_it_is_printed(text, shown):
    assert str(parse_progress(f"step 00001 (0.1%) | loss: {text} | lrm: 1.0").loss) == shown


def test_the_log_is_what_a_terminal_would_show():
    steps = UPSTREAM + UPSTREAM.replace("123", "124")
    printed = f"importing\r\ntraining{steps}\n\x1b[31mred\x1b[0m \x1b]0;title\x07done"
    first, second, third = rows(printed.encode())
    assert (first, third) == ("importing", "red done")
    assert second.startswith("step 00124 (45.6%)")


def test_what_is_no_text_is_replaced():
    assert rows(b"a\xff\xfeb\x00c\x07\n\xe2\x80\xaeright to left") == ["a��bc", "right to left"]


@given(st.lists(st.sampled_from([b"x", b"\r", b"\n", b"\xc3", b"\xa9", b"\x1b[1m", b"y" * 900])), st.integers(1, 7))
def test_pieces_do_not_matter(parts, size):
    data = b"".join(parts)
    assert rows(data, size) == rows(data)


def test_a_line_of_20_mb_is_cut():
    transcript = Transcript()
    for _ in range(320):
        list(transcript.feed(b"x" * 65536))
        assert len(transcript.open) <= MAX_RAW_LINE
    list(transcript.feed(b"\nnext\n"))
    assert [(text[-1], len(text)) for text in transcript.log.split("\n")] == [("…", MAX_LINE), ("t", 4)]


def test_numbers_are_read_beyond_what_the_log_keeps_of_a_line():
    transcript = Transcript()
    for piece in (b"." * 60_000, b" METRIC acc=0.", b"9\n"):
        assert not list(transcript.feed(piece))
    assert transcript.reader.numbers == {"acc": 0.9}
    assert len(transcript.log) == MAX_LINE


def test_a_line_without_end_and_a_flood_of_lines_stay_small():
    transcript = Transcript()
    for number in range(2000):
        list(transcript.feed(f"{number}\n".encode() * 3))
    for _ in range(1 << 10):
        list(transcript.feed(b"\x1b[31m\x00" * 8192))
    assert transcript.bytes > 50_000_000
    assert len(transcript.log) < 1 << 20
    assert len(transcript.open) <= MAX_RAW_LINE


@given(st.lists(st.integers(0, 2 * MAX_LINE), max_size=400), st.integers(0, 2 * (HEAD + TAIL)))
def test_a_log_keeps_head_and_tail_within_its_size(lengths, more):
    printed = [f"{number} ".ljust(length, ".") for number, length in enumerate([*lengths, *[9] * more])]
    kept = rows("\n".join(printed).encode())
    assert len(kept) <= HEAD + TAIL + 1
    assert all(len(row) <= MAX_LINE for row in kept)
    if printed:
        assert kept[0].startswith("0")
        assert kept[-1].startswith(str(len(printed) - 1))
    if len(printed) > HEAD + TAIL:
        assert kept[HEAD] == f"[… {len(printed) - HEAD - TAIL:,} lines left out …]"


@given(st.integers(1, 500))
def test_a_curve_is_thinned_evenly(length):
    clock = Clock()
    monitor = monitor_run(clock)
    begin_training(monitor)
    for i in range(length):
        monitor.feed(line(i, 100 * i / length, 5.0))
        clock.now += 1
    seconds = [point.seconds for point in monitor.points.values()]
    assert len(seconds) <= POINTS
    assert (seconds[0], seconds[-1]) == (0.0, length - 1.0)
    gaps = [after - before for before, after in pairwise(seconds[:-1])]
    assert not gaps or max(gaps) - min(gaps) <= 2.0  # the percentage is rounded


def test_the_summary_is_read():
    monitor = monitor_run(Clock())
    monitor.feed(UPSTREAM.encode() + SUMMARY.encode())
    measures = monitor.summarize(on_gpu=True)
    assert (measures.steps, measures.tokens, measures.parameters) == (953, 499_600_000, 50_300_000)
    monitor.peak_mb = 606.0
    assert (measures.memory_mb, monitor.summarize(on_gpu=False).memory_mb) == (45060.2, 606.0)
    assert (measures.mfu, monitor.summarize(on_gpu=False).mfu) == (39.8, 0.0)


def test_without_a_summary_the_last_line_and_the_system_must_do():
    monitor = monitor_run(Clock())
    monitor.feed(line(7, 3.0, 4.5))
    monitor.peak_mb = 321.0
    measures = monitor.summarize(on_gpu=False)
    assert (measures.steps, measures.memory_mb) == (7, 321.0)


@pytest.mark.parametrize("value", ["inf", "nan", "1e400", "-5", "-1e300", "1e300", "9" * 39])
def test_a_summary_of_nonsense_stays_a_number_that_can_be_stored(value):
    monitor = monitor_run(Clock())
    monitor.feed(f"---\nnum_steps: {value}\ntotal_tokens_M: {value}\npeak_vram_mb: {value}\n".encode())
    found = json.loads(monitor.summarize(on_gpu=True).model_dump_json())
    assert all(0 <= found[name] < 2**63 for name in ("steps", "tokens", "memory_mb"))  # as wide as Parquet's columns


def test_the_clock_runs_from_start_to_stop():
    now = Clock()
    monitor = monitor_run(now)
    now.now += 4
    assert monitor.train_seconds == 0.0
    begin_training(monitor)
    now.now += 5
    assert monitor.train_seconds == 5.0
    monitor.training_ended = monitor.read_clock()
    now.now += 5
    assert monitor.train_seconds == 5.0


def test_what_evaluates_a_model_prints_no_progress():
    monitor = monitor_run(Clock())
    monitor.only_answers = True
    monitor.feed(line(271828, 2, "nan"))
    assert (monitor.stop_reason, monitor.last) == (None, None), "the numbers may be text that it was sent"


@pytest.mark.parametrize(
    ("loss", "words"),
    [("nan", "became nan"), ("inf", "became inf"), ("-1e308", "became -1e+308")],
)
def test_an_impossible_loss_ends_a_run_at_once(loss, words):
    monitor = monitor_run(Clock())
    monitor.feed(line(1, 1, 7.6) + line(2, 2, loss) + line(3, 3, 5.0))
    assert monitor.stop_reason.kind == "NaN"
    assert words in monitor.stop_reason.message
    assert all(point.loss < 100 for point in monitor.points.values())


REPORTED = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=80) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=60), inner, max_size=3),
)
NAMES = (
    st.from_regex(r"[a-c]{1,3}/[a-z_.]{1,4}", fullmatch=True)
    | st.text(max_size=80)
    | st.sampled_from(["position", "position/x"])
)


@given(
    st.lists(
        st.fixed_dictionaries(
            {}, optional={"progress": st.floats(0, 1) | REPORTED, "values": st.dictionaries(NAMES, REPORTED) | REPORTED}
        ),
        max_size=9,
    )
)
def test_whatever_a_script_reports_of_itself_is_a_small_table_of_numbers(messages):
    """It can be stored, its names are no text, and what Nightshift measures cannot be claimed."""
    monitor = RunMonitor(RunLimits(wall=1))
    for message in messages:
        monitor.take_report(message)

    table = {name: tuple(series) for name, series in monitor.telemetry.items()}
    result = RunResult(experiment=1, run=1, metrics=RunMetrics(), curve=(), log="x", telemetry=table)
    assert RunResult.model_validate_json(result.model_dump_json()) == result
    assert all(re.fullmatch(r"[\w.]{1,16}/[\w.]{1,48}", name, re.ASCII) for name in table)
    assert not any(name.startswith("position") for name in table)
    assert all(1 <= len(series) <= 11 for series in table.values())


def test_a_flood_of_reports_fills_nothing():
    monitor = RunMonitor(RunLimits(wall=1))
    for i in range(5_000):
        monitor.take_report({"progress": i / 5_000, "values": {f"a/{i}": 1.5, "scalar/x": i}})

    assert len(monitor.telemetry) == SERIES
    assert monitor.telemetry["scalar/x"] == [i * 500.0 for i in range(10)]


def test_reports_are_kept_by_tenth_of_the_budget():
    monitor = RunMonitor(RunLimits(wall=1))
    for share, value in ((0.0, 1), (0.05, 2), (0.31, 3), (0.2, 4), (1.0, 5)):
        monitor.take_report({"progress": share, "values": {"scalar/x": value, "scalar/y": math.nan}})

    assert monitor.telemetry == {"scalar/x": [1, None, None, 3, *[None] * 6, 5]}


def test_silence_is_a_hang_only_between_ready_and_the_last_steps():
    clock = Clock()
    monitor = monitor_run(clock, quiet=80.0)
    assert watch(monitor, clock, 500) is None  # compiling
    begin_training(monitor)
    for number in range(4):
        watch(monitor, clock, 8)
        monitor.feed(line(number, number, 5.0))
    assert watch(monitor, clock, 79) is None
    found = watch(monitor, clock, 2)
    assert found.kind == "hang"
    assert "for 80 s after step 3" in found.message
    monitor.feed(line(99, 98.5, 4.0))
    assert watch(monitor, clock, 300) is None  # evaluating


def test_a_script_that_prints_seldom_is_not_said_to_hang():
    clock = Clock()
    monitor = monitor_run(clock, quiet=60.0)
    begin_training(monitor)
    for number in range(4):
        monitor.feed(line(number, 10 * number, 5.0))
        watch(monitor, clock, 50)
    assert watch(monitor, clock, 190) is None
    assert watch(monitor, clock, 30).kind == "hang"


def test_once_its_model_was_handed_over_a_script_ends_or_goes_on_or_is_ended():
    clock = Clock()
    plan = EvaluationPlan(
        audit=2.0, confirmed=False, incumbent=0, pruning_thresholds=(PruningThreshold(progress=0.5, loss=4.5),)
    )
    monitor = RunMonitor(RunLimits(wall=1000.0, quiet=60.0), clock, plan=plan)
    begin_training(monitor)
    watch(monitor, clock, 40)
    monitor.training_ended = monitor.read_clock()
    assert watch(monitor, clock, 9) is None
    monitor.feed(line(0, 0.0, 5.0) + line(5, 50.0, 5.0) + line(6, 60.0, "nan") + line(9, 95.0, 5.0))
    assert watch(monitor, clock, 100) is None, "what was printed late tells of steps before"
    assert (len(monitor.points), monitor.uncounted) == (3, 0.0)
    found = watch(monitor, clock, 1)
    assert (found.kind, found.message[:28]) == ("hang", "it printed nothing for 100 s")
    assert "handed its model over" in found.message
    monitor.feed(line(10, 96.0, 4.0))  # it has evaluated in between, and goes on
    assert isinstance(monitor.stop_reason, Prune)
    monitor.cause = None
    assert watch(monitor, clock, 300) is None
    monitor.feed(line(12, 98.0, "nan"))
    assert monitor.stop_reason.kind == "NaN"
    monitor.cause = None
    assert "s; it has handed its model over" in watch(monitor, clock, 1000).message


def test_before_the_first_step_a_script_may_compile_and_then_the_line_that_is_awaited_is_named():
    clock = Clock()
    monitor = monitor_run(clock, quiet=60.0, wall=1e6)
    begin_training(monitor)
    assert watch(monitor, clock, 600) is None
    monitor.feed(b"Time budget: 300s\nGradient accumulation steps: 2\n")
    assert watch(monitor, clock, 600) is None
    monitor.feed(line(0, 0.0, 5.0))
    found = watch(monitor, clock, 61)
    assert found.kind == "hang"
    example = found.message.partition("`")[2].partition("`")[0]
    assert parse_progress(example)


@pytest.mark.parametrize("words", [b"12 percent, loss 5.5\n", b"\r 12%|##      | 7/60", b".", b"epoch 1: 5.5\n"])
def test_progress_in_other_words_is_a_sign_of_life(words):
    clock = Clock()
    monitor = monitor_run(clock, quiet=60.0)
    begin_training(monitor)
    monitor.feed(line(0, 0.0, 5.0))
    for _ in range(10):
        assert watch(monitor, clock, 30) is None
        monitor.feed(words)
    assert watch(monitor, clock, 61).kind == "hang"


def test_steps_that_a_script_does_not_count_are_measured():
    clock = Clock()
    monitor = monitor_run(clock)
    assert monitor.uncounted == 0.0
    clock.now += 7
    begin_training(monitor)
    for number, percent in enumerate((0, 0, 0, 1.2, 0, 2.5)):  # compiles for 3 s each; a late zero is no first step
        clock.now += 3
        monitor.feed(line(number, percent, 5.0))
    assert monitor.uncounted == monitor.summarize(on_gpu=True).uncounted == 9.0


def test_the_deadline_counts_from_the_start():
    clock = Clock()
    monitor = monitor_run(clock, wall=10.0)
    assert watch(monitor, clock, 10) is None
    assert watch(monitor, clock, 1).kind == "timeout"


def test_an_orchestrator_that_stood_still_blames_no_run():
    clock = Clock()
    monitor = monitor_run(clock, wall=100.0, quiet=60.0)
    begin_training(monitor)
    monitor.feed(line(0, 0.0, 5.0))
    watch(monitor, clock, 10)
    for _ in range(5):
        clock.now += 75  # Ctrl-Z and fg
        assert monitor.stop_reason is None
    assert monitor.suspended == 5 * (75 - STANDSTILL)
    assert monitor.train_seconds == 10 + 5 * STANDSTILL
    assert watch(monitor, clock, 26).kind == "hang"


def test_only_the_monotonic_clock_counts():
    assert RunMonitor(RunLimits(wall=9.0)).clock is time.monotonic


def test_progress_is_told_as_it_comes():
    clock, told = Clock(), []
    monitor = RunMonitor(RunLimits(wall=9.0), clock, lambda point, rate: told.append((point, rate)))
    begin_training(monitor)
    clock.now += 2
    monitor.feed(line(1, 50.0, 3.5))
    assert told == [(Point(seconds=2.0, progress=0.5, loss=3.5), 1000.0)]


@pytest.mark.parametrize(
    ("losses", "control_run", "would_prune_at", "pruned"),
    [
        ([5.0, 4.0, 3.0, 2.5], False, None, False),
        ([5.0, 4.6, 4.4, 4.2], False, 0.5, True),
        ([5.0, 4.6, 4.4, 4.2], True, 0.5, False),
        ([5.0, 4.0, 4.4, 4.2], False, 0.75, True),
    ],
)
def test_a_run_that_is_far_behind_is_pruned(losses, control_run, would_prune_at, pruned):
    bounds = (PruningThreshold(progress=0.5, loss=4.5), PruningThreshold(progress=0.75, loss=4.0))
    terms = EvaluationPlan(audit=2.0, confirmed=False, incumbent=0, pruning_thresholds=bounds, control_run=control_run)
    monitor = RunMonitor(RunLimits(wall=9.0), Clock(), plan=terms)
    begin_training(monitor)
    for number, loss in enumerate(losses, 1):
        monitor.feed(line(number, 25 * number, loss))
    assert monitor.would_prune_at == would_prune_at
    assert isinstance(monitor.stop_reason, Prune) == pruned
    assert not pruned or f"after {100 * would_prune_at:.0f} % of its budget" in str(monitor.stop_reason)


def test_a_run_that_is_not_worth_finishing_says_what_it_would_have_come_to():
    limit = PruningThreshold(progress=0.5, loss=4.3, usual=4.0, scale=0.5)
    plan = EvaluationPlan(audit=2.0, confirmed=False, incumbent=0, pruning_thresholds=(limit,))
    monitor = RunMonitor(RunLimits(wall=9.0), Clock(), plan=plan)
    begin_training(monitor)
    monitor.feed(line(1, 25, 5.0))
    monitor.feed(line(2, 50, 4.4))
    assert "0.400 more than the best's, which predicts that it ends behind by 0.2000" in str(monitor.stop_reason)
    assert isinstance(monitor.stop_reason, Prune)
    assert monitor.stop_reason.deficit == pytest.approx(0.2)


def test_limits_leave_room_for_a_slow_candidate():
    profile = SessionProfile(name="cpu", budget_kind="work", budget=1e12, expected_seconds=40.0, data_hash="")
    found = set_limits(profile)
    assert found.wall > 4 * 40.0
    day = profile.model_copy(update={"expected_seconds": 86_400.0})
    assert set_limits(day).quiet > 2 * 864.0  # a progress line comes with every hundredth


TRACE = 'Traceback (most recent call last):\n  File "train.py", line 3, in <module>\n    model(x)\n'


@pytest.mark.parametrize(
    ("status", "log", "kind", "words"),
    [
        (1, TRACE + "torch.OutOfMemoryError: CUDA out of memory. It needs 9 GiB", "out of device memory", "9 GiB"),
        (1, TRACE + "RuntimeError: CUDA error: out of memory\nexiting", "out of device memory", "CUDA error"),
        (1, TRACE + "RuntimeError: MPS backend out of memory (MPS allocated: 9 GB)", "out of device memory", "MPS"),
        (1, TRACE + "MemoryError", "out of host memory", "MemoryError"),
        (1, "RuntimeError: [enforce fail] DefaultCPUAllocator: can't allocate memory", "out of host memory", "Default"),
        (1, TRACE + "OSError: [Errno 28] No space left on device: 'x'", "disk full", "No space"),
        (1, TRACE + "ModuleNotFoundError: No module named 'flash_attn'", "import", "flash_attn"),
        (1, TRACE + "ImportError: cannot import name 'x' from 'torch'", "import", "cannot import"),
        (1, '  File "train.py", line 3\n    x = =\n        ^\nSyntaxError: invalid syntax', "syntax", "invalid syntax"),
        (1, "IndentationError: unexpected indent", "syntax", "unexpected indent"),
        (1, "step 00009 (1.0%) | loss: 5.0\nFAIL: loss is nan at step 10", "NaN", "step 10"),
        (1, "FAIL", "NaN", "FAIL"),
        (-11, "loading", "other", "SIGSEGV: loading"),
        (139, "parameters: 5M", "other", "SIGSEGV: parameters: 5M"),  # behind a shell
        (134, "  what():  std::bad_alloc", "out of host memory", "bad_alloc"),
        (1, TRACE + "numpy._ArrayMemoryError: Unable to allocate 74.5 GiB", "out of host memory", "74.5"),
        (1, "    | ValueError: one of two\n    +--------------------", "other", "ValueError: one of two"),
        (1, "torch._dynamo.exc.Unsupported: a call\n\nSet TORCHDYNAMO_VERBOSE=1 for", "other", "Unsupported: a call"),
        (255, "bye", "other", "bye"),
        (1, TRACE + "ValueError: shapes do not match\nstep 00009 (1.0%) | loss: 5.0", "other", "ValueError: shapes"),
        (3, "", "other", "exit code 3"),
    ],
)
def test_a_failure_is_named_and_quoted(status, log, kind, words):
    fault = failures.classify_failure(status, log)
    assert fault.kind == kind
    assert words in fault.message


def test_a_message_is_short():
    assert len(failures.classify_failure(1, "ValueError: " + "x" * 5000).message) <= 300


def test_random_bytes_do_no_harm():
    monitor = monitor_run(Clock())
    dice = random.Random(0)
    for _ in zip(range(200), count(), strict=False):
        data = dice.randbytes(1000)
        monitor.feed(data)
    monitor.feed(b"", last=True)
    assert failures.classify_failure(1, monitor.transcript.log).kind
