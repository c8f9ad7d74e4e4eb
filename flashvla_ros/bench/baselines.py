"""The plain model to compare with: the same weights in transformers' own ``generate`` loop, dense and greedy."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from flashvla_ros.bench.configurations import PLAIN, PLAIN_PASS
from flashvla_ros.core.errors import FlashVLAError
from flashvla_ros.core.policy import Request
from flashvla_ros.core.settings import PruningSettings
from flashvla_ros.core.types import Inference, Observation
from flashvla_ros.vla.arch.openvla.policy import OpenVLAPolicy
from flashvla_ros.vla.model import PrismaticVLM
from flashvla_ros.vla.step import VLAPolicy

# Share of the largest logit by which two ways of computing the same may differ, and with it the likeliest token.
_ROUNDING = {torch.float32: 1e-4, torch.bfloat16: 0.03, torch.float16: 5e-3}


def transformers_decoder(model: PrismaticVLM) -> LlamaForCausalLM:
    """Return transformers' own decoder over the very weights of `model`, with the same attention."""
    sizes = model.config.llama()
    config = LlamaConfig(
        **{**dataclasses.asdict(sizes), "num_key_value_heads": sizes.groups, "head_dim": sizes.head_size},
        pad_token_id=model.config.pad_token_id,
    )
    config._attn_implementation = model.attention
    with torch.device("meta"):
        decoder = LlamaForCausalLM(config)
    weights = dict(model.language_model.named_parameters(remove_duplicate=False))
    decoder.load_state_dict(weights, assign=True)
    decoder.model.rotary_emb = LlamaRotaryEmbedding(config=config).to(decoder.device)
    return decoder.eval().requires_grad_(False)


class PlainPolicy:
    """Runs the model as OpenVLA's own code does: towers, projector, then ``LlamaForCausalLM.generate``.

    Implements :class:`flashvla_ros.core.policy.Policy`; pruning and drafts change nothing.

    Args:
        policy: Gives weights, image processor, prompt and codec; its own decoding is not used.

    Attributes:
        decoder: Transformers' own, over the same weights.
    """

    name = PLAIN

    def __init__(self, policy: OpenVLAPolicy) -> None:
        self._policy, self.decoder = policy, transformers_decoder(policy.model)
        self.action_size = policy.action_size
        self._options = {
            "max_new_tokens": policy.action_size,
            "do_sample": False,
            "use_cache": True,
            "return_dict_in_generate": True,
            # An action has as many tokens as dimensions, whatever they are. No token has this number; None would stand
            # for the checkpoint's own.
            "eos_token_id": policy.model.config.llama().vocab_size,
            "pad_token_id": policy.model.config.pad_token_id,
        }

    @torch.inference_mode()
    def infer(self, request: Request) -> Inference:
        """Run the model on the observation; every token is kept, and no draft is taken."""
        policy = self._policy
        policy.backend.synchronize()
        started_s = time.perf_counter()
        embeddings = self._embeddings(request.observation)
        policy.backend.synchronize()
        embedded_s = time.perf_counter()
        tokens = self._generate(embeddings).sequences[0].cpu().numpy()
        ended_s = time.perf_counter()
        normalized = policy.codec.decode(tokens)[None]
        return Inference(
            action=policy.bounds.unnormalize(normalized),
            normalized=normalized,
            tokens=tokens,
            kept=None,
            visual_tokens=policy.visual_tokens,
            timings_s={"vision": embedded_s - started_s, "generate": ended_s - embedded_s},
        )

    @torch.inference_mode()
    def check(self, observation: Observation, tokens: np.ndarray, name: str) -> bool:
        """Compare the tokens that `name` decoded densely for `observation` with those of ``generate``.

        Returns:
            True where they are equal; false where the first that differs was a tie within the rounding of the type.

        Raises:
            FlashVLAError: They differ by more: the two do not compute the same, and no ratio means anything.
        """
        output = self._generate(self._embeddings(observation), logits=True)
        own = output.sequences[0].cpu().numpy()
        if np.array_equal(own, tokens):
            return True
        step = int(np.flatnonzero(own != tokens)[0])
        logits: Tensor = output.logits[step][0].float()
        gap = float(logits[own[step]] - logits[tokens[step]])
        if gap > _ROUNDING[self._policy.backend.dtype] * float(logits.abs().max()):
            raise FlashVLAError(
                f"{name} decodes {tokens.tolist()} where transformers' generate gives {own.tolist()}: "
                f"the logits differ by {gap:.3g} at token {step}, which rounding does not explain; report this"
            )
        return False

    def _embeddings(self, observation: Observation) -> Tensor:
        """[1, N + P, d]: what goes into the decoder."""
        policy = self._policy
        pixels = policy.processor(*observation.images.values(), device=policy.backend.device).to(policy.backend.dtype)
        ids = torch.tensor([policy.prompts(observation.instruction)], device=policy.backend.device)
        return policy.model.embed(policy.model.visual_tokens(pixels), ids)

    def _generate(self, embeddings: Tensor, *, logits: bool = False) -> Any:
        decoder: Any = self.decoder  # its generate is typed for another base class
        return decoder.generate(
            inputs_embeds=embeddings,
            attention_mask=torch.ones(embeddings.shape[:2], dtype=torch.long, device=embeddings.device),
            generation_config=GenerationConfig(**self._options, output_logits=logits),
        )


class DensePolicy:
    """The plain model of an architecture that ``generate`` cannot run: eager engine, no pruning, no draft.

    Args:
        policy: On the eager engine.
    """

    name = PLAIN_PASS

    def __init__(self, policy: VLAPolicy) -> None:
        self._policy = policy
        self.action_size = policy.action_size

    def infer(self, request: Request) -> Inference:
        """Run the model on the observation; every token is kept, and no draft is taken."""
        return self._policy.infer(Request(request.observation, PruningSettings(method="none"), request.previous))

    def check(self, observation: Observation, tokens: np.ndarray, name: str) -> bool:  # noqa: ARG002 - as of the other
        """Say whether a dense run found the same tokens; of rounding only transformers' own loop can judge."""
        return np.array_equal(self.infer(Request(observation, PruningSettings())).tokens, tokens)
