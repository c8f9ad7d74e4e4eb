"""Writes policies of random weights in LeRobot's own layout; runs in LeRobot's environment: ``KIND FOLDER``."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.policies.factory import get_policy_class, make_policy_config, make_pre_post_processors

INPUTS = {
    "observation.images.front": PolicyFeature(FeatureType.VISUAL, (3, 96, 128)),
    "observation.state": PolicyFeature(FeatureType.STATE, (4,)),
}
OUTPUTS = {"action": PolicyFeature(FeatureType.ACTION, (4,))}
STATS = {
    "observation.images.front": {"mean": torch.full((3, 1, 1), 0.5), "std": torch.full((3, 1, 1), 0.25)},
    "observation.state": {"mean": torch.zeros(4), "std": torch.ones(4)},
    "action": {"mean": torch.tensor([0.1, 0.2, 0.3, 0.4]), "std": torch.tensor([0.01, 0.02, 0.03, 1.0])},
}
ACT = {"chunk_size": 8, "n_action_steps": 6, "dim_model": 64, "n_heads": 4, "dim_feedforward": 128, "latent_dim": 8}
ACT |= {"n_encoder_layers": 1, "n_vae_encoder_layers": 1, "pretrained_backbone_weights": None}
SMOLVLA = {"chunk_size": 10, "n_action_steps": 10, "num_vlm_layers": 2, "num_expert_layers": 2, "num_steps": 2}
SMOLVLA |= {"resize_imgs_with_padding": (64, 64)}
MARKS = ["<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"]


def language_model(folder):
    """A SmolVLM of random weights and a vocabulary of words, in place of the one that the hub has."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        PreTrainedTokenizerFast,
        SmolVLMConfig,
        SmolVLMImageProcessor,
        SmolVLMProcessor,
        SmolVLMVideoProcessor,
    )

    words = ["<unk>", "<pad>", "<s>", "</s>", *MARKS, "open", "the", "drawer"]
    words += [f"w{number}" for number in range(128 - len(words))]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    names = ("image_token", "fake_image_token", "global_image_token", "end_of_utterance_token")
    special: dict = {"unk_token": "<unk>", "pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    special["extra_special_tokens"] = dict(zip(names, MARKS, strict=True))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    text = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    text |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 128, "pad_token_id": 1}
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision |= {"image_size": 64, "patch_size": 16}
    config = SmolVLMConfig(text_config=text, vision_config=vision, scale_factor=2, image_token_id=4)
    config.save_pretrained(folder)
    images, videos = SmolVLMImageProcessor(size={"longest_edge": 64}), SmolVLMVideoProcessor()
    SmolVLMProcessor(images, fast, videos, image_seq_len=4).save_pretrained(folder)
    return str(folder)


def main(kind, folder):
    torch.manual_seed(0)
    values = ACT if kind == "act" else {**SMOLVLA, "vlm_model_name": language_model(folder / "vlm")}
    config = make_policy_config(kind, input_features=INPUTS, output_features=OUTPUTS, device="cpu", **values)
    policy = get_policy_class(kind)(config).eval()
    policy.save_pretrained(folder)
    for processor in make_pre_post_processors(config, dataset_stats=STATS):
        processor.save_pretrained(folder)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
