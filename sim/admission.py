"""Who is admitted in a tick: from the head of waiting, as long as places, tokens and pages allow.

Siblings that can start alike are taken together, so that their common path is walked once.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING

from sim.branch import Fill
from sim.kv import FILLING, WAITING, DoesNotFitError, KvNode, Query, does_not_fit

if TYPE_CHECKING:
    from sim.batch import Batch

Chunks = list[tuple[Query, int, float]]
Copied = list[tuple[Query, int]]


def admit(batch: Batch, budget: int, chunks: Chunks, copied: Copied) -> bool:
    """Admit with `budget` tokens; return whether the next tick should try again.

    Appends (query, tokens, seconds of attention) of prefill chunks and (query, tokens) of each copied tail.
    Raises: DoesNotFitError if nothing runs and the head of waiting needs more than the pool.
    """
    tree = batch.tree
    settings = batch.settings
    limit = settings.max_active_searches or 1 << 62
    places = settings.max_num_seqs - batch.decoders - len(batch._late)
    for nodes, _ in batch._filled:
        places -= len(nodes)
    while True:
        branch = batch._head()
        if branch is None or places <= 0:
            return False
        query = branch.query
        if not query.active and batch.active_searches >= limit:
            return False
        if not (branch.ticks or branch.resident):
            admitted, spent = _admit_scored(batch, branch, places, budget, chunks)
            if admitted:
                places -= admitted
                budget -= spent
                continue
        missing: list[KvNode] = []
        lacking = context = unpinned = 0
        step: KvNode | None = branch
        while step is not None:
            if step.resident < step.want:
                missing.append(step)
                lacking += step.want - step.resident
            context += step.resident
            if not step.decoders and not step.fills:
                unpinned += step.pages
            step = step.up
        merges = (
            branch.ticks and not (branch.written or lacking) and branch.parent in batch._merging
        )
        compute = 0 if merges else lacking + 1
        if compute and budget <= 0:
            return True
        chunk = min(compute, budget)
        missing.reverse()
        need = batch._chunk_pages(missing, chunk) if missing else 0
        if chunk == compute and branch.ticks:
            need += batch._first_write_pages(branch)
        whole = need
        if chunk < compute and settings.scheduler_reserve_full_isl:
            whole = batch._chunk_pages(missing, lacking)
            if branch.ticks:
                whole += batch._first_write_pages(branch)
        if whole > tree.free + tree.cached - unpinned:
            if places == settings.max_num_seqs:
                raise DoesNotFitError(does_not_fit(branch, tree))
            # those that decode from the next tick on leave it a smaller chunk, which may fit
            return chunk < compute and bool(batch._late)
        _activate(batch, branch, context)
        if compute == 1 and branch.ticks:
            admitted = _admit_decoders(batch, branch, need, min(places, budget), copied)
            places -= admitted
            budget -= admitted
            continue
        places -= 1
        budget -= chunk
        if compute:
            batch._pin(branch)
            tree.take(need)
            brought = batch._bring(missing, chunk)
            chunks.append((query, chunk, batch.context_s(chunk, context)))
            branch.state = FILLING
            if chunk < compute:
                query.fill = 1
                batch.fill = Fill(branch, missing, compute - chunk, context + brought)
                return False
            batch._complete_prefill(branch, copied)
        else:
            tree.take(need)
            batch._copy_tail(branch, copied)
            batch._late.append((branch, False))
            places -= _admit_merging(batch, branch, places, copied)


def _activate(batch: Batch, branch: KvNode, context: int) -> None:
    """Take `branch`, the head of waiting, out of the queue; its query is active from now on."""
    query = branch.query
    query.waiting.popleft()
    batch.waiting_branches -= 1
    if not query.active:
        query.active = True
        batch.activated.append(query)
        batch.active_searches += 1
        batch.hit_tokens += context
        heapq.heappop(batch._new)
        query.queued = bool(query.waiting)
        if query.queued:
            heapq.heappush(batch._active, (query.number, query))


def _admit_decoders(batch: Batch, first: KvNode, need: int, room: int, copied: Copied) -> int:
    """Admit `first`, whose path is resident, and up to `room` - 1 fresh siblings; return how many.

    They decode from this tick on. `need` are the pages that the first one takes.
    """
    tree = batch.tree
    query = first.query
    up = first.up
    batch._walk(query, up, 1)
    tree.pinned(first)
    first.pages = 0
    tree.take(need)
    batch._copy_tail(first, copied)
    if not query.started:
        query.started = True
        batch.started.append(first)
    nodes = [first]
    if room > 1 and not first.written:
        waiting = query.waiting
        parent = first.parent
        needs = 0
        while waiting and len(nodes) < room:
            node = waiting[0]
            if node.state != WAITING:
                waiting.popleft()
                continue
            if node.parent is not parent or not node.ticks or node.up is not up:
                break
            if node.want > node.resident or node.pages or node.written:
                break
            need = batch._first_write_pages(node)
            if needs + need > tree.free + tree.cached:
                break
            needs += need
            waiting.popleft()
            batch._copy_tail(node, copied)
            nodes.append(node)
        tree.take(needs)
        batch.waiting_branches -= len(nodes) - 1
        if len(nodes) > 1:
            batch._walk(query, up, len(nodes) - 1)
    batch._join(nodes, first.written)
    return len(nodes)


def _admit_merging(batch: Batch, first: KvNode, room: int, copied: Copied) -> int:
    """Admit up to `room` siblings that sample from the logits that `first` does; return how many.

    Their path is pinned by the one that computed it.
    """
    tree = batch.tree
    waiting = first.query.waiting
    parent, up = first.parent, first.up
    admitted = 0
    while waiting and admitted < room:
        node = waiting[0]
        if node.parent is not parent or node.up is not up or node.state != WAITING:
            break
        if not node.ticks or node.written or node.want > node.resident or node.pages:
            break
        need = batch._first_write_pages(node)
        if need > tree.free + tree.cached:
            break
        waiting.popleft()
        tree.take(need)
        batch._copy_tail(node, copied)
        batch._late.append((node, False))
        admitted += 1
    batch.waiting_branches -= admitted
    return admitted


def _admit_scored(
    batch: Batch, first: KvNode, places: int, budget: int, chunks: Chunks
) -> tuple[int, int]:
    """Admit `first`, a node to be scored, and its siblings, each whole in this tick.

    Returns how many, and their tokens: none where the path above `first` is not resident, or `first` does
    not fit whole. The path is pinned once for all of them until the tick is over.
    """
    up = first.up
    query = first.query
    if up is None or first.fills or first.decoders or not first.want or not query.active:
        return 0, 0
    context = unpinned = 0
    step: KvNode | None = up
    while step is not None:
        resident = step.resident
        if resident < step.want:
            return 0, 0
        context += resident
        if not step.decoders and not step.fills:
            unpinned += step.pages
        step = step.up
    tree = batch.tree
    p = batch.block_size
    available = tree.free + tree.cached - unpinned
    waiting = query.waiting
    nodes: list[KvNode] = []
    known = batch._context_s
    tokens = pages = 0
    seconds = 0.0
    node = first
    while len(nodes) < places:
        want = node.want
        if tokens + want >= budget:
            break
        offset = node.offset
        own = (offset + want - 1) // p if offset else (want + p - 1) // p
        if pages + own > available:
            break
        waiting.popleft()
        pages += own
        tokens += want + 1
        each = known.get(want + 1)
        if each is None:
            each = known[want + 1] = batch.cost.context_s(want + 1)
        seconds += each * (context + (want + 1) / 2)
        node.state = FILLING
        node.fills = 1
        node.resident = want
        node.pages = own
        nodes.append(node)
        if not waiting:
            break
        node = waiting[0]
        if node.up is not up or node.state != WAITING or node.ticks or node.resident:
            break
        if node.fills or node.decoders or not node.want:
            break
    if nodes:
        batch.waiting_branches -= len(nodes)
        batch._pin(up)
        tree.take(pages)
        chunks.append((query, tokens, seconds))
        batch._filled.append((nodes, up))
    return len(nodes), tokens
