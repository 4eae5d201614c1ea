"""`train --nodes`: the hosts of a training, from the command line."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from workbench.config.options import RunConfig
from workbench.errors import UserError
from workbench.runs.run import Run
from workbench.storage.workspace import Workspace
from workbench.train.nodes import THROUGH, Nodes, Place, check_nodes, named_places, parse_nodes, torchrun_lines


def places_of(hosts: str, through: str) -> list[Place]:
    """The hosts that `--nodes` names. Raises UserError."""
    if through not in THROUGH:
        raise UserError("nodes_through", name=through, known=list(THROUGH))
    return parse_nodes(hosts) if hosts else []


def connected(places: Sequence[Place], config: RunConfig, workspace: Workspace, through: str) -> Nodes | None:
    """The hosts of a training, checked; None where it is on this one alone. Raises UserError."""
    if not places:
        return None
    check_nodes(config)
    return Nodes(places, workspace, through)


def remember(run: Run, nodes: Nodes | None, through: str) -> None:
    """Keep with the run over which hosts it is trained, so that it is resumed there. Slurm gives others each time."""
    named = named_places(nodes.places) if nodes and through == "ssh" else ""
    if run.stored_state().nodes != named:
        run.update(nodes=named)


@contextlib.contextmanager
def closing(nodes: Nodes | None) -> Iterator[None]:
    """Nothing is left on another host behind it."""
    try:
        yield
    finally:
        if nodes:
            nodes.close()


def print_lines(places: Sequence[Place], run: Path, workspace: Workspace, port: int = 29500) -> None:
    """What each host runs, as one would by hand. Raises UserError: no hosts are named."""
    if not places:
        raise UserError("nodes_none")
    path = run.absolute() if (run / "run.yaml").is_file() else workspace.runs / "RUN"
    print("\n".join(torchrun_lines(places, path, workspace, port)))
