"""vLLM V1's scheduler for flat requests, one iteration at a time, with every block an object of a queue.

An oracle for the engine model, written from vLLM's behaviour (0.19) and not from docs/engine.md. What it does:

1. Running first, in order of admission: each takes its next token, a partial prefill what is left of
   the budget. Where no block is free, the request admitted last is preempted: its blocks go to the end of
   the free queue, the last one first, and keep their content's hash; it goes to the head of waiting.
2. Waiting next, unless somebody was preempted: the head of the queue enters if its whole sequence fits
   (`scheduler_reserve_full_isl`), up to `max_num_seqs`, with what the budget leaves. Full blocks that still
   hold its content are hits; at least one token is always computed.
3. A block that is taken from the front of the free queue forgets its content.
4. With async scheduling the next iteration is scheduled while one runs: arrivals and blocks of finished
   requests count one iteration later. A request whose last token is on its way is not scheduled again.

One block of `num_gpu_blocks` is vLLM's null block; the caller subtracts it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

StepSeconds = Callable[[list[int], list[tuple[int, int]]], float]
"""(context of each decoder, (tokens, context) of each prefill chunk) -> seconds of the iteration."""


@dataclass(frozen=True)
class V1Settings:
    """The settings of one engine; `num_blocks` are usable ones."""

    num_blocks: int
    block_size: int = 16
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    enable_prefix_caching: bool = True
    reserve_full_isl: bool = True
    async_scheduling: bool = False


@dataclass(eq=False)
class Request:
    """A flat request: a prompt and as many tokens as it will say."""

    number: int
    arrival_s: float
    input_tokens: int
    output_tokens: int
    generated: int = 0
    in_flight: int = 0  # tokens scheduled whose iteration is not over
    computed: int = 0
    blocks: list[int] = field(default_factory=list)
    num_preemptions: int = 0
    recomputed: int = 0
    first_s: float = -1.0
    last_s: float = -1.0

    @property
    def num_tokens(self) -> int:
        return self.input_tokens + self.generated


class FreeBlocks:
    """The queue of free blocks and what each block of the pool still holds."""

    def __init__(self, blocks: int) -> None:
        self.queue: dict[int, None] = dict.fromkeys(range(blocks))
        self.content: dict[int, tuple[int, int]] = {}  # block -> (request, position)
        self.found: dict[tuple[int, int], int] = {}

    def hits(self, request: int, at_most: int) -> list[int]:
        blocks: list[int] = []
        while len(blocks) < at_most and (request, len(blocks)) in self.found:
            blocks.append(self.found[request, len(blocks)])
        return blocks

    def take(self, count: int) -> list[int]:
        taken = []
        for _ in range(count):
            block = next(iter(self.queue))
            del self.queue[block]
            if block in self.content:
                del self.found[self.content.pop(block)]
            taken.append(block)
        return taken

    def touch(self, blocks: Sequence[int]) -> None:
        for block in blocks:
            del self.queue[block]

    def release(self, request: Request, cached: int) -> None:
        """Free all blocks of a request; the first `cached` of them keep their content."""
        for position, block in enumerate(request.blocks[:cached]):
            if block not in self.content:
                self.content[block] = (request.number, position)
                self.found[request.number, position] = block
        for block in reversed(request.blocks):
            self.queue[block] = None
        request.blocks = []


class V1Engine:
    """One engine; `play` lets requests arrive and returns them with their times."""

    def __init__(self, settings: V1Settings, step_s: StepSeconds) -> None:
        self.settings = settings
        self.step_s = step_s
        self.free = FreeBlocks(settings.num_blocks)
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self.log: list[tuple[float, int, int, int]] = []  # (end, running, waiting, free blocks)

    def play(self, arrivals: Sequence[tuple[float, int, int]]) -> list[Request]:
        """Requests (arrival_s, input_tokens, output_tokens), served until all are finished."""
        requests = [Request(i, *arrival) for i, arrival in enumerate(sorted(arrivals))]
        coming = deque(requests)
        flying: deque[tuple[list[tuple[Request, int]], float]] = deque()  # (who says a token, end)
        depth = 2 if self.settings.async_scheduling else 1
        now = busy_until = 0.0
        while coming or self.waiting or self.running:
            while coming and coming[0].arrival_s <= now:
                self.waiting.append(coming.popleft())
            scheduled = self.schedule()
            if scheduled:
                busy_until = max(busy_until, now) + self.step_s(*_work(scheduled))
                flying.append((_start(scheduled), busy_until))
                used = len(self.running), len(self.waiting), len(self.free.queue)
                self.log.append((busy_until, *used))
                if len(flying) < depth:
                    continue
            if flying:
                speakers, end = flying.popleft()
                now = max(now, end)
                self.update(speakers, now)
            elif coming:
                now = max(now, coming[0].arrival_s)
            else:
                assert not self.waiting, "the head of the queue does not fit into an empty pool"
        return requests

    def schedule(self) -> list[tuple[Request, int]]:
        """Who computes how many tokens in the next iteration."""
        settings, free = self.settings, self.free
        budget = settings.max_num_batched_tokens
        scheduled: list[tuple[Request, int]] = []
        preempted = False
        for request in list(self.running):
            if request not in self.running or not budget:
                continue
            if request.generated + request.in_flight >= request.output_tokens:
                continue
            due = request.num_tokens + request.in_flight - request.computed
            tokens = min(due, budget)
            need = self._blocks(request.computed + tokens) - len(request.blocks)
            while need > len(free.queue) and request in self.running:
                self._preempt(self.running.pop())
                preempted = True
            if request not in self.running:
                break
            request.blocks += free.take(need)
            scheduled.append((request, tokens))
            budget -= tokens
        while self.waiting and budget and not preempted:
            request = self.waiting[0]
            if len(self.running) == settings.max_num_seqs:
                break
            hits: list[int] = []
            if settings.enable_prefix_caching:
                hits = free.hits(request.number, (request.num_tokens - 1) // settings.block_size)
            cached = len(hits) * settings.block_size
            tokens = min(request.num_tokens - cached, budget)
            whole = request.num_tokens if settings.reserve_full_isl else cached + tokens
            if self._blocks(whole) > len(free.queue):  # hits stand in the queue themselves
                break
            free.touch(hits)
            request.blocks = hits + free.take(self._blocks(cached + tokens) - len(hits))
            request.computed = cached
            if request.num_preemptions:
                request.recomputed += request.num_tokens - cached
            self.running.append(self.waiting.popleft())
            scheduled.append((request, tokens))
            budget -= tokens
        return scheduled

    def update(self, speakers: list[tuple[Request, int]], now: float) -> None:
        """One iteration is over: its tokens are there, and who has said all is gone."""
        for request, _ in speakers:
            request.in_flight -= 1
            request.generated += 1
            if request.first_s < 0:
                request.first_s = now
            if request.generated == request.output_tokens:
                request.last_s = now
                if request in self.running:
                    self.running.remove(request)
                else:
                    self.waiting.remove(request)
                self.free.release(request, self._full(request))

    def _preempt(self, request: Request) -> None:
        self.free.release(request, self._full(request))
        request.computed = 0
        request.num_preemptions += 1
        self.waiting.appendleft(request)

    def _full(self, request: Request) -> int:
        if not self.settings.enable_prefix_caching:
            return 0
        return min(request.computed, request.num_tokens) // self.settings.block_size

    def _blocks(self, tokens: int) -> int:
        return -(-tokens // self.settings.block_size)


def _work(scheduled: list[tuple[Request, int]]) -> tuple[list[int], list[tuple[int, int]]]:
    """Contexts of the decoders and (tokens, context) of the chunks in an iteration."""
    decoders, chunks = [], []
    for request, tokens in scheduled:
        if tokens == 1 and request.computed >= request.input_tokens:
            decoders.append(request.computed + 1)
        else:
            chunks.append((tokens, request.computed))
    return decoders, chunks


def _start(scheduled: list[tuple[Request, int]]) -> list[tuple[Request, int]]:
    """Count the tokens as computed; return who will say a token when the iteration is over."""
    speakers = []
    for request, tokens in scheduled:
        request.computed += tokens
        if request.computed == request.num_tokens + request.in_flight:
            request.in_flight += 1
            speakers.append((request, tokens))
    return speakers
