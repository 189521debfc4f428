"""What the names of model files say: which network of ComfyUI is in a file, and which tokenizer its prompts have.

A workflow names files, not networks. Whether a network can be recorded, and whether the words of a tokenizer can be found, is
asked of the pack itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from goca_core.capture.families import FAMILIES
from goca_core.capture.families.base import Family
from goca_core.capture.tokenizers import TOKENIZERS


class Network(NamedTuple):
    """ComfyUI's class of a network, with its module, and its tokenizer; empty if they are unknown.

    ``base``: the class that it extends. ``attributes``: what else the families look at.
    """

    path: str
    tokenizer: str
    base: str = ""
    attributes: Mapping[str, Any] = {}

    @property
    def family(self) -> str:
        """The name of the family that records it; empty if there is none."""
        if not self.path:
            return ""
        kind: Any = object
        for path in filter(None, (self.base, self.path)):
            module, _, name = path.rpartition(".")
            kind = type(name, (kind,), {"__module__": module, **self.attributes})
        network = kind()
        # That of the UNets looks at their layers too, for which it needs ComfyUI.
        found = (each for each in FAMILIES if (Family if each.name == "unet" else type(each)).matches(each, network))
        return next((each.name for each in found), "")

    @property
    def has_words(self) -> bool:
        return self.tokenizer in TOKENIZERS


class _Flux2:
    global_modulation = True


_WAN = "comfy.ldm.wan.model.WanModel"
_FLUX = "comfy.ldm.flux.model.Flux"
_UNET = "comfy.ldm.modules.diffusionmodules.openaimodel.UNetModel"


def _wan(name: str, module: str = "model") -> Network:
    return Network(f"comfy.ldm.wan.{module}.{name}", "WanT5Tokenizer", _WAN)


def _flux(tokenizer: str, **attributes: Any) -> Network:
    return Network(_FLUX, tokenizer, attributes={"vector_in": None, "params": None, **attributes})


def _unknown(_name: str = "") -> Network:
    return Network("", "")


NETWORKS: dict[str, Network] = {
    "SD 1.x": Network(_UNET, "SD1Tokenizer"),
    "SDXL": Network(_UNET, "SDXLTokenizer"),
    "Stable Video Diffusion": _unknown(),
    "Stable Diffusion 3.5": Network(
        "comfy.ldm.modules.diffusionmodules.mmdit.OpenAISignatureMMDITWrapper", "SD3Tokenizer"
    ),
    "Flux.1": _flux("FluxTokenizer", vector_in=True),
    "Flux.2": _flux("Flux2Tokenizer", params=_Flux2()),
    "Flux.2 Klein 4B": _flux("KleinTokenizer", params=_Flux2()),
    "Flux.2 Klein 9B": _flux("KleinTokenizer8B", params=_Flux2()),
    "LongCat-Image": _flux("LongCatImageTokenizer"),
    "Ovis-Image": _flux("OvisTokenizer"),
    "Chroma": Network("comfy.ldm.chroma.model.Chroma", "PixArtTokenizer"),
    "Chroma Radiance": Network(
        "comfy.ldm.chroma_radiance.model.ChromaRadiance", "PixArtTokenizer", "comfy.ldm.chroma.model.Chroma"
    ),
    "HiDream-I1": Network("comfy.ldm.hidream.model.HiDreamImageTransformer2DModel", "HiDreamTokenizer"),
    "HiDream-O1": Network("comfy.ldm.hidream_o1.model.HiDreamO1Transformer", "HiDreamO1Tokenizer"),
    "Qwen-Image": Network("comfy.ldm.qwen_image.model.QwenImageTransformer2DModel", "QwenImageTokenizer"),
    "Qwen-Image 2.1": Network("comfy.ldm.qwen_image21.model.QwenImage21Transformer2DModel", "QwenImage21Tokenizer"),
    "Mage-Flow": Network("comfy.ldm.mage_flow.model.MageFlowTransformer2DModel", "MageFlowTokenizer"),
    "Krea 2": Network("comfy.ldm.krea2.model.SingleStreamDiT", "Krea2Tokenizer"),
    "JoyImage": Network("comfy.ldm.joyimage.model.JoyImageTransformer3DModel", "JoyImageTokenizer"),
    "Lens": Network("comfy.ldm.lens.model.LensTransformer2DModel", "LensTokenizer"),
    "Ideogram 4": Network("comfy.ldm.ideogram4.model.Ideogram4Transformer2DModel", "Ideogram4Qwen3VLTokenizer"),
    "Boogu-Image": Network("comfy.ldm.boogu.model.BooguTransformer2DModel", "BooguTokenizer"),
    "Omnigen2": Network("comfy.ldm.omnigen.omnigen2.OmniGen2Transformer2DModel", "Omnigen2Tokenizer"),
    "ERNIE-Image": Network("comfy.ldm.ernie.model.ErnieImageModel", "ErnieTokenizer"),
    "Anima": Network("comfy.ldm.anima.model.Anima", "AnimaTokenizer", "comfy.ldm.cosmos.predict2.MiniTrainDIT"),
    "Z-Image": Network("comfy.ldm.lumina.model.NextDiT", "ZImageTokenizer"),
    "Lumina-Image 2": Network("comfy.ldm.lumina.model.NextDiT", "LuminaTokenizer"),
    "NewBie": Network("comfy.ldm.lumina.model.NextDiT", "NewBieTokenizer"),
    "Ming-Image": Network("comfy.ldm.lumina.model.NextDiT", "MingImageTokenizer", attributes={"__ming_image__": True}),
    "Z-Image in pixel space": Network(
        "comfy.ldm.lumina.model.NextDiTPixelSpace", "ZImageTokenizer", "comfy.ldm.lumina.model.NextDiT"
    ),
    "PixelDiT": Network("comfy.ldm.pixeldit.model.PixDiT_T2I", "PixelDiTGemma2Tokenizer"),
    "PiD": Network("comfy.ldm.pixeldit.pid.PidNet", "PixelDiTGemma2Tokenizer", "comfy.ldm.pixeldit.model.PixDiT_T2I"),
    "Kandinsky 5": Network("comfy.ldm.kandinsky5.model.Kandinsky5", "Kandinsky5Tokenizer"),
    "Kandinsky 6": Network("comfy.ldm.kandinsky6.model.Kandinsky6", "Kandinsky6Tokenizer"),
    "Wan": _wan("WanModel")._replace(path=_WAN, base=""),
    "Wan Vace": _wan("VaceWanModel"),
    "Wan Fun Camera": _wan("CameraWanModel"),
    "Wan HuMo": _wan("HumoWanModel"),
    "Wan Speech to Video": _wan("WanModel_S2V"),
    "Wan SCAIL 2": _wan("SCAIL2WanModel"),
    "Wan Animate": _wan("AnimateWanModel", "model_animate"),
    "Wan Animate 2": _wan("WanAnimate2Model", "model_animate2"),
    "Wan Dancer": _wan("WanDancerModel", "model_wandancer"),
    "Wan, piece by piece": _wan("CausalWanModel", "ar_model"),
    "HunyuanVideo": Network(
        "comfy.ldm.hunyuan_video.model.HunyuanVideo", "HunyuanVideoTokenizer", attributes={"patch_size": (1, 2, 2)}
    ),
    "HunyuanVideo 1.5": Network(
        "comfy.ldm.hunyuan_video.model.HunyuanVideo", "HunyuanVideo15Tokenizer", attributes={"patch_size": (1, 1, 1)}
    ),
    "LTX-Video": Network("comfy.ldm.lightricks.model.LTXVModel", "LTXVT5Tokenizer"),
    "LTX-2": Network(
        "comfy.ldm.lightricks.av_model.LTXAVModel", "LTXAVGemmaTokenizer", "comfy.ldm.lightricks.model.LTXVModel"
    ),
    # Its prompts are encoded by Gemma 4.
    "LTX-2.5": Network(
        "comfy.ldm.lightricks.av_model.LTXAVModel", "LTXAVGemma4Tokenizer", "comfy.ldm.lightricks.model.LTXVModel"
    ),
    "MiniMax-H3": Network("comfy.ldm.minimax.model.MiniMaxH3Model", "MiniMaxH3Tokenizer"),
    "CogVideoX": Network("comfy.ldm.cogvideo.model.CogVideoXTransformer3DModel", "CogVideoXTokenizer"),
    **dict.fromkeys(("Flux.3 Klein", "MOSS-Image", "FIBO 2"), _unknown()),
    # They make neither images nor videos from text.
    **dict.fromkeys(("sound", "shapes", "detection"), _unknown()),
}
# Parts of file names, in lower case; the first that fits says which network is in the file.
_FILES = (
    (r"stable_audio|stable-audio|acestep|ace_step|yue2|minimax_music", "sound"),
    (r"hunyuan3d|hunyuan_3d|pixal3d|trellis|triposplat", "shapes"),
    (r"lotus|seedvr|sam3|rt_detr|sdpose|raft|moge|depth_anything|sam_3", "detection"),
    (r"svd_xt|svd\.", "Stable Video Diffusion"),
    (r"sd3\.5", "Stable Diffusion 3.5"),
    (r"sd_xl|sdxl|animagine|juggernaut", "SDXL"),
    (r"v1-5|sd1|dreamshaper_8", "SD 1.x"),
    (r"flux3", "Flux.3 Klein"),
    (r"flux-2-klein.*4b", "Flux.2 Klein 4B"),
    (r"flux-2-klein.*9b", "Flux.2 Klein 9B"),
    (r"flux2", "Flux.2"),
    (r"flux1|flux\.1", "Flux.1"),
    (r"longcat", "LongCat-Image"),
    (r"ovis", "Ovis-Image"),
    (r"radiance", "Chroma Radiance"),
    (r"chroma", "Chroma"),
    (r"hidream_o1", "HiDream-O1"),
    (r"hidream", "HiDream-I1"),
    (r"qwen_image_2\.1", "Qwen-Image 2.1"),
    (r"qwen_image|firered-image", "Qwen-Image"),
    (r"mage_flow", "Mage-Flow"),
    (r"krea2", "Krea 2"),
    (r"joyai|joyimage", "JoyImage"),
    (r"^lens", "Lens"),
    (r"ideogram4", "Ideogram 4"),
    (r"boogu", "Boogu-Image"),
    (r"omnigen2", "Omnigen2"),
    (r"ernie-image", "ERNIE-Image"),
    (r"^anima", "Anima"),
    (r"(z_image|z-image|zimage).*pixel", "Z-Image in pixel space"),
    (r"z_image|z-image", "Z-Image"),
    (r"netayume|lumina", "Lumina-Image 2"),
    (r"newbie", "NewBie"),
    (r"ming_image", "Ming-Image"),
    (r"pixeldit", "PixelDiT"),
    (r"^pid_", "PiD"),
    (r"kandinsky5", "Kandinsky 5"),
    (r"kandinsky.?6", "Kandinsky 6"),
    (r"moss_image", "MOSS-Image"),
    (r"fibo", "FIBO 2"),
    (r"hunyuanvideo1\.5|capybara", "HunyuanVideo 1.5"),
    (r"hunyuan_video", "HunyuanVideo"),
    (r"ltx-video", "LTX-Video"),
    (r"ltx-2\.5", "LTX-2.5"),
    (r"ltx-2", "LTX-2"),
    (r"minimax_h3|fasth3", "MiniMax-H3"),
    (r"void_pass|cogvideo", "CogVideoX"),
    (r"vace", "Wan Vace"),
    (r"fun_camera", "Wan Fun Camera"),
    (r"humo", "Wan HuMo"),
    (r"s2v", "Wan Speech to Video"),
    (r"scail_2", "Wan SCAIL 2"),
    (r"animate_2", "Wan Animate 2"),
    (r"animate", "Wan Animate"),
    (r"dancer", "Wan Dancer"),
    (r"causal_forcing", "Wan, piece by piece"),
    (r"wan2|wan_2|wan21|chrono_edit|bernini", "Wan"),
)


def network_of(file: str) -> str:
    """The name of the network in a model file; empty if the file is unknown.

    >>> network_of("folder/qwen_image_edit_2511_fp8mixed.safetensors")
    'Qwen-Image'
    """
    name = re.split(r"[/\\]", file)[-1].lower()
    return next((network for part, network in _FILES if re.search(part, name)), "")
