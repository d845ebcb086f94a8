"""All that Optuna does: samples, and pictures of what the constants did to the score."""

import sys
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, cast

import optuna
from markupsafe import escape
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from orchestrator.optimizer.search import SearchState
from orchestrator.optimizer.space import explain_unsearchable
from prepare.command import UserError
from prepare.constants import Choices, Constant, Numbers, Value, format_literal

ASKS = 10  # samples before giving up on finding a new step
SHOWN = 200  # scored trials in a picture: the latest
AXES = 6  # constants beside the score in parallel coordinates: those of most importance


def ask(search: SearchState, free: Sequence[str], seed: int, way: str = "tpe") -> Iterator[dict[str, Value]]:
    """Yield changes to these constants of the incumbent as a sampler draws them, given all trials.

    Failed trials count as pruned, never as a bad score. Raises UserError if the sampler lacks a package.
    """
    if lacks := explain_unsearchable(way):
        raise UserError(lacks)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    tpe = partial(optuna.samplers.TPESampler, multivariate=True, constant_liar=True)
    sampler = (optuna.samplers.GPSampler if way == "gp" else tpe)(seed=seed, n_startup_trials=1)
    study, constants = optuna.create_study(sampler=sampler), [search.constants[name] for name in free]
    distributions = {constant.name: _to_distribution(constant) for constant in constants}
    for trial in search.trials:
        params = {constant.name: _encode(constant, trial.after.get(constant.name)) for constant in constants}
        if trial.outcome != "refused" and None not in params.values():
            unscored = TrialState.RUNNING if trial.outcome == "running" else TrialState.PRUNED
            state = unscored if trial.val_bpb is None else TrialState.COMPLETE
            study.add_trial(create_trial(state=state, value=trial.val_bpb, params=params, distributions=distributions))
    for _ in range(ASKS):
        drawn = study.ask(distributions).params
        values = {constant.name: _decode(constant, drawn[constant.name]) for constant in constants}
        yield {name: value for name, value in values.items() if value != search.constants[name].value}


def _to_distribution(constant: Constant) -> BaseDistribution:
    """Return the distribution that TPE draws from: over a range mapped to 0..1, or over indices of choices."""
    space = constant.space
    if not isinstance(space, Choices):
        return FloatDistribution(0.0, 1.0)
    indices = range(len(space.options))
    return IntDistribution(0, indices[-1]) if space.ordered else CategoricalDistribution(list(indices))


def _encode(constant: Constant, value: Value | None) -> float | None:
    """Return a constant's value in TPE's space, clipped to a range; None if it is not a choice."""
    space = constant.space
    if isinstance(space, Choices):
        return space.options.index(value) if value in space.options else None
    return space.to_unit(value) if isinstance(value, int | float) else None


def _decode(constant: Constant, drawn: float) -> Value:
    space = constant.space
    return space.options[int(drawn)] if isinstance(space, Choices) else space.from_unit(drawn, constant.is_coarse)


def draw_constants(search: SearchState) -> dict[str, dict[str, Any]]:
    """Return two plotly figures of this session's scored trials: importance by PED-ANOVA, and parallel coordinates.

    They show the constants that had several values; there is no figure of fewer than two.
    """
    from optuna import importance, visualization  # takes a while to import

    trials, metric = [trial for trial in search.trials if trial.val_bpb is not None][-SHOWN:], search.metric
    columns = {name: [trial.after.get(name) for trial in trials] for name in search.constants}
    spaces = {n: _describe(search.constants[n], c) for n, c in columns.items() if None not in c and len(set(c)) > 1}
    if len(spaces) < 2:
        return {}
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize" if metric.goal == "max" else "minimize")
    distributions = {str(escape(name)): space for name, space in spaces.items()}
    for trial in trials:
        values = ((name, trial.after[name], isinstance(space, FloatDistribution)) for name, space in spaces.items())
        params = {str(escape(name)): value if is_number else _quote(value) for name, value, is_number in values}
        score = metric.sign * (trial.val_bpb or 0.0)
        study.add_trial(create_trial(value=score, params=params, distributions=distributions))
    draw, evaluator = cast("Any", visualization), importance.PedAnovaImportanceEvaluator()
    shares = draw.plot_param_importances(study, evaluator=evaluator).to_plotly_json()
    shares["layout"] = {"margin": {"t": 34, "r": 44}, "xaxis": {"title": {"text": "importance"}}}
    most = list(shares["data"][0]["y"])[-AXES:]
    lines = draw.plot_parallel_coordinate(study, most, target_name=str(escape(metric.name))).to_plotly_json()
    lines["data"].pop()  # the color bar
    for trial, line in zip(trials, lines["data"], strict=True):
        line |= {"meta": int(trial.name.split()[-1]), "hovertemplate": f"{trial.name}<br>{line['hovertemplate']}"}
    lines["layout"] = {**lines["layout"], "margin": {"t": 34}, "title": None, "template": None}
    lines["layout"]["xaxis"]["range"] = (-0.6, len(most) + 0.2)
    return {"importance": shares, "parallel": lines}


def _describe(constant: Constant, values: Sequence[Value | None]) -> BaseDistribution:
    """Return the distribution of the values that a constant had: texts, unless a float holds each."""
    numbers = [value for value in values if isinstance(value, int | float) and abs(value) <= sys.float_info.max]
    if len(numbers) < len(values):
        return CategoricalDistribution(sorted({_quote(value) for value in values if value is not None}))
    log = isinstance(constant.space, Numbers) and constant.space.log and min(numbers) > 0
    return FloatDistribution(min(numbers), max(numbers), log=log)


def _quote(value: Value) -> str:
    return str(escape(format_literal(value)))
