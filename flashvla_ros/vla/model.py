"""OpenVLA: vision towers, projector and Llama decoder, in the pieces that training and pruned inference share."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from flashvla_ros.core.errors import ActionError
from flashvla_ros.vla.config import OpenVLAConfig
from flashvla_ros.vla.decoder import KeyValueCache, LanguageModel, Rotary, turn
from flashvla_ros.vla.towers import Projector, VisionTower


class PrismaticVLM(nn.Module):
    """The network. Its sequence is [BOS, N visual tokens, rest of the prompt, action tokens].

    Args:
        config: Sizes.
        attention: Attention implementation of every part: sdpa, eager or flash_attention_2.
    """

    def __init__(self, config: OpenVLAConfig, attention: str = "sdpa") -> None:
        super().__init__()
        self.config, self.attention = config, attention
        llama = config.llama()
        self.towers = nn.ModuleList(VisionTower(tower, attention) for tower in config.towers)
        self.projector = Projector(config.vision_size, llama.hidden_size, config.fused)
        self.language_model = LanguageModel(llama, attention)
        self.tie()

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder's layers."""
        return self.language_model.model.layers

    def tie(self) -> None:
        """Where the configuration says so, make the output projection the table of embeddings itself."""
        if self.config.tied:
            self.language_model.lm_head.weight = self.language_model.model.embed_tokens.weight

    def patch_features(self, pixel_values: Tensor) -> Tensor:
        """Map normalised images [B, 3 per tower, S, S] to the towers' features [B, patches of an image, d_vision]."""
        images = pixel_values.split(3, dim=1)  # each tower has three channels of its own
        return torch.cat([tower(image) for tower, image in zip(self.towers, images, strict=True)], dim=2)

    def visual_tokens(self, pixel_values: Tensor) -> Tensor:
        """Map normalised images [B * C, 3 per tower, S, S], C of each observation, to visual tokens [B, N, d]."""
        tokens = self.projector(self.patch_features(pixel_values))
        return tokens.reshape(-1, self.config.visual_tokens, tokens.shape[2])

    def embed(self, visual: Tensor, input_ids: Tensor, extra: Tensor | None = None) -> Tensor:
        """Insert visual tokens [B, N, d] and extra rows [B, E, d] after BOS of input_ids [B, P]: [B, N + E + P, d]."""
        text = self.language_model.model.embed_tokens(input_ids)
        return torch.cat([text[:, :1], visual, *([] if extra is None else [extra]), text[:, 1:]], dim=1)

    def rotary(self, hidden: Tensor, positions: Tensor) -> Rotary:
        """Return the rotary embedding at positions [1 or B, L], in the type of `hidden`."""
        return self.language_model.model.rotary(hidden, positions)

    def run_layers(
        self,
        hidden: Tensor,
        indices: Iterable[int],
        rotary: Rotary,
        cache: KeyValueCache | None = None,
        *,
        mask: Tensor | None = None,
        full: bool = False,
    ) -> Tensor:
        """Run some decoder layers on hidden [B, L, d]; see :class:`.decoder.DecoderLayer`."""
        for index in indices:
            hidden, _ = self.layers[index](hidden, rotary, mask, cache, full=full)
        return hidden

    def project(self, hidden: Tensor, index: int, name: str, rotary: Rotary) -> Tensor:
        """Queries (q_proj) or keys (k_proj) that decoder layer `index` makes of hidden [B, L, d]: [B, H, L, D]."""
        layer = self.layers[index]
        return turn(layer.self_attn.heads(name, layer.input_layernorm(hidden)), rotary)

    def logits(self, hidden: Tensor) -> Tensor:
        """Final norm and output projection: [B, L, d] to [B, L, vocabulary]."""
        return self.language_model.lm_head(self.language_model.model.norm(hidden))


NOTHING = -1  # in place of a token: the logits say nothing


def says_nothing(what: str) -> ActionError:
    """Return the fault of values that are not finite, or all equal: their command would look like any other."""
    return ActionError(
        f"{what}, so the model says nothing: its weights are broken, or too large for model.dtype; the command is "
        f"withheld"
    )


def likeliest(logits: Tensor, without: int = -1) -> Tensor:
    """Most likely token but `without` of each row of logits [..., vocabulary]: [...]; :data:`NOTHING` for none.

    That is where a logit is not finite, as overflow and broken weights make them, or where all are equal, as weights of
    zero make them. The mark travels with the tokens, so that a GPU need not be asked.
    """
    low, high = torch.aminmax(logits, dim=-1)  # NaN where one is
    if without >= 0:
        logits = logits.clone()
        logits[..., without] = -torch.inf
    return torch.where((low < high) & low.isfinite() & high.isfinite(), logits.argmax(dim=-1), NOTHING)


def certainty(logits: Tensor, tokens: Tensor) -> Tensor:
    """Probability, float32, that logits [..., vocabulary] give to `tokens` [...]; any for :data:`NOTHING`."""
    wide = logits.float()
    chosen = wide.gather(-1, tokens.clamp(min=0)[..., None])[..., 0]
    return (chosen - wide.logsumexp(dim=-1)).exp()


def kept_rows(keep: Tensor, count: int, length: int) -> Tensor:
    """Return the rows [B, 1 + k + text] of a sequence of `length` that stay: BOS, kept of `count` visual, text."""
    batch = keep.shape[0]
    start = keep.new_zeros(batch, 1)
    text = torch.arange(1 + count, length, device=keep.device).expand(batch, -1)
    return torch.cat([start, keep + 1, text], dim=1)


def take_rows(tensor: Tensor, rows: Tensor) -> Tensor:
    """Select rows [B, M] of a tensor [1 or B, L, d]: [B, M, d]."""
    tensor = tensor.expand(rows.shape[0], -1, -1)
    return tensor.gather(1, rows[:, :, None].expand(-1, -1, tensor.shape[2]))
