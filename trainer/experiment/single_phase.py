"""Training runs of networks without phase 1, a transformer and a GRU of CVFP's size.

Everything but the network is that of CVFP: embeddings, which stay frozen, the head, and the settings of phase 2.
"""

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import replace

from torch import Tensor

from trainer.cvfp import phase2
from trainer.cvfp.model import Network
from trainer.cvfp.phase2 import Scores, State
from trainer.cvfp.scan import Tape
from trainer.cvfp.settings import Phase2
from trainer.experiment import checkpoint, gru
from trainer.experiment.checkpoint import Checkpoint
from trainer.experiment.gru import Recurrent
from trainer.experiment.kinds import GRU, KINDS, TRANSFORMER
from trainer.experiment.training import ResumableRun, cvfp
from trainer.transformer import training as windowed
from trainer.transformer.model import Shape, Transformer

LAYERS = 2
"""Layers of the transformer."""
HEAD_WIDTH = 32
"""Components of an attention head of the transformer, fewer if the width has no such divisor."""


class SinglePhase(ResumableRun):
    """A training run with the settings of phase 2; the network ends with the weights of the best evaluation."""

    rows: int
    """Targets of an epoch."""

    @abstractmethod
    def batches(self, settings: Phase2, state: State) -> Iterator[tuple[Tensor, Tensor]]:
        """What the head reads [rows, E] and targets [rows] of the batches from `state.step`, endlessly."""

    @abstractmethod
    def evaluate(self, text: Tape) -> Scores:
        """The scores of a stream."""

    def learn(self, start: Checkpoint | None) -> State:
        """The only phase."""
        settings = self.preset.phase2.sized(self.data.train.tokens)
        settings = replace(settings, restore=True)
        trained = {name: p for name, p in self.network.named_parameters() if p.requires_grad}
        state = phase2.start(trained, settings, self.seed)
        if start is not None:
            checkpoint.to_state(start, state)
        batches, head = self.batches(settings, state), self.network.output

        def tell(done: phase2.Evaluation, state: State) -> None:
            self._lap("phase 2")
            self._say(done.record())
            self._save(state)

        phase2.optimise(
            KINDS[self.kind].label,
            head,
            batches,
            lambda: self.evaluate(self.tapes[1]).trained(self.tapes[1]),
            settings,
            state,
            self.rows,
            tell,
        )
        self.network.load_state_dict(state.weights, strict=False)
        return state

    def score(self) -> Scores:
        """The scores of the test set."""
        return self.evaluate(self.tapes[2])


class TransformerRun(SinglePhase):
    """A training run of a transformer."""

    kind = TRANSFORMER.name
    network: Transformer

    def build(self) -> Transformer:
        """A transformer of CVFP's size, with the embeddings of the data."""
        network = cvfp(self.preset, self.data, self.seed)
        model = Transformer(shape(network), self.seed)
        model.embedding.load_state_dict(network.token_embedding.state_dict())
        model.embedding.requires_grad_(requires_grad=False)
        self.rows = self.data.train.tokens - 1
        return model

    def batches(self, settings: Phase2, state: State) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of whole windows in random order."""
        return windowed.batches(self.network, self.tapes[0], settings, state)

    def evaluate(self, text: Tape) -> Scores:
        """The scores of a stream."""
        return windowed.evaluate(self.network, text)


def shape(network: Network) -> Shape:
    """The shape of a transformer of a CVFP network's size, to a multiple of 8 hidden components."""
    of, counts = network.shape, network.parameter_counts()
    heads = (count for count in range(of.embedding // HEAD_WIDTH, 1, -1) if of.embedding % (2 * count) == 0)
    blocks = counts["context_block"] + counts["token_block"]
    hidden = (blocks // LAYERS - 4 * of.embedding**2) // (2 * of.embedding)
    return Shape(of.vocabulary, of.embedding, LAYERS, next(heads, 1), max(hidden // 8 * 8, 8), of.tied)


class GruRun(SinglePhase):
    """A training run of a GRU."""

    kind = GRU.name
    network: Recurrent

    def build(self) -> Recurrent:
        """A GRU of CVFP's size, with the embeddings of the data."""
        self.lanes = gru.lanes(self.tapes[0].ids, self.preset.phase2.batch)
        self.rows = (self.lanes.shape[1] - 1) * len(self.lanes)
        return Recurrent(cvfp(self.preset, self.data, self.seed), self.seed, len(self.lanes))

    def batches(self, settings: Phase2, state: State) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of consecutive tokens of all lanes."""
        learned = self.tapes[0].learned
        chosen = None if learned is None else gru.lanes(learned, self.preset.phase2.batch)
        return gru.batches(self.network, self.lanes, settings, state, chosen)

    def evaluate(self, text: Tape) -> Scores:
        """The scores of a stream."""
        return gru.evaluate(self.network, text)
