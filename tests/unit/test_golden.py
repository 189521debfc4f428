"""The method against stored results of the reference implementation, and against cases worked out by hand."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from goca_core import guidance, heads, layers, masks, metrics, refine, rescale
from goca_core import tensors as resize

UNET_LIKE = ("core_a", "core_b_noninteger")
DEFAULT_HEAD, DEFAULT_LAYER = "dot-product w/o clamp", "dot-product similarity"
DEFAULT_RESCALE = "sum-1 rescaling + per-token renorm+"


def slug(method: str) -> str:
    return re.sub(r"-", "", method.replace("w/o", "wo").replace("+", "p").replace(" ", "_"))


def assert_close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(actual.double(), expected.double(), rtol=0, atol=tolerance)


class Model:
    """The recorded layers of one golden file, batch axis first."""

    def __init__(self, data: Any, half: int | None = None) -> None:
        pick = (lambda key: data[key][half][None]) if half is not None else data.batch
        self.data = data
        self.layers = range(sum(key.startswith("in_A") for key in data.keys))
        self.cross = [pick(f"in_A{layer}") for layer in self.layers]
        self.self_maps = [pick(f"in_S{layer}").mean(1) for layer in self.layers]
        self.feature = pick("in_ref")
        self.reference_grid = tuple(self.feature.shape[-2:])
        self.size = (int(data["in_size"]),) * 2
        if "in_layers" in data.keys:
            self.heads = [int(row[1]) for row in data["in_layers"]]
            self.grids = [(int(row[0]),) * 2 for row in data["in_layers"]]
            self.post = [pick(f"in_Y{layer}") for layer in self.layers]
            self.value = [pick(f"in_V{layer}") for layer in self.layers]
            self.weight = [data[f"in_Wo{layer}"] for layer in self.layers]
        else:
            self.grids = [self.size for _ in self.layers]

    def head_weights(self, layer: int, method: str) -> Tensor:
        return heads.head_weights(
            self.post[layer], self.weight[layer], self.heads[layer], method, value=self.value[layer]
        )

    def layer_map(self, layer: int, method: str) -> Tensor:
        return heads.aggregate_heads(self.cross[layer], self.head_weights(layer, method))

    def layer_weights(self, method: str, channel0: bool = False) -> Tensor:
        affinity = layers.reference_affinity(self.feature, reference_channel0=channel0)
        return layers.layer_scores(affinity, self.reference_grid, self.self_maps, self.grids, method)

    def aggregate(self, head: str = DEFAULT_HEAD, layer: str = DEFAULT_LAYER, channel0: bool = False) -> Tensor:
        maps = [self.layer_map(index, head) for index in self.layers]
        return layers.aggregate_layers(maps, self.grids, self.layer_weights(layer, channel0), self.size)

    def tokens(self) -> tuple[list[list[int]], list[list[int]], list[int]]:
        """Targets, supports and content."""

        def numbered(prefix: str) -> list[list[int]]:
            keys = sorted(key for key in self.data.keys if key.startswith(prefix))
            return [self.data.ids(key) for key in keys]

        content = self.data.ids("in_rescaling_token_id")
        return numbered("in_object_tokens_"), numbered("in_background_tokens_"), content

    def merged(self, maps: Tensor) -> Tensor:
        """Rescaled targets, then the merged supports: [B, K+1, h, w]."""
        targets, supports, content = self.tokens()
        scores = rescale.rescale(maps, targets + supports, content, DEFAULT_RESCALE)
        background = rescale.merge_background(scores[:, len(targets) :])
        return torch.cat([scores[:, : len(targets)], background[:, None]], 1)

    def affinity(self, chosen: list[int]) -> Tensor:
        return refine.mean_affinity([self.self_maps[i] for i in chosen], [self.grids[i] for i in chosen], self.size)


@pytest.fixture(params=UNET_LIKE)
def unet(request: pytest.FixtureRequest, golden: Callable[[str], Any]) -> Model:
    return Model(golden(request.param))


@pytest.fixture
def joint(golden: Callable[[str], Any]) -> Model:
    return Model(golden("core_c_joint"))


def naive_cosine_sum(unet: Model, layer: int, value_norms: bool) -> Tensor:
    """Sum over heads of the unnormalised cosine weight, [N], the long way: every head's own output, in float64."""
    post, weight = unet.post[layer][0].double(), unet.weight[layer].double()
    width = post.shape[1] // unet.heads[layer]
    total = torch.zeros(len(post), dtype=torch.float64)
    for head, value in enumerate(unet.value[layer][0].double()):
        columns = slice(head * width, (head + 1) * width)
        cosine = F.cosine_similarity(post[:, columns] @ weight[:, columns].T, post @ weight.T, dim=-1)
        norm = torch.linalg.matrix_norm(value @ weight[:, columns].T, ord=2) if value_norms else 1.0
        total += cosine * norm
    return total


@pytest.mark.parametrize("method", heads.HEAD_METHODS)
def test_head_weights(unet: Model, method: str) -> None:
    for layer in unet.layers:
        expected = unet.data[f"out_headw_{slug(method)}_L{layer}"]
        actual = unet.head_weights(layer, method)[0]
        if method.startswith("cosine"):
            # The reference divides by a negative sum as well, which turns every preference round; here such a pixel
            # gets equal weights. There is one in all the data, for each of the two methods.
            negative = naive_cosine_sum(unet, layer, method.endswith("VW")) <= 0
            assert int(negative.sum()) <= 1
            assert_close(actual[negative], torch.full_like(expected[negative], 1 / unet.heads[layer]), 1e-6)
            assert_close(actual[~negative], expected[~negative], 1e-3)
        else:
            assert_close(actual, expected, 1e-5)


@pytest.mark.parametrize("method", ["average", DEFAULT_HEAD])
def test_layer_maps(unet: Model, method: str) -> None:
    for layer in unet.layers:
        assert_close(unet.layer_map(layer, method)[0], unet.data[f"out_headmap_{slug(method)}_L{layer}"], 1e-5)


@pytest.mark.parametrize("channels", ["full", "ch0"])
@pytest.mark.parametrize("method", layers.LAYER_METHODS)
def test_layer_weights(unet: Model, method: str, channels: str) -> None:
    expected = unet.data[f"out_layerw_{slug(method)}_{channels}"]
    assert_close(unet.layer_weights(method, channel0=channels == "ch0")[0], expected, 1e-6)


def test_global_maps(unet: Model) -> None:
    names = {slug(method): method for method in heads.HEAD_METHODS + layers.LAYER_METHODS}
    keys = [key for key in unet.data.keys if key.startswith("out_agg_")]
    assert len(keys) >= 3
    for key in keys:
        head, rest = key.removeprefix("out_agg_").split("__")
        layer, channels = rest.rsplit("_", 1)
        actual = unet.aggregate(names[head], names[layer], channel0=channels == "ch0")
        assert_close(actual[0], unet.data[key], 1e-5)


@pytest.mark.parametrize("method", rescale.RESCALE_METHODS)
def test_rescaled_maps(unet: Model, method: str) -> None:
    targets, supports, content = unet.tokens()
    actual = rescale.rescale(unet.aggregate(), targets + supports, content, method)
    assert_close(actual[0], unet.data[f"out_rescaled_{slug(method)}"], 1e-5)


def test_merged_and_propagated(unet: Model) -> None:
    merged = unet.merged(unet.aggregate())
    assert_close(merged[0], unet.data["out_merged_default"], 1e-5)
    affinity = unet.affinity(list(unet.layers)[1:])
    assert_close(affinity[0], unet.data["out_space_attn_L1plus"], 1e-5)
    for order in (2, 5):
        assert_close(refine.propagate(merged, affinity, order)[0], unet.data[f"out_affinity_order{order}"], 1e-4)
    merged[:, -1] = 0
    assert_close(refine.propagate(merged, affinity, 2)[0], unet.data["out_affinity_order2_nullbg"], 1e-4)


def test_other_refinements(unet: Model) -> None:
    merged = unet.data.batch("out_merged_default")
    assert torch.equal(refine.prototype(merged, unet.feature)[0], unet.data["out_prototype"])
    if "out_space_merge" in unet.data.keys:
        affinity = unet.affinity(list(unet.layers)[1:])
        actual = refine.proposal_merge(unet.data.batch("out_affinity_order2"), affinity)
        assert torch.equal(actual[0], unet.data["out_space_merge"])


@pytest.mark.parametrize("rule", masks.BACKGROUND_RULES)
def test_evaluation_counts(unet: Model, rule: str) -> None:
    label = unet.data["out_eval_label"]
    ids = [int(key.rsplit("_", 1)[1]) for key in sorted(k for k in unet.data.keys if "object_tokens" in k)]
    classes = max(ids) + 1
    scores = masks.resize_scores(unet.data.batch("out_affinity_order2"), tuple(label.shape))
    volume = torch.zeros(1, classes - 1, *label.shape)
    for k, class_id in enumerate(ids):
        volume[:, class_id - 1] = scores[:, k]
    for row, theta in enumerate(unet.data["out_eval_thresholds"].tolist()):
        prediction = masks.assign(volume, scores[:, -1], rule, theta)
        matrix = metrics.Confusion(classes).update(prediction[0], label)
        assert matrix.intersection().tolist() == unet.data[f"out_eval_{rule}_inter"][row].tolist()
        assert matrix.union().tolist() == unet.data[f"out_eval_{rule}_union"][row].tolist()
        assert matrix.miou() == pytest.approx(float(unet.data[f"out_eval_{rule}_miou"][row]), abs=1e-6)


def test_joint_attention(joint: Model) -> None:
    maps = [cross.mean(1) for cross in joint.cross]
    weights = joint.layer_weights(DEFAULT_LAYER)
    assert_close(weights[0], joint.data["out_layerw"], 1e-6)
    total = layers.aggregate_layers(maps, joint.grids, weights, joint.size)
    assert_close(total[0], joint.data["out_agg"], 1e-5)
    merged = joint.merged(total)
    assert_close(merged[0], joint.data["out_merged_default"], 1e-5)
    affinity = joint.affinity(joint.data.ids("in_affinity_layers"))
    assert_close(refine.propagate(merged, affinity, 2)[0], joint.data["out_affinity_order2"], 1e-4)


@pytest.mark.parametrize("name", ["scfg_sd15", "scfg_sigma"])
def test_semantic_guidance(name: str, golden: Callable[[str], Any]) -> None:
    data = golden(name)
    empty, prompt = Model(data, half=0), Model(data, half=1)
    positive, negative = prompt.aggregate(), empty.aggregate()
    content = data.ids("in_rescaling_token_id")
    order = int(data["in_affinity_order"])
    affinity = prompt.affinity([1, 2])

    tokens = [[token] for token in range(positive.shape[1])]
    maps = refine.propagate(rescale.rescale(positive, tokens, content, DEFAULT_RESCALE), affinity, order)
    candidates = range(max(content) + 1)
    tied = guidance.regions(maps, candidates, ties="all")
    assert torch.equal(tied[0], data["out_region_mask"].float())
    single = guidance.regions(maps, candidates)
    assert torch.equal(single.sum(1), torch.ones(1, 8, 8))
    assert bool((single <= tied).all())

    token_map = negative[:, :1] if name == "scfg_sd15" else positive[:, max(content) + 1][:, None]
    fore = guidance.foreground(refine.propagate(token_map, affinity, order)[:, 0])
    assert torch.equal(fore[0], data["out_fore_mask"].float())

    cond, uncond = data.batch("in_eps_cond"), data.batch("in_eps_uncond")
    for scale in ("2.0", "7.5", "10.0"):
        rate = guidance.rate_map(cond, uncond, tied, fore, float(scale))
        assert_close(rate[0], data[f"out_rate_cfg{scale}"], 1e-5)
    rate = guidance.rate_map(cond, uncond, tied, fore, 7.5)
    assert_close(guidance.guided(cond, uncond, rate, 7.5)[0], data["out_guided_cfg7.5"], 1e-4)


@pytest.mark.parametrize("case", ["CF1_head_orthogonal", "CF2_head_negative"])
@pytest.mark.parametrize("method", heads.HEAD_METHODS)
def test_closed_form_heads(case: str, method: str, closed_form: dict[str, Any]) -> None:
    data = closed_form[case]
    actual = heads.head_weights(
        torch.tensor(data["Y"], dtype=torch.float32)[None],
        torch.tensor(data["W_O(out,in)"], dtype=torch.float32),
        data["heads"],
        method,
        value=torch.tensor(data["V"])[None],
    )
    assert_close(actual[0, 0], torch.tensor(data["weights"][method]), 1e-5)


@pytest.mark.parametrize("case", ["CF3_layer_scale_bias", "CF3b_layer_ref"])
def test_closed_form_layers(case: str, closed_form: dict[str, Any]) -> None:
    data = closed_form[case]
    affinity = layers.reference_affinity(torch.tensor(data["ref (C,h,w)"], dtype=torch.float32)[None])
    if "P" in data:
        assert_close(affinity[0], torch.tensor(data["P"]), 1e-6)
    sides = (2, 2, 1, 4)
    self_maps = [torch.eye(4), torch.full((4, 4), 1 / 4), torch.ones(1, 1), torch.full((16, 16), 1 / 16)]
    for method in set(layers.LAYER_METHODS) & set(data):
        raw = [
            layers.layer_score(affinity, layers.resize_self_map(m[None], (s, s), (2, 2)), method)[0]
            for m, s in zip(self_maps, sides, strict=True)
        ]
        assert_close(torch.stack(raw), torch.tensor(data[method]["scores"]), 1e-5)
        weights = layers.layer_scores(affinity, (2, 2), [m[None] for m in self_maps], [(s, s) for s in sides], method)
        assert_close(weights[0], torch.tensor(data[method]["weights"]), 1e-6)


def test_closed_form_rescale(closed_form: dict[str, Any]) -> None:
    data = closed_form["CF4_rescale"]
    maps = torch.tensor(data["agg tokens (4,2,2) = obj1a,obj1b,obj2,sos"])[None]
    assert data["out"]
    for method, expected in data["out"].items():
        actual = rescale.rescale(maps, data["object tokens"], data["rescaling ids"], method)
        assert_close(actual[0], torch.tensor(expected), 1e-6)


def test_closed_form_blur(closed_form: dict[str, Any]) -> None:
    data = closed_form["CF5_blur"]
    delta = torch.zeros(2, 5, 5)
    delta[0, 2, 2] = delta[1, 0, 0] = 1
    expected = torch.tensor([data["blur of centre delta 5x5"], data["blur of corner delta 5x5"]])
    assert_close(rescale.blur(delta), expected, 1e-6)


def test_closed_form_resize(closed_form: dict[str, Any]) -> None:
    checked = 0
    for name, expected in closed_form["CF6_resize"].items():
        kind, sides, _ = name.split()
        source, target = (int(side) for side in sides.split("->"))
        if kind == "nearest":
            assert resize.nearest_index((source, 1), (target, 1)).tolist() == expected
            assert resize.nearest_index((1, source), (1, target)).tolist() == expected
        else:
            actual = resize.resize_bilinear(torch.eye(source)[None, :, :, None], (target, 1))[0, :, :, 0].T
            assert_close(actual, torch.tensor(expected), 1e-6)
        checked += 1
    assert checked == 7


def test_closed_form_affinity(closed_form: dict[str, Any]) -> None:
    data = closed_form["CF7_affinity"]
    scores = torch.tensor(data["m0"], dtype=torch.float32).reshape(1, 1, 1, 4)
    for order, expected in data["orders"].items():
        actual = refine.propagate(scores, torch.tensor(data["S"])[None], int(order))
        assert_close(actual.flatten(), torch.tensor(expected["minmax"]), 1e-6)


def test_closed_form_guidance(closed_form: dict[str, Any]) -> None:
    data = closed_form["CF8_scfg"]
    cond = torch.tensor(data["delta_norm"])[None, None]
    regions = torch.tensor(data["regions"])[None]
    fore = torch.tensor(data["foreground"])[None]
    labels = regions.argmax(1)
    for scale, expected in data["by_guidance_scale"].items():
        for kind in (regions, labels):
            arguments = (cond, torch.zeros_like(cond), kind, fore, float(scale))
            assert_close(guidance.rate_map(*arguments, smooth=False)[0], torch.tensor(expected["clipped"]), 1e-6)
            assert_close(guidance.rate_map(*arguments)[0], torch.tensor(expected["smoothed"]), 1e-6)


def test_spot_values(golden: Callable[[str], Any]) -> None:
    """A few printed numbers of the specification: the golden files themselves are what they should be."""
    unet = Model(golden("core_a"))
    assert_close(unet.layer_weights(DEFAULT_LAYER)[0], torch.tensor([0.650149, 0.281105, 0.068745]), 1e-6)
    expected = torch.tensor([0.041085, 0.291678, 0.141091, 0.176911, 0.030413, 0.038829, 0.072839, 0.093530, 0.113623])
    assert_close(unet.aggregate()[0, :, 0, 0], expected, 1e-6)
    assert F.cosine_similarity(unet.aggregate().flatten(1), unet.aggregate(channel0=True).flatten(1)).item() < 0.9999
