"""What the backends of a group are given, what they must answer, and that both stay as they were."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ..cases import inputs
from ..cases.case import Case
from ..levels import level_of
from ..schema.problem import Problem
from ..schema.record import Gate
from . import audit, gate
from .failures import WrongResult


class InputSets:
    """Two sets of inputs that timed calls take turns with, and the reference of each.

    The second set is the first with its sign changed, so that they can be exchanged where they lie (:meth:`swap`): an
    answer kept by an input's id, address, shape or contents at that place is then the wrong one.

    Raises what building them raises. Without ``roomy`` the second set shares the largest tensor of the first.
    """

    def __init__(self, problem: Problem, source: str | None, max_pairs: int, *, roomy: bool) -> None:
        self._problem, self._source, self._roomy = problem, source, roomy
        first = inputs.build(problem, source)
        self.turns = [first, inputs.another(first, share_largest=not roomy)]
        self.expected = [level_of(problem.level).expected(one, max_pairs=max_pairs) for one in self.turns]
        self._prints = audit.Fingerprints(self.turns)
        self._swapped = False

    def swap(self) -> None:
        """Exchange the two sets' contents in place, all but a tensor that they share; their references with them.

        Raises
        ------
        WrongResult
            Something given was edited before.
        """
        import torch

        self.require(whole=False)
        first, second = (turn.tensors for turn in self.turns)
        own = [name for name in first if first[name] is not second[name]]
        if not own:
            return
        with torch.no_grad():
            for name in own:
                first[name].neg_()
                second[name].neg_()
        self.expected.reverse()
        self._prints.swap(own)
        self._swapped = not self._swapped

    @contextmanager
    def untouched(self) -> Iterator[None]:
        """What runs inside must leave the ruler and everything given as they were; both are put back.

        Raises
        ------
        WrongResult
            It did not.
        """
        from . import tampering  # which looks at this module too, so it must be whole

        try:
            yield
            self.require()
        except Exception:
            tampering.moved()
            if self._prints.edited() or self._prints.changed():
                self._restore()
            raise

    def require(self, *, whole: bool = True) -> None:
        """Raise :class:`WrongResult` if the ruler or anything given is not as it was; not ``whole``: looking at all
        bits only where they are few."""
        from . import tampering

        tampering.require_unmoved()
        self._prints.require(whole=whole or self._prints.cheap)

    def look(self, case: Case, known: Gate, *, closing: bool) -> Gate:
        """Compare what a timed sample made, and let go of it: a drawn call at a few rows, or, ``closing``, the last
        call whole, which the gate returned then tells.

        Raises
        ------
        WrongResult
        """
        self.require(whole=closing)
        made = case.last if closing else case.drawn
        assert made is not None
        found, expected = case.named(made), self.expected[made.turn]
        if closing:
            known = gate.check_again(expected, found, known)
            if not known.passed:
                raise WrongResult(gate.why_red(known, self._problem))
        elif (fault := gate.glance(expected, found)) is not None:
            raise WrongResult(f"one of its calls was wrong: {fault}")
        audit.require_own(case, made)
        case.release()
        return known

    def who_changed(self, cases: Sequence[Case]) -> list[Case]:
        """Where something given has changed: the cases that change it when run alone, everything being put back. All
        bits are not always looked at, so the one that was running need not be the one."""
        if not self._prints.edited() and not self._prints.changed():
            return []
        guilty = []
        for case in cases:
            self._restore()
            case.release()
            case()
            case.release()
            if self._prints.changed():
                guilty.append(case)
        self._restore()
        return guilty

    def _restore(self) -> None:
        """Write what was drawn once more into what a backend may have changed."""
        import torch

        fresh = inputs.build(self._problem, self._source)
        again = inputs.another(fresh, share_largest=not self._roomy)
        if self._swapped:
            self.expected.reverse()
            self._swapped = False
        with torch.no_grad():
            for kept, new in zip(self.turns, (fresh, again), strict=True):
                drawn = new.tensors | new.fixed | new.cotangents
                for name, tensor in (kept.tensors | kept.fixed | kept.cotangents).items():
                    tensor.copy_(drawn[name])
            weights = dict(fresh.module.named_parameters())
            for name, weight in self.turns[0].module.named_parameters():
                weight.copy_(weights[name])
        self._prints.renew()
