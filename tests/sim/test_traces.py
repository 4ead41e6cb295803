"""Trace readers: published statistics of the real files, every trap of their formats, every bad input."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from scenarios.errors import UserError
from sim import servegen
from sim.renewal import child_keys, renewal
from sim.traces import Generator, Trace, read_source, read_trace, requests

DATA = (
    Path(
        os.environ.get(
            "TREELINE_DATA", Path(__file__).resolve().parents[2].parent / "shared" / "data"
        )
    )
    / "traces"
)

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens\r
2023-11-16 18:15:46.6805900,374,44\r
2023-11-16 18:15:50.9951691,396,109\r
2023-11-16 18:15:51.2224670,879,55"""
BURST = """Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type
5,,1.5,ChatGPT,472,18,490,Conversation log
45,s1,2.5,GPT-4,1087,0,1087,API log
45,s1,3.5,GPT-4,417,276,693,API log
"""
MOONCAKE = "".join(
    json.dumps({"timestamp": t, "input_length": n, "output_length": 5, "hash_ids": ids}) + "\n"
    for t, n, ids in [(0, 1000, [0, 1]), (0, 513, [0, 2]), (0, 512, [0]), (2999, 600, [0, 3])]
)
BAILIAN = "".join(
    json.dumps(
        {
            "chat_id": chat,
            "parent_chat_id": parent,
            "timestamp": t,
            "input_length": 40,
            "output_length": out,
            "type": "text",
            "turn": 1,
            "hash_ids": [7, 8, 9],
        }
    )
    + "\n"
    for chat, parent, t, out in [
        (1, -1, 61.2, 9),
        (2, -1, 61.5, 0),
        (5, 1, 70.0, 9),
        (6, 5, 71.0, 9),
    ]
)
SAMPLED = """timestamp_s,client_id,input_tokens,output_tokens,reason_ratio
0.0,23,183,356,0.804
0.025,26,1251,343,0.84
"""
CHUNK = "0,0,0,,0,0\n600,0.5,2.0,Gamma,0.25,8.0\n1200,0.5,1.9,Weibull,0.56,1.2\n"
DATASET = json.dumps(
    {
        "0": {"input_tokens": "{}", "output_tokens": "{}", "reason_ratio": "{}"},
        "600": {
            "input_tokens": "{100: 0.5, 200.0: 0.5}",
            "output_tokens": "{10: 0.2, 1000: 0.8}",
            "reason_ratio": "{0.0: 0.0, 0.5: 0.5, 0.9: 0.5}",
        },
    }
)
COMPACT = json.dumps(
    {
        "window_s": 600,
        "clients": {
            "a": {
                "windows": [[600, 0.5, 2.0, "Gamma", 0.25, 8.0]],
                "pdf": {"0": {"input_tokens": [[5, 6], [0.5, 0.5]], "output_tokens": [[7], [1.0]]}},
            }
        },
    }
)
TEXTS = {
    "azure": AZURE,
    "burstgpt": BURST,
    "mooncake": MOONCAKE,
    "bailian": BAILIAN,
    "servegen": SAMPLED,
    "compact": COMPACT,
}

Write = Callable[[str | bytes], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(content: str | bytes) -> Path:
        path = tmp_path / "trace.txt"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "chunk-3-trace.csv").write_text(CHUNK)
    (tmp_path / "chunk-3-dataset.json").write_text(DATASET)
    return tmp_path


def data_file(name: str) -> Path:
    if not (DATA / name).exists():
        pytest.skip(f"the public trace {name} is not at hand; set TREELINE_DATA to its folder")
    return DATA / name


def summary(trace: Trace) -> dict[str, float]:
    gaps = np.diff(trace.arrival_s)
    span = float(trace.arrival_s[-1] - trace.arrival_s[0])
    found = {"rows": len(trace), "span": span, "cv": float(gaps.std() / gaps.mean())}
    for window in (10, 60):
        edges = np.arange(span // window + 1) * window + trace.arrival_s[0]
        counts = np.histogram(trace.arrival_s, edges)[0]
        found[f"idc{window}"] = float(counts.var() / counts.mean())
    for name, tokens in (("in", trace.input_tokens), ("out", trace.output_tokens)):
        found[f"{name}_mean"] = float(tokens.mean())
        for q in (50, 95, 99):
            found[f"{name}_p{q}"] = float(np.percentile(tokens, q))
    return found


# published statistics ------------------------------------------------------------------------


def test_the_azure_conversation_hour_has_its_published_statistics() -> None:
    trace = read_trace(data_file("azure2023/AzureLLMInferenceTrace_conv.csv"))
    found = summary(trace)
    expected = {
        "rows": 19366, "span": 3502, "cv": 1.09, "idc10": 3.9, "idc60": 16,
        "in_mean": 1155, "in_p50": 1020, "in_p95": 4083, "in_p99": 4142,
        "out_mean": 211, "out_p50": 129, "out_p95": 451, "out_p99": 601,
    }  # fmt: skip
    assert found == pytest.approx(expected, rel=0.012)
    assert (trace.format, trace.provenance, trace.dropped) == ("azure", "raw", 0)


def test_the_mooncake_hour_has_its_published_statistics_and_its_ticks_are_spread() -> None:
    source = read_source(data_file("mooncake/conversation_trace.jsonl"))
    assert isinstance(source, Trace)
    expected = {
        "rows": 12031, "span": 3537, "cv": 3.03, "idc10": 2.1, "idc60": 3.0,
        "in_mean": 12035, "in_p50": 6909, "in_p95": 39551, "in_p99": 85400,
        "out_mean": 343, "out_p50": 350, "out_p95": 698, "out_p99": 1119,
    }  # fmt: skip
    assert summary(source) == pytest.approx(expected, rel=0.02)
    assert source.tick_s == 3.0
    spread = requests(source, 1)
    assert summary(spread)["cv"] == pytest.approx(1.0, abs=0.03)
    late = spread.arrival_s - source.arrival_s
    assert late.min() >= 0
    assert late.max() < 3.001
    assert np.all(np.diff(spread.arrival_s) >= 0)


def test_an_infinite_prefix_cache_hits_the_published_share_of_mooncake_blocks() -> None:
    trace = read_trace(data_file("mooncake/conversation_trace.jsonl"))
    assert trace.prefix_blocks is not None
    assert all(
        len(blocks) == -(-tokens // 512)
        for blocks, tokens in zip(trace.prefix_blocks, trace.input_tokens.tolist(), strict=True)
    )
    blocks = [block for chain in trace.prefix_blocks for block in chain]
    assert 1 - len(set(blocks)) / len(blocks) == pytest.approx(0.366, abs=0.001)


def test_the_servegen_sample_says_that_it_is_sampled() -> None:
    trace = read_trace(data_file("servegen_r1/SAMPLED_slice_1h_21to22h.csv"))
    assert trace.provenance == "sampled"
    assert len(trace) == 93330
    assert spearmanr(trace.input_tokens, trace.output_tokens)[0] == pytest.approx(-0.31, abs=0.01)


def test_a_day_drawn_from_servegen_has_the_published_rates_and_lengths() -> None:
    source = read_source(data_file("servegen_r1/servegen_r1_compact.json.gz"))
    assert isinstance(source, Generator)
    assert len(source.clients) == 73
    assert servegen.expected(source.clients) == pytest.approx(1_383_669, rel=1e-6)
    trace = requests(source, 11)
    hourly = np.histogram(trace.arrival_s, np.arange(25) * 3600)[0] / 3600
    published = [19, 22, 33, 29, 17, 15, 12, 9, 10, 11, 13, 13, 7, 9, 11, 11, 14, 9, 12, 9, 20, 26, 35, 19]  # fmt: skip
    assert hourly == pytest.approx(published, rel=0.05, abs=1.0)
    found = summary(trace)
    assert found["in_mean"] == pytest.approx(1268, rel=0.02)
    assert found["out_mean"] == pytest.approx(1527, rel=0.01)
    assert found["out_p95"] == pytest.approx(5701, rel=0.02)
    assert found["out_p99"] == pytest.approx(12607, rel=0.02)
    output = trace.output_tokens
    assert output.max() <= 32768
    assert output.var() / output.mean() ** 2 == pytest.approx(2.30, abs=0.05)
    assert trace.reasoning_tokens is not None
    share = trace.reasoning_tokens / output
    assert share.mean() == pytest.approx(0.702, abs=0.005)
    assert np.percentile(share, [5, 50, 95]) == pytest.approx([0.32, 0.76, 0.97], abs=0.01)
    assert trace.reasoning_tokens.sum() / output.sum() == pytest.approx(0.8, abs=0.01)


def test_raw_servegen_clients_equal_those_of_the_compact_file() -> None:
    compact = read_source(data_file("servegen_r1/servegen_r1_compact.json.gz"))
    raw = read_source(data_file("servegen_r1/raw"))
    assert isinstance(compact, Generator)
    assert isinstance(raw, Generator)
    by_name = {client.name: client for client in compact.clients}
    for client in raw.clients:
        twin = by_name[client.name]
        assert [w.start_s for w in client.windows] == [w.start_s for w in twin.windows]
        for mine, other in zip(client.windows, twin.windows, strict=True):
            assert mine.rate == pytest.approx(other.rate)
            u = np.linspace(0.01, 0.99, 50)
            mean = mine.lengths.output.quantile(u).mean()
            assert mean == pytest.approx(other.lengths.output.quantile(u).mean(), rel=1e-3)


# formats -------------------------------------------------------------------------------------


def test_azure_timestamps_keep_all_seven_fractional_digits(write: Write) -> None:
    trace = read_trace(write(AZURE))
    assert trace.arrival_s == pytest.approx([0.0, 4.3145791, 4.5418770], abs=1e-12)
    assert trace.input_tokens.tolist() == [374, 396, 879]
    assert trace.output_tokens.tolist() == [44, 109, 55]


@pytest.mark.parametrize("zone", ["+00:00", "Z", "+02:00"])
def test_azure_timestamps_with_a_zone_are_read(write: Write, zone: str) -> None:
    text = AZURE.replace("5900,", f"5900{zone},").replace("691,", f"691{zone},")
    trace = read_trace(write(text.replace("4670,", f"4670{zone},")))
    assert trace.arrival_s == pytest.approx([0.0, 4.3145791, 4.5418770], abs=1e-12)


def test_azure_multimodal_rows_are_read_through_gzip(write: Write) -> None:
    text = "\n".join(
        line if i == 0 else line.replace(",", ",1,", 1)
        for i, line in enumerate(AZURE.replace("TIMESTAMP,", "TIMESTAMP,NumImages,").splitlines())
    )
    trace = read_trace(write(gzip.compress(text.encode())))
    assert trace.input_tokens.tolist() == [374, 396, 879]


def test_failed_burstgpt_responses_are_dropped_and_counted(write: Write) -> None:
    trace = read_trace(write(BURST))
    assert (len(trace), trace.dropped, trace.format) == (2, 1, "burstgpt")
    first, second = trace.records()
    assert (first.session, second.session) == (None, 0)
    assert (first.tenant, second.tenant) == ("ChatGPT", "GPT-4")
    assert 0 <= first.arrival_s < 1
    assert 40 <= second.arrival_s < 41


def test_burstgpt_without_sessions_is_read(write: Write) -> None:
    text = (
        "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n5.5,GPT-4,3,4,7,x\n"
    )
    assert read_trace(write(text)).record(0).session is None


def test_requests_of_one_tick_are_spread_over_it_in_their_order(write: Write) -> None:
    source = read_source(write(MOONCAKE))
    assert isinstance(source, Trace)
    assert source.tick_s == pytest.approx(2.999)
    one, again, other = (requests(source, key).arrival_s for key in (1, 1, 2))
    assert one.tolist() == again.tolist() != other.tolist()
    assert np.all(np.diff(one) > 0)
    assert one[2] < 2.999 <= one[3]
    assert source.prefix_blocks == ((0, 1), (0, 2), (0,), (0, 3))
    assert source.block_size == 512


def test_bailian_seconds_and_conversations_are_read(write: Write) -> None:
    trace = read_trace(write(BAILIAN))
    assert (trace.format, trace.block_size, trace.dropped) == ("bailian", 16, 1)
    assert trace.arrival_s == pytest.approx([0.0, 8.8, 9.8])
    assert trace.parent is not None
    assert trace.session is not None
    assert trace.parent.tolist() == [-1, 0, 1]
    assert len(set(trace.session.tolist())) == 1


def test_the_servegen_sample_has_reasoning_tokens(write: Write) -> None:
    trace = read_trace(write(SAMPLED))
    assert trace.record(0).reasoning_tokens == round(0.804 * 356)
    assert trace.record(1).tenant == "26"


def test_a_servegen_folder_and_its_chunk_file_draw_requests(folder: Path) -> None:
    trace = read_trace(folder, key=5)
    assert trace.arrival_s.min() >= 600
    assert trace.arrival_s.max() < 1800
    assert set(trace.input_tokens.tolist()) == {100, 200}
    assert trace.reasoning_tokens is not None
    share = trace.reasoning_tokens / trace.output_tokens
    assert set(np.round(share, 2).tolist()) == {0.5, 0.9}
    chunk = read_trace(folder / "chunk-3-trace.csv", key=5)
    assert chunk.arrival_s.tolist() == trace.arrival_s.tolist()


def test_the_count_of_a_servegen_window_varies_about_its_rate(folder: Path) -> None:
    source = read_source(folder)
    counts = [len(requests(source, key, 600.0, 1200.0)) for key in range(400)]
    # 300 expected; a renewal count of CV 2 has an index of dispersion near CV^2 = 4
    assert np.mean(counts) == pytest.approx(300, abs=4 * 35 / 20)
    assert 3.0 < np.var(counts) / 300 < 5.0


def test_input_and_output_of_a_client_are_independent_and_reasoning_is_not(folder: Path) -> None:
    source = read_source(folder)
    drawn = [requests(source, key) for key in range(20)]
    inputs = np.concatenate([t.input_tokens for t in drawn])
    outputs = np.concatenate([t.output_tokens for t in drawn])
    thoughts = np.concatenate([t.reasoning_tokens for t in drawn if t.reasoning_tokens is not None])
    assert abs(spearmanr(inputs, outputs)[0]) < 0.04
    assert spearmanr(outputs, thoughts / outputs)[0] > 0.3


def test_a_longer_interval_of_servegen_only_adds_requests(folder: Path) -> None:
    source = read_source(folder)
    short, long = requests(source, 3, 0.0, 900.0), requests(source, 3, 0.0, 1800.0)
    assert len(long) > len(short) > 0
    assert long.arrival_s[: len(short)].tolist() == short.arrival_s.tolist()
    assert long.output_tokens[: len(short)].tolist() == short.output_tokens.tolist()


@pytest.mark.parametrize("name", ["azure", "burstgpt", "mooncake", "bailian", "servegen"])
def test_each_format_is_recognised_by_its_content(write: Write, name: str) -> None:
    assert read_trace(write(TEXTS[name])).format == name
    assert read_trace(write(gzip.compress(TEXTS[name].encode()))).format == name
    assert read_trace(write("\ufeff" + TEXTS[name].replace("\n", "\r\n"))).format == name


def test_the_compact_servegen_json_is_recognised_indented_or_not(write: Write) -> None:
    assert read_trace(write(COMPACT)).provenance == "sampled"
    assert len(read_trace(write(json.dumps(json.loads(COMPACT), indent=1)))) > 0


def test_blank_lines_do_not_shift_the_line_of_an_error(write: Write) -> None:
    text = AZURE.replace("\r", "") + "\n\n2023-11-16 18:15:52,-4,5\n"
    with pytest.raises(UserError, match=r"trace\.txt:6: ContextTokens is -4"):
        read_trace(write(text))


# bad input -----------------------------------------------------------------------------------

HEAD = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
ROW = "2023-11-16 18:15:46,374,44\n"
LINE = '{"timestamp": 0, "input_length": 600, "output_length": 5, "hash_ids": [0, 1]}\n'

BAD = {
    "empty": ("", "is empty"),
    "spaces": (" \n\n", "is empty"),
    "binary": (bytes(range(256)) * 4, ":1: is binary"),
    "not utf-8": (b"TIMESTAMP,\xff\xfe\n", ":1: is binary"),
    "prose": ("Dear all,\nhere is the trace\n", ":1: .*no trace format"),
    "header only": (HEAD, ":1: has a header and no requests"),
    "header without newline": (HEAD.strip(), ":1: has a header and no requests"),
    "wrong columns": ("TIME,ContextTokens,GeneratedTokens\n1,2,3\n", ":1: needs .*'TIMESTAMP'"),
    "twice a column": ("TIMESTAMP,ContextTokens,ContextTokens,GeneratedTokens\n", ":1: needs exactly"),
    "truncated row": (HEAD + ROW + "2023-11-16 18:1", ":3: has 1 of 3 columns.*truncated"),
    "half a time": (HEAD + ROW + "2023-11-,5,6\n", ":3: TIMESTAMP is '2023-11-'"),
    "text for tokens": (HEAD + ROW + "2023-11-16 18:15:47,many,44\n", ":3: ContextTokens is 'many'"),
    "fraction of a token": (HEAD + "2023-11-16 18:15:47,1.5,44\n", ":2: ContextTokens is '1.5'"),
    "NaN tokens": (HEAD + ROW + "2023-11-16 18:15:47,NaN,44\n", ":3: ContextTokens is 'NaN'"),
    "missing tokens": (HEAD + ROW + "2023-11-16 18:15:47,,44\n", ":3: ContextTokens is empty"),
    "negative tokens": (HEAD + ROW + "2023-11-16 18:15:47,5,-1\n", ":3: GeneratedTokens is -1"),
    "too many tokens": (HEAD + "2023-11-16 18:15:47,5,99999999\n", ":2: Gen.* 99999999"),
    "beyond int64": (HEAD + "2023-11-16 18:15:47,99999999999999999999,1\n", ":2: ContextTokens is"),
    "unsorted": (HEAD + ROW + "2023-11-16 18:15:45,5,5\n", ":3: TIMESTAMP is before.*sort it"),
    "nothing generated": (HEAD + "2023-11-16 18:15:45,5,0\n", "no request with input and output"),
    "negative seconds": (BURST.replace("\n5,", "\n-5,"), ":2: Timestamp is -5"),
    "NaN seconds": (BURST.replace("\n5,", "\nnan,"), ":2: Timestamp is nan"),
    "infinite seconds": (BURST.replace("\n5,", "\ninf,"), ":2: Timestamp is inf"),
    "ratio above 1": (SAMPLED.replace("0.84\n", "1.84\n"), ":3: reason_ratio is 1.84"),
    "truncated json": (LINE + LINE[:30], ":2: is not valid JSON .the file looks truncated"),
    "broken json": (LINE + "{nonsense}\n" + LINE, ":2: is not valid JSON"),
    "json list": (LINE + "[1, 2]\n", ":2: is not a JSON object"),
    "deep json": (LINE + "[" * 100_000 + "\n", ":2: is not"),
    "no length": (LINE + '{"timestamp": 0}\n', ":2: has no 'input_length'"),
    "negative length": (LINE.replace("600", "-600"), ":1: input_length is -600"),
    "length as text": (LINE.replace("600", '"600"'), ":1: input_length is '600'"),
    "length as truth": (LINE.replace("600", "true"), ":1: input_length is True"),
    "NaN time": (LINE.replace('"timestamp": 0', '"timestamp": NaN'), ":1: timestamp is nan"),
    "huge time": (LINE.replace('"timestamp": 0', '"timestamp": 1e300'), ":1: timestamp 1e\\+300"),
    "hashes as text": (LINE.replace("[0, 1]", '["a", "b"]'), ":1: hash_ids is not"),
    "too many hashes": (LINE.replace("600", "500"), ":1: has 2 hash_ids for 500 input tokens"),
    "time runs back": (LINE.replace(": 0,", ": 9,") + LINE, ":2: timestamp 0 is before.*sort"),
    "lfs pointer": ("version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
    "cut gzip": (gzip.compress(AZURE.encode())[:-20], "truncated"),
    "broken gzip": (b"\x1f\x8b" + b"x" * 50, "damaged gzip"),
    "compact without clients": ('{"clients": []}', "clients is not a mapping|window_s"),
    "compact cut": (COMPACT[:-9], "not valid JSON"),
    "compact idle": (COMPACT.replace("0.5, 2.0", "0, 2.0"), "no window with requests"),
    "compact probabilities": (COMPACT.replace("[0.5, 0.5]", "[0.5, 0.1]"), "add up to 1"),
    "compact family": (COMPACT.replace("Gamma", "Pareto"), "known: Gamma, Weibull"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_refused_with_place_rule_and_way_out(write: Write, case: str) -> None:
    content, message = BAD[case]
    with pytest.raises(UserError, match=message) as caught:
        read_trace(write(content))
    text = str(caught.value)
    assert text.startswith(str(write("x")))
    assert "; " in text
    assert len(text) < 500


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("chunk-3-trace.csv", "600,0.5,2.0,Gamma", "600,0.5,2.0,Zeta", r":2: family is 'Zeta'"),
        ("chunk-3-trace.csv", "600,0.5", "600,-0.5", r":2: rate is '-0.5'"),
        ("chunk-3-trace.csv", "600,0.5", "600,nan", r":2: rate is 'nan'"),
        ("chunk-3-trace.csv", "\n1200", "\n300", r":3: start_s 300 comes too early"),
        ("chunk-3-trace.csv", ",0.56,1.2", "", r":3: has 4 of 6 columns"),
        ("chunk-3-trace.csv", "0.25", "0", r":2: shape is 0"),
        ("chunk-3-dataset.json", "100: 0.5", "100: -0.5", "is out of range"),
        ("chunk-3-dataset.json", "{100: 0.5", "{__import__('os'): 0.5", "is not a literal table"),
        ("chunk-3-dataset.json", "0.9: 0.5", "9.0: 0.5", "reason_ratio of period 600 is out of"),
        ("chunk-3-dataset.json", '"600"', '"soon"', "period is 'soon'"),
        ("chunk-3-dataset.json", "}}", "}", "is not valid JSON"),
        ("chunk-3-dataset.json", "{100: 0.5, 200.0: 0.5}", "{}", "without length tables"),
    ],
)
def test_bad_servegen_folders_are_refused(
    folder: Path, name: str, old: str, new: str, message: str
) -> None:
    text = (folder / name).read_text()
    assert old in text
    (folder / name).write_text(text.replace(old, new, 1))
    with pytest.raises(UserError, match=message):
        read_trace(folder)


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.csv: cannot be read \(No such file"):
        read_trace(tmp_path / "none.csv")
    with pytest.raises(UserError, match="folder without chunk-0-trace"):
        read_trace(tmp_path)
    with pytest.raises(UserError, match="is a folder"):
        read_trace(tmp_path, "azure")
    with pytest.raises(UserError, match="cannot be read"):
        read_trace("nul\0byte")
    (tmp_path / "chunk-0-trace.csv").write_text(CHUNK)
    with pytest.raises(UserError, match=r"chunk-0-dataset\.json: cannot be read"):
        read_trace(tmp_path)


def test_a_named_format_says_what_the_file_lacks(write: Write) -> None:
    with pytest.raises(UserError, match="needs exactly one column 'Timestamp'"):
        read_trace(write(AZURE), "burstgpt")
    with pytest.raises(UserError, match=":1: is not valid JSON"):
        read_trace(write(AZURE), "mooncake")


def test_a_gzip_bomb_is_refused(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sim.tracefile.MAX_BYTES", 10_000)
    with pytest.raises(UserError, match="decompresses to more than"):
        read_trace(write(gzip.compress(b"0" * 1_000_000)))
    with pytest.raises(UserError, match="more than the 10,000 allowed"):
        read_trace(write("x" * 20_000))


def test_control_characters_of_a_file_do_not_reach_the_terminal(write: Write) -> None:
    with pytest.raises(UserError) as caught:
        read_trace(write("\x1b[31mred\n"))
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize("name", TEXTS)
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_mutated_files_are_read_or_refused_and_nothing_else(
    write: Write, name: str, data: st.DataObject
) -> None:
    content = bytearray(TEXTS[name].encode())
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(content)))
        stop = data.draw(st.integers(start, min(len(content), start + 12)))
        content[start:stop] = data.draw(
            st.sampled_from(
                [b"", b"-", b"nan", b"1e400", b'"', b"\n", b"\r", b",", b"{", b"}", b"\0", b"\xff",
                 b"9" * 25, b"null", b"[]", b"true", b"1e6", b"0", b"\xef\xbb\xbf", b"+"]
            )
            | st.binary(max_size=6)
        )  # fmt: skip
    try:
        trace = read_trace(write(bytes(content)))
    except UserError:
        return
    else:
        assert len(trace) > 0
        assert np.isfinite(trace.arrival_s).all()
        assert np.all(np.diff(trace.arrival_s) >= 0)
        assert trace.input_tokens.min() > 0
        assert trace.output_tokens.min() > 0


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_mutated_servegen_folders_are_read_or_refused_and_nothing_else(
    folder: Path, data: st.DataObject
) -> None:
    for name, text in (("chunk-3-trace.csv", CHUNK), ("chunk-3-dataset.json", DATASET)):
        at = data.draw(st.integers(0, len(text)))
        piece = data.draw(
            st.sampled_from(["", "-", "nan", "1if 2", "9" * 5000, "(", "'", "{", "1e9", "e"])
        )
        (folder / name).write_text(text[:at] + piece + text[at + data.draw(st.integers(0, 9)) :])
    try:
        source = read_source(folder)
    except UserError:
        return
    assert isinstance(source, Generator)
    assert len(source.clients) == 1


# point processes -----------------------------------------------------------------------------


def test_child_keys_equal_the_scalar_ones() -> None:
    from models.keyed import child_key

    assert child_keys(2**64 - 5, 4).tolist() == [child_key(2**64 - 5, i) for i in range(4)]


@pytest.mark.parametrize(
    ("family", "shape"), [("gamma", 1.0), ("gamma", 0.19), ("gamma", 4.0), ("weibull", 0.6)]
)
def test_a_renewal_process_has_rate_one_from_its_start(family: str, shape: float) -> None:
    counts = [len(renewal(key, 20.0, family, shape)) for key in range(3000)]  # type: ignore[arg-type]
    error = np.std(counts) / np.sqrt(len(counts))
    assert np.mean(counts) == pytest.approx(20.0, abs=4 * error)


@given(st.integers(0, 2**64 - 1), st.floats(0, 300), st.floats(0, 300), st.sampled_from([1.0, 0.2]))
def test_a_longer_renewal_only_adds_points(key: int, a: float, b: float, shape: float) -> None:
    short, long = sorted((a, b))
    points = renewal(key, long, "gamma", shape)
    assert renewal(key, short, "gamma", shape).tolist() == points[points < short].tolist()
