"""The CVFP network: a context block iterated along the text, and a token block that reads its states.

Rows are tokens, matrices act from the right, LN is layer norm with eps 1e-5.

    e_t = LN(Emb[x_t])                                          input of one token
    u_t = [e_{t-n+1}; ...; e_t]                                 input of one step
    c^0_t = c^L_{t-1}                                           the recurrence
    c^i = LN(r + relu([c^{i-1}; u] W^T + b))                    context layer i; r = c^{i-1}, or its projection
    z^0 = u
    z^i = LN(r + relu([c^i; z^{i-1}] W^T + b))                  token layer i; r = last E components, or a projection
    logits = z^L W_o^T + b_o, or z^L Emb^T                      untied or tied head

Token layer i reads context layer i of the same step ("scheme E" of the original research code, November 2025).
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer.cvfp.settings import Shape

NORM_EPS = 1e-5


class Layer(nn.Module):
    """LN(r + relu(linear([main; other]))), or [other; main], the only building block.

    With a width of 0 `other` is not read. The residual r carries `main`. If main != out it is projected, or without
    `project` its last `out` components are taken.
    """

    def __init__(self, main: int, other: int, out: int, *, main_first: bool, project: bool) -> None:
        super().__init__()
        self.main_first, self.other = main_first, other
        self.linear = nn.Linear(main + other, out)
        self.norm = nn.LayerNorm(out, eps=NORM_EPS)
        self.residual = nn.Linear(main, out) if project and main != out else None

    def forward(self, main: Tensor, other: Tensor) -> Tensor:
        """[rows, main] and [rows, other] -> [rows, out]."""
        joined = main
        if self.other:
            joined = torch.cat((main, other) if self.main_first else (other, main), dim=-1)
        d = functional.relu(self.linear(joined))
        r = main[..., main.shape[-1] - d.shape[-1] :] if self.residual is None else self.residual(main)
        out: Tensor = self.norm(r + d)
        return out


class ContextBlock(nn.Module):
    """F: (c, u) -> c^1 ... c^L."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        widths = [shape.context, *shape.context_widths[1:]]
        reads = [shape.tokens if shape.widths == "constant" or i == 0 else 0 for i in range(shape.layers)]
        self.layers = nn.ModuleList(
            Layer(a, u, b, main_first=True, project=True) for (a, b), u in zip(pairwise(widths), reads, strict=True)
        )

    def forward(self, c: Tensor, u: Tensor) -> list[Tensor]:
        """[rows, C] and [rows, nE] -> L tensors [rows, D_i]."""
        states = []
        for layer in self.layers:
            c = layer(c, u)
            states.append(c)
        return states


class TokenBlock(nn.Module):
    """(c^1 ... c^L, u) -> z^L."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        widths = shape.token_widths
        self.layers = nn.ModuleList(
            Layer(a, d, b, main_first=False, project=shape.widths == "reduced")
            for (a, b), d in zip(pairwise(widths), shape.context_widths[1:], strict=True)
        )

    def forward(self, states: list[Tensor], u: Tensor) -> Tensor:
        """L tensors [rows, D_i] and [rows, nE] -> [rows, E]."""
        z = u
        for layer, c in zip(self.layers, states, strict=True):
            z = layer(z, c)
        return z


class Network(nn.Module):
    """Embedding, its norm, context block, token block and head. With seed None the weights are undefined."""

    def __init__(self, shape: Shape, seed: int | None = 0) -> None:
        super().__init__()
        self.shape = shape
        self.embedding = nn.Embedding(shape.vocabulary, shape.embedding)
        self.embed_norm = nn.LayerNorm(shape.embedding, eps=NORM_EPS)
        self.context = ContextBlock(shape)
        self.token = TokenBlock(shape)
        self.own_embedding = nn.Embedding(shape.vocabulary, shape.embedding) if shape.own_embedding else None
        self.head = None if shape.tied else nn.Linear(shape.embedding, shape.vocabulary)
        if seed is not None:
            self.draw(seed)

    @torch.no_grad()
    def draw(self, seed: int) -> None:
        """Draw the weights. An untied head becomes zero, so the first loss is ln V."""
        generator = torch.Generator().manual_seed(seed)
        for block in (self.context, self.token):
            for module in block.modules():
                if isinstance(module, nn.Linear):
                    module.weight.normal_(0, self.shape.weight_std, generator=generator)
                    module.bias.normal_(0, self.shape.bias_std, generator=generator)
        self.set_embedding(torch.empty_like(self.embedding.weight).normal_(0, 0.02, generator=generator))
        if self.head is not None:
            self.head.weight.zero_()
            self.head.bias.zero_()

    @torch.no_grad()
    def set_embedding(self, table: Tensor) -> None:
        """Copy a table [V, E] into the embeddings."""
        self.embedding.weight.copy_(table)
        if self.own_embedding is not None:
            self.own_embedding.weight.copy_(table)

    @property
    def token_embedding(self) -> nn.Embedding:
        """The embedding of the token block and of a tied head."""
        return self.embedding if self.own_embedding is None else self.own_embedding

    @property
    def output(self) -> tuple[Tensor, Tensor | None]:
        """Weight [V, E] and bias [V] of the head."""
        return (self.token_embedding.weight, None) if self.head is None else (self.head.weight, self.head.bias)

    def normalise(self, embedded: Tensor) -> Tensor:
        """Embeddings [rows, E] -> e [rows, E]."""
        e: Tensor = self.embed_norm(embedded)
        return e

    def parameter_counts(self) -> dict[str, int]:
        """Number of scalars of each part and in total; a tied head counts once, as the embedding."""
        parts = {
            "embedding": self.embedding,
            "own_embedding": self.own_embedding,
            "embed_norm": self.embed_norm,
            "context_block": self.context,
            "token_block": self.token,
            "head": self.head,
        }
        counts = {name: sum(p.numel() for p in part.parameters()) if part else 0 for name, part in parts.items()}
        return {**counts, "total": sum(counts.values())}
