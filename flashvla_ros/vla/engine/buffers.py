"""What stays on the device for prompts of up to one length: inputs, hidden states, keys and values."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from flashvla_ros.vla.model import PrismaticVLM
from flashvla_ros.vla.query import CAUSAL, Layout


class Upload:
    """Integers that the host writes and the device reads, through pinned memory where the device is a GPU."""

    def __init__(self, size: int, device: torch.device) -> None:
        self.values = torch.zeros(size, dtype=torch.int64, device=device)
        self._host = torch.zeros(size, dtype=torch.int64, pin_memory=device.type == "cuda")

    def __call__(self, values: Sequence[int]) -> None:
        """Write the first values and leave the rest; what was sent before must have arrived."""
        count = len(values)
        self._host[:count] = torch.tensor(values, dtype=torch.int64)
        self.values[:count].copy_(self._host[:count], non_blocking=True)


class PromptBuffers:
    """Buffers of one bucket of prompt lengths. The sequence is that of its layout, and padding behind it.

    There causal attention keeps it from every row that counts; decoded tokens overwrite it. Under full attention there
    is none. A layer that sees k of N tokens uses the first N - k slots less.

    Args:
        model: Gives sizes and the rotary embedding.
        prompt: Most tokens of a prompt and of what is behind it, visual tokens and extra rows not counted.
        size: Tokens of an action.
        layout: Of the sequence.

    Attributes:
        length: [1] rows of the sequence before draft and padding: the rotary position of the first action token.
        ids: [1, prompt] the prompt, BOS first, then the draft, then padding.
        place: [1] number of tokens settled: the next one goes there.
        tokens: [size] tokens of the action.
        read: [at least size, d] rows that the tokens are chosen at, behind the final norm.
        seen: [1 + N, d] rows of BOS and of the visual tokens that are left, the same.
        extra: [1, E, d] rows behind the visual tokens.
        keys, values: [layers, 1, G, slots, D]; of no layer under full attention, where nothing follows.
        entering, hidden, attention: [1, rows, d] what the layers before the pruning layer leave behind.
        kept: [N] indices of the visual tokens that stay, the first k of them.
        choices: [at least size] most likely token after each row that is read.
        certainty: [at least size] probability of the token that was chosen there, float32.
        rotary: Cosines and sines [1, slots, D].
    """

    def __init__(self, model: PrismaticVLM, prompt: int, size: int, layout: Layout = CAUSAL) -> None:
        llama, embedding = model.config.llama(), model.language_model.model.embed_tokens.weight
        device, count, width = embedding.device, model.config.visual_tokens, llama.hidden_size
        layers = 0 if layout.full else len(model.layers)
        self.layout = layout
        self.prompt, self.rows = prompt, count + layout.extra + prompt
        self.slots = self.rows + size
        heads = llama.groups, self.slots, llama.head_size
        self.keys, self.values = (embedding.new_zeros(layers, 1, *heads) for _ in range(2))
        self.entering, self.hidden, self.attention = (embedding.new_zeros(1, self.rows, width) for _ in range(3))
        reads = max(size, layout.zeros)
        self.read = embedding.new_zeros(reads, width)
        self.seen = embedding.new_zeros(1 + count if layout.sees else 0, width)
        self.extra = embedding.new_zeros(1, layout.extra, width)
        self.input = Upload(1 + prompt, device)
        self.length, self.ids = self.input.values[:1], self.input.values[None, 1:]
        self.settled = Upload(1 + size, device)
        self.place, self.tokens = self.settled.values[:1], self.settled.values[1:]
        self.certainty = torch.zeros(reads, device=device)
        self.kept, self.choices = (torch.zeros(n, dtype=torch.int64, device=device) for n in (count, reads))
        self.rotary = model.rotary(embedding.new_zeros(1, 1, 1), torch.arange(self.slots, device=device)[None])
