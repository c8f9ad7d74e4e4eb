"""Visual-token FLOPs of a decoder, the figure that the pruning papers quote; arithmetic alone.

A layer costs n (4d² + 2dm) + 2n²d for n visual tokens: projections and MLP for each token, and attention among them
(FlashVLA, arXiv 2505.21200, after FastV, arXiv 2403.06764). Text tokens, vision towers and action decoding are left
out, so the ratio says what became of the visual tokens, not how much faster anything is.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class DecoderSize:
    """Sizes of a decoder.

    Attributes:
        layers: Number of layers.
        width: d, size of a hidden state.
        inner: m, size of the MLP's hidden layer.
    """

    layers: int
    width: int
    inner: int

    def __str__(self) -> str:
        """As one word, such as 32x4096x11008."""
        return f"{self.layers}x{self.width}x{self.inner}"

    @classmethod
    def parse(cls, text: str) -> DecoderSize:
        """Read what ``str`` wrote.

        Raises:
            ValueError: It is not three positive numbers.
        """
        layers, width, inner = (int(part) for part in text.split("x"))
        if min(layers, width, inner) < 1:
            raise ValueError(f"sizes must be positive, got {text!r}")
        return cls(layers, width, inner)

    def layer_flops(self, tokens: int) -> int:
        """Return the FLOPs that `tokens` visual tokens cost in one layer."""
        return tokens * (4 * self.width**2 + 2 * self.width * self.inner) + 2 * tokens**2 * self.width

    def visual_flops(self, tokens: int, kept: int, layer: int) -> int:
        """Return the FLOPs of one prefill that sees `tokens` tokens before `layer` and `kept` from there on."""
        before = min(layer, self.layers)
        return before * self.layer_flops(tokens) + (self.layers - before) * self.layer_flops(kept)

    def visual_share(self, tokens: int, kept: int, layer: int) -> float:
        """Return :meth:`visual_flops` as a share of the prefill that drops nothing."""
        return self.visual_flops(tokens, kept, layer) / self.visual_flops(tokens, tokens, layer)
