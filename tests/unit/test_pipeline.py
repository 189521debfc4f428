"""From a recording and phrases to masks, by the whole pipeline."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from goca_core.attention.global_map import Maps, aggregate
from goca_core.attention.record import Affinity, Attention, AttentionError
from goca_core.classes import clearest, outdone, two_classes
from goca_core.masks import CLEAREST, MASK_RULES, TWO_CLASSES
from goca_core.picture.batch import draw, flatten, overlay_layers
from goca_core.pipeline import NO_BACKGROUND, MaskRequest, Scoring, as_scoring, make_masks, phrase_scores, word_scores
from goca_core.refine.propagation import propagate
from goca_core.rescale import RESCALE_METHODS, rescale
from goca_core.tensors import RANGES, resize_bilinear
from goca_core.words.match import PhraseError
from goca_core.words.word_map import WordMapError, resolve

from .recordings import DEFAULTS, recording, words_of

PHRASES = "red cat\ngrass"


def planted(places: dict[int, tuple[slice, slice]], batch: int = 1, text: str = "a red cat on grass") -> Attention:
    """A recording in which the token at each position draws attention in one rectangle of the 4 x 6 cells."""
    record = recording(batch=batch, text=text, affinity=False)
    layers = []
    for layer in record.layers:
        maps = torch.full((batch, record.tokens.count, layer.height, layer.width), 0.01)
        for position, (rows, columns) in places.items():
            step = 4 // layer.height
            maps[:, position, rows.start // step : rows.stop // step, columns.start // step : columns.stop // step] += 1
        value = (maps / maps.sum(1, keepdim=True)).flatten(2).mT
        layers.append(replace(layer, maps=dict.fromkeys(layer.maps, value)))
    return replace(record, layers=tuple(layers))


LEFT, MIDDLE, RIGHT = ((slice(0, 4), slice(start, start + 2)) for start in (0, 2, 4))


@pytest.mark.parametrize("rule", MASK_RULES)
@pytest.mark.parametrize("background", ["auto", "", "on"])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_partition_covers_each_pixel_exactly_once(rule: str, background: str, seed: int) -> None:
    result = make_masks(recording(seed), MaskRequest(PHRASES, background, rule=rule, theta=0.3))
    assert result.masks.shape == (2, 2, 32, 48) and result.background.shape == (2, 32, 48)
    assert set(result.masks.unique().tolist()) <= {0.0, 1.0}
    assert torch.equal(result.masks.sum(1) + result.background, torch.ones(2, 32, 48))


def test_a_threshold_decides_each_phrase_by_itself() -> None:
    result = make_masks(recording(), MaskRequest("red\ncat\ngrass", "", mode="threshold", rule="vanilla", theta=0.2))
    assert set(result.masks.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(result.masks, (result.scores > 0.2).float())
    assert result.masks.sum(1).max() > 1, "nothing overlaps, so the test shows nothing"
    assert torch.equal(result.background, 1 - result.masks.amax(1))


def test_soft_masks_are_the_scores() -> None:
    result = make_masks(recording(), MaskRequest(PHRASES, mode="soft", largest=True))
    assert torch.equal(result.masks, result.scores.clamp(0, 1))
    assert len(result.masks.unique()) > 10
    assert torch.allclose(result.background, 1 - result.masks.amax(1))


def test_two_classes_are_found_where_the_objects_are() -> None:
    """Without a word for the background and with one."""
    record = planted({3: LEFT, 2: MIDDLE, 5: RIGHT})
    for background in ("", "red"):
        request = MaskRequest("cat\ngrass", background, rule=TWO_CLASSES, latent_size=True)
        result = make_masks(record, request)
        expected = torch.zeros(2, 4, 6)
        expected[0, :, :2] = expected[1, :, 4:] = 1
        assert torch.equal(result.masks[0], expected), background
        # Scores say how far a pixel is from the background to the phrase, and the level is half-way.
        assert torch.equal(result.background, (result.scores <= 0.5).all(1).float())
        assert make_masks(record, replace(request, theta=0.9)).masks.sum() < result.masks.sum()
    own = make_masks(recording(), MaskRequest("red\ncat\ngrass", rule=TWO_CLASSES, mode="threshold"))
    assert torch.equal(own.masks, (own.scores > 0.5).float())
    soft = MaskRequest(PHRASES, mode="soft")
    assert torch.equal(
        make_masks(recording(), replace(soft, rule=TWO_CLASSES)).masks, make_masks(recording(), soft).masks
    )


def test_a_single_phrase_without_a_background_is_found() -> None:
    """It has all of the attention to content words, so divided by that it is the same everywhere."""
    record = planted({1: LEFT}, text="cat", batch=2)
    request = MaskRequest("cat", rule=CLEAREST, latent_size=True)
    result = make_masks(record, request)
    assert result.background_phrases == () and result.masks[:, 0, :, :2].all() and not result.masks[:, 0, :, 3:].any()
    assert not make_masks(record, replace(request, rule="offset")).masks.any()


def test_clearest_classes_are_two_classes_of_the_best_evidence() -> None:
    record = planted({3: LEFT, 2: MIDDLE, 5: RIGHT})
    request = MaskRequest("cat\ngrass", "red", rule=CLEAREST, latent_size=True)
    scoring, words = as_scoring(record), record.tokens.word_map()
    plain = replace(scoring, method="per-token renorm+")
    objects = resolve("cat\ngrass", words)
    red = phrase_scores(scoring, resolve("red", words), words)
    divided, raw = (phrase_scores(each, objects, words) for each in (scoring, plain))
    best = clearest([divided - red, divided, raw], [2, 1, 1])
    measured = torch.where(outdone(divided, red), 0.0, two_classes(best))
    torch.testing.assert_close(make_masks(record, request).scores, measured.clamp(0, 1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["partition", "threshold"])
def test_an_unknown_rule_is_an_error(mode: str) -> None:
    with pytest.raises(ValueError, match=r"Unknown background rule 'best': use one of .*'two classes'"):
        make_masks(recording(), MaskRequest(PHRASES, mode=mode, rule="best"))


def test_objects_are_found_where_they_are() -> None:
    record = planted({3: LEFT, 2: MIDDLE, 5: RIGHT})
    result = make_masks(record, MaskRequest("cat\ngrass", "", latent_size=True))
    expected = torch.zeros(2, 4, 6)
    expected[0, :, :2] = expected[1, :, 4:] = 1
    assert torch.equal(result.masks[0], expected)
    assert result.labels == ("cat", "grass") and result.background_phrases == ()
    swapped = make_masks(record, MaskRequest("grass\ncat", "", latent_size=True))
    assert torch.equal(swapped.masks, result.masks.flip(1))


def test_the_background_is_what_else_the_prompt_names() -> None:
    record = planted({3: LEFT, 2: MIDDLE, 5: RIGHT})
    result = make_masks(record, MaskRequest("cat", latent_size=True))
    assert result.background_phrases == ("grass",)
    assert result.masks[0, 0, :, :2].all() and not result.masks[0, 0, :, 4:].any()
    assert make_masks(record, MaskRequest("cat", "grass", latent_size=True)).background_phrases == ("grass",)
    assert make_masks(record, MaskRequest("cat, grass", "auto")).background_phrases == ()
    # A prompt that has the word "auto" itself means it.
    auto = planted({2: LEFT, 4: RIGHT}, text="an auto and grass")
    assert make_masks(auto, MaskRequest("grass", "auto", latent_size=True)).background_phrases == ("auto",)


def test_without_a_background_the_middle_is_the_bar() -> None:
    result = make_masks(recording(), MaskRequest(PHRASES, "", rule="exact"))
    assert torch.equal(result.background, (result.scores <= NO_BACKGROUND).all(1).float())


@pytest.mark.parametrize(
    ("request_", "size"),
    [
        (MaskRequest("cat"), (32, 48)),
        (MaskRequest("cat", latent_size=True), (4, 6)),
        (MaskRequest("cat", size=(50, 31)), (50, 31)),
        (MaskRequest("cat", size=(1, 1)), (1, 1)),
    ],
)
def test_sizes(request_: MaskRequest, size: tuple[int, int]) -> None:
    result = make_masks(recording(), request_)
    assert tuple(result.masks.shape[2:]) == tuple(result.scores.shape[2:]) == tuple(result.background.shape[1:]) == size


def test_a_latent_that_its_tokens_cover_with_a_rest_is_cut_and_not_squeezed() -> None:
    """A model that works on patches of 2 x 2 pads a latent of 7 x 11 to 8 x 12."""
    record = replace(recording(batch=1, affinity=False), height=7, width=11)
    scores = phrase_scores(as_scoring(record), resolve("cat", record.tokens.word_map()), record.tokens.word_map())
    expected = resize_bilinear(scores, (8, 12))[..., :7, :11]
    assert torch.allclose(
        make_masks(record, MaskRequest("cat", "", mode="soft", latent_size=True)).scores, expected, atol=1e-6
    )


def test_the_steps_in_their_order() -> None:
    """By hand: aggregate, rescale, propagate, resize."""
    record = recording()
    words, affinity = record.tokens.word_map(), record.affinity
    assert affinity is not None
    maps = aggregate(record).maps
    objects = [[2, 3], [5]]
    scores = rescale(maps, objects, words.content(), DEFAULTS.rescale, "mean")
    scores = resize_bilinear(propagate(scores, affinity.matrix, DEFAULTS.propagation_steps), (32, 48))
    result = make_masks(record, MaskRequest(PHRASES, "", mode="soft"))
    assert torch.allclose(result.scores, scores, atol=1e-6)
    assert torch.allclose(
        make_masks(aggregate(record), MaskRequest(PHRASES, "", mode="soft")).scores, scores, atol=1e-6
    )
    assert torch.allclose(
        make_masks(as_scoring(record), MaskRequest(PHRASES, "", mode="soft")).scores, scores, atol=1e-6
    )
    once = make_masks(record, MaskRequest(PHRASES, "", mode="soft", propagation_steps=1)).scores
    assert not torch.allclose(once, scores, atol=1e-3)


def test_propagation_on_another_grid() -> None:
    record = replace(recording(), affinity=Affinity(2, 3, torch.softmax(torch.randn(2, 6, 6), -1)))
    assert make_masks(record, MaskRequest(PHRASES)).masks.shape == (2, 2, 32, 48)
    without = make_masks(replace(record, affinity=None), MaskRequest(PHRASES, mode="soft")).scores
    assert torch.allclose(make_masks(record, MaskRequest(PHRASES, mode="soft", propagation_steps=0)).scores, without)


@pytest.mark.parametrize("method", RESCALE_METHODS)
def test_every_rescale_method_gives_masks(method: str) -> None:
    result = make_masks(Scoring(aggregate(recording()), method), MaskRequest(PHRASES))
    assert torch.equal(result.masks.sum(1) + result.background, torch.ones(2, 32, 48))


def test_smooth_and_largest() -> None:
    rough = make_masks(recording(5), MaskRequest(PHRASES, size=(64, 96)))
    smooth = make_masks(recording(5), MaskRequest(PHRASES, size=(64, 96), smooth=6.0))

    def edges(masks: Tensor) -> Tensor:
        return (masks.diff(dim=-1).abs().sum() + masks.diff(dim=-2).abs().sum()).float()

    assert edges(smooth.masks) < edges(rough.masks)
    largest = make_masks(recording(5), MaskRequest(PHRASES, size=(64, 96), largest=True))
    assert torch.all(largest.masks <= rough.masks) and largest.masks.sum() < rough.masks.sum()
    assert torch.equal(largest.masks.sum(1) + largest.background, torch.ones(2, 64, 96))


def test_a_sink_in_a_corner_costs_the_object_only_with_the_full_range() -> None:
    record = replace(recording(batch=1, affinity=False), affinity=Affinity(16, 24, torch.eye(384)[None]))
    maps = torch.zeros(1, record.tokens.count, 16, 24)
    maps[:, 3], maps[:, 5] = 0.004, 0.98
    maps[:, 3, 4:12, 8:20] = 0.02
    maps[:, 3, 0, 0], maps[:, 5, 0, 0] = 50 * 0.02, 0
    source = Maps(maps / maps.sum(1, keepdim=True), record, torch.ones(1, 3))
    request, whole = MaskRequest("cat", "", size=(16, 24)), torch.zeros(16, 24)
    whole[4:12, 8:20] = 1
    full, robust = (make_masks(Scoring(source, "auto", range_=name), request).masks[0, 0] for name in RANGES)
    assert not (full * whole).any() and full.any(), "the sink alone is left"
    inter, union = (robust * whole).sum(), (robust + whole > 0).sum()
    assert inter / union > 0.9


def test_the_table() -> None:
    table = make_masks(
        planted({3: LEFT, 2: MIDDLE, 5: RIGHT}, batch=2), MaskRequest("cat\ngrass", "", latent_size=True)
    ).table()
    assert table["phrases"] == ["cat", "grass"]
    assert table["area"] == [[pytest.approx(1 / 3, abs=1e-4)] * 2] * 2
    assert all(0.5 < score <= 1 for row in table["score"] for score in row)


@pytest.mark.parametrize(
    ("request_", "error", "words"),
    [
        (MaskRequest(""), PhraseError, "There is no phrase"),
        (MaskRequest(" \n , "), PhraseError, "There is no phrase"),
        (MaskRequest("dog"), PhraseError, "a, red, cat, on, grass|cat"),
        (MaskRequest("cat\ncat"), PhraseError, "twice"),
        (MaskRequest("cat\nCat"), PhraseError, "twice"),
        (MaskRequest("cat", "zebra"), PhraseError, "zebra"),
        (MaskRequest("cat", size=(-1, 8)), ValueError, "8 x -1 pixels .* 1 or more"),
        (MaskRequest("cat", theta=float("nan")), ValueError, "theta is not a number"),
        (MaskRequest("cat", mode="sharp"), ValueError, "Unknown mode 'sharp'.*partition"),
        (MaskRequest("cat", rule="best"), ValueError, "Unknown background rule 'best'"),
    ],
)
def test_requests_that_cannot_be_met(request_: MaskRequest, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words) as caught:
        make_masks(recording(), request_)
    assert "\n" not in str(caught.value)


def test_a_missing_word_lists_the_words_of_the_prompt() -> None:
    with pytest.raises(PhraseError) as caught:
        make_masks(recording(), MaskRequest("zebra"))
    assert all(word in str(caught.value) for word in ("zebra", "red", "cat", "grass"))


def test_words_that_are_unknown_or_another_prompts() -> None:
    with pytest.raises(WordMapError, match="Encode Prompt"):
        make_masks(recording(text=None), MaskRequest("cat"))
    found = make_masks(recording(text=None), MaskRequest("cat"), words_of("a red cat"))
    assert found.labels == ("cat",)
    with pytest.raises(WordMapError, match="belongs to a conditioning of 24 tokens"):
        make_masks(recording(), MaskRequest("cat"), words_of("a red cat", length=24))
    with pytest.raises(WordMapError, match="belong to another prompt"):
        make_masks(recording(text="a cat"), MaskRequest("grass"), words_of("a red cat on grass"))
    with pytest.raises(AttentionError, match="were not recorded"):
        recording(text="a cat").tokens.columns([1, 9])
    with pytest.raises(AttentionError, match="Unknown rescale method"):
        make_masks(Scoring(aggregate(recording()), "louder"), MaskRequest("cat"))


def test_words_that_are_given_count_for_the_layers_too() -> None:
    record = recording()
    auto = replace(record, defaults=replace(DEFAULTS, layer="information"))
    assert not torch.equal(aggregate(auto).maps, aggregate(record).maps), "the layers' weights count here"
    silent = replace(auto, tokens=replace(auto.tokens, words=None))
    given = make_masks(silent, MaskRequest(PHRASES), auto.tokens.words)
    assert torch.equal(given.scores, make_masks(auto, MaskRequest(PHRASES)).scores)


def test_word_scores_of_every_content_word() -> None:
    scores, names = word_scores(as_scoring(recording()))
    assert names == ("red", "cat", "on", "grass") and scores.shape == (2, 4, 32, 48)
    assert word_scores(as_scoring(recording()), "red cat")[1] == ("red cat",)


def test_words_that_share_a_token_have_one_heat_map() -> None:
    record = recording(text="红色的猫 在 草地")
    scores, names = word_scores(as_scoring(record))
    assert names == ("红色的猫", "在", "草地") and scores.shape == (2, 3, 32, 48)
    assert torch.equal(word_scores(as_scoring(record), "草地")[0][:, 0], scores[:, 2])


def test_a_prompt_without_words_has_no_heat_maps() -> None:
    with pytest.raises(PhraseError, match="There is no phrase"):
        word_scores(as_scoring(recording(text="a the")))


def test_heat_maps_of_the_labels_are_those_of_the_phrases() -> None:
    """A comma that belongs to a phrase does not part it when its label is wired on."""
    record = recording(text="a red , cat on cat grass")
    made = make_masks(record, MaskRequest("red\\, cat\ncat#2, grass", mode="soft", propagation_steps=0))
    scores, names = word_scores(as_scoring(record), "\n".join(made.labels))
    assert names == made.labels == ("red\\, cat", "cat#2, grass")
    assert torch.equal(scores.clamp(0, 1), made.masks)


def test_images_and_masks_in_order() -> None:
    masks = torch.arange(6).reshape(2, 3, 1, 1)
    assert flatten(masks).flatten().tolist() == [0, 1, 2, 3, 4, 5]
    images = torch.zeros(2, 32, 48, 3)
    result = make_masks(recording(), MaskRequest(PHRASES))
    drawn = draw(images, overlay_layers(images, flatten(result.masks), "red cat\ngrass"), 0.5)
    assert drawn.shape[0] == 2 and drawn.shape[3] == 3 and drawn.min() >= 0 and drawn.max() <= 1
    with pytest.raises(ValueError, match="3 masks cannot be divided among 2 images"):
        draw(images, overlay_layers(images, flatten(result.masks)[:3], ""), 0.5)
    with pytest.raises(ValueError, match="1 labels for 2 masks"):
        draw(images, overlay_layers(images, flatten(result.masks), "cat"), 0.5)
    heat = draw(images, overlay_layers(images, recording(), ""), 0.5)
    assert heat.shape[0] == 2
    with pytest.raises(ValueError, match="1 images but attention for 2"):
        draw(images[:1], overlay_layers(images[:1], recording(), ""), 0.5)


@pytest.mark.parametrize("seed", range(4))
def test_tidied_masks_are_still_a_partition(seed: int) -> None:
    plain = make_masks(recording(seed), MaskRequest(PHRASES, theta=-0.1))
    tidied = make_masks(recording(seed), MaskRequest(PHRASES, theta=-0.1, remove_small=0.03, fill_holes=True))
    assert torch.equal(tidied.masks.sum(1) + tidied.background, torch.ones(2, 32, 48))
    taken = (tidied.masks > plain.masks) & (plain.background[:, None] == 0)
    # What a removed patch leaves is background too, so a hole may take that; never a pixel of a mask that stayed.
    assert not (taken & (tidied.masks.sum(1, keepdim=True) > 1)).any()


def test_tidying_happens_and_leaves_soft_masks_alone() -> None:
    requests = [MaskRequest(PHRASES, theta=-0.1), MaskRequest(PHRASES, theta=-0.1, remove_small=0.03)]
    found = [make_masks(recording(seed), request).masks for request in requests for seed in range(4)]
    assert any(not torch.equal(a, b) for a, b in zip(found[:4], found[4:], strict=True))
    soft = [MaskRequest(PHRASES, mode="soft"), MaskRequest(PHRASES, mode="soft", remove_small=0.5, fill_holes=True)]
    assert torch.equal(*(make_masks(recording(), request).masks for request in soft))
