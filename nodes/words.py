"""Encode a prompt together with its word map, or make the word map alone."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..goca_core.capture import conditioning as tokens
from . import types
from . import ui as browser
from .inputs import with_tooltip

NO_CLIP = (
    "ERROR: clip input is invalid: None\n\nIf the clip is from a checkpoint loader node your checkpoint does not "
    "contain a valid clip or text encoder model."
)


def text_input(tooltip: str) -> io.String.Input:
    return io.String.Input("text", multiline=True, dynamic_prompts=True, tooltip=tooltip)


class EncodePrompt(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GOCA_EncodePrompt",
            display_name="Encode Prompt (GoCA)",
            category=types.CATEGORY,
            search_aliases=["encode prompt", "clip text encode", "prompt words"],
            description=(
                "Encodes a prompt exactly as CLIP Text Encode does and stores in the conditioning which tokens belong "
                "to which word, so that you can ask for masks by the words of the prompt."
            ),
            inputs=[
                io.Clip.Input("clip", tooltip="The text encoder of the model that generates the image."),
                text_input(
                    "The prompt. Weights such as (red cat:1.3) and embeddings work as usual. Its words appear as "
                    "buttons on the node: click one to make it a phrase of Mask From Tokens or Regional Pass."
                ),
            ],
            outputs=[
                with_tooltip(
                    io.Conditioning.Output(),
                    "The same conditioning as from CLIP Text Encode, with the word map attached. Nodes that set "
                    "areas, masks, strengths or time ranges keep the word map.",
                ),
            ],
            has_intermediate_output=True,
        )

    @classmethod
    def execute(cls, clip: Any, text: str) -> io.NodeOutput:
        if clip is None:
            raise RuntimeError(NO_CLIP)
        words = tokens.word_map(clip, text)
        conditioning = clip.encode_from_tokens_scheduled(clip.tokenize(text))
        return io.NodeOutput(tokens.attach(conditioning, words), ui=browser.words(words))


class Words(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GOCA_Words",
            display_name="Prompt Words (GoCA)",
            category=types.CATEGORY,
            search_aliases=["prompt words", "tokens", "tokenizer"],
            description=(
                "Finds which tokens belong to which word of a prompt, without encoding it. Needed only for nodes that "
                "encode a prompt in a way of their own; give both nodes the same CLIP and the same text."
            ),
            inputs=[
                io.Clip.Input("clip", tooltip="The text encoder that encodes the prompt elsewhere in the graph."),
                text_input(
                    "The prompt, exactly as the encode node gets it. Feed both nodes from one text node, because a "
                    "dynamic prompt that is typed twice can come out differently."
                ),
            ],
            outputs=[
                with_tooltip(
                    types.Words.Output(display_name="words"),
                    "The word map, for the words input of Mask From Tokens, Overlay, Regional Pass or Semantic CFG.",
                ),
            ],
            has_intermediate_output=True,
        )

    @classmethod
    def execute(cls, clip: Any, text: str) -> io.NodeOutput:
        if clip is None:
            raise RuntimeError(NO_CLIP)
        words = tokens.word_map(clip, text)
        return io.NodeOutput(words, ui=browser.words(words))
