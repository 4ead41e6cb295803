"""One engine replica, one token at a time: slow, and as plain as docs/engine.md itself.

Every KV token has a slot `(page, offset)`, every page is an integer taken from an explicit free
list, and every sum is taken anew whenever it is needed. Nothing is cached, so that nothing can
go stale. The fast implementation is compared with this one on random worlds.

Readings (where docs/engine.md leaves a choice, this file takes the following one):

 1. Branch numbers count all submissions to the replica (`branch` and `prefill` alike), over all
    queries. `finish_tick` and `first_token_tick` are the number of ticks done, the tick itself
    included.
 2. *Fresh* means: a growing branch (ticks > 0) that has not written a token yet, even if it was
    admitted and preempted before. A prefill-only branch is never fresh.
 3. f = 0: a branch samples from a sibling's logits if in this tick a fresh sibling completed a
    computation with f > 1 in total (a whole or the last part). A sibling with f = 1 does not
    serve others: it is a plain decoder. It is not asked whether the *parent* was missing
    anything (under `recompute_tail` the sibling may have computed only its own tail).
 4. A copied tail is not missing and not resident until the branch's first write; it arrives
    with it, so it is not part of `context` of that chunk, but it is read by an admitted f = 1
    branch. Once there, it is lost and recomputed like any other token.
 5. A given node has nothing: all its `tail + n` tokens are computed, the tail of a copy
    included.
 6. `c` of step 1 is fixed before preemption: it does not grow when decoders are preempted.
 7. f = missing + 1 for prefill-only branches too. With f = 1 it is a chunk of one token (in `c`):
    only branches with ticks > 0 decode plain tokens.
 8. f = 0 branches use no token budget, so decoders may exceed `max_num_batched_tokens` in the
    next tick. The partial prefill then rests and the budget for admission is nil (it is never
    negative).
 9. `read` and `context` count own tokens of path nodes literally: under `tree` the copied tail
    of a copy is counted in addition to the same tokens in the parent's last page.
10. In `context`, "resident before the chunk" includes what earlier chunks of the same tick
    brought in.
11. A `per_branch` copy has only itself as path, so it is copied even if its source has been
    reclaimed.
12. Under `per_branch`, a child is in place on the same condition as under `tree`: X has no
    other child alive that was grown in place (not: no other child alive at all).
13. A prefix node is stamped when it stops being pinned (by the last of its branches), with the
    number of the tick in which that happens: preemptions and finishes of one tick tie; a drop
    between ticks has the stamp of the tick before it. Pinning for an admission test that fails
    leaves no stamp.
14. A prefill-only branch that completes in a tick still takes one of `max_num_seqs` until the
    tick's end.
15. Nothing runs and the head of waiting is held back only by `max_active_searches`: that is no
    error, the replica is idle (the active searches may be waiting for something outside it).
16. Only complete nodes may be branched from, given to, or prefilled. Prefix chains with equal
    keys must have equal token counts.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field


class DoesNotFitError(RuntimeError):
    """A query that does not fit into the pool alone."""


@dataclass(frozen=True)
class Settings:
    """The settings of one replica, named as in docs/engine.md."""

    block_size: int
    num_gpu_blocks: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_active_searches: int | None = None
    sharing: str = "tree"
    fork: str = "copy_tail"
    attention: str = "shared"
    reclaim: str = "youngest"
    prefix_caching: bool = True
    reserve_full_isl: bool = False

    def __post_init__(self) -> None:
        assert self.sharing in ("tree", "per_branch")
        assert self.fork in ("copy_tail", "recompute_tail")
        assert self.attention in ("shared", "naive")
        assert self.reclaim in ("youngest", "lru")
        assert self.block_size >= 1
        assert self.num_gpu_blocks >= 1
        assert self.max_num_seqs >= 1
        assert self.max_num_batched_tokens >= 1


@dataclass(eq=False)
class NodeRef:
    """A node of the page tree. `slots[i]` is where the i-th of its own tokens lies."""

    number: int  # order of creation
    query: int | None  # None: a prefix node
    parent: NodeRef | None
    path: int  # tokens from the start of the prompt to the end of this node
    own: int  # KV tokens of a complete node, without a copied tail
    kind: str  # "prefix" | "root" | "child"
    in_place: bool = False
    tail: int = 0
    start: int = 0  # offset of its first token in a page
    tail_is_copied: bool = False  # the tail arrives with the first write, uncomputed
    complete: bool = True
    written: int = 0  # tokens decoded so far, while growing
    alive: bool = True
    last_unpinned: int = -1
    children: list[NodeRef] = field(default_factory=list)
    slots: list[tuple[int, int]] = field(default_factory=list)
    pages: list[int] = field(default_factory=list)

    def want(self) -> int:
        """How many own tokens must be resident before a branch on or below it can go on."""
        if self.complete:
            return self.tail + self.own
        if self.written == 0 and self.tail_is_copied:
            return 0
        return self.tail + self.written

    def missing(self) -> int:
        return self.want() - len(self.slots)

    def __repr__(self) -> str:
        return f"<node {self.number} of query {self.query}: {len(self.slots)}/{self.want()} tokens>"


@dataclass(eq=False)
class BranchRef:
    """A branch: it grows `node` by `ticks` tokens, or (ticks = 0) only brings in its path."""

    number: int
    query: int
    node: NodeRef
    ticks: int
    filling: bool = False
    num_preemptions: int = 0
    first_token_tick: int | None = None
    first_token_s: float | None = None
    finish_tick: int | None = None
    finish_s: float | None = None

    def is_fresh(self) -> bool:
        return self.ticks > 0 and self.node.written == 0

    def tail_to_copy(self) -> int:
        return self.node.tail if self.is_fresh() and self.node.tail_is_copied else 0

    def __repr__(self) -> str:
        return f"<branch {self.number} of query {self.query}: {self.node.written}/{self.ticks}>"


@dataclass
class _Tick:
    """What one tick did, for its time and its rules."""

    number: int
    decoders: list[BranchRef] = field(default_factory=list)  # plain ones: b
    reads: list[list[tuple[NodeRef, int]]] = field(default_factory=list)  # one list per decoder
    chunks: list[tuple[int, float]] = field(default_factory=list)  # (tokens, context)
    copied: int = 0
    wrote: list[BranchRef] = field(default_factory=list)
    prefilled: list[BranchRef] = field(default_factory=list)  # prefill-only branches completed
    logits_at: list[NodeRef] = field(default_factory=list)  # parents a fresh sibling computed
    preempted: list[BranchRef] = field(default_factory=list)
    admitted: list[BranchRef] = field(default_factory=list)


class SlowBatch:
    """The reference replica: submit, drop, and step."""

    def __init__(self, settings: Settings, cost) -> None:
        self.settings = settings
        self.cost = cost
        self.now = 0.0
        self.tick = 0
        self.num_preemptions = 0
        # pages that nobody has pinned: free ones alone, under lru cached ones too, the next one first
        self.free: list[int] = list(range(settings.num_gpu_blocks))
        self.nodes: list[NodeRef] = []  # alive ones, in order of creation
        self.prefixes: dict[tuple[Hashable, ...], NodeRef] = {}
        self.roots: dict[int, NodeRef] = {}
        self.admitted_queries: set[int] = set()
        self.running: list[BranchRef] = []
        self.waiting: list[BranchRef] = []
        self.last: _Tick | None = None  # what the last tick did, for tests
        self._node_numbers = itertools.count()
        self._branch_numbers = itertools.count()

    # ------------------------------------------------------------------ submissions

    def prompt(
        self, query: int, tokens: int, prefix: Sequence[tuple[Hashable, int]] = ()
    ) -> NodeRef:
        """Create a query's root below its chain of prefix nodes."""
        p = self.settings.block_size
        assert tokens >= 1
        assert query not in self.roots, "query numbers are used once"
        assert not prefix or self.settings.sharing == "tree"
        shared = sum(count for _, count in prefix)
        assert shared <= (tokens - 1) // p * p, "the caller cuts the chain"
        above: NodeRef | None = None
        keys: tuple[Hashable, ...] = ()
        path = 0
        for key, count in prefix:
            assert count > 0
            assert count % p == 0
            keys += (key,)
            path += count
            if keys not in self.prefixes:
                node = NodeRef(next(self._node_numbers), None, above, path, count, "prefix")
                self._add(node)
                self.prefixes[keys] = node
            above = self.prefixes[keys]
            assert above.own == count, "equal keys, equal tokens"
        root = NodeRef(next(self._node_numbers), query, above, tokens, tokens - 1 - shared, "root")
        self._add(root)
        self.roots[query] = root
        self.check()
        return root

    def branch(self, parent: NodeRef, ticks: int) -> BranchRef:
        """Grow a child of `ticks` tokens."""
        assert ticks >= 1
        node = self._child(parent, ticks)
        node.complete = False
        copies = self.settings.fork == "copy_tail" or self.settings.sharing == "per_branch"
        node.tail_is_copied = node.tail > 0 and copies
        return self._submit(node, ticks)

    def given(self, parent: NodeRef, tokens: int) -> NodeRef:
        """A child whose tokens are known, and all of whose KV is missing."""
        assert tokens >= 1
        node = self._child(parent, tokens)
        self.check()
        return node

    def prefill(self, node: NodeRef) -> BranchRef:
        """A branch that only brings the path of `node` in."""
        assert node.alive
        assert node.complete
        assert node.kind != "prefix"
        return self._submit(node, 0)

    def drop(self, node: NodeRef) -> None:
        """Free the pages of the whole subtree and forget its branches."""
        assert node.alive
        assert node.kind != "prefix"
        subtree = self._subtree(node)
        leaving = [b for b in self.running if b.node in subtree]
        for branch in sorted(leaving, key=lambda b: b.number):
            self._stop(branch, self.tick)
        self.waiting = [b for b in self.waiting if b.node not in subtree]
        for gone in subtree:
            self.free.extend(page for page in gone.pages if page not in self.free)
            gone.pages, gone.slots, gone.alive = [], [], False
            self.nodes.remove(gone)
        if node.parent is not None:
            node.parent.children.remove(node)
        self.check()

    def _add(self, node: NodeRef) -> None:
        self.nodes.append(node)
        if node.parent is not None:
            node.parent.children.append(node)

    def _child(self, parent: NodeRef, tokens: int) -> NodeRef:
        assert parent.alive
        assert parent.complete
        assert parent.kind != "prefix"
        held = parent.path - 1
        remainder = held % self.settings.block_size
        in_place = not any(child.in_place for child in parent.children)
        node = NodeRef(
            next(self._node_numbers), parent.query, parent, parent.path + tokens, tokens, "child"
        )
        node.in_place = in_place
        if in_place:
            node.start = remainder
        else:
            node.tail = remainder if self.settings.sharing == "tree" else held
        self._add(node)
        return node

    def _submit(self, node: NodeRef, ticks: int) -> BranchRef:
        assert node.query is not None
        branch = BranchRef(next(self._branch_numbers), node.query, node, ticks)
        self.waiting.append(branch)
        self.check()
        return branch

    def _subtree(self, node: NodeRef) -> list[NodeRef]:
        found = [node]
        for child in node.children:
            found += self._subtree(child)
        return found

    # ------------------------------------------------------------------ observations

    def used_pages(self) -> tuple[int, int, int]:
        """Pages that are pinned, cached, free."""
        pinned = self._pinned()
        held = sum(len(node.pages) for node in self.nodes if node in pinned)
        cached = sum(len(node.pages) for node in self.nodes if node not in pinned)
        return held, cached, self.settings.num_gpu_blocks - held - cached

    def resident(self, node: NodeRef) -> int:
        return len(node.slots)

    def pages(self, node: NodeRef) -> int:
        return len(node.pages)

    # ------------------------------------------------------------------ paths and pins

    def _path_nodes(self, branch: BranchRef) -> list[NodeRef]:
        """The nodes a branch reads, root (or first prefix node) first."""
        nodes = [branch.node]
        while nodes[0].parent is not None:
            if self.settings.sharing == "per_branch" and not nodes[0].in_place:
                break
            nodes.insert(0, nodes[0].parent)
        return nodes

    def _pinned(self) -> set[NodeRef]:
        return {node for branch in self.running for node in self._path_nodes(branch)}

    def _stop(self, branch: BranchRef, stamp: int) -> None:
        """Take a branch out of the batch; what nobody else reads is unpinned, its own node first."""
        path = self._path_nodes(branch)
        self.running.remove(branch)
        pinned = self._pinned()
        for node in reversed(path):
            if node in pinned:
                continue
            node.last_unpinned = stamp
            if not self.settings.prefix_caching:
                self.free.extend(reversed(node.pages))
                node.pages, node.slots = [], []
            elif self.settings.reclaim == "lru":
                self.free.extend(reversed(node.pages))

    def _missing_on_path(self, branch: BranchRef) -> int:
        return sum(node.missing() for node in self._path_nodes(branch))

    # ------------------------------------------------------------------ pages

    def _available(self, path_of: BranchRef | None = None) -> int:
        """Free and cached pages; those on the path of a branch under test are not available."""
        pinned = self._pinned()
        if path_of is not None:
            pinned |= set(self._path_nodes(path_of))
        held = sum(len(node.pages) for node in self.nodes if node in pinned)
        return self.settings.num_gpu_blocks - held

    def _next_to_reclaim(self) -> NodeRef:
        pinned = self._pinned()
        cached = [node for node in self.nodes if node.pages and node not in pinned]
        prefixes = [
            node
            for node in cached
            if node.kind == "prefix"
            and not any(child.kind == "prefix" and child.slots for child in node.children)
        ]
        if prefixes:
            return min(prefixes, key=lambda node: (node.last_unpinned, -node.number))
        assert cached, "a page was needed and none was available"
        assert all(node.kind != "prefix" for node in cached)
        return max(cached, key=lambda node: (node.query, node.number))

    def _reclaim_one(self) -> None:
        owner = self._next_to_reclaim()
        self.free.append(owner.pages[-1])
        self._reclaim(owner)

    def _reclaim(self, owner: NodeRef) -> None:
        """Take the last page of a node, and the tokens on it from all that have some there."""
        assert owner not in self._pinned()
        page = owner.pages.pop()
        for node in self.nodes:
            inside = [slot[0] == page for slot in node.slots]
            if any(inside):
                assert node not in self._pinned()
                first = inside.index(True)
                assert all(inside[first:]), "only the tail of a node may be lost"
                del node.slots[first:]

    def _take_page(self) -> int:
        if not self.free:
            self._reclaim_one()
        page = self.free.pop(0)
        for owner in self.nodes:
            if page in owner.pages:  # under lru
                assert owner.pages[-1] == page, "a node's last page stands first"
                self._reclaim(owner)
        return page

    def _write(self, node: NodeRef) -> None:
        """Put one more own token of a node where it belongs."""
        offset = (node.start + len(node.slots)) % self.settings.block_size
        if offset == 0:
            page = self._take_page()
            node.pages.append(page)
        elif node.slots:
            page = node.slots[-1][0]
        else:
            assert node.in_place
            assert node.parent is not None
            assert node.parent.missing() == 0
            page, last = node.parent.slots[-1]
            assert last == offset - 1
        node.slots.append((page, offset))

    def _pages_needed(self, branch: BranchRef, bring: int, first_write: bool) -> int:
        """New pages for `bring` missing tokens of its path, and for its next own token."""
        needed = 0
        for node in self._path_nodes(branch):
            here = min(bring, node.missing())
            bring -= here
            if first_write and node is branch.node:
                here += branch.tail_to_copy() + 1
            for i in range(here):
                if (node.start + len(node.slots) + i) % self.settings.block_size == 0:
                    needed += 1
        assert bring == 0
        return needed

    # ------------------------------------------------------------------ one tick

    def step(self) -> list[BranchRef] | None:
        """One tick. Returns the branches that finished with it, or None when idle."""
        self.check()
        if not self.running and not self.waiting:
            return None
        this = _Tick(self.tick + 1)
        budget = self._running_first(this)
        if not this.preempted and not any(branch.filling for branch in self.running):
            self._admission(this, budget)
        if not self.running:
            if self._held_back(self._head()):
                return None
            raise DoesNotFitError(f"{self._head()} does not fit into an empty replica")
        self._time(this)
        finished = self._after(this)
        self.last = this
        self.check()
        return finished

    def _running_first(self, this: _Tick) -> int:
        """Step 1. Returns the token budget that is left for admission."""
        self.running.sort(key=lambda branch: (branch.query, branch.number))
        decoders = [branch for branch in self.running if not branch.filling]
        room = max(0, self.settings.max_num_batched_tokens - len(decoders))
        chunk = 0
        for branch in self.running:
            if branch.filling:
                chunk = min(self._missing_on_path(branch) + 1, room)
        while True:
            needed = sum(self._need_of_running(branch, chunk) for branch in self.running)
            if needed <= self._available():
                break
            if len(self.running) == 1:
                raise DoesNotFitError(f"{self.running[0]} does not fit alone")
            self._preempt(self.running[-1], this)
        for branch in self.running:
            if not branch.filling:
                self._decode(branch, this)
        for branch in self.running:
            if branch.filling and chunk > 0:
                self._compute(branch, chunk, this)
        return room - chunk

    def _need_of_running(self, branch: BranchRef, chunk: int) -> int:
        if not branch.filling:
            return self._pages_needed(branch, 0, True)
        if chunk == 0:
            return 0
        missing = self._missing_on_path(branch)
        completes = chunk == missing + 1
        return self._pages_needed(branch, min(chunk, missing), completes and branch.ticks > 0)

    def _preempt(self, branch: BranchRef, this: _Tick) -> None:
        self._stop(branch, this.number)
        branch.filling = False
        branch.num_preemptions += 1
        self.num_preemptions += 1
        self.waiting.append(branch)
        this.preempted.append(branch)

    def _decode(self, branch: BranchRef, this: _Tick) -> None:
        """A plain token: read the path, then write."""
        assert branch.ticks > 0
        assert self._missing_on_path(branch) == 0
        self._copy_tail(branch, this)
        this.decoders.append(branch)
        this.reads.append([(node, len(node.slots)) for node in self._path_nodes(branch)])
        self._write(branch.node)
        this.wrote.append(branch)

    def _compute(self, branch: BranchRef, chunk: int, this: _Tick) -> None:
        """A chunk (f > 1, or prefill-only): missing tokens root first, then the path's last token."""
        path = self._path_nodes(branch)
        this.chunks.append((chunk, sum(len(node.slots) for node in path) + chunk / 2))
        left = chunk
        for node in path:
            while left > 0 and node.missing() > 0:
                self._write(node)
                left -= 1
        if left == 0:
            branch.filling = True
            return
        assert left == 1
        assert self._missing_on_path(branch) == 0
        branch.filling = False
        if branch.ticks == 0:
            this.prefilled.append(branch)
            return
        if branch.is_fresh():
            assert branch.node.parent is not None
            this.logits_at.append(branch.node.parent)
        self._copy_tail(branch, this)
        self._write(branch.node)
        this.wrote.append(branch)

    def _copy_tail(self, branch: BranchRef, this: _Tick) -> None:
        tail = branch.tail_to_copy()
        if tail > 0:
            assert not branch.node.slots
            for _ in range(tail):
                self._write(branch.node)
            this.copied += tail

    def _active_queries(self) -> set[int]:
        return {query for query in self.admitted_queries if self.roots[query].alive}

    def _head(self) -> BranchRef:
        active = self._active_queries()
        return min(self.waiting, key=lambda b: (b.query not in active, b.query, b.number))

    def _held_back(self, branch: BranchRef) -> bool:
        """Whether the limit on active searches keeps this branch out."""
        active = self._active_queries()
        limit = self.settings.max_active_searches
        return limit is not None and branch.query not in active and len(active) >= limit

    def _admission(self, this: _Tick, budget: int) -> None:
        """Step 2."""
        while self.waiting and len(self.running) < self.settings.max_num_seqs:
            branch = self._head()
            if self._held_back(branch):
                return
            missing = self._missing_on_path(branch)
            total = missing + 1
            if missing == 0 and branch.is_fresh() and branch.node.parent in this.logits_at:
                total = 0
            if total > 0 and budget == 0:
                return
            chunk = min(total, budget)
            completes = chunk == total
            first_write = completes and branch.ticks > 0
            whole = not completes and self.settings.reserve_full_isl
            asked = missing if whole else min(chunk, missing)
            needed = self._pages_needed(branch, asked, (first_write or whole) and branch.ticks > 0)
            if needed > self._available(path_of=branch):
                return
            self.waiting.remove(branch)
            self.running.append(branch)
            self.running.sort(key=lambda b: (b.query, b.number))
            held = [page for node in self._path_nodes(branch) for page in node.pages]
            self.free = [page for page in self.free if page not in held]
            self.admitted_queries.add(branch.query)
            this.admitted.append(branch)
            budget -= chunk
            if total == 0:
                self._copy_tail(branch, this)
                self._write(branch.node)
                this.wrote.append(branch)
            elif total == 1 and branch.ticks > 0:
                self._decode(branch, this)
            else:
                self._compute(branch, chunk, this)
            if not completes:
                return

    def _time(self, this: _Tick) -> None:
        """Step 3."""
        if self.settings.attention == "naive":
            read = sum(tokens for path in this.reads for _, tokens in path)
        else:
            read = 0
            for node in self.nodes:
                seen = [tokens for path in this.reads for n, tokens in path if n is node]
                if seen:
                    assert len(set(seen)) == 1, "all decoders through a node see the same tokens"
                    read += seen[0] * max(1, len(seen) / self.cost.saturation)
        computed = sum(tokens for tokens, _ in this.chunks)
        spent = sum(1 for branch in this.decoders if branch in this.admitted) + computed
        old = len(this.decoders) - sum(1 for b in this.decoders if b in this.admitted)
        assert spent <= max(0, self.settings.max_num_batched_tokens - old), "token budget"
        self.tick += 1
        self.now += (
            self.cost.base_s(len(this.decoders), computed)
            + self._reading_s(this, computed, read)
            + sum(self.cost.context_s(tokens) * context for tokens, context in this.chunks)
            + self.cost.copy_s * this.copied
        )

    def _reading_s(self, this: _Tick, computed: int, read: float) -> float:
        """What the decoders read, of unequal lengths where the cost minds (naive attention alone)."""
        decoders = len(this.decoders)
        seconds = self.cost.reading(decoders, computed, read)[0]
        if self.settings.attention == "naive" and decoders > 1:
            contexts = [sum(tokens for _, tokens in path) for path in this.reads]
            low, high, mean = min(contexts), max(contexts), sum(contexts) / decoders
            if low < high:
                variance = sum((tokens - mean) ** 2 for tokens in contexts) / decoders
                share = variance / ((mean - low) * (high - mean))
                alpha = share * self.cost.alpha(decoders, computed > 0)
                longest = self.cost.reading(decoders, computed, decoders * high)[0]
                seconds += alpha * (longest - seconds)
        return seconds

    def _after(self, this: _Tick) -> list[BranchRef]:
        """Step 4."""
        finished = list(this.prefilled)
        for branch in this.wrote:
            branch.node.written += 1
            if branch.node.written == 1:
                branch.first_token_tick, branch.first_token_s = self.tick, self.now
            if branch.node.written == branch.ticks:
                branch.node.complete = True
                finished.append(branch)
        assert len(set(finished)) == len(finished)
        decoded = sorted((b for b in finished if b.ticks), key=lambda branch: branch.number)
        for branch in decoded + this.prefilled:
            branch.finish_tick, branch.finish_s = self.tick, self.now
            self._stop(branch, this.number)
        return sorted(finished, key=lambda branch: branch.number)

    # ------------------------------------------------------------------ invariants

    def check(self) -> None:
        """Everything that must hold between ticks."""
        p = self.settings.block_size
        pinned = self._pinned()
        lru = self.settings.reclaim == "lru"
        held = [page for n in self.nodes if n in pinned or not lru for page in n.pages]
        assert sorted(self.free + held) == list(range(self.settings.num_gpu_blocks))
        assert sum(self.used_pages()) == self.settings.num_gpu_blocks
        slots = [slot for node in self.nodes for slot in node.slots]
        assert len(set(slots)) == len(slots), "two tokens in one slot"
        for node in self.nodes:
            self._check_node(node, p)
        assert len(self.running) <= self.settings.max_num_seqs
        assert sum(1 for branch in self.running if branch.filling) <= 1
        for branch in self.running:
            assert branch not in self.waiting
            if not branch.filling:
                assert self._missing_on_path(branch) == 0
                assert len(branch.node.slots) == branch.node.tail + branch.node.written
        for branch in self.running + self.waiting:
            assert branch.finish_tick is None
            assert branch.node.alive
        limit = self.settings.max_active_searches
        assert limit is None or len(self._active_queries()) <= limit

    def _check_node(self, node: NodeRef, p: int) -> None:
        assert node.alive
        assert node.missing() >= 0
        assert node.parent is None or (node.parent.alive and node in node.parent.children)
        assert sum(1 for child in node.children if child.in_place) <= 1
        count = len(node.slots)
        borrowed = 1 if node.start > 0 else 0
        formula = -(-(node.start + count) // p) - borrowed if count else 0
        assert len(node.pages) == formula, "pages of a node"
        assert not (node.in_place and node.tail)
        assert node.in_place or node.start == 0
        if count and borrowed:
            assert node.parent is not None
            assert node.parent.missing() == 0
            assert node.parent.slots[-1] == (node.slots[0][0], node.start - 1)
        for i, (page, offset) in enumerate(node.slots):
            assert offset == (node.start + i) % p
            index = (node.start + i) // p - borrowed
            assert page == (node.pages[index] if index >= 0 else node.slots[0][0])
