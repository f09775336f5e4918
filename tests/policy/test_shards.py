"""Which shards belong together, and in what order."""

from hypothesis import given
from hypothesis import strategies as st

from fusefs.policy.shards import group_of, natural_key, shard_order, shards_after


def test_numbered_shards_follow_each_other_naturally() -> None:
    """Shard 2 comes before shard 10, whatever the padding."""
    names = [f"model-{i}-of-12.safetensors" for i in range(1, 13)]
    order = shard_order(names[0], sorted(names), None)
    assert order == names
    assert shards_after(names[9], order) == names[10:]


def test_an_index_keeps_a_second_copy_of_the_weights_out() -> None:
    """Only what the index names belongs to the model."""
    names = ["consolidated.safetensors", "a.safetensors", "b.safetensors", "config.json"]
    assert shard_order("a.safetensors", names, ["b.safetensors", "a.safetensors"]) == [
        "a.safetensors",
        "b.safetensors",
    ]


def test_names_in_an_index_that_are_not_there_are_left_out() -> None:
    """A hostile or stale index cannot name files that do not exist."""
    assert shard_order("a.safetensors", ["a.safetensors"], ["a.safetensors", "../x"]) == []


def test_families_with_other_totals_are_strangers() -> None:
    """model-1-of-2 and model-1-of-3 are two models."""
    names = ["m-1-of-2.safetensors", "m-2-of-2.safetensors", "m-1-of-3.safetensors"]
    assert shard_order(names[0], names, None) == names[:2]


def test_a_single_file_has_no_followers() -> None:
    """One file is its own model."""
    assert shard_order("model.safetensors", ["model.safetensors", "other.safetensors"], None) == []
    assert shards_after("x", ["a", "b"]) == []


@given(st.lists(st.text(max_size=20)))
def test_natural_order_is_total(names: list[str]) -> None:
    """Any file names can be sorted, and sorting twice changes nothing."""
    once = sorted(names, key=natural_key)
    assert sorted(once, key=natural_key) == once


def test_archives_and_gguf_files_come_in_families_too() -> None:
    """With "of" in their names they are shards of one model; without, who knows."""
    assert group_of("pytorch_model-00001-of-00003.bin") == "pytorch_model-#-of-00003.bin"
    assert group_of("m-Q8_0-00002-of-00009.gguf") == "m-Q8_0-#-of-00009.gguf"
    assert group_of("data_001.bin") is None
