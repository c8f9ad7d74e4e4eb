"""What a checkpoint's config.json says, checked: towers, decoder, vocabulary and action statistics.

The file is OpenVLA's own (Hugging Face layout). A published checkpoint only names its vision backbone, whose sizes
are known here; a checkpoint of other sizes spells them out under ``vision_config``, one entry per tower.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flashvla_ros.core import files
from flashvla_ros.core.errors import CheckpointError, SettingsError
from flashvla_ros.core.flops import DecoderSize, ModelSize, TowerSize
from flashvla_ros.vla.shapes import DINOV2, KNOWN_BACKBONES, SIGLIP, DecoderConfig, TowerConfig
from flashvla_ros.vla.statistics import KINDS

MOST_BYTES = 100 * files.MEGABYTE  # of a file that is no weights
_MOST_STEPS = 1000  # of a chunk
RESIZE_STRATEGIES = ("resize-naive", "letterbox", "resize-crop")

_TIMM_IDS = {
    (DINOV2, 224): "vit_large_patch14_reg4_dinov2.lvd142m",
    (DINOV2, 384): "vit_large_patch14_reg4_dinov2.lvd142m",
    (SIGLIP, 224): "vit_so400m_patch14_siglip_224",
    (SIGLIP, 384): "vit_so400m_patch14_siglip_384",
}


@dataclasses.dataclass(frozen=True)
class OpenVLAConfig:
    """A checkpoint's architecture and action statistics.

    Attributes:
        towers: One tower, or two whose features are concatenated (DINOv2 first in the published checkpoints).
        text_config: What :class:`DecoderConfig` is read from; ``vocab_size`` includes the padding.
        norm_stats: Data set name to ``{"action": {"q01": [D], "q99": [D], "mask": [D]}}``.
        pad_to_multiple_of: Rows added behind the vocabulary; the action tokens end just before them.
        n_action_bins: Edges over [-1, 1]; there is one bin fewer.
        num_images_in_input: C, images of one observation, whose visual tokens follow each other; the name is that of
            OpenVLA-OFT's training option.
        oft: What else its training leaves out of every file and this package's own writes: chunk_size, action_bounds
            and the names of proprio.
    """

    vision_backbone_id: str
    towers: tuple[TowerConfig, ...]
    text_config: Mapping[str, Any]
    norm_stats: Mapping[str, Any]
    image_resize_strategy: str = "letterbox"
    llm_backbone_id: str = "llama2-7b-pure"
    arch_specifier: str = "no-align+fused-gelu-mlp"
    llm_max_length: int = 2048
    pad_token_id: int = 32000
    pad_to_multiple_of: int = 64
    n_action_bins: int = 256
    num_images_in_input: int = 1
    oft: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.towers) not in (1, 2):
            raise CheckpointError(f"vision_config must list one or two towers, got {len(self.towers)}")
        if len({(tower.tokens, tower.image_size) for tower in self.towers}) != 1:
            sizes = [f"{tower.image_size} px / {tower.tokens} patches" for tower in self.towers]
            raise CheckpointError(f"both vision towers must see the same image and patches, got {' and '.join(sizes)}")
        if self.image_resize_strategy not in RESIZE_STRATEGIES:
            raise CheckpointError(
                f"image_resize_strategy must be one of {', '.join(RESIZE_STRATEGIES)}, "
                f"got {self.image_resize_strategy!r}"
            )
        if self.num_images_in_input < 1:
            raise CheckpointError(f"num_images_in_input must be at least 1, got {self.num_images_in_input}")
        if self.n_action_bins < 2 or not self.n_action_bins < self.action_vocab_size <= self.text_config["vocab_size"]:
            raise CheckpointError(
                f"text_config.vocab_size {self.text_config['vocab_size']} less {self.pad_to_multiple_of} padding rows "
                f"leaves no room for {self.n_action_bins} action bins"
            )
        self.llama()

    @property
    def fused(self) -> bool:
        """Whether two towers are concatenated."""
        return len(self.towers) == 2

    @property
    def visual_tokens(self) -> int:
        """N, visual tokens of one observation."""
        return self.num_images_in_input * self.towers[0].tokens

    @property
    def vision_size(self) -> int:
        """Channels of the concatenated patch features."""
        return sum(tower.hidden_size for tower in self.towers)

    @property
    def action_vocab_size(self) -> int:
        """Size of the vocabulary without padding: action bin b is token ``action_vocab_size - 1 - b``."""
        return self.text_config["vocab_size"] - self.pad_to_multiple_of

    @property
    def tied(self) -> bool:
        """Whether the decoder's output projection is its table of embeddings, so that no file has both."""
        return self.llama().tie_word_embeddings

    def llama(self) -> DecoderConfig:
        """Return the sizes of the decoder; :class:`CheckpointError` says what is wrong in ``text_config``."""
        return DecoderConfig.from_dict(self.text_config)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> OpenVLAConfig:
        """Read the content of a config.json; :class:`CheckpointError` names what is missing or wrong."""
        model_type = _required(data, "model_type", str)
        if model_type == "Emu3":
            raise CheckpointError(
                "model_type is 'Emu3', so this is UniVLA of arXiv 2506.19850 (Unified VLA), another work of that name: "
                "the one that runs here is UniVLA of arXiv 2505.06111"
            )
        if model_type != "openvla":
            raise CheckpointError(
                f"model_type is {model_type!r}, not 'openvla': give the folder of an OpenVLA checkpoint"
            )
        backbone = _required(data, "vision_backbone_id", str)
        text = _required(data, "text_config", dict)
        if (text_type := text.get("model_type", "llama")) != "llama":
            raise CheckpointError(f"text_config.model_type is {text_type!r}; only Llama decoders are supported")
        if (language_model := str(data.get("llm_backbone_id"))).startswith("vicuna"):
            raise CheckpointError(
                f"llm_backbone_id is {language_model!r}, so this is OpenVLA v0.1, whose prompts are a chat: "
                f"give a checkpoint of OpenVLA-7B or later"
            )
        text = {"vocab_size": DecoderConfig.vocab_size, **text}
        _required(text, "vocab_size", int, prefix="text_config.")
        optional = {
            field.name: data[field.name]
            for field in dataclasses.fields(cls)
            if field.default is not dataclasses.MISSING and data.get(field.name) is not None
        }
        for name, value in optional.items():
            kind = type(cls.__dataclass_fields__[name].default)
            if type(value) is not kind:
                raise CheckpointError(f"{name} must be of type {kind.__name__}, got {value!r}")
        statistics, oft = (data.get(name) or {} for name in ("norm_stats", "oft"))
        for name, value in (("norm_stats", statistics), ("oft", oft)):
            if not isinstance(value, dict):
                raise CheckpointError(f"{name} must be an object, got {value!r}")
        _check_oft(oft)
        config = cls(
            vision_backbone_id=backbone,
            towers=_towers(data, backbone),
            text_config={key: value for key, value in text.items() if key not in _FOREIGN_TEXT_KEYS},
            norm_stats=statistics,
            oft=oft,
            **optional,
        )
        fused = data.get("use_fused_vision_backbone")
        if fused is not None and fused != config.fused:
            raise CheckpointError(f"use_fused_vision_backbone is {fused} but there are {len(config.towers)} towers")
        return config

    @classmethod
    def from_folder(cls, folder: Path) -> OpenVLAConfig:
        """Read ``folder/config.json``."""
        data = read_json(folder / "config.json")
        try:
            return cls.from_dict(data)
        except CheckpointError as error:
            raise CheckpointError(f"{folder / 'config.json'}: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """Return the content of a config.json that :meth:`from_dict` and the official code read."""
        known = KNOWN_BACKBONES.get(self.vision_backbone_id) == self.towers
        data: dict[str, Any] = {"model_type": "openvla", "architectures": ["OpenVLAForActionPrediction"]}
        for field in dataclasses.fields(self):
            if field.name != "towers" and (field.name != "oft" or self.oft):
                data[field.name] = getattr(self, field.name)
        data["text_config"] = {"model_type": "llama", "pad_token_id": self.pad_token_id, **self.text_config}
        data["use_fused_vision_backbone"] = self.fused
        data["image_sizes"] = [tower.image_size for tower in self.towers]
        if known:
            data["timm_model_ids"] = [_TIMM_IDS[tower.model_type, tower.image_size] for tower in self.towers]
            data["timm_override_act_layers"] = [None] * len(self.towers)
        else:
            data["vision_config"] = [dataclasses.asdict(tower) for tower in self.towers]
        return data


def model_size(config: OpenVLAConfig) -> ModelSize:
    """Return the sizes of a model as it is built here: of each tower the last block is not run."""
    llama = config.llama()
    vision, width = config.vision_size, llama.hidden_size
    fused = ((vision, 4 * vision), (4 * vision, width), (width, width))
    towers = (
        TowerSize(
            layers=tower.num_hidden_layers - 1,
            width=tower.hidden_size,
            inner=tower.intermediate_size,
            patches=tower.tokens,
            extra=1 + tower.num_register_tokens if tower.model_type == DINOV2 else 0,
            pixels=3 * tower.patch_size**2,
        )
        for tower in config.towers
    )
    return ModelSize(
        towers=tuple(towers),
        projector=fused if config.fused else ((vision, width), (width, width)),
        decoder=DecoderSize(llama.num_hidden_layers, width, llama.intermediate_size),
        kv_width=llama.groups * llama.head_size,
        vocabulary=llama.vocab_size,
        images=config.num_images_in_input,
    )


def check_cameras(names: Sequence[str], config: OpenVLAConfig) -> None:
    """Refuse, with :class:`SettingsError`, another number of cameras than the checkpoint sees images."""
    images = config.num_images_in_input
    if (len(names) or 1) != images:
        raise SettingsError(
            f"camera.names has {len(names)} entries {list(names)}, this checkpoint sees "
            f"{'one camera' if images == 1 else f'{images} cameras'} (num_images_in_input): name as many"
        )


_FOREIGN_TEXT_KEYS = ("model_type", "torch_dtype", "dtype", "transformers_version", "architectures", "_name_or_path")


def _check_oft(oft: Mapping[str, Any]) -> None:
    steps, kind, names = oft.get("chunk_size", 1), oft.get("action_bounds", "quantiles"), oft.get("proprio", [])
    if type(steps) is not int or not 1 <= steps <= _MOST_STEPS:
        raise CheckpointError(f"oft.chunk_size must be an integer from 1 to {_MOST_STEPS}, got {steps!r}")
    if not isinstance(kind, str) or kind not in KINDS:
        raise CheckpointError(f"oft.action_bounds must be one of {', '.join(KINDS)}, got {kind!r}")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise CheckpointError(f"oft.proprio must be a list of names, got {names!r}")


def _towers(data: Mapping[str, Any], backbone: str) -> tuple[TowerConfig, ...]:
    entries = data.get("vision_config")
    if entries is None:
        if "clip" in backbone.replace("siglip", "") or backbone.startswith("in1k"):
            raise CheckpointError(
                f"vision_backbone_id {backbone!r} has a tower of CLIP or ImageNet, and only DINOv2 with registers and "
                f"SigLIP are built here: give a checkpoint of {', '.join(KNOWN_BACKBONES)}"
            )
        if backbone not in KNOWN_BACKBONES:
            raise CheckpointError(
                f"vision_backbone_id {backbone!r} is not one of {', '.join(KNOWN_BACKBONES)}: "
                f"give its sizes in vision_config, one entry per tower"
            )
        return KNOWN_BACKBONES[backbone]
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise CheckpointError("vision_config must be a list of objects, one per tower")
    fields = {field.name: field for field in dataclasses.fields(TowerConfig)}
    for index, entry in enumerate(entries):
        if missing := [n for n, f in fields.items() if f.default is dataclasses.MISSING and n not in entry]:
            raise CheckpointError(f"vision_config[{index}] lacks {', '.join(missing)}")
        if unknown := [name for name in entry if name not in fields]:
            raise CheckpointError(f"vision_config[{index}] has unknown fields {', '.join(unknown)}")
    return tuple(TowerConfig(**entry) for entry in entries)


def _required(data: Mapping[str, Any], name: str, kind: type, prefix: str = "") -> Any:
    if name not in data:
        raise CheckpointError(f"field {prefix}{name} is missing")
    value = data[name]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise CheckpointError(f"field {prefix}{name} must be of type {kind.__name__}, got {value!r}")
    return value


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; :class:`CheckpointError` says what is wrong with the file."""
    if not path.exists():
        raise CheckpointError(f"{path} does not exist")
    data = files.read_json(path, CheckpointError, MOST_BYTES)
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} must hold a JSON object")
    return data
