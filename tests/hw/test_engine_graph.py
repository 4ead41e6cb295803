"""A tick's graph where the capture is refused: the tick is launched call by call and says so, unless the device is lost."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest

from hw.engine_graph import Still


def still(*, refused: str = "", lost: bool = False) -> tuple[Still, list[str]]:
    """A body beside a stand-in for torch.cuda; what happened, in order."""
    log: list[str] = []

    def synchronize(device: object) -> None:
        if lost and "capture" in log:
            raise RuntimeError("an illegal memory access was encountered")

    @contextmanager
    def graph(it: object, *, pool: object, capture_error_mode: str):
        log.append("capture")
        yield
        if refused:
            raise RuntimeError(refused)

    stream = SimpleNamespace(wait_stream=lambda other: None)
    cuda = SimpleNamespace(
        Stream=lambda device: stream, current_stream=lambda device: stream, synchronize=synchronize,
        stream=lambda it: nullcontext(), graph=graph,
        CUDAGraph=lambda: SimpleNamespace(replay=lambda: log.append("replay")),
    )  # fmt: skip
    made = object.__new__(Still)
    made.rows = 8
    made.engine = SimpleNamespace(
        torch=SimpleNamespace(cuda=cuda), device="cuda", stream=nullcontext, graph_pool=None
    )
    made.body = lambda: log.append("body")
    made.replay = made.body
    return made, log


def test_a_body_is_warmed_up_then_captured_then_replayed() -> None:
    made, log = still()
    made._capture()
    made.replay()
    assert log == ["body", "body", "capture", "body", "replay"]


def test_a_body_that_cannot_be_captured_is_launched_call_by_call_and_says_so() -> None:
    made, log = still(refused="operation not permitted when stream is capturing\nlong trace")
    with pytest.warns(
        RuntimeWarning,
        match=r"8 rows could not be captured.*not permitted when stream is capturing\)",
    ):
        made._capture()
    made.replay()
    assert log == ["body", "body", "capture", "body", "body"]


def test_a_device_that_is_lost_in_a_capture_is_not_taken_for_a_refusal() -> None:
    made, _ = still(refused="an illegal memory access was encountered", lost=True)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        made._capture()
