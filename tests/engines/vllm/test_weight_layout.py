"""The layout of an image: what is written down is read again, and nothing else passes for it."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from coe_weight_image import ALIGNMENT, Block, Layout, View, next_offset
from hypothesis import given
from hypothesis import strategies as st

sizes = st.integers(0, 10_000)
shapes = st.lists(sizes, max_size=4).map(tuple)
views = st.builds(View, st.text(max_size=9), st.sampled_from(["torch.bfloat16", "torch.uint8"]), shapes, shapes, sizes)
blocks = st.builds(Block, st.lists(views, max_size=3).map(tuple), sizes, st.booleans())
models = st.lists(blocks, max_size=6)


def placed(model: list[Block]) -> Layout:
    """Each block behind the one before, some in another size than they were loaded in."""
    result: list[Block] = []
    for block in model:
        size_bytes = block.loaded_bytes + (100 if block.packable else 0)
        packing = "00ff" if block.packable else ""
        result.append(block.at(next_offset(result[-1]) if result else 0, size_bytes, packing))
    return Layout(tuple(result))


@given(models)
def test_a_layout_written_down_and_read_again_is_the_same(model: list[Block]) -> None:
    assert Layout.from_json(placed(model).to_json()) == placed(model)


@given(models)
def test_blocks_are_aligned_lie_apart_and_end_within_the_size(model: list[Block]) -> None:
    layout = placed(model)
    assert all(block.offset % ALIGNMENT == 0 for block in layout.blocks)
    assert all(one.offset + one.size_bytes <= two.offset for one, two in pairwise(layout.blocks))
    assert all(block.offset + block.size_bytes <= layout.size_bytes for block in layout.blocks)


@given(models)
def test_a_layout_holds_the_model_it_was_made_from(model: list[Block]) -> None:
    assert placed(model).holds(model)


@given(models.filter(bool), st.data())
def test_a_layout_does_not_hold_a_model_that_differs_anywhere(model: list[Block], data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(model) - 1))
    view = View("one more", "torch.uint8", (1,), (1,), 0)
    block = model[index]
    changed = data.draw(
        st.sampled_from(
            [
                replace(block, views=(*block.views, view)),
                replace(block, loaded_bytes=block.loaded_bytes + 1),
                replace(block, packable=not block.packable),
            ]
        )
    )
    assert not placed(model).holds([*model[:index], changed, *model[index + 1 :]])
    assert not placed(model).holds(model[:-1])


@pytest.mark.parametrize("text", ["{}", '{"blocks": [{"views": [], "unknown": 1}]}', "not json"])
def test_what_is_no_layout_is_refused(text: str) -> None:
    with pytest.raises((ValueError, KeyError, TypeError)):
        Layout.from_json(text)
