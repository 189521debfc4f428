"""Let LoRAs act inside their masks during one sampling run, whatever samples."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...masks import smooth
from ...tensors import finite
from ...words.match import PhraseError
from ...words.word_map import WordMap, resolve
from ..comfy_graphs import drop_captured
from ..conditioning import length_of, words_of
from ..families import network_of
from ..families.base import Plan
from ..forward import eager
from ..hooks import ModelCall
from .file import LoRA, LoRAError
from .layers import BoundLayer, added, bind
from .places import CallPlaces, Chunk, Placement, cropped

_log = logging.getLogger("goca")


def latent_masks(masks: Tensor, shape: Sequence[int], feather: float = 0.0, each: int = 1) -> Tensor:
    """Masks [M, h, w] in the cells of a latent of ``shape`` [B, C, (F,) H, W], as [B, F, H, W] in 0..1.

    M: one mask for all, one for each sample, or of videos one for each frame of each, latent or decoded: a latent frame
    after the first decodes to ``each`` frames. feather: width of the soft edge in pixels of the masks. What is all one or all
    zero stays so to the last bit. Raises LoRAError for another number of masks.
    """
    batch, frames = shape[0], shape[2] if len(shape) == 5 else 1
    masks = finite(masks.reshape(-1, *masks.shape[-2:])).clamp(0, 1)
    if not masks.numel():
        raise LoRAError("The mask is empty; connect a mask of at least one pixel.")
    count, decoded = masks.shape[0], 1 + (frames - 1) * each
    known = {1: "one for all", batch: "one for each image"}
    if frames > 1:
        known = {
            1: "one for all",
            batch: "one for each video",
            frames * batch: "",
            decoded * batch: "one for each frame",
        }
        known |= {frames: "", decoded: "one for each frame"}
    if count not in known:
        wanted = " or ".join(f"{n} ({what})" for n, what in sorted(known.items()) if what)
        raise LoRAError(
            f"There are {count} masks for a latent of {batch} {'videos' if frames > 1 else 'images'}; connect {wanted}."
        )
    low, high = masks.flatten(1).amin(1), masks.flatten(1).amax(1)
    if feather > 0:
        masks = smooth(masks[:, None], feather / 2)[:, 0]
    # The mean of the pixels of each cell, which of ones is one exactly.
    small = F.interpolate(masks[:, None], tuple(shape[-2:]), mode="area")[:, 0].clamp(0, 1)
    small = torch.where((low == high)[:, None, None], low[:, None, None].expand_as(small), small)
    if frames > 1 and count not in (1, batch):
        per = frames if count % frames == 0 and count in (frames, frames * batch) else decoded
        small = small.unflatten(0, (-1, per))
        if per != frames:
            rest = small[:, 1:].unflatten(1, (-1, each)).mean(2)
            small = torch.cat((small[:, :1], rest), 1)
    else:
        small = small[:, None]
    return small.expand(batch, frames, -1, -1)


class MaskedLoRA:
    """One LoRA during one run: its layers on the networks that run, and where it acts."""

    def __init__(self, lora: LoRA, strength: float, placement: Placement) -> None:
        self.lora, self._strength, self._placement = lora, strength, placement
        self._bound: dict[tuple[int, torch.device], list[BoundLayer]] = {}
        self._places: dict[Any, CallPlaces] = {}
        self._unplaced: set[str] = set()

    @property
    def placement(self) -> Placement:
        return self._placement

    def place(self, placement: Placement) -> None:
        """Act elsewhere from now on."""
        self._forget()
        self._placement = placement

    @contextlib.contextmanager
    def acting(
        self, call: ModelCall, plan: Plan, text: int, entries: Mapping[Any, Mapping[str, Any]]
    ) -> Iterator[None]:
        """Let the LoRA act while the body runs the model call. ``text``: tokens of its text, 0 if it has none."""
        if self._strength == 0 or self._placement.nowhere:
            yield
            return
        key = (id(network_of(call.model)), call.x.device)
        if key not in self._bound:
            self._bound[key] = bind(self.lora.layers, call.model, self._strength, call.x.device)
        with added(self._bound[key], self._weights(call, plan, text, entries)):
            yield

    def _weights(self, call: ModelCall, plan: Plan, text: int, entries: Mapping[Any, Mapping[str, Any]]) -> Any:
        if self._placement.everywhere:
            one = torch.ones((), device=call.x.device)
            return lambda _name, out, _conv: one.to(out.dtype)
        uuids = tuple(call.options.get("uuids") or ())
        window = call.options.get("context_window")
        given = call.given
        around = plan.references(given)
        references = sum(call.options.get("reference_image_num_tokens") or ()) + sum(around)
        known = (
            uuids,
            tuple(call.x.shape),
            call.x.device,
            text,
            around,
            references,
            repr(getattr(window, "index_list", "")),
        )
        if known not in self._places:
            image = self._placement.image
            chunks = _chunks(call, image, uuids, window, entries)
            texts = [text, *(chunk.length for chunk in chunks)]
            self._places[known] = CallPlaces(plan, self._placement, chunks, texts, around, references, call.x.device)
        return self._places[known].weight

    def _forget(self) -> None:
        for places in self._places.values():
            self._unplaced |= places.unplaced
        self._places.clear()

    def close(self) -> None:
        """Release the weights, and tell what took no part."""
        self._forget()
        self._bound.clear()
        if self._unplaced:
            names = sorted(name.removeprefix("diffusion_model.") for name in self._unplaced)
            shown = ", ".join(names[:4]) + (", …" if len(names) > 4 else "")
            _log.info(
                "GoCA: %d layers of the LoRA %s have no place in the image and took no part, because its mask does not "
                "cover all of it: %s", len(names), self.lora.name, shown,
            )  # fmt: skip


def _chunks(
    call: ModelCall, image: Tensor, uuids: Sequence[Any], window: Any, entries: Mapping[Any, Mapping[str, Any]]
) -> list[Chunk]:
    """The conditionings of a call, each with the mask that its rows see."""
    dims = call.x.ndim - 2
    if window is not None and image.shape[1] > 1 and getattr(window, "dim", 2) == 2:
        image = image[:, list(window.index_list)]
    batch = image.shape[0]
    if not uuids or call.x.shape[0] != batch * len(uuids):
        # Another node has split the batch: only one mask for all can be told then.
        if any(not torch.equal(image[:1], each[None]) for each in image[1:]):
            raise LoRAError(
                "Each image has a mask of its own, but another node samples them in parts, so it cannot be told whose mask is "
                "whose; remove that node, or sample one image at a time."
            )
        uuids, image = (list(uuids) or [None])[:1], image[:1].expand(call.x.shape[0], -1, -1, -1)
    chunks = []
    for uuid in uuids:
        entry = entries.get(uuid, {})
        own = cropped(image, entry.get("area"), dims)
        if own.shape[1:] != (call.frames, *call.x.shape[-2:]):
            raise LoRAError(
                f"The model was called for a part of {call.x.shape[-1]}x{call.x.shape[-2]} of a latent of {image.shape[-1]}x"
                f"{image.shape[-2]}, and it cannot be told which; remove the node that samples in tiles, or the mask."
            )
        cond = entry.get("cross_attn")
        chunks.append(Chunk(uuid, own, 0 if cond is None else length_of(cond, entry)))
    return chunks


class LoRACalls:
    """The LoRAs of one run around its model calls."""

    def __init__(self, loras: Sequence[MaskedLoRA]) -> None:
        self.loras = list(loras)
        self._entries: dict[Any, Mapping[str, Any]] = {}

    def see(self, conds: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
        """Learn the conditionings that ComfyUI has prepared: their areas, and the length of their texts."""
        self._entries = {entry["uuid"]: entry for part in conds.values() for entry in part or () if "uuid" in entry}

    @contextlib.contextmanager
    def around(self, call: ModelCall, plan: Plan, text: Any) -> Iterator[None]:
        """Let all LoRAs act while the body runs the model call. ``text``: the text that the network is given."""
        length = 0 if not isinstance(text, Tensor) or text.ndim < 3 else int(text.shape[1])
        if all(lora.placement.nowhere for lora in self.loras):
            yield
            return
        drop_captured(network_of(call.model))
        with contextlib.ExitStack() as stack:
            stack.enter_context(eager())
            for lora in self.loras:
                stack.enter_context(lora.acting(call, plan, length, self._entries))
            yield

    def close(self) -> None:
        self._entries = {}
        for lora in self.loras:
            lora.close()


def phrase_tokens(phrase: str, conds: Sequence[Mapping[str, Any]], words: WordMap | None) -> dict[Any, tuple[int, ...]]:
    """The tokens of a phrase in each positive conditioning that has it, by uuid.

    Raises PhraseError when none has it, LoRAError when the words of none are known.
    """
    found: dict[Any, tuple[int, ...]] = {}
    trouble: PhraseError | None = None
    known = False
    for entry in conds:
        cond = entry.get("cross_attn")
        own = words or (None if cond is None else words_of(cond, entry))
        if own is None:
            continue
        known = True
        try:
            found[entry["uuid"]] = tuple(sorted({token for each in resolve(phrase, own) for token in each.tokens}))
        except PhraseError as error:
            trouble = error
    if found:
        return found
    if trouble is not None:
        raise trouble
    if not known:
        raise LoRAError(
            "The words of the prompt are not known, so the phrase of the LoRA cannot be found: encode the positive prompt with "
            "Encode Prompt (GoCA), or wire Prompt Words (GoCA) with the same CLIP and text into words."
        )
    return found
