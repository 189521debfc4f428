"""The runs that `compare_checkouts.py` compares: one checkout, asked through its nodes, writes down what it gives.

    python scripts/checkout_runs.py CHECKOUT RESULTS [PATTERN]

The tiny models are those of this checkout's tests, which do not know the pack. `checkout_pack.py` starts the checkout.
"""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import importlib
import json
import logging
import os
import shutil
import sys
import tempfile
import time
import traceback
import types
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))

from scripts.checkout_pack import TEXT, Model, Pack, Results  # noqa: E402

PHRASES = "red cat\ngrass\nsky"
SCENE = "a red circle and a blue square on grass"


def _tiny() -> Any:
    """The tiny models of the tests, under a name that nothing else has: ComfyUI has a folder `tests` as well."""
    package = types.ModuleType("goca_tiny")
    package.__path__ = [str(ROOT / "tests" / "host")]
    sys.modules["goca_tiny"] = package
    return importlib.import_module("goca_tiny.tiny")


ALL = {"head_methods": "all", "layer_methods": "all"}
AUTO = {"window": "auto", "start_percent": 0.5, "end_percent": 1.0, "max_evaluations": 4}


def record(
    found: Results, used: Model, positive: Any, negative: Any, batch: int = 1, size: Any = None, **more: Any
) -> Any:
    """Sample with and without a recorder; the ATTENTION."""
    pack = used.pack
    sampling = {name: more.pop(name) for name in ("steps", "cfg", "sampler_name") if name in more}
    found.put("plain", used.sample(used.model, positive, negative, batch, size, **sampling)["samples"])
    model, recorder = pack("RecordAttention", model=used.model, **{**AUTO, **ALL, **more})
    latent = used.sample(model, positive, negative, batch, size, **sampling)
    found.put("recorded", latent["samples"])
    attention = pack("CollectAttention", recorder=recorder, latent=latent)
    found.recording("file", pack.save(attention))
    return attention


def decide(found: Results, pack: Pack, attention: Any, phrases: str = PHRASES, **more: Any) -> None:
    """Masks as they are by default, soft scores, and those of each way to weigh heads and layers."""
    for mode in pack.choices("MaskFromTokens", "mode"):
        options = {"source": attention, "phrases": phrases, "background": "auto", "mode": mode, **more}
        found.masks(mode, pack("MaskFromTokens", **options))


def weigh(found: Results, pack: Pack, attention: Any, phrases: str = PHRASES) -> None:
    def soft(name: str, maps: Any, **rescale: Any) -> None:
        scores = pack("Rescale", maps=maps, **{"method": "auto", **rescale})
        asked = {"phrases": phrases, "background": "auto", "mode": "soft", "size": "latent"}
        found.masks(name, pack("MaskFromTokens", source=scores, **asked))

    for head in pack.choices("Aggregate", "head_method"):
        soft(f"head {head}", pack("Aggregate", attention=attention, head_method=head, layer_method="auto"))
    for layer in pack.choices("Aggregate", "layer_method"):
        soft(f"layer {layer}", pack("Aggregate", attention=attention, head_method="auto", layer_method=layer))
    maps = pack("Aggregate", attention=attention, head_method="auto", layer_method="auto")
    for method in pack.choices("Rescale", "method"):
        for pool in pack.choices("Rescale", "pool"):
            for span in pack.choices("Rescale", "range"):
                soft(f"rescale {method} {pool} {span}", maps, method=method, pool=pool, range=span)


# -- the runs ---------------------------------------------------------------------------------------------------------

Do = Callable[[Results], None]


def family(pack: Pack, tiny: Any, name: str) -> Do:
    """Recorded with all methods, and a latent of noise segmented."""

    def do(found: Results) -> None:
        used = Model(pack, tiny, name)
        try:
            positive, negative = used.prompt(), used.prompt("a dog")
        except Exception as error:
            # The model appends text of other encoders, which this CLIP does not know of.
            found.facts["no words"] = type(error).__name__
            positive, negative = used.conditioning(seed=1), used.conditioning(seed=2)
        attention = record(found, used, positive, negative)
        if "no words" not in found.facts:
            decide(found, pack, attention)
        level = {"noise_level": "percent", "percent": 0.7}
        asked = {"latent": {"samples": used.latent()}, "positive": positive, "noise_level": level, "seed": 3}
        found.recording("segmented", pack.save(pack("SegmentImage", model=used.model, **asked)))

    return do


def methods(pack: Pack, tiny: Any, name: str) -> Do:
    def do(found: Results) -> None:
        used = Model(pack, tiny, name)
        positive, negative = used.prompt(), used.prompt("a dog")
        window = {"window": "percent", "start_percent": 0.0, "max_evaluations": 3}
        attention = record(found, used, positive, negative, 2, steps=3, sampler_name="heun", **window)
        weigh(found, pack, attention)
        decide(found, pack, attention, background="under", theta=0.05, propagation=2, smooth=1.5)
        for rule in pack.choices("MaskFromTokens", "background_rule"):
            asked = {"background_rule": rule, "theta": 0.1, "size": "custom", "width": 70, "height": 45}
            options = {"phrases": "red cat, sky\ngrass", "background": "blue", "mode": "partition", **asked}
            tidy = {"largest_component": True, "remove_small": 0.01, "fill_holes": True}
            found.masks(f"rule {rule}", pack("MaskFromTokens", source=attention, **options))
            found.masks(f"rule {rule} tidy", pack("MaskFromTokens", source=attention, **options, **tidy))

    return do


def grids(pack: Pack, tiny: Any, name: str, size: tuple[int, int], grid: str, more: dict[str, Any]) -> Do:
    def do(found: Results) -> None:
        used = Model(pack, tiny, name)
        options = {"head_methods": "auto", "reference_grid": grid, "steps": 1, "cfg": 1.0, **more}
        decide(found, pack, record(found, used, used.prompt(), used.prompt("a dog"), 1, size, **options))

    return do


def half(pack: Pack, tiny: Any, name: str) -> Do:
    def do(found: Results) -> None:
        used = Model(pack, tiny, name, torch.bfloat16)
        attention = record(found, used, used.prompt(), used.prompt("a dog"), 2, reference_channel0=True)
        found.recording("halved", pack.save(attention, "float16"))

    return do


def segmented(pack: Pack, tiny: Any, name: str) -> Do:
    def do(found: Results) -> None:
        used = Model(pack, tiny, name)
        spread = {"noise_level": "percent range", "start_percent": 0.6, "end_percent": 0.9, "levels": 2}
        asked = {"latent": {"samples": used.latent(2)}, "positive": used.prompt(), "seed": 3}
        for key, level in (("auto", {"noise_level": "auto"}), ("spread", spread)):
            more = {"draws": 2, "flip": True} if key == "spread" else {}
            attention = pack("SegmentImage", model=used.model, noise_level=level, **asked, **more)
            found.recording(key, pack.save(attention))
            decide(found, pack, attention)

    return do


def guided(pack: Pack, tiny: Any, name: str, rule: str, more: dict[str, Any]) -> Do:
    def do(found: Results) -> None:
        used = Model(pack, tiny, name)
        positive, negative = used.prompt(), used.prompt("a dog")
        limits = {"minimum": 0.8, "maximum": 3.0, "ceiling": 15.0}
        model = pack("SemanticCFG", model=used.model, regions=rule, **{**limits, **more})
        for batch, size in ((1, None), (2, used.size[::-1])):
            found.put(f"plain {batch}", used.sample(used.model, positive, negative, batch, size, steps=3)["samples"])
            found.put(f"guided {batch}", used.sample(model, positive, negative, batch, size, steps=3)["samples"])

    return do


def regional(pack: Pack, used: Callable[[], Model], text: str, phrases: str, prompts: str, **more: Any) -> Do:
    def do(found: Results) -> None:
        of = used()
        asked = {"phrases": phrases, "prompts": prompts, "start_percent": 0.5, **more}
        model, regions = pack("RegionalPass", model=of.model, clip=of.clip, **asked)
        size = None if of.frames else (of.size[0], of.size[1] + 8)
        latent = of.sample(model, of.prompt(text), of.prompt(""), 2, size, steps=4)
        found.put("latent", latent["samples"])
        found.masks("pass", pack("CollectMasks", regions=regions, latent=latent))

    return do


def demo(pack: Pack) -> Do:
    """A whole graph of the demo model: image, masks, refinements, overlays, a file, and regional prompts of the masks."""

    def do(found: Results) -> None:
        used = Model(pack)
        positive, negative = used.prompt(SCENE), used.prompt("")
        attention = record(found, used, positive, negative, 2, (32, 40), steps=4)
        with torch.inference_mode():
            image = pack.vae.decode(found.arrays["recorded"])
        found.put("image", image)
        phrases = "red circle\nblue square"
        weigh(found, pack, attention, phrases)
        decide(found, pack, attention, phrases)
        masks, background, labels = pack(
            "MaskFromTokens", source=attention, phrases=phrases, background="auto", mode="partition"
        )
        for method in (
            {"method": "pamr", "iterations": 3, "reach": 0},
            {"method": "guided filter", "radius": 0, "eps": 0.01},
            {"method": "proposal merge", "tolerance": 1.0, "stride": 4, "threshold": 0.4},
        ):
            refined = pack("Refine", source=attention, method=method, image=image)
            asked = {"phrases": phrases, "background": "auto", "mode": "soft"}
            found.masks(str(method["method"]), pack("MaskFromTokens", source=refined, **asked))
        file = pack.save(attention)
        loaded = pack("LoadAttention", file=f"output/{file.relative_to(pack.output / 'goca').as_posix()}")
        found.recording("again", pack.save(loaded, "float16"))
        decide(found, pack, loaded, phrases)
        shown = {"masks": masks, "heat": attention}
        for key, source in shown.items():
            overlay = pack("Overlay", image=image, source=source, labels=labels if key == "masks" else "", opacity=0.5)
            found.put(f"overlay {key}", overlay)
        viewed(found, pack, attention, phrases)
        for area in pack.choices("RegionalPrompt", "set_cond_area"):
            prompts = "red circle: a green star\nblue square: a yellow heart"
            inputs = {"masks": masks[:2], "labels": labels, "prompts": prompts, "set_cond_area": area}
            options = {"strength": 0.8, "feather": 4.0, "start_percent": 0.2, "background": background[:1]}
            mixed = pack("RegionalPrompt", conditioning=positive, clip=pack.clip, **inputs, **options)
            found.put(f"regional {area}", used.sample(used.model, mixed, negative, 1, (32, 40), steps=3)["samples"])

    return do


def viewed(found: Results, pack: Pack, attention: Any, phrases: str) -> None:
    """The images that the browser is given, whatever their files and places are called."""
    from PIL import Image

    shutil.rmtree(pack.temp)
    pack.temp.mkdir()
    pack("MaskFromTokens", source=attention, phrases=phrases, background="auto", mode="partition")
    digests = []
    for file in sorted(pack.temp.rglob("*.png")):
        with Image.open(file) as image:
            digests.append(hashlib.sha256(repr((image.mode, image.size)).encode() + image.tobytes()).hexdigest())
    found.facts["images for the browser"] = sorted(digests)


def runs(pack: Pack, tiny: Any) -> Iterator[tuple[str, Do]]:
    supported = importlib.import_module("comfy.supported_models")
    for name, kind in tiny.MODELS.items():
        if hasattr(supported, kind.model):
            yield f"family_{name}", family(pack, tiny, name)
    yield "demo_graph", demo(pack)
    for name in ("sd15", "sdxl", "pixart_sigma", "flux", "sd3", "wan21", "hunyuan_video"):
        yield f"methods_{name}", methods(pack, tiny, name)
    for grid in pack.choices("RecordAttention", "reference_grid"):
        key = grid.replace(" ", "_")
        yield f"grid_{key}_sd15", grids(pack, tiny, "sd15", (40, 56), grid, {})
        yield f"grid_{key}_flux", grids(pack, tiny, "flux", (76, 88), grid, {})
        yield f"grid_{key}_wan21", grids(pack, tiny, "wan21", (36, 68), grid, {})
        yield f"grid_{key}_large", grids(pack, tiny, "flux", (132, 130), grid, {"layer_methods": "auto"})
    yield "grid_propagation_full", grids(pack, tiny, "flux", (68, 80), "32x32", {"propagation_grid": "full"})
    yield "grid_channel0", grids(pack, tiny, "sd15", (24, 20), "auto", {"reference_channel0": True})
    for name in ("sd15", "flux", "wan21"):
        yield f"half_{name}", half(pack, tiny, name)
    for name in ("sd15", "pixart_sigma", "flux", "wan21"):
        yield f"segment_{name}", segmented(pack, tiny, name)
    own = {"ceiling": 5.0, "ties": "all", "smooth": False, "start_percent": 0.2, "end_percent": 0.8}
    ways = {"head_method": "average", "layer_method": "auto", "propagation": 2}
    for name in ("sd15", "flux", "pixart_sigma"):
        for number, rule in enumerate(pack.choices("SemanticCFG", "regions"), start=1):
            if number == 1 or name == "sd15":  # the others are of UNets alone
                yield f"scfg_{name}_rule{number}", guided(pack, tiny, name, rule, {})
                yield f"scfg_{name}_rule{number}_options", guided(pack, tiny, name, rule, {**own, **ways})
    prompts = "red cat: a green dog\nsky: fire"
    options = {"strength": 0.7, "feather": 24.0, "evaluations": 1, "theta": 0.1, "fill_holes": True}
    for name in ("sd15", "flux", "wan21"):
        yield f"regional_{name}", regional(pack, partial(Model, pack, tiny, name), TEXT, PHRASES, prompts)
    yield "regional_options", regional(pack, partial(Model, pack, tiny, "sd15"), TEXT, PHRASES, prompts, **options)
    parts = "red circle\nblue square", "red circle: a green star\nblue square: a yellow heart"
    yield "regional_demo", regional(pack, partial(Model, pack), SCENE, *parts)


def main(checkout: str, results: str, pattern: str = "*") -> None:
    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)
    folder = Path(results)
    folder.mkdir(parents=True, exist_ok=True)
    index: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="goca-checkout-") as base:
        with contextlib.redirect_stdout(sys.stderr):
            pack = Pack(Path(checkout), Path(base))
        for name, do in runs(pack, _tiny()):
            if not fnmatch.fnmatch(name, pattern):
                continue
            found, started = Results(), time.monotonic()
            try:
                do(found)
            except Exception as error:
                # Both may refuse; then they must refuse alike, in whatever words.
                found.facts["error"] = type(error).__name__
                print(f"{name} in {checkout}:\n{''.join(traceback.format_exception(error))}", file=sys.stderr)
            if os.environ.get("GOCA_COMPARE_TIMES"):
                print(f"{time.monotonic() - started:6.1f} s  {name}", file=sys.stderr)
            save_file(found.arrays, folder / f"{name}.safetensors")
            index[name] = found.facts
    # What is measured must be the checkout, not this script's own neighbours.
    assert not [name for name in sys.modules if name.split(".")[0] == "goca_core"]
    (folder / "index.json").write_text(json.dumps(index, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
