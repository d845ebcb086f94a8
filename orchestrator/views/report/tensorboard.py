"""A session as TensorBoard shows it: scores by experiment, and the loss curve of each. Written once, from the log."""

from pathlib import Path

from orchestrator.session.store import EventLog
from orchestrator.views.experiments import list_rows


class TensorBoardMissingError(Exception):
    """The package that writes its files is not installed; the message says what to do."""


def write_tensorboard(log: EventLog, folder: Path) -> None:
    """Event files in the folder: a run of the session, one of each experiment. Raises NoTensorBoard, OSError.

    A session's step is the experiment's number, an experiment's the percent of its budget that was used up.
    """
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise TensorBoardMissingError(
            "tensorboard needs tensorboardX: pip install -e '.[tensorboard]' in this folder"
        ) from error
    best = float("inf")
    with SummaryWriter(str(folder / "session")) as session:
        for entry in list_rows(log.state):
            outcome = entry.scores[0] if entry.scores else entry.crash
            if outcome is None:
                continue
            with SummaryWriter(str(folder / f"{entry.experiment:04}")) as run:
                run.add_text("proposal", f"{entry.proposal.title}: {entry.status}\n\n{entry.proposal.rationale}")
                for point in outcome.curve:
                    run.add_scalar("loss", point.loss, round(100 * point.progress))
            if entry.val_bpb is not None:
                best = min(best, entry.val_bpb) if entry.status == "kept" else best
                session.add_scalar("val_bpb", entry.val_bpb, entry.experiment)
                session.add_scalar("best", best, entry.experiment)
