"""A decoder transformer: pre-norm (RMSNorm), rotary positions, causal attention, squared ReLU.

Rows are tokens, matrices act from the right, and norm is RMSNorm (Zhang and Sennrich 2019) with a learned gain.

    x = norm(Emb[ids])
    x = x + attention(norm(x))           q, k, v = norm(x) W_qkv; q and k are rotated by their position (Su et al. 2021)
    x = x + relu(norm(x) W_1)^2 W_2      squared ReLU (So et al. 2021)
    logits = norm(x) W_o^T + b_o, or norm(x) Emb^T                                          untied or tied head

The two lines in the middle are a layer. Attention has `heads` parts of the width, each softmax(q k^T / sqrt(D)) v over
the tokens up to its own.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer import TrainerError

BASE = 10_000.0
"""Base of the rotary wavelengths, which run from 2 pi to nearly 2 pi times this many tokens."""
NORM_EPS = 1e-5


class ShapeError(TrainerError):
    """A transformer cannot have this shape."""


@dataclass(frozen=True)
class Shape:
    """The shape of a transformer.

    Attributes:
        vocabulary: V, number of ids.
        width: E, components of a token's vector.
        layers: number of layers.
        heads: attention heads; each has width / heads components, an even number.
        hidden: components between W_1 and W_2.
        tied: whether the head is the embedding without a bias; otherwise it is a matrix and a bias that start at zero.
    """

    vocabulary: int
    width: int = 128
    layers: int = 2
    heads: int = 4
    hidden: int = 256
    tied: bool = False

    def __post_init__(self) -> None:
        for name in ("vocabulary", "width", "layers", "heads", "hidden"):
            if getattr(self, name) < 1:
                raise ShapeError(f"{name} is {getattr(self, name)}, expected at least 1")
        if self.width % (2 * self.heads):
            raise ShapeError(f"width is {self.width}, expected a multiple of twice the {self.heads} heads")


def turns(tokens: int, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosine and sine [tokens, D] by which pair (i, i + D / 2) of a position turns: position * BASE^(-2 i / D)."""
    rates = BASE ** (-torch.arange(0, size, 2, device=device) / size)
    angles = torch.arange(tokens, device=device)[:, None] * rates
    return torch.cat((angles.cos(), angles.cos()), dim=1), torch.cat((-angles.sin(), angles.sin()), dim=1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (i, i + D / 2) of [..., tokens, D]."""
    return x * cos + x.roll(x.shape[-1] // 2, -1) * sin


class Layer(nn.Module):
    """x + attention(norm(x)), then x + relu(norm(x) W_1)^2 W_2."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.attention_norm = nn.RMSNorm(shape.width, eps=NORM_EPS)
        self.qkv = nn.Linear(shape.width, 3 * shape.width, bias=False)
        self.project = nn.Linear(shape.width, shape.width, bias=False)
        self.mlp_norm = nn.RMSNorm(shape.width, eps=NORM_EPS)
        self.expand = nn.Linear(shape.width, shape.hidden, bias=False)
        self.contract = nn.Linear(shape.hidden, shape.width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """[rows, tokens, E] -> [rows, tokens, E]."""
        x = x + self.attention(self.attention_norm(x), cos, sin)
        out: Tensor = x + self.contract(functional.relu(self.expand(self.mlp_norm(x))).square())
        return out

    def attention(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """[rows, tokens, E] -> [rows, tokens, E]; a token attends to itself and those before it."""
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = rotate(qkv[:2], cos, sin)
        y = functional.scaled_dot_product_attention(q, k, qkv[2], is_causal=True)
        out: Tensor = self.project(y.transpose(1, 2).flatten(2))
        return out


class Transformer(nn.Module):
    """Embedding, layers, norm and head."""

    def __init__(self, shape: Shape, seed: int = 0) -> None:
        super().__init__()
        self.shape = shape
        self.embedding = nn.Embedding(shape.vocabulary, shape.width)
        self.embedding_norm = nn.RMSNorm(shape.width, eps=NORM_EPS)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.width, eps=NORM_EPS)
        self.head = None if shape.tied else nn.Linear(shape.width, shape.vocabulary)
        self.draw(seed)

    @torch.no_grad()
    def draw(self, seed: int) -> None:
        """Draw the weights: standard deviation 1 / sqrt(fan-in). What a layer adds starts at zero, as does a head."""
        generator = torch.Generator().manual_seed(seed)
        self.embedding.weight.normal_(0, 0.02, generator=generator)
        for name, weight in self.layers.named_parameters():
            if name.endswith(("qkv.weight", "expand.weight")):
                weight.normal_(0, weight.shape[1] ** -0.5, generator=generator)
            elif name.endswith(("project.weight", "contract.weight")):
                weight.zero_()
        if self.head is not None:
            self.head.weight.zero_()
            self.head.bias.zero_()

    @property
    def output(self) -> tuple[Tensor, Tensor | None]:
        """Weight [V, E] and bias [V] of the head."""
        return (self.embedding.weight, None) if self.head is None else (self.head.weight, self.head.bias)

    def forward(self, ids: Tensor) -> Tensor:
        """Ids [rows, tokens] -> what the head reads [rows, tokens, E]."""
        x = self.embedding_norm(self.embedding(ids))
        cos, sin = turns(ids.shape[-1], self.shape.width // self.shape.heads, ids.device)
        for layer in self.layers:
            x = layer(x, cos, sin)
        out: Tensor = self.norm(x)
        return out

    def parameter_counts(self) -> dict[str, int]:
        """Number of scalars of each part and in total; a tied head counts once, as the embedding."""
        total = sum(p.numel() for p in self.parameters())
        embedding, head = (
            self.embedding.weight.numel(),
            sum(p.numel() for p in self.head.parameters()) if self.head else 0,
        )
        return {"embedding": embedding, "layers": total - embedding - head, "head": head, "total": total}
