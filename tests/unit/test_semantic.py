from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from goca_core import guidance
from goca_core.attention.global_map import aggregate
from goca_core.attention.record import Affinity, Attention, AttentionError, Defaults, Layer, Tokens
from goca_core.guidance import semantic
from goca_core.guidance.semantic import PlainLayer, Regions, Settings
from goca_core.words.build import Token, build
from goca_core.words.word_map import WordMap

from .recordings import recording
from .test_golden import DEFAULT_HEAD, DEFAULT_LAYER, DEFAULT_RESCALE, Model, assert_close

TIED = Settings(ties="all")


def prompt(kinds: str) -> WordMap:
    """A word map of one letter for each token: s start, w word, e end, p padding, o other."""
    names = {"s": "start", "w": "word", "e": "end", "p": "pad", "o": "other"}
    text = " ".join(f"w{place}" for place, kind in enumerate(kinds) if kind == "w")
    tokens = []
    for place, kind in enumerate(kinds):
        start = text.index(f"w{place}") if kind == "w" else 0
        tokens.append(Token(place, place, kind, names[kind], start, start + len(f"w{place}") if kind == "w" else 0))
    return build(text, text, "test", len(kinds), tokens)


def golden_record(data: Any, half: int, words: WordMap | None) -> Attention:
    """One half of a golden file as it would be recorded: all tokens kept."""
    model = Model(data, half)
    weights = model.layer_weights(DEFAULT_LAYER)
    layers = tuple(
        Layer(str(i), *model.grids[i], {DEFAULT_HEAD: model.layer_map(i, DEFAULT_HEAD)}, {DEFAULT_LAYER: weights[:, i]})
        for i in model.layers
    )
    count = layers[0].maps[DEFAULT_HEAD].shape[-1]
    tokens = Tokens(tuple(range(count)), False, count, words)
    defaults = Defaults(DEFAULT_HEAD, DEFAULT_LAYER, DEFAULT_RESCALE, int(data["in_affinity_order"]))
    affinity = Affinity(*model.size, model.affinity([1, 2]))
    return Attention("unet", *model.size, 8, layers, tokens, defaults, affinity)


# -- the reference ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "kinds"), [("scfg_sd15", "swwwweppp"), ("scfg_sigma", "owwwwe")])
def test_the_reference_finds_the_same_regions(name: str, kinds: str, golden: Callable[[str], Any]) -> None:
    data = golden(name)
    count = data["out_region_mask"].shape[0]
    words = prompt(kinds.ljust(count, "p"))
    positive, negative = golden_record(data, 1, words), golden_record(data, 0, None)
    found = semantic.goca_regions(positive, negative, TIED)
    assert found is not None
    owners = semantic.candidates(words)
    assert owners == [0, 1, 2, 3, 4]
    assert torch.equal(found.masks[0], data["out_region_mask"][owners].float())
    assert not data["out_region_mask"][5:].any()
    assert torch.equal(found.foreground[0], data["out_fore_mask"].float())
    cond, uncond = data.batch("in_eps_cond"), data.batch("in_eps_uncond")
    rate = guidance.rate_map(cond, uncond, found.masks, found.foreground, 7.5)
    assert_close(rate[0], data["out_rate_cfg7.5"], 1e-5)


def test_one_owner_for_each_pixel_by_default(golden: Callable[[str], Any]) -> None:
    data = golden("scfg_sd15")
    positive = golden_record(data, 1, prompt("swwwweppp"))
    found = semantic.goca_regions(positive, golden_record(data, 0, None), Settings())
    assert found is not None and torch.equal(found.masks.sum(1), torch.ones(1, 8, 8))


# -- tokens -----------------------------------------------------------------------------------------------------------


def test_tokens_that_may_own_pixels() -> None:
    assert semantic.candidates(prompt("swwepp")) == [0, 1, 2]
    assert semantic.candidates(prompt("swepp" + "swepp")) == [0, 1, 2, 5, 6]
    assert semantic.candidates(prompt("wwe")) == [0, 1]
    assert semantic.candidates(prompt("sepp")) == []


def test_the_token_that_gathers_the_background() -> None:
    assert semantic.background_token(prompt("swwepp")) == ("negative", 0)
    assert semantic.background_token(prompt("owwepp")) == ("positive", 3)
    assert semantic.background_token(prompt("www")) is None


# -- GoCA's regions ---------------------------------------------------------------------------------------------------


def pair(seed: int = 0, batch: int = 2) -> tuple[Attention, Attention]:
    return recording(seed, batch), recording(seed + 100, batch)


def test_regions_are_a_partition_at_the_size_of_the_latent() -> None:
    found = semantic.goca_regions(*pair(), Settings())
    assert found is not None
    assert found.masks.shape == (2, 6, 4, 6) and found.foreground.shape == (2, 4, 6)
    assert torch.equal(found.masks.sum(1), torch.ones(2, 4, 6))
    assert set(found.foreground.unique().tolist()) <= {0.0, 1.0}


def test_samples_are_apart() -> None:
    def part(record: Attention, sample: int) -> Attention:
        layers = tuple(
            replace(
                layer,
                maps={name: maps[[sample]] for name, maps in layer.maps.items()},
                scores={name: score[[sample]] for name, score in layer.scores.items()},
            )
            for layer in record.layers
        )
        assert record.affinity is not None
        affinity = replace(record.affinity, matrix=record.affinity.matrix[[sample]])
        return replace(record, layers=layers, affinity=affinity)

    records = pair()
    both = semantic.goca_regions(*records, Settings())
    assert both is not None
    for sample in range(2):
        alone = semantic.goca_regions(*(part(record, sample) for record in records), Settings())
        assert alone is not None
        assert torch.equal(alone.masks[0], both.masks[sample])
        assert torch.equal(alone.foreground[0], both.foreground[sample])


@pytest.mark.parametrize(
    "settings",
    [
        Settings(head="average"),
        Settings(layer="vanilla"),
        Settings(rescale="raw"),
        Settings(propagation_steps=0),
        Settings(propagation_steps=4),
    ],
)
def test_every_choice_changes_the_regions(settings: Settings) -> None:
    found, default = semantic.goca_regions(*pair(), settings), semantic.goca_regions(*pair(), Settings())
    assert found is not None and default is not None
    assert not torch.equal(found.masks, default.masks)


def test_a_latent_that_the_tokens_overhang() -> None:
    """Half-size tokens of an odd latent cover one row and column more than there are."""
    positive, negative = pair()
    odd = replace(positive, height=7, width=11), replace(negative, height=7, width=11)
    found = semantic.goca_regions(*odd, Settings())
    even = semantic.goca_regions(
        replace(positive, height=8, width=12), replace(negative, height=8, width=12), Settings()
    )
    assert found is not None and even is not None
    assert torch.equal(found.masks, even.masks[..., :7, :11])


def test_what_cannot_be_weighed() -> None:
    positive, negative = pair()
    assert semantic.goca_regions(positive, None, Settings()) is None
    empty = replace(positive, tokens=replace(positive.tokens, words=prompt("sepppppppppp")))
    assert semantic.goca_regions(empty, negative, Settings()) is None


def test_text_encoders_without_a_start_token() -> None:
    """The end token of the prompt stands for the background; without one everything is foreground."""
    positive, negative = pair()
    count = positive.tokens.count

    def speaking(kinds: str) -> Attention:
        words = prompt(kinds)
        return replace(positive, tokens=Tokens(tuple(range(count - 1)), True, len(kinds), words))

    ended = semantic.goca_regions(speaking("wwwwwe"), None, Settings())
    endless = semantic.goca_regions(speaking("wwwwww"), negative, Settings())
    assert ended is not None and endless is not None
    assert 0 < ended.foreground.mean() < 1
    assert torch.equal(endless.foreground, torch.ones_like(endless.foreground))


# -- S-CFG's regions --------------------------------------------------------------------------------------------------


def random_layers(seed: int, tokens: int = 5, batch: int = 2) -> list[PlainLayer]:
    generator = torch.Generator().manual_seed(seed)

    def chances(*shape: int) -> Tensor:
        return torch.softmax(2 * torch.randn(*shape, generator=generator), -1)

    grids = [(4, 6), (2, 3), (4, 6)]
    return [PlainLayer(h, w, chances(batch, h * w, tokens), chances(batch, h * w, h * w)) for h, w in grids]


def by_hand(layers: list[PlainLayer], sample: int) -> Tensor:
    """Section by section of the published description, one layer and token at a time, in double precision: smoothed
    token maps [L, T, 4, 6]."""
    maps = []
    for layer in layers:
        own, cross = layer.own[sample].double(), layer.cross[sample].double()
        spread = (own + 3 * own @ own) / 4 @ cross
        for token in range(cross.shape[1]):
            image = spread[:, token].reshape(1, 1, layer.height, layer.width)
            image = torch.nn.functional.interpolate(image, size=(4, 6), mode="bilinear", align_corners=False)
            kernel = torch.exp(-torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64))
            kernel = torch.outer(kernel, kernel) / kernel.sum() ** 2
            padded = torch.nn.functional.pad(image, (1, 1, 1, 1), mode="reflect")
            maps.append(torch.nn.functional.conv2d(padded, kernel[None, None])[0, 0])
    return torch.stack(maps).reshape(len(layers), -1, 4, 6)


def test_published_regions_by_hand() -> None:
    positive, negative = random_layers(0), random_layers(1)
    found = semantic.published_regions(positive, negative)
    for sample in range(2):
        maps = by_hand(positive, sample)
        mean = (maps / maps.mean((2, 3), keepdim=True)).mean(0)
        assert torch.equal(found.masks[sample].argmax(0), mean.argmax(0))
        maps = by_hand(negative, sample)
        versus = torch.stack((maps[:, 0], maps[:, 1:].sum(1)), 1)
        versus = (versus / versus.mean((2, 3), keepdim=True)).mean(0)
        assert torch.equal(found.foreground[sample], (versus[1] > versus[0]).float())
    assert torch.equal(found.masks.sum(1), torch.ones(2, 4, 6))


def test_published_regions_need_layers() -> None:
    with pytest.raises(AttentionError, match="choose GoCA's regions"):
        semantic.published_regions([], random_layers(0))


# -- several conditionings --------------------------------------------------------------------------------------------


def test_each_pixel_keeps_the_regions_of_the_conditioning_that_counts_most(rng: torch.Generator) -> None:
    def some(count: int) -> Regions:
        masks = torch.nn.functional.one_hot(torch.randint(0, count, (2, 4, 6), generator=rng), count)
        return Regions(masks.movedim(-1, 1).float(), (torch.rand(2, 4, 6, generator=rng) > 0.5).float())

    first, second = some(3), some(2)
    weight = torch.zeros(2, 4, 6)
    weight[:, :, :2] = 1
    joined = semantic.join([first, second], [weight, 1 - weight])
    assert joined.masks.shape == (2, 5, 4, 6)
    assert torch.equal(joined.masks.sum(1), torch.ones(2, 4, 6))
    assert torch.equal(joined.masks[:, :3, :, :2], first.masks[..., :2])
    assert torch.equal(joined.masks[:, 3:, :, 2:], second.masks[..., 2:])
    assert torch.equal(joined.foreground[..., :2], first.foreground[..., :2])
    assert torch.equal(joined.foreground[..., 2:], second.foreground[..., 2:])


# -- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rule": "mine"}, "Unknown regions 'mine': use one of 'GoCA', 'S-CFG'"),
        ({"head": "best"}, "Unknown head method"),
        ({"layer": "best"}, "Unknown layer method"),
        ({"rescale": "best"}, "Unknown rescale method"),
        ({"ties": "none"}, "Unknown ties"),
        ({"minimum": 2.0, "maximum": 1.0}, "minimum rate 2 is above the maximum 1"),
    ],
)
def test_settings_that_make_no_sense(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Settings(**given)


def test_what_is_not_finite_gets_plain_guidance_in_its_sample() -> None:
    """On an accelerator, where nothing waits for the check that is an error on a CPU."""
    good, bad = aggregate(recording()), aggregate(recording())
    bad.maps[1, 2, 3, 4] = torch.nan
    fore = torch.ones(2, 4, 6)
    assert torch.equal(semantic._known(fore, [good, good]), fore)
    known = semantic._known(fore, [good, bad])
    assert torch.equal(known[0], fore[0]) and not known[1].any()
    cond, uncond = torch.randn(2, 2, 4, 4, 6, generator=torch.Generator().manual_seed(1))
    masks = (torch.arange(6) < 3).float().expand(2, 1, 4, 6)
    rate = guidance.rate_map(cond, uncond, masks, known, 5.0)
    assert (rate[1] == 1).all() and not (rate[0] == 1).all()
