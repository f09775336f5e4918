"""Plans: the bytes of a slice are those that slicing the tensor gives, whatever the two are."""

from __future__ import annotations

import itertools
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from loaderhint import files, plan
from loaderhint.header import Header, HeaderError, TensorInfo

SHAPES = st.lists(st.integers(0, 5), max_size=3).map(tuple)
BOUND = st.none() | st.integers(-7, 7)
SLICE = st.builds(slice, BOUND, BOUND)


def header(*shapes: tuple[int, ...], dtype: str = "I32", bits: int = 32) -> Header:
    """A header of tensors t0, t1, … of these shapes, as a file would hold them."""
    tensors = []
    at = 100
    for number, shape in enumerate(shapes):
        stop = at + math.prod(shape) * bits // 8
        tensors.append(TensorInfo(f"t{number}", dtype, shape, at, stop))
        at = stop
    return Header(100, tuple(tensors), {})


@given(SHAPES, st.data())
def test_a_slice_is_these_bytes(shape: tuple[int, ...], data: st.DataObject) -> None:
    """The extent of a part, shaped and cut, equals the slice of the whole tensor."""
    cut = tuple(data.draw(st.lists(SLICE, max_size=len(shape))))
    head = header((3,), shape, (2,))
    whole = np.arange(math.prod(shape), dtype=np.int32).reshape(shape)
    [part] = plan.plan_parts([head], tensors=["t1"], slices={"t1": cut})
    base = head.tensors[1].start
    fetched = whole.reshape(-1).tobytes()[part.start - base : part.stop - base]
    values = np.frombuffer(fetched, np.int32).reshape(part.shape)[part.cut]
    assert np.array_equal(values, whole[cut])


@given(st.lists(SHAPES, min_size=1, max_size=8), st.data())
def test_extents_cover_the_parts_and_nothing_else(
    shapes: list[tuple[int, ...]], data: st.DataObject
) -> None:
    """The extents of a plan have the bytes of its parts, each once, in both orders."""
    head = header(*shapes)
    names = [tensor.name for tensor in head.tensors]
    wanted = data.draw(st.permutations(names))[: data.draw(st.integers(0, len(names)))]
    order = data.draw(st.sampled_from(plan.ORDERS))
    parts = plan.plan_parts([head], tensors=wanted, order=order)
    extents = plan.extents_by_file(parts).get(0, [])
    covered = [byte for start, stop in extents for byte in range(start, stop)]
    needed = {byte for part in parts for byte in range(part.start, part.stop)}
    assert len(covered) == len(set(covered))
    assert set(covered) == needed
    if order == plan.OFFSET:
        assert covered == sorted(covered)
    else:
        assert [part.name for part in parts] == list(wanted)


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 9)), max_size=12), st.integers(1, 12))
def test_fewer_extents_lose_nothing(pairs: list[tuple[int, int]], count: int) -> None:
    """Joined extents are at most so many, in order, apart, and hold every byte of the others."""
    extents = [(start, start + size) for start, size in pairs]
    joined = plan.at_most(extents, count)
    assert len(joined) <= count
    assert all(one[1] < two[0] for one, two in itertools.pairwise(joined))
    needed = {byte for start, stop in extents for byte in range(start, stop)}
    assert needed <= {byte for start, stop in joined for byte in range(start, stop)}
    if len(plan.at_most(extents, 1000)) <= count:
        assert needed == {byte for start, stop in joined for byte in range(start, stop)}


def test_touching_parts_are_one_extent() -> None:
    """Neighbours in the plan that touch in the file are fetched as one."""
    parts = plan.plan_parts([header((4,), (4,), (4,))], tensors=["t1", "t2", "t0"])
    assert plan.extents_by_file(parts) == {0: [(116, 148), (100, 116)]}


def test_names_and_slices_that_cannot_be_are_refused() -> None:
    """Unknown names, two tensors of one name, steps, surplus dimensions: one sentence each."""
    heads = [header((4, 4))]
    for wrong in (
        {"tensors": ["t7"]},
        {"tensors": "t0"},
        {"slices": {"t7": slice(1)}},
        {"slices": {"t0": slice(0, 4, 2)}},
        {"slices": {"t0": (slice(1), slice(1), slice(1))}},
        {"order": "backwards"},
    ):
        with pytest.raises(plan.PlanError):
            plan.plan_parts(heads, **wrong)
    with pytest.raises(plan.PlanError, match="two files"):
        plan.plan_parts([heads[0], heads[0]])


def test_rows_of_half_bytes_are_refused() -> None:
    """A slice that would begin inside a byte is an error, one between bytes is not."""
    head = header((4, 3), dtype="F4", bits=4)
    with pytest.raises(plan.PlanError, match="whole bytes"):
        plan.plan_parts([head], slices={"t0": slice(1, 4)})
    [part] = plan.plan_parts([head], slices={"t0": slice(2, 4)})
    assert (part.start, part.stop) == (103, 106)


def test_subsets_of_experts_and_layers() -> None:
    """The weights of other experts and the layers of other stages are not fetched."""
    experts = plan.keep_experts({0, 2})
    assert experts("model.layers.3.mlp.experts.2.up_proj.weight")
    assert not experts("model.layers.3.mlp.experts.1.up_proj.weight")
    assert experts("model.layers.3.mlp.experts.1.up_proj.weight_scale")
    assert experts("model.layers.3.mlp.gate.weight")
    layers = plan.keep_layers(range(2, 4))
    assert layers("model.layers.2.mlp.gate.weight")
    assert layers("transformer.h.3.attn.weight")
    assert not layers("model.layers.12.mlp.gate.weight")
    assert layers("model.embed_tokens.weight")


def test_folders_mean_their_shards_in_natural_order(tmp_path: Path) -> None:
    """`m-2` comes before `m-10`; other files count only where there is no shard."""
    for name in ("m-10.safetensors", "m-2.safetensors", "config.json"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "x.bin").write_bytes(b"")
    names = [Path(path).name for path in files.expand_paths(tmp_path)]
    assert names == ["m-2.safetensors", "m-10.safetensors"]
    assert files.expand_paths([tmp_path / "other"]) == [str(tmp_path / "other" / "x.bin")]


def test_the_index_says_which_shards_are_the_model(tmp_path: Path) -> None:
    """A model that lies there twice is loaded once; an index that is none changes nothing."""
    for name in ("consolidated", "m-1", "m-2"):
        (tmp_path / f"{name}.safetensors").write_bytes(b"")
    index = tmp_path / "model.safetensors.index.json"
    weight_map = {"a": "m-2.safetensors", "b": "m-1.safetensors", "c": "gone.safetensors"}
    index.write_text(json.dumps({"weight_map": weight_map}))
    names = [Path(path).name for path in files.expand_paths(tmp_path)]
    assert names == ["m-1.safetensors", "m-2.safetensors"]
    for text in ("", "[]", '{"weight_map": 1}', '{"weight_map": {"a": "gone"}}'):
        index.write_text(text)
        assert len(files.expand_paths(tmp_path)) == 3


def test_headers_of_any_length_are_read(tmp_path: Path) -> None:
    """A header longer than the first read is read whole; a file that is none says its name."""
    tensors = {f"a tensor with a rather long name {n}": np.zeros(1, "u1") for n in range(3000)}
    safetensors.numpy.save_file(tensors, tmp_path / "long.safetensors")
    (tmp_path / "none.safetensors").write_bytes(b"\xff" * 20)
    (tmp_path / "short.safetensors").write_bytes(b"\x80" + bytes(7) + b"{}")
    before = len(os.listdir("/proc/self/fd"))
    with files.open_files(tmp_path / "long.safetensors") as opened:
        assert len(files.read_headers(opened)[0].tensors) == 3000
    for name in ("none", "short"):
        with (
            files.open_files(tmp_path / f"{name}.safetensors") as opened,
            pytest.raises(HeaderError, match=name),
        ):
            files.read_header(opened[0])
    assert len(os.listdir("/proc/self/fd")) == before


def test_one_missing_file_leaves_no_descriptor(tmp_path: Path) -> None:
    """If the second file is not there, the first is closed again."""
    (tmp_path / "here").write_bytes(b"x")
    before = len(os.listdir("/proc/self/fd"))
    with (
        pytest.raises(FileNotFoundError),
        files.open_files([tmp_path / "here", tmp_path / "gone"]),
    ):
        raise AssertionError("opened a file that is not there")
    assert len(os.listdir("/proc/self/fd")) == before
