"""FLOPs by arithmetic alone: of a decoder's visual tokens, the figure that papers on pruning quote, and end to end.

**Visual tokens.** A layer costs n (4d² + 2dm) + 2n²d for n visual tokens: projections and MLP for each token, and
attention among them (FlashVLA, arXiv 2505.21200, after FastV, arXiv 2403.06764). Text tokens, vision towers and action
decoding are left out, so the ratio says what became of the visual tokens, not how much faster anything is.

**End to end.** Two operations for each multiplication of every matrix product that one inference runs: towers,
projector, the decoder's prefill with its text, and the decoding of the action tokens. Attention counts the whole
square. Norms, activations, rotary embedding and the scoring of tokens are left out.
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

    def visual_share(self, tokens: int, kept: int, layer: int) -> float:
        """Return the FLOPs of a prefill with `kept` tokens from `layer` on, as a share of one that drops nothing."""
        before, dense = min(layer, self.layers), self.layer_flops(tokens)
        return (before * dense + (self.layers - before) * self.layer_flops(kept)) / (self.layers * dense)


@dataclasses.dataclass(frozen=True)
class TowerSize:
    """Sizes of a vision transformer.

    Attributes:
        layers: Number of layers that are run.
        width: Size of a hidden state.
        inner: Size of the MLP's hidden layer.
        patches: Number of patches.
        extra: Tokens that are no patches: class token and registers.
        pixels: Values of one patch, all channels.
    """

    layers: int
    width: int
    inner: int
    patches: int
    extra: int
    pixels: int

    def flops(self) -> int:
        """Return the FLOPs of one image."""
        tokens = self.patches + self.extra
        layer = tokens * (4 * self.width**2 + 2 * self.width * self.inner) + 2 * tokens**2 * self.width
        return 2 * (self.patches * self.pixels * self.width + self.layers * layer)


@dataclasses.dataclass(frozen=True)
class ModelSize:
    """Sizes of a whole model: towers, projector and a Llama decoder whose MLP is gated.

    Attributes:
        towers: The vision towers.
        projector: Inputs and outputs of each layer between towers and decoder.
        decoder: The decoder.
        kv_width: Size of a token's keys in all heads; less than the decoder's width with grouped queries.
        vocabulary: Rows of the output projection.
        images: C, images of one observation.
    """

    towers: tuple[TowerSize, ...]
    projector: tuple[tuple[int, int], ...]
    decoder: DecoderSize
    kv_width: int
    vocabulary: int
    images: int = 1

    @property
    def visual_tokens(self) -> int:
        """N, visual tokens of one observation."""
        return self.images * self.towers[0].patches

    def vision_flops(self) -> int:
        """Return the FLOPs of towers and projector for one observation."""
        projector = 2 * self.visual_tokens * sum(inputs * outputs for inputs, outputs in self.projector)
        return self.images * sum(tower.flops() for tower in self.towers) + projector

    def inference_flops(
        self, kept: int, layer: int, text: int, actions: int, drafted: int = 0, settled: int = 1
    ) -> int:
        """Return the FLOPs of one inference from image to action tokens.

        Args:
            kept: Visual tokens that the layers from `layer` on see.
            layer: First decoder layer without the dropped tokens.
            text: Tokens of the prompt that are no visual tokens.
            actions: Action tokens of one inference.
            drafted: Tokens of a draft that are run behind the prompt.
            settled: Action tokens that are known after the prompt; the others are decoded one by one.
        """
        before = min(layer, self.decoder.layers)
        after = self.decoder.layers - before
        flops = self.vision_flops()
        for layers, tokens in ((before, self.visual_tokens + text), (after, kept + text)):
            flops += layers * self._layer_flops(tokens + drafted, tokens + drafted)
            flops += layers * sum(self._layer_flops(1, tokens + step) for step in range(settled, actions))
        outputs = 1 + drafted + actions - settled
        return flops + outputs * 2 * self.decoder.width * self.vocabulary

    def _layer_flops(self, tokens: int, context: int) -> int:
        """Return the FLOPs of `tokens` new tokens in one layer that attend to `context` tokens."""
        width = self.decoder.width
        weights = 2 * width * (width + self.kv_width) + 3 * width * self.decoder.inner
        return 2 * (tokens * weights + 2 * tokens * context * width)
