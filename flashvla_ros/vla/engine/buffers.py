"""What stays on the device for prompts of up to one length: inputs, hidden states, keys and values."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch

from flashvla_ros.vla.model import PrismaticVLM

_SPARE = 4  # tokens that recording the decoding step writes behind those of an action


class Upload:
    """Integers that the host writes and the device reads, through pinned memory where the device is a GPU.

    Args:
        size: How many.
        device: Where they are read.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        self.values = torch.zeros(size, dtype=torch.int64, device=device)
        self._host = torch.zeros(size, dtype=torch.int64, pin_memory=device.type == "cuda")

    def __call__(self, values: Sequence[int]) -> None:
        """Write the first values and leave the rest; what was sent before must have arrived."""
        count = len(values)
        self._host[:count] = torch.tensor(values, dtype=torch.int64)
        self.values[:count].copy_(self._host[:count], non_blocking=True)


class PromptBuffers:
    """Buffers of one bucket of prompt lengths. The sequence is [BOS, N visual tokens, rest of the prompt, padding].

    Padding is at the end, where causal attention keeps it from every row that counts; decoded tokens overwrite it. A
    layer that sees k of N tokens uses the first N - k slots less.

    Args:
        model: Gives sizes and the rotary embedding.
        prompt: Most tokens of a prompt and of the draft behind it, visual tokens not counted.
        size: Tokens of an action.

    Attributes:
        length: [1] rows of the sequence before draft and padding: the rotary position of the first action token.
        ids: [1, prompt] the prompt, BOS first, then the draft, then padding.
        place: [1] number of tokens settled: the next one goes there.
        tokens: [size and some spare] tokens of the action.
        keys, values: [layers, 1, G, slots, D].
        entering, hidden, attention: [1, rows, d] what the layers before the pruning layer leave behind.
        kept: [N] indices of the visual tokens that stay, the first k of them.
        choices: [size] most likely tokens after the prompt and after each token of the draft.
        rotary: Cosines and sines [1, slots, D].
    """

    def __init__(self, model: PrismaticVLM, prompt: int, size: int) -> None:
        llama, embedding = model.config.llama(), model.language_model.model.embed_tokens.weight
        device, count, layers = embedding.device, model.config.visual_tokens, len(model.layers)
        self.prompt, self.rows = prompt, count + prompt
        self.slots = self.rows + size + _SPARE
        heads = llama.num_key_value_heads, self.slots, model.layers[0].self_attn.head_dim
        self.keys, self.values = (embedding.new_zeros(layers, 1, *heads) for _ in range(2))
        self.entering, self.hidden, self.attention = (
            embedding.new_zeros(1, self.rows, llama.hidden_size) for _ in range(3)
        )
        self.input = Upload(1 + prompt, device)
        self.length, self.ids = self.input.values[:1], self.input.values[None, 1:]
        self.settled = Upload(1 + size + _SPARE, device)
        self.place, self.tokens = self.settled.values[:1], self.settled.values[1:]
        self.kept, self.choices = (torch.zeros(n, dtype=torch.int64, device=device) for n in (count, size))
        self.rotary = model.rotary(embedding.new_zeros(1, 1, 1), torch.arange(self.slots, device=device)[None])

    @contextlib.contextmanager
    def scratch(self) -> Iterator[None]:
        """Point length and place behind every row that counts while a step is run only to be recorded."""
        used = self.length, self.settled.values
        before = [tensor.clone() for tensor in used]
        self.length.fill_(self.rows)
        self.place.fill_(1)
        yield
        for tensor, values in zip(used, before, strict=True):
            tensor.copy_(values)
