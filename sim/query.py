"""Drives one search through the fleet: its session's work becomes branches, their ends its outcomes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from operator import attrgetter
from typing import Any

from models.session import Session, Work, World
from models.tree import Node, Search
from sim.batch import Batch
from sim.kv import DONE, KvNode
from sim.replica import Replica

Prefix = tuple[tuple[Any, int], ...]


@dataclass(frozen=True, slots=True)
class Spent:
    """What a search came to, and what it generated for that."""

    answered: bool
    cut: bool
    answer: int | None
    signal: float
    correct: bool
    trajectories: int
    answer_tokens: int
    tokens: int
    expansions: int
    scores: int


class Thinking:
    """One query on its way: a session, the replica that thinks and the one that judges.

    When it is over its tree is forgotten (unless `keep`), and `spent` is what remains of it.
    """

    __deletable__ = ("session", "world")  # says mypyc: models/compiled.py
    __slots__ = (
        "row", "session", "world", "replica", "judge", "prefix", "arrival_s", "first_token_s",
        "scheduled_s", "finish_s", "answer_start_s", "verify_s", "root", "judge_root", "growing", "keep", "then", "spent", "difficulty",
        "streams", "_scoring_since", "policy_s", "judge_s", "preemptions", "peak_pages", "stopped",
        "unfinished_tokens",
    )  # fmt: skip

    def __init__(
        self,
        row: int,
        search: Search,
        world: World,
        replica: Replica,
        judge: Replica | None,
        prefix: Prefix,
        max_tokens: int | None,
        streams: bool,
        max_expansions: int | None = None,
    ) -> None:
        self.row = row
        self.world = world
        self.keep = False
        self.then: Callable[[Thinking], None] | None = None  # told when it is over
        self.spent: Spent | None = None
        self.difficulty: float = world.difficulty  # type: ignore[attr-defined]
        replica.searches += 1
        if judge is not None:
            judge.searches += 1
        self.session = Session(search, world, max_tokens, max_expansions)
        self.replica = replica
        self.judge = judge
        self.prefix = prefix
        self.arrival_s = replica.env.now
        nan = float("nan")
        self.scheduled_s = nan
        self.first_token_s = nan
        self.answer_start_s = nan
        self.finish_s = nan
        self.verify_s = 0.0
        self.root: KvNode | None = None
        self.judge_root: KvNode | None = None
        self.growing = 0  # branches in flight at the policy
        self.streams = streams  # its one trajectory is shown while it grows
        self._scoring_since = nan
        self.policy_s = 0.0  # replica-seconds attributed to it, once settled
        self.judge_s = 0.0
        self.preemptions = 0
        self.peak_pages = 0
        self.stopped: list[
            KvNode
        ] = []  # branches that were cancelled, until their tokens are counted
        self.unfinished_tokens = 0  # that those had generated

    def start(self) -> None:
        """Register with the replica and issue the first work."""
        if self.root is not None:
            return
        root = self.world.root
        self.root = self.replica.prompt(root.tokens, self.prefix, self)
        root.kv = self.root
        self._issue(self.session.start())

    # -- what replicas report ------------------------------------------------------------------------

    def scheduled(self, replica: Replica) -> None:
        """Note when its prompt was first admitted."""
        if replica is self.replica:
            self.scheduled_s = replica.env.now

    def started(self, branch: KvNode) -> None:
        """Note the first token of one of its branches."""
        if self.first_token_s != self.first_token_s:
            self.first_token_s = self.replica.env.now
        node = branch.owner.node
        if self.streams and node.answer_tokens >= node.tokens:
            self.marked(branch)

    def marked(self, branch: KvNode) -> None:
        """Note the first token of the visible answer of a trajectory that is streamed."""
        if self.answer_start_s != self.answer_start_s:
            self.answer_start_s = self.replica.env.now

    def finished(self, branch: KvNode) -> None:
        """Hand the end of a branch to the session and what follows to the replicas."""
        work: Work | None = branch.owner
        if work is None or not work.open:  # its search is over, or gave it up
            return
        pending = work.pending
        if branch.ticks:
            self.growing -= 1
            if not self.growing:
                self._scoring_since = self.replica.env.now
        if pending.left > 1 and not pending.each:  # a barrier that others hold: nothing follows yet
            work.open = False
            pending.left -= 1
            return
        session = self.session
        works = session.complete(work)
        if works or session.answer is not None or session.dropped or session.cancelled:
            self._issue(works)

    def _issue(self, works: list[Work]) -> None:
        session = self.session
        if session.cancelled:
            self._cancel(session.cancelled)
            session.cancelled.clear()
        if session.answer is not None:
            self._finish()
            return
        if works:
            first = works[0].pending
            if first is works[-1].pending:
                (self._ask_to_grow if first.kind == "grow" else self._ask_to_score)(works)
            else:
                grows = [work for work in works if work.pending.kind == "grow"]
                if grows:
                    self._ask_to_grow(grows)
                if len(grows) < len(works):
                    self._ask_to_score([w for w in works if w.pending.kind == "score"])
        if session.dropped:
            self._drop(session.dropped)
            session.dropped.clear()

    def _ask_to_grow(self, works: list[Work]) -> None:
        if not self.growing and self._scoring_since == self._scoring_since:
            self.verify_s += self.replica.env.now - self._scoring_since
        self.growing += len(works)
        self.replica.do(self._grow, works)

    def _ask_to_score(self, works: list[Work]) -> None:
        assert self.judge is not None, "a search scores without a verifier"
        self.judge.do(self._score, works)

    # -- what happens at the replicas' next boundary -----------------------------------------------

    def _grow(self, works: list[Work]) -> None:
        batch = self.replica.batch
        for parent, siblings in _by_parent(works):
            assert parent is not None
            above, injected = parent.kv, siblings[0].node.injected
            if injected:
                above = batch.given(above, injected)
            if self.streams:
                for work in siblings:
                    node = work.node
                    mark = node.tokens - node.answer_tokens + 1
                    node.kv = batch.branch(above, node.tokens, work, mark)
                continue
            specs = [(work.node.tokens, work) for work in siblings]
            for work, kv in zip(siblings, batch.branches(above, specs), strict=True):
                work.node.kv = kv

    def _score(self, works: list[Work]) -> None:
        assert self.judge is not None
        batch = self.judge.batch
        if len(works) == 1:
            self._score_alone(batch, works[0])
            return
        for parent, siblings in _by_parent(works):
            if parent is None or any(work.node.verifier_kv is not None for work in siblings):
                for work in siblings:
                    self._score_alone(batch, work)
                continue
            above = parent.verifier_kv or self._judged(parent)
            specs = [(work.node.injected + work.node.tokens, work) for work in siblings]
            for work, kv in zip(siblings, batch.judge(above, specs), strict=True):
                work.node.verifier_kv = kv

    def _score_alone(self, batch: Batch, work: Work) -> None:
        if not work.open:
            return
        node = work.node
        parent = node.parent
        if parent is None or node.verifier_kv is not None:
            batch.prefill(self._judged(node), work)
            return
        above = parent.verifier_kv or self._judged(parent)
        (node.verifier_kv,) = batch.judge(above, ((node.injected + node.tokens, work),))

    def _judged(self, node: Node) -> KvNode:
        """Return the verifier's copy of `node`, creating it and what is missing above it."""
        assert self.judge is not None
        if node.verifier_kv is None:
            if node.parent is None:
                self.judge_root = self.judge.batch.prompt(node.tokens, self.prefix, self)
                node.verifier_kv = self.judge_root
            else:
                above = node.parent.verifier_kv or self._judged(node.parent)
                node.verifier_kv = self.judge.batch.given(above, node.tokens + node.injected)
        kv: KvNode = node.verifier_kv
        return kv

    def cut(self, reason: str, grace: int) -> None:
        """Stop the search, with `grace` tokens left to finish an answer, unless it is over."""
        if self.spent is None:
            self.start()
            self._issue(self.session.cut(reason, grace))

    def _cancel(self, works: list[Work]) -> None:
        nodes = [work.node for work in works if work.pending.kind == "grow"]
        self.growing -= len(nodes)
        for node in nodes:
            if node.kv is not None and node.kv.state == DONE:  # it ended with this very tick
                self.unfinished_tokens += node.tokens
            elif node.kv is not None:
                self.stopped.append(node.kv)
        self._drop(nodes)
        if self.stopped:
            self.replica.do(self._count_stopped)

    def _count_stopped(self) -> None:
        self.unfinished_tokens += sum(kv.written for kv in self.stopped)
        self.stopped.clear()

    def _drop(self, nodes: list[Node]) -> None:
        self.replica.drop([node.kv for node in nodes if node.kv is not None])
        if self.judge_root is not None:
            assert self.judge is not None
            self.judge.drop([node.verifier_kv for node in nodes if node.verifier_kv is not None])

    def _finish(self) -> None:
        self.finish_s = self.replica.env.now
        if not self.growing and self._scoring_since == self._scoring_since:
            self.verify_s += self.finish_s - self._scoring_since
        self.replica.searches -= 1
        if self.judge is not None:
            self.judge.searches -= 1
        if self.root is not None:
            self.replica.drop([self.root])
        if self.judge_root is not None:
            assert self.judge is not None
            self.judge.drop([self.judge_root])
        self.session.dropped.clear()
        if self.answer_start_s != self.answer_start_s:
            self.answer_start_s = self.finish_s

        self.spent = self._sum_up()
        if self.then is not None:
            self.then(self)
        if not self.keep:
            del self.session, self.world

    def _sum_up(self) -> Spent:
        session = self.session
        answer = session.answer
        known = answer is not None
        node = answer.node if answer is not None else None
        return Spent(
            known,
            bool(session.cut_reason),
            answer.answer if answer is not None else None,
            answer.signal if answer is not None else float("nan"),
            self.world.is_correct(answer.answer) if answer is not None else False,
            answer.trajectories if answer is not None else 0,
            node.answer_tokens if node is not None else 0,
            *session.so_far(),
        )

    def settle(self) -> Spent:
        """Fetch what it has been charged, at the end of its life or of the simulation."""
        if self.root is not None:
            query = self.root.query
            if not query.gone:
                self.replica.batch.charge(query)
            self.policy_s = query.gpu_s
            self.preemptions = query.preemptions
            self.peak_pages = query.peak_pages
        if self.judge_root is not None:
            assert self.judge is not None
            query = self.judge_root.query
            if not query.gone:
                self.judge.batch.charge(query)
            self.judge_s = query.gpu_s
        spent = self.spent if self.spent is not None else self._sum_up()
        if self.unfinished_tokens:
            spent = replace(spent, tokens=spent.tokens + self.unfinished_tokens)
        return spent


def _by_parent(works: list[Work]) -> Iterator[tuple[Node | None, list[Work]]]:
    """Group what is still to be done by the parent of its node, in order."""
    return (
        (parent, list(siblings))
        for parent, siblings in groupby((work for work in works if work.open), _parent)
    )


_parent = attrgetter("node.parent")
