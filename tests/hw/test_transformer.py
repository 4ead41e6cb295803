"""Shapes and floors reach the published check values for weights, KV, ridge and step times."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import pytest

from hw.device import CatalogError, device
from hw.floors import Op, attention_op, floors, fork_op
from hw.transformer import from_config, linear_work, transformer, transformers

H200 = device("h200-sxm-141gb")
LLAMA = transformer("llama-3.1-8b")


def seconds(ops: tuple[Op, ...], *names: str) -> float:
    return sum(op.seconds for op in ops if op.name in names)


@pytest.mark.parametrize("name", sorted(transformers()))
def test_every_shape_carries_a_source_and_a_date(name: str) -> None:
    source = transformer(name).source
    assert "config.json" in source.text
    assert datetime.date.fromisoformat(source.as_of).year >= 2025


@pytest.mark.parametrize(
    ("name", "read_gb", "floor_ms", "kv_bytes", "ridge"),
    [
        ("llama-3.1-8b", 15.0, 3.49, 131_072, 46),
        ("llama-3.1-70b", 139.0, 32.3, 327_680, 23),
        ("qwen2.5-32b", 64.0, 14.9, 262_144, 37),
        ("qwq-32b", 64.0, 14.9, 262_144, 37),
        ("qwen2.5-7b", 14.1, 3.29, 57_344, 26),
    ],
)
def test_dense_shapes_reach_the_check_values(
    name: str, read_gb: float, floor_ms: float, kv_bytes: int, ridge: int
) -> None:
    shape = transformer(name)
    read = shape.weights_read_bytes()
    assert read / 1e9 == pytest.approx(read_gb, abs=0.06)
    assert 1e3 * read / H200.copy_bytes_per_s == pytest.approx(floor_ms, rel=0.003)
    assert shape.kv_bytes_per_token() == kv_bytes
    b_star = (H200.gemm_flops_bf16 / H200.copy_bytes_per_s) * (
        shape.kv_layer_bytes() / shape.attention_flops()
    )
    assert round(b_star) == ridge


def test_a_process_reward_model_reads_a_score_head_in_place_of_the_lm_head() -> None:
    reward, policy = transformer("qwen2.5-math-prm-7b"), transformer("qwen2.5-7b")
    assert reward.kv_bytes_per_token() == policy.kv_bytes_per_token() == 57_344
    lm_head, score_head = 2 * 152_064 * 3584, 2 * 3584 * (3584 + 2)
    assert policy.weights_read_bytes() - reward.weights_read_bytes() == lm_head - score_head
    assert "sample" not in {work.name for work in linear_work(reward)}


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("llama-3.1-8b", 8.03e9), ("llama-3.1-70b", 70.55e9), ("qwq-32b", 32.76e9)],
)
def test_weights_held_are_the_published_parameter_counts_in_bf16(
    name: str, parameters: float
) -> None:
    assert transformer(name).weight_bytes() == pytest.approx(2 * parameters, rel=0.001)


def test_gpt_oss_120b_takes_about_65_gb_in_mxfp4_and_half_its_layers_keep_kv() -> None:
    shape = transformer("gpt-oss-120b")
    assert shape.weight_bytes() / 1e9 == pytest.approx(65.2, abs=0.5)
    assert shape.kv_bytes_per_token() == 18 * 2 * 8 * 64 * 2


def test_deepseek_r1_keeps_one_latent_a_token_and_reads_the_expected_distinct_experts() -> None:
    shape = transformer("deepseek-r1")
    assert shape.kv_bytes_per_token() == shape.kv_bytes_per_token(8) == 70_272
    assert shape.attention_flops() == 2 * 128 * 1088
    assert shape.weight_bytes() / 1e9 == pytest.approx(673, abs=2)
    experts = next(work for work in linear_work(shape) if work.name == "experts")
    for tokens, distinct in ((1, 8), (8, 57), (64, 222)):
        read = experts.weight_bytes(tokens) / experts.full_bytes * 256
        assert read == pytest.approx(distinct, abs=0.6)
    ridge = H200.gemm_flops_bf16 / H200.copy_bytes_per_s
    assert ridge * shape.kv_layer_bytes() / shape.attention_flops() < 1


@pytest.mark.parametrize(
    ("name", "branches", "prefix", "suffix", "naive_us", "shared_us"),
    [
        ("llama-3.1-8b", 8, 8192, 128, 63, 8.8),
        ("llama-3.1-8b", 64, 8192, 128, 507, 18.7),
        ("llama-3.1-8b", 256, 8192, 128, 2029, 74.7),
        ("llama-3.1-8b", 64, 32768, 512, 2029, 74.7),
        ("llama-3.1-70b", 64, 8192, 128, 507, 29.6),
        ("qwen2.5-32b", 64, 8192, 128, 507, 21.4),
    ],
)
def test_attention_floors_of_one_layer_reach_the_check_values(
    name: str, branches: int, prefix: int, suffix: int, naive_us: float, shared_us: float
) -> None:
    shape = transformer(name)
    at = {"branches": branches, "prefix": prefix, "suffix": suffix}
    shared = floors(shape, H200, **at)
    naive = floors(shape, H200, **at, attention="naive")
    both = seconds(shared, "prefix_attention", "suffix_attention")
    assert 1e6 * both / shape.layers == pytest.approx(shared_us, rel=0.006)
    apart = 1e6 * seconds(naive, "naive_attention") / shape.layers
    assert apart == pytest.approx(naive_us, abs=0.6)


def test_step_floors_of_llama_8b_are_4_09_ms_shared_and_19_7_ms_naive() -> None:
    weights = LLAMA.weights_read_bytes(64) / H200.copy_bytes_per_s
    shared = floors(LLAMA, H200, branches=64, prefix=8192, suffix=128)
    naive = floors(LLAMA, H200, branches=64, prefix=8192, suffix=128, attention="naive")
    parts = weights + seconds(shared, "prefix_attention", "suffix_attention")
    assert 1e3 * parts == pytest.approx(4.09, abs=0.006)
    assert 1e3 * (weights + seconds(naive, "naive_attention")) == pytest.approx(19.7, abs=0.05)
    # The rest (norms, merge, sampling, KV append) is under 2 % on top.
    assert parts < sum(op.seconds for op in shared) < 1.02 * parts


def test_sampling_64_branches_of_llama_reads_its_logits_in_7_6_us() -> None:
    shared = floors(LLAMA, H200, branches=64)
    assert 1e6 * seconds(shared, "sample") == pytest.approx(7.6, abs=0.05)


def test_forking_64_children_of_a_mean_tail_copies_in_29_us() -> None:
    assert 1e6 * fork_op(LLAMA, H200, 64 * 7.5).seconds == pytest.approx(29, abs=0.5)
    ops = floors(LLAMA, H200, branches=64, forks=64, fork_tail=7.5, pruned_pages=100)
    assert {"fork_copy", "prune"} <= {op.name for op in ops}


def test_prefix_attention_turns_compute_bound_at_the_ridge() -> None:
    at = [
        attention_op("prefix_attention", LLAMA, H200, 8192, 8192 * b).seconds for b in (1, 45, 47)
    ]
    assert at[0] == at[1] < at[2]


def test_tensor_parallel_halves_the_weights_read_and_adds_an_all_reduce() -> None:
    shape = transformer("llama-3.1-70b")
    assert shape.weights_read_bytes(1, 2) == pytest.approx(shape.weights_read_bytes() / 2, rel=1e-3)
    assert shape.kv_bytes_per_token(2) == shape.kv_bytes_per_token() / 2
    assert shape.kv_bytes_per_token(16) == shape.kv_bytes_per_token(8)
    ops = {op.name: op for op in floors(shape, H200, branches=64, tensor_parallel=2)}
    assert ops["all_reduce"].calls == 160
    assert ops["all_reduce"].seconds > 160 * H200.link_latency_s
    with pytest.raises(CatalogError, match="64 attention heads, which 3 devices cannot share"):
        linear_work(shape, 3)


def test_a_prefill_of_many_tokens_is_compute_bound_at_two_flops_a_parameter() -> None:
    ops = floors(LLAMA, H200, branches=0, prefill=8192)
    linear = sum(op.flops for op in ops if op.name in ("qkv", "o", "gate_up", "down"))
    assert linear == pytest.approx(8192 * LLAMA.weights_read_bytes(), rel=0.08)  # but for the head
    assert seconds(ops, "gate_up") == pytest.approx(
        next(op.flops for op in ops if op.name == "gate_up") / 790e12
    )


def test_a_config_file_gives_the_catalogue_shape(tmp_path: Path) -> None:
    config = {
        "num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32,
        "num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 128256,
        "torch_dtype": "bfloat16", "rope_theta": 500000.0,
    }  # fmt: skip
    path = tmp_path / "mine" / "config.json"
    path.parent.mkdir()
    path.write_text(json.dumps(config))
    shape = from_config(path)
    assert shape.name == "mine"
    assert shape.weight_bytes() == LLAMA.weight_bytes()
    assert from_config({**config, "tie_word_embeddings": True}).weight_bytes() == pytest.approx(
        LLAMA.weight_bytes() - 2 * 128256 * 4096
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[1]", "must hold a JSON object, not a list"),
        ("{}", "lacks `hidden_size`"),
        ('{"hidden_size": -1}', "must be a whole number"),
        ('{"hidden_size": 4096.5}', "must be a whole number"),
        ('{"hidden_size": true}', "must be a whole number"),
        ('{"hidden_size": NaN}', "must be a whole number"),
    ],
)
def test_a_wrong_config_file_says_what_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(CatalogError, match=message):
        from_config(path)


def test_a_missing_config_an_unknown_quantisation_and_impossible_experts_are_refused(
    tmp_path: Path,
) -> None:
    with pytest.raises(CatalogError, match="cannot read the model config"):
        from_config(tmp_path / "none.json")
    good = {
        "num_hidden_layers": 1, "hidden_size": 64, "num_attention_heads": 1,
        "intermediate_size": 64, "vocab_size": 10,
    }  # fmt: skip
    with pytest.raises(CatalogError, match="quantisation 'awq'"):
        from_config({**good, "quantization_config": {"quant_method": "awq"}})
    with pytest.raises(CatalogError, match="num_experts_per_tok must be 1 to 4"):
        from_config({**good, "num_local_experts": 4, "num_experts_per_tok": 5})
    with pytest.raises(CatalogError, match="must be at least 1"):
        from_config({**good, "num_hidden_layers": 0})
    with pytest.raises(
        CatalogError, match=r"unknown model `llama-8b`.*Did you mean `llama-3.1-8b`"
    ):
        transformer("llama-8b")
