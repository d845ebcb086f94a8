"""Write a session for TensorBoard: scores by experiment, and the loss curve of each."""

from pathlib import Path

from orchestrator.views.experiments import LogReader, list_rows
from prepare.errors import UserError


def write_tensorboard(log: LogReader, folder: Path) -> None:
    """Write event files into the folder: one run for the session, one for each experiment.

    A session's step is the experiment's number, an experiment's the percent of its budget used so far. Raises UserError
    without the package tensorboardX, and OSError.
    """
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise UserError("tensorboard needs tensorboardX: pip install -e '.[tensorboard]' in this folder") from error
    best = float("inf")
    with SummaryWriter(str(folder / "session")) as session:
        for row in list_rows(log.state):
            if not row.runs:
                continue
            with SummaryWriter(str(folder / f"{row.experiment:04}")) as run:
                run.add_text("proposal", f"{row.proposal.title}: {row.status}\n\n{row.proposal.rationale}")
                for point in row.runs[0].curve:
                    run.add_scalar("loss", point.loss, round(100 * point.progress))
            if row.val_bpb is not None:
                best, metric = min(best, row.val_bpb) if row.status == "kept" else best, row.task.metric
                session.add_scalar(metric.name, row.value, row.experiment)
                session.add_scalar("best", metric.sign * best, row.experiment)
