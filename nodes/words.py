"""From a prompt to its words: encode a prompt together with its word map, or read the word map alone."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..goca_core.capture import conditioning as tokens
from . import look, types

NO_CLIP = (
    "ERROR: clip input is invalid: None\n\nIf the clip is from a checkpoint loader node your checkpoint does not "
    "contain a valid clip or text encoder model."
)


def _text_input(tooltip: str) -> io.String.Input:
    return io.String.Input("text", multiline=True, dynamic_prompts=True, tooltip=tooltip)


class EncodePrompt(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GOCA_EncodePrompt",
            display_name="Encode Prompt (GoCA)",
            category=types.CATEGORY,
            search_aliases=[*types.ALIASES, "prompt", "text", "encode prompt", "clip text encode"],
            description=(
                "Encodes a prompt exactly as CLIP Text Encode does, and lets the conditioning remember which of its "
                "tokens belong to which word, so that masks can be asked for by the words of the prompt."
            ),
            inputs=[
                io.Clip.Input("clip", tooltip="The text encoder of the model that will paint the picture."),
                _text_input(
                    "The prompt, with the usual weights and embeddings. Its words are shown on the node: click one to "
                    "make a mask of it in Mask From Tokens."
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    tooltip="The same conditioning as from CLIP Text Encode; it carries its word map wherever it goes."
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
        return io.NodeOutput(tokens.attach(conditioning, words), ui=look.words(words))


class Words(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GOCA_Words",
            display_name="Prompt Words (GoCA)",
            category=types.CATEGORY,
            search_aliases=[*types.ALIASES, "prompt", "tokens", "tokenizer"],
            description=(
                "Reads which tokens of a conditioning belong to which word of its prompt, for graphs that keep their "
                "own text encode node. Give it the same CLIP and the same text as that node."
            ),
            inputs=[
                io.Clip.Input("clip", tooltip="The text encoder that encodes the prompt elsewhere in the graph."),
                _text_input("The prompt, exactly as the encode node gets it."),
            ],
            outputs=[
                types.Words.Output(display_name="words", tooltip="The word map, for Mask From Tokens."),
            ],
            has_intermediate_output=True,
        )

    @classmethod
    def execute(cls, clip: Any, text: str) -> io.NodeOutput:
        if clip is None:
            raise RuntimeError(NO_CLIP)
        words = tokens.word_map(clip, text)
        return io.NodeOutput(words, ui=look.words(words))
