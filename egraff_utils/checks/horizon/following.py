"""Where does a model go from the starts of a reference? It is simulated under several dynamics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ase import Atoms
from ase.calculators.calculator import Calculator

from egraff_utils.md.dynamics import Newtonian, Thermostat, Trajectory, simulate

if TYPE_CHECKING:
    from egraff_utils.checks.horizon.course import Course

DYNAMICS = ("langevin", "nve", "driven")
"""Dynamics of the simulations, of which the last needs the friction of the reference."""
CONTROL_STARTS = 4
"""Number of starts that the control runs repeat."""
CONTROL_SHIFT = (0.37, 0.11, 0.23)
"""Translation of the control runs, Å. It does not change the forces apart from the rounding of positions, and
it changes the neighbour list."""


def follow(
    course: Course,
    make_calculator: Callable[..., Calculator],
    *,
    thermostat: Thermostat,
    progress: str | None = None,
) -> dict[str, Trajectory]:
    """Simulations from the starts under every dynamics of the course, name -> ``Trajectory``.

    ``control`` repeats ``nve`` for a few starts with all atoms moved by a constant vector and another skin of
    the neighbour list. Its difference from ``nve`` is the numerical error of the algorithm.

    Parameters
    ----------
    course
        :class:`~egraff_utils.checks.horizon.course.Course`.
    make_calculator
        Function ``make_calculator(n, skin=...)`` that returns a calculator for n replicas.
    thermostat
        :class:`~egraff_utils.md.dynamics.Thermostat` of ``langevin``.
    progress
        Label of the progress bars, or ``None`` for no bars.
    """
    kinds: dict[str, Thermostat | Newtonian] = {
        "langevin": thermostat,
        "nve": Newtonian(course.interval),
        "driven": Newtonian(course.interval, friction=course.friction),
    }
    runs = {
        name: run(course.starts, make_calculator, kinds[name], course.steps(name), progress)
        for name in course.forces
    }
    shifted = [atoms.copy() for atoms in course.starts[:CONTROL_STARTS]]
    for atoms in shifted:
        atoms.positions += CONTROL_SHIFT
    other = lambda n: make_calculator(n, skin=0.7)  # noqa: E731
    return runs | {"control": run(shifted, other, kinds["nve"], course.steps("nve"), progress)}


def run(
    starts: Sequence[Atoms],
    make_calculator: Callable[..., Calculator],
    dynamics: Thermostat | Newtonian,
    steps: int,
    progress: str | None,
) -> Trajectory:
    """``Trajectory`` of replicas under one dynamics, without checkpoints."""
    options: dict[str, Any] = {"checkpoint_every": steps + 1, "progress": progress}
    return simulate(starts, make_calculator, thermostat=dynamics, steps=steps, **options)
