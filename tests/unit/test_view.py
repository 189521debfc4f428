from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from goca_core.picture import sheets as view
from goca_core.picture.batch import flatten, overlay_layers
from goca_core.pipeline import MaskRequest, as_scoring, make_masks, word_scores

from .recordings import recording, words_of


def stored(values: torch.Tensor) -> np.ndarray:
    """What ComfyUI writes: cut off, not rounded."""
    return np.clip(255.0 * values.numpy(), 0, 255).astype(np.uint8)


def tiles(found: view.Sheet) -> np.ndarray:
    """[B, K, h, w] out of what is stored."""
    image = stored(found.image)
    places = [divmod(k, found.columns) for k in range(len(found.names))]
    h, w = found.height, found.width
    return np.stack([image[:, r * h : (r + 1) * h, c * w : (c + 1) * w] for r, c in places], 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("count", [1, 2, 5, 7])
def test_a_sheet_gives_its_maps_back(count: int, dtype: torch.dtype) -> None:
    maps = torch.rand(2, count, 6, 9, generator=torch.Generator().manual_seed(count)).to(dtype)
    before = maps.clone()
    found = view.make_sheet(maps, tuple(map(str, range(count))), 64, 10**6)
    assert torch.equal(maps, before)
    assert found.image.shape[0] == 2 and found.image.dtype == torch.float32
    assert np.array_equal(tiles(found), np.rint(maps.float().numpy() * 255))
    assert json.loads(json.dumps(found.layout()))["columns"] == found.columns


def test_what_is_no_score_is_dark_or_full() -> None:
    maps = torch.tensor([float("nan"), float("inf"), -float("inf"), -1.0, 2.0, 0.5]).reshape(1, 1, 2, 3)
    assert tiles(view.make_sheet(maps, ("a",), 64, 100)).ravel().tolist() == [0, 255, 0, 0, 255, 128]


def test_large_maps_become_small_in_their_own_shape() -> None:
    ramp = torch.linspace(0, 1, 400).expand(1, 3, 200, 400)
    found = view.make_sheet(ramp, ("a", "b", "c"), 64, 10**6)
    assert (found.height, found.width) == (32, 64)
    assert np.abs(np.diff(tiles(found)[0, 0, 0].astype(int))).max() <= 5
    crowded = view.make_sheet(ramp, ("a", "b", "c"), 64, 300)
    assert crowded.height * crowded.width <= 100
    assert view.fitted((1, 9000), 64, 10**6) == (1, 64)
    with pytest.raises(ValueError, match="2 names for 3 maps"):
        view.make_sheet(ramp, ("a", "b"), 64, 300)


def test_the_digest_tells_maps_apart() -> None:
    maps = torch.rand(1, 2, 4, 4)
    same = [view.make_sheet(m, ("a", "b"), 64, 999).layout()["digest"] for m in (maps, maps.clone(), 1 - maps)]
    assert same[0] == same[1] != same[2]


def test_every_content_word_has_a_map() -> None:
    scores = as_scoring(recording(text="a red cat and a blue cat"))
    found = view.heat_sheet(make_masks(scores, MaskRequest("cat"), each_word=True), scores)
    assert found is not None
    assert found.names == ("red", "cat#1", "blue", "cat#2")
    assert (found.height, found.width) == (32, 48) and found.image.shape[0] == 2
    for name in found.names:
        expected, _ = word_scores(scores, name)
        assert np.array_equal(tiles(found)[:, found.names.index(name)], np.rint(expected[:, 0].numpy() * 255)), name
    empty = as_scoring(recording(text="a the"))
    assert view.heat_sheet(make_masks(empty, MaskRequest("the")), empty) is None


def test_words_that_share_a_token_have_one_map() -> None:
    """As characters of Chinese do: named together, and each of them says the name of the map."""
    record = recording(text="a red cat and a dog")
    known = record.tokens.word_map(None)
    tokens = {word.text: word.positions for word in known.words}
    joined = replace(
        known, words=tuple(replace(w, positions=tokens["red"]) if w.text == "cat" else w for w in known.words)
    )
    scores = as_scoring(record)
    result = make_masks(scores, MaskRequest("dog"), joined, each_word=True)
    found = view.heat_sheet(result, scores, joined)
    assert found is not None and found.names == ("red cat", "dog")
    expected, _ = word_scores(scores, "red", joined)
    assert np.array_equal(tiles(found)[:, 0], np.rint(expected[:, 0].numpy() * 255))
    maps = {word["text"]: word["map"] for word in view.word_table(joined)["words"] if word["content"]}
    assert maps == {"red": "red cat", "cat": "red cat", "dog": "dog"}


def test_masks_are_those_of_the_cut_and_of_the_overlay() -> None:
    result = make_masks(recording(), MaskRequest("red cat\ngrass"))
    found = view.mask_sheet(result)
    assert found.names == ("red cat", "grass")
    assert np.array_equal(tiles(found), result.masks.numpy() * 255)
    images = torch.rand(2, 32, 48, 3)
    drawn = view.overlay_sheet(overlay_layers(images, flatten(result.masks), "red cat\ngrass"))
    assert drawn.layout() == found.layout()
    assert view.overlay_sheet(overlay_layers(images, flatten(result.masks), "")).names == ("1", "2")
    heat = view.overlay_sheet(overlay_layers(images, recording(), ""))
    assert heat.names == ("red", "cat", "on", "grass") and heat.width == 48


def test_the_steps_to_the_masks_lead_from_the_record_to_the_scores() -> None:
    scores = as_scoring(recording(text="a red cat on grass"))
    result = make_masks(scores, MaskRequest("red cat\ngrass", mode="soft"), each_word=True)
    found = view.step_sheet(result, scores)
    assert found.names == ("red cat", "grass") * 3 and (found.height, found.width) == (32, 48)
    recorded, rescaled, last = tiles(found).reshape(2, 3, 2, 32, 48).swapaxes(0, 1)
    assert (recorded.reshape(2, -1).max(1) == 255).all(), "shares of the largest value of each sample"
    raw = scores.maps.maps[:, scores.maps.tokens.columns(result.objects[0].tokens)].mean(1)
    small = (
        recorded[:, 0].reshape(2, *raw.shape[1:2], 32 // raw.shape[1], raw.shape[2], 48 // raw.shape[2]).mean((2, 4))
    )
    assert np.corrcoef(small.ravel() / 255, (raw / raw.amax((1, 2), keepdim=True)).numpy().ravel())[0, 1] > 0.8
    assert np.array_equal(rescaled[:, 1], np.rint(word_scores(scores, "grass")[0][:, 0].numpy() * 255))
    assert np.array_equal(last, np.rint(result.masks.numpy() * 255))
    alone = view.step_sheet(make_masks(scores, MaskRequest("grass"), each_word=True), scores)
    assert len(alone.names) == 3


def test_the_weights_of_layers_as_plain_data() -> None:
    source = recording(text="a red cat")
    scores = as_scoring(source)
    told = json.loads(
        json.dumps(view.layer_weights_table(make_masks(scores, MaskRequest("cat"), each_word=True), scores.maps))
    )
    assert told["names"] == [layer.name for layer in source.layers]
    assert told["grids"] == [[layer.width, layer.height] for layer in source.layers]
    assert len(told["weights"]) == source.batch
    for row in told["weights"]:
        assert sum(row) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("latent_size", [False, True])
def test_all_that_is_sent_of_a_video_is_about_the_same_frames(latent_size: bool) -> None:
    scores = as_scoring(replace(recording(batch=2 * 3, text="a red cat on grass"), frames=3, temporal_compression=4))
    result = make_masks(scores, MaskRequest("red cat\ngrass", latent_size=latent_size), each_word=True)
    samples = 2 * (3 if latent_size else 9)
    heat = view.heat_sheet(result, scores)
    assert heat is not None
    for found in (view.mask_sheet(result), view.step_sheet(result, scores), heat):
        assert found.image.shape[0] == samples
    assert len(view.layer_weights_table(result, scores.maps)["weights"]) == samples
    # The last latent frame is what the last images come from.
    assert np.array_equal(tiles(heat)[-1], np.rint(word_scores(scores, "\n".join(heat.names))[0][-1].numpy() * 255))


def test_an_image_is_sent_as_it_is_unless_it_is_large() -> None:
    images = torch.rand(2, 20, 30, 4)
    assert np.array_equal(stored(view.thumbnail(images)), np.rint(images[..., :3].numpy() * 255))
    assert view.thumbnail(torch.rand(1, 100, 3000, 3).half()).shape == (1, 34, 1024, 3)
    Image.fromarray(stored(view.thumbnail(images))[0])


def test_words_as_plain_data() -> None:
    words = words_of("a red cat , a <b> cat")
    told = json.loads(json.dumps(view.word_table(words)))
    assert [word["name"] for word in told["words"]] == list(words.names())
    assert words.names() == ("a#1", "red", "cat#1", ",", "a#2", "<", "b", ">", "cat#2")
    assert told["words"][1] == {
        "text": "red", "name": "red", "keys": [["red"]], "tokens": [2], "pieces": ["red"], "content": True, "map": "red",
    }  # fmt: skip
    assert told["words"][3]["keys"] == []
    for name, word in zip(words.names(), words.words, strict=True):
        if word.keys:
            assert words.find(name) == word.positions, name
