"""The policy that runs a UniVLA checkpoint: latent action tokens, and a chunk made of their states."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from torch import Tensor

from flashvla_ros.core.errors import CheckpointError
from flashvla_ros.core.files import read_bytes
from flashvla_ros.core.paths import checkpoint_folder
from flashvla_ros.core.policy import Request
from flashvla_ros.core.settings import ModelSettings
from flashvla_ros.core.types import Inference
from flashvla_ros.vla.arch.base import Architecture, Outline, measured, read_config, state_bounds
from flashvla_ros.vla.arch.univla.decoder import ActionDecoder, empty_decoder
from flashvla_ros.vla.arch.univla.sampling import Sampler
from flashvla_ros.vla.checkpoint import Progress
from flashvla_ros.vla.config import MOST_BYTES
from flashvla_ros.vla.parts import fill, find_part, read_part, to_chunk
from flashvla_ros.vla.query import Layout, Query
from flashvla_ros.vla.statistics import Bounds
from flashvla_ros.vla.step import Loaded, Stages, VLAPolicy, check_tokens, load_parts, to_host
from flashvla_ros.vla.tokenizer import load_tokenizer

DECODER = "action_decoder"
LATENTS = 4  # tokens of a latent action
_FIRST_ACT = 32001  # <ACT_0>
_END = 2  # </s>, which the official code forbids here
_LAYOUT = Layout(sees=True, without=_END)


class UniVLAPolicy(VLAPolicy):
    """Decodes four latent action tokens, or confirms a draft of them in one pass, and pools their hidden states.

    The prompt tells the last latent action, but for a checkpoint trained on Bridge or CALVIN.

    Args:
        loaded: Network, images, prompts and backend.
        outline: Of the checkpoint.
        decoder: Makes a chunk.
        proprio: Names of the values of the robot's state, and the bounds that normalise them, if the decoder reads it.
        history: The prompt tells the last latent action.
        sampling: Tokens are drawn, seeded by the observation's stamp; a draft is of no use then.
    """

    layout = _LAYOUT

    def __init__(
        self,
        loaded: Loaded,
        outline: Outline,
        decoder: ActionDecoder,
        proprio: tuple[tuple[str, ...], Bounds] | None,
        *,
        history: bool,
        sampling: bool,
    ) -> None:
        super().__init__(*loaded, bounds=outline.bounds, tokens=LATENTS)
        self.chunk_size = outline.chunk_size
        self._decoder, self._proprio = decoder, proprio
        self._tells_history, self._sampling = history, sampling
        self.state_names = proprio[0] if proprio else ()

    @classmethod
    def load(cls, settings: ModelSettings, progress: Progress | None = None) -> UniVLAPolicy:
        """Load the checkpoint that `settings` name; raises CheckpointError or SettingsError."""
        folder = checkpoint_folder(settings.checkpoint)
        outline, path, decoder = _read(folder, settings)
        loaded = load_parts(folder, outline.config, settings, outline.rows, progress)
        fill(decoder, read_part(path), path, loaded.backend.device, torch.float32)
        proprio = state_bounds(path, "proprio_proj.0.weight", outline, settings) if decoder.told else None
        history = settings.preset != "bridge"
        return cls(loaded, outline, decoder, proprio, history=history, sampling=settings.sampling)

    def _history(self, request: Request) -> str:
        if request.previous is None or not self._tells_history:
            return ""
        acts = [token - _FIRST_ACT for token in request.previous.tokens.tolist() if token >= _FIRST_ACT]
        return "".join(f"<ACT_{act}>" for act in acts)

    def _answer(self, visual: Tensor, query: Query, request: Request, stages: Stages) -> Inference:
        draft = None
        if request.draft and not self._sampling:  # codes have no order: none is near another
            draft = dataclasses.replace(request.draft, accept_bins=0)
        start, verdict, drafted = self._prefilled(visual, query, draft, stages)
        known, draw = verdict.tokens, None
        if self._sampling:
            draw = Sampler(query.key, _END)
            known = (draw(self.model.language_model.lm_head(start.hidden[0])),)
        decoded = self.engine.decode(start, known, draw)
        assert start.visual is not None, "the layout asks for it"  # noqa: S101  # of the code, not of input
        seen, counted = start.visual, None
        count = self.visual_tokens
        if len(seen) == 1 + count:
            seen = seen[:count]  # BOS and all patches but the last, as in training
        elif start.kept is not None:
            counted = torch.cat([start.kept.new_ones(1, dtype=torch.bool), start.kept < count - 1])
        state = measured(request.observation, *self._proprio).to(seen.device, torch.float32) if self._proprio else None
        said = self._decoder(decoded.hidden.float(), seen.float(), counted, state)
        tokens, confidence, kept = to_host(decoded.tokens, decoded.certainty, start.kept)
        check_tokens(tokens)
        normalized = to_chunk(said, self.chunk_size)
        stages.done("decode")
        return Inference(
            self.bounds.unnormalize(normalized),
            normalized,
            tokens,
            kept,
            count,
            draft_tokens=drafted,
            draft_accepted=verdict.accepted,
            confidence=confidence,
        )


def read_outline(folder: Path, settings: ModelSettings) -> Outline:
    """Read what the files and the parameters say; raises CheckpointError."""
    return _read(folder, settings)[0]


def _read(folder: Path, settings: ModelSettings) -> tuple[Outline, Path, ActionDecoder]:
    config, path = read_config(folder, settings), find_part(folder, DECODER)
    if path is None:
        raise CheckpointError(
            f"{folder} is of UniVLA and has no {DECODER}*.pt, without which it cannot act, as univla-7b before its "
            f"fine-tuning: copy the decoder that was trained with these weights there"
        )
    if load_tokenizer(folder).token_to_id("<ACT_0>") != _FIRST_ACT:
        raise CheckpointError(
            f"{folder}: its tokenizer has no latent actions (<ACT_0>, …): copy tokenizer.json and added_tokens.json "
            f"of this checkpoint"
        )
    decoder = empty_decoder(read_part(path), config.llama().hidden_size)
    if decoder is None:
        raise CheckpointError(f"{path} is no action decoder for an arm as UniVLA's code has them: give another")
    kind = "mean_std" if decoder.told else "quantiles"
    kind = kind if settings.action_bounds == "auto" else settings.action_bounds
    bounds = Bounds.from_statistics(config.norm_stats, settings.unnorm_key, kind=kind)
    chunk, rest = divmod(decoder.proj[0].out_features, bounds.size)
    if rest or not chunk:
        raise CheckpointError(
            f"{path} makes {decoder.proj[0].out_features} values, and the statistics have {bounds.size} dimensions: "
            f"set model.unnorm_key, or give the decoder of these weights"
        )
    text = f"{'real robot, told of its state' if decoder.told else 'simulated arms'}, {path.name}"
    beside = sum(value.numel() for value in decoder.parameters())
    parts = {"action decoder": text}
    outline = Outline(config, bounds, chunk, decoded=LATENTS, layout=_LAYOUT, parts=parts, beside=beside)
    return outline, path, decoder


def _recognises(folder: Path) -> bool:
    marks = [folder / "added_tokens.json", folder / "tokenizer.json"]
    return any(folder.glob(f"{DECODER}*")) or any(
        b'"<ACT_0>"' in read_bytes(mark, CheckpointError, MOST_BYTES) for mark in marks if mark.is_file()
    )


UNIVLA = Architecture("UniVLA", _recognises, read_outline, UniVLAPolicy.load)
