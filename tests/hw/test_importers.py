"""Importers: what others measured arrives with its shapes, its times to the digit, and its provenance."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hw.aiconfigurator import read_aiconfigurator
from hw.device import device
from hw.imported import attention_widths
from hw.importers import read_foreign, recognise
from hw.profile import Profile, ProfileError, load, save
from hw.transformer import CatalogError, linear_work, transformer, transformer_named
from tests.data import DATA, needs

CARD = device("rtx-4090-24gb")
H200 = device("h200-sxm-141gb")
A100 = device("a100-sxm-80gb")
LLAMA = transformer("llama-3.1-8b")
# Rows of Vidur's public A100 data (microsoft/vidur, data/profiling, MIT): Llama-3-8B's linear layers, and
# attention of 64 / 8 heads split in two; the two prefill rows are shortened to the columns that count.
MLP = (
    "time_stats.emb.median,time_stats.input_layernorm.median,time_stats.attn_pre_proj.median,"
    "time_stats.attn_rope.median,time_stats.attn_post_proj.median,time_stats.mlp_up_proj.median,"
    "time_stats.mlp_act.median,time_stats.mlp_down_proj.median,time_stats.add.median,n_head,n_kv_head,"
    "n_embd,n_expanded_embd,vocab_size,use_gated_mlp,num_tokens,num_tensor_parallel_workers\n"
    "1.963,0.8255,7.2595,0.776,4.926,33.094,2.7685,16.6075,0.471,32,8,4096,14336,128256,True,32768,1\n"
    "1.943,0.817,7.1625,0.762,4.8315,32.688,2.7265,16.383,0.463,32,8,4096,14336,128256,True,32256,1\n"
)
ATTENTION = (
    "time_stats.attn_decode.median,time_stats.attn_prefill.median,n_embd,n_q_head,n_kv_head,block_size,"
    "num_tensor_parallel_workers,max_model_len,batch_size,prefill_chunk_size,kv_cache_size,is_prefill,"
    "attention_backend,profile_method\n"
    "0.015,,8192,64,8,16,2,4096,1,0,32,False,AttentionBackend.FLASH_ATTENTION,ProfileMethod.KINETO\n"
    "0.009,,8192,64,8,16,2,4096,22,0,32,False,AttentionBackend.FLASH_ATTENTION,ProfileMethod.KINETO\n"
    ",0.11,8192,64,8,16,2,4096,1,512,1024,True,AttentionBackend.FLASH_ATTENTION,ProfileMethod.KINETO\n"
)
ALL_REDUCE = (
    ",time_stats.all_reduce.min,time_stats.all_reduce.median,rank,num_workers,size,collective\n"
    "0,0.031,0.043,0,2,2048,all_reduce\n"
    "1,0.031,0.044,1,2,2048,all_reduce\n"
)


def vidur(folder: Path) -> Path:
    (folder / "mlp.csv").write_text(MLP)
    (folder / "attention.csv").write_text(ATTENTION)
    (folder / "all_reduce.csv").write_text(ALL_REDUCE)
    return folder


def only(profile: Profile, op: str, **axes: Any) -> float:
    """The one time of an operation at these axes, us."""
    rows = profile.rows(op)
    keep = np.all([rows[name] == value for name, value in axes.items()], axis=0)
    assert keep.sum() == 1, f"{op} at {axes}: {keep.sum()} rows"
    return float(rows["t_us_median"][keep][0])


def test_vidurs_milliseconds_become_microseconds_of_our_operations(tmp_path: Path) -> None:
    assert recognise(vidur(tmp_path)) == "vidur"
    profile = read_foreign(tmp_path, A100)
    assert (profile.source_kind, profile.meta["licence"]) == ("imported", "MIT")
    assert only(profile, "qkv", m=32768, n=6144, k=4096) == pytest.approx(7259.5)
    assert only(profile, "gate_up", m=32256, n=28672, k=4096) == pytest.approx(32688)
    assert only(profile, "down", m=32256, n=4096, k=14336) == pytest.approx(16383)
    n, k = attention_widths(transformer("llama-3.1-70b"), 2)
    assert only(profile, "suffix_attention", B=22, S=32, n=n, k=k) == pytest.approx(9)
    assert only(profile, "prefill_attention", B=1, m=512, P=1024, n=n, k=k) == pytest.approx(110)
    assert only(profile, "all_reduce", m=2048, splits=2) == pytest.approx(43)  # one rank's


def test_vidurs_linear_layers_have_the_sizes_that_our_shapes_have(tmp_path: Path) -> None:
    profile = read_foreign(vidur(tmp_path), A100, LLAMA)
    for work in linear_work(LLAMA):
        if work.name in ("qkv", "o", "gate_up", "down"):
            rows = profile.rows(work.name)
            assert set(zip(rows["n"].tolist(), rows["k"].tolist(), strict=True)) == {
                (work.n, work.k)
            }
    assert not len(profile.rows("suffix_attention")["B"])  # that was measured for another model


def test_a_vidur_file_without_rows_of_the_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mlp.csv").write_text(MLP)
    with pytest.raises(ProfileError, match="no row of the shape of qwen2.5-32b"):
        read_foreign(tmp_path, A100, transformer("qwen2.5-32b"))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("n_expanded_embd,", "n_wide,", "lacks the column n_expanded_embd"),
        ("7.2595", "fast", "attn_pre_proj.median holds 'fast' where a number is due"),
        ("32768,1", "-5,1", "num_tokens holds '-5', not a count"),
        ("7.2595", "nan", "holds 'nan' where a number is due"),
    ],
)
def test_a_broken_csv_is_refused_with_its_column(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    (tmp_path / "mlp.csv").write_text(MLP.replace(old, new, 1))
    with pytest.raises(ProfileError, match=message):
        read_foreign(tmp_path, A100)


@needs("vllm_rtx4090")
def test_llmservingsims_folder_arrives_to_the_digit(tmp_path: Path) -> None:
    assert recognise(DATA / "vllm_rtx4090") == "llmservingsim"
    profile = read_foreign(DATA / "vllm_rtx4090" / "profile", CARD)
    assert len(profile.columns["op"]) == 10_091
    assert "vLLM 0.19.0" in profile.label
    assert only(profile, "lm_head", m=1, n=128256, k=4096) == 1096.93
    assert only(profile, "sample", m=64) == pytest.approx(40, rel=0.2)
    assert only(profile, "activation", m=240) == 11.6577
    mixed = {"m": 512, "P": 1024, "B": 2, "S": 16384, "n": 4096, "k": 1024}
    assert only(profile, "mixed_attention", **mixed) == 628.826
    assert {row["prefill"] for row in profile.meta["skew"]} == {False, True}
    save(profile, tmp_path / "card")
    assert load(tmp_path / "card").digest == profile.digest


@needs("vllm_rtx4090")
def test_a_large_matrix_product_runs_near_the_cards_ceiling_and_never_over_its_peak() -> None:
    rows = read_foreign(DATA / "vllm_rtx4090", CARD).rows("gate_up")
    reached = rows["flop"] / (1e-6 * rows["t_us_median"])
    assert 0.9 * CARD.gemm_flops_bf16 < reached.max() <= 1.01 * CARD.flops_bf16


def package(folder: Path) -> Path:
    """The smallest aiconfigurator-core: its folders, columns and units, a few rows."""

    def table(place: str, **columns: list[Any]) -> None:
        file = folder / "aiconfigurator_core" / "systems" / "data" / "h200_sxm" / f"{place}.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), file)

    heads = {"num_heads": [32, 32], "num_key_value_heads": [8, 8], "head_dim": [128, 128]}
    kinds = {"window_size": [0, 128], "attn_dtype": ["bfloat16"] * 2,
             "kv_cache_dtype": ["bfloat16"] * 2, "kernel_source": ["fa3"] * 2}  # fmt: skip
    table("gemm/vllm/0.9.0/gemm_perf", gemm_dtype=["bfloat16"], kernel_source=["old"], m=[1], n=[512],
          k=[512], latency=[1.0])  # fmt: skip
    table("gemm/vllm/0.24.0/gemm_perf", gemm_dtype=["bfloat16", "fp8", "int8"],
          kernel_source=["linear"] * 3, m=[64, 64, 64], n=[6144] * 3, k=[4096] * 3,
          latency=[0.0178, 0.0121, 0.01])  # fmt: skip
    table("attention/vllm/0.24.0/generation_attention_perf", batch_size=[64, 64], isl=[1, 1],
          step=[8191, 8191], latency=[0.491, 0.02], **heads, **kinds)  # fmt: skip
    table("attention/vllm/0.24.0/context_attention_perf", batch_size=[8, 8], isl=[1024, 1024],
          step=[0, 0], latency=[0.21, 0.1], **heads, **kinds)  # fmt: skip
    table("comm/vllm/0.24.0/custom_allreduce_perf", kernel_source=["vLLM_custom_graph", "x_eager"],
          num_gpus=[8, 8], message_size=[8192, 8192], latency=[0.00515, 0.0207])  # fmt: skip
    table("moe/vllm/0.24.0/moe_perf", kernel_source=["marlin"], moe_dtype=["w4a16_mxfp4"],
          num_tokens=[64], hidden_size=[2880], inter_size=[2880], topk=[4], num_experts=[128],
          moe_tp_size=[1], moe_ep_size=[1], distribution=["power_law_1.2"], latency=[0.3])  # fmt: skip
    (folder / "aiconfigurator_core" / "systems" / "h200_sxm.yaml").write_text("gpu: {}\n")
    return folder


def test_aiconfigurators_newest_tables_become_calls_of_one_layer(tmp_path: Path) -> None:
    assert recognise(package(tmp_path)) == "aiconfigurator"
    profile = read_foreign(tmp_path, H200)
    assert (profile.source_kind, profile.meta["licence"]) == ("imported", "Apache-2.0")
    assert "gemm 0.24.0" in profile.meta["tables"]
    assert only(profile, "gemm", dtype="bfloat16", m=64) == pytest.approx(17.8)
    assert only(profile, "gemm", dtype="fp8", m=64) == pytest.approx(12.1)
    n, k = attention_widths(LLAMA)
    # The published 64 x 8,192 decode attention of FA3: 491 us, 4.37 TB/s.
    decode = profile.rows("suffix_attention")
    assert only(profile, "suffix_attention", B=64, S=8192, n=n, k=k) == pytest.approx(491)
    assert decode["bytes_floor"][0] / 491e-6 == pytest.approx(4.37e12, rel=0.01)
    assert only(profile, "prefill_attention", B=8, m=1024, P=0, n=n, k=k) == pytest.approx(210)
    assert only(profile, "all_reduce", m=16384, splits=8) == pytest.approx(
        5.15
    )  # elements of 2 bytes
    assert only(profile, "experts", m=64, n=8640, k=2880, P=4, S=128) == pytest.approx(300)


def test_an_unknown_engine_system_or_folder_of_aiconfigurator_is_refused(tmp_path: Path) -> None:
    package(tmp_path)
    with pytest.raises(ProfileError, match="engine 'tgi' has no tables; there are vllm, sglang"):
        read_aiconfigurator(tmp_path, H200, "tgi")
    with pytest.raises(ProfileError, match="no system for rtx-4090-24gb"):
        read_aiconfigurator(tmp_path, CARD)
    with pytest.raises(ProfileError, match="has no tables of sglang"):
        read_aiconfigurator(tmp_path, H200, "sglang")
    with pytest.raises(ProfileError, match="holds none of the formats"):
        recognise(tmp_path / "aiconfigurator_core" / "systems" / "data")
    with pytest.raises(ProfileError, match="there is nothing at"):
        recognise(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("path", "name", "dtype"),
    [
        ("meta-llama/Meta-Llama-3.1-8B", "llama-3.1-8b", "bfloat16"),
        ("meta-llama/Llama-3.1-70B-Instruct", "llama-3.1-70b", "bfloat16"),
        ("nvidia/Llama-3.1-8B-Instruct-FP8", "llama-3.1-8b-fp8", "fp8"),
        ("deepseek-ai/DeepSeek-R1", "deepseek-r1", "fp8_block"),
    ],
)
def test_a_hugging_face_path_finds_its_shape(path: str, name: str, dtype: str) -> None:
    found = transformer_named(path)
    assert (found.name, found.dtype) == (name, dtype)


def test_an_unknown_hugging_face_path_says_what_is_known() -> None:
    with pytest.raises(CatalogError, match=r"llama-3\.1-8b"):
        transformer_named("acme/llama-9-8b")
