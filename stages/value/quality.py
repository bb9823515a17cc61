"""A quality classifier that the run trains from examples, or one of the user's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stages.dedup import Dedup
from stages.files import check_fitted, exists, read_frame, read_json, save, save_frame, save_json, scratch, seal
from stages.readers import RECORDS, TEXT
from stages.stage import RAW, Axis, FittedStage, Measure, MissingModelError, StageParameterError, reason, require
from stages.text.corpus import Corpus
from stages.text.messages import by_row, spoken, whole_texts
from stages.text.shingles import text_keys
from stages.value import auc

FOLDS = 2
"""Number of models, each of which scores the conversations that it has not seen."""
MIN_EXAMPLES = 20
"""Minimum number of examples of either kind."""

_Score = Callable[[pl.Series, NDArray[np.int64]], NDArray[np.float64]]
"""Scores of texts, given the fold of each."""
_NONE_MOVED = pl.DataFrame(schema={"key": pl.UInt64, "fold": pl.Int64})
_WORD = r"\w+|[^\w\s]"
_LIKE, _OTHER = "__label__like", "__label__other"
_SETTINGS = {
    "dim": 32,
    "bucket": 1 << 18,
    "wordNgrams": 2,
    "minCount": 3,
    "lr": 0.1,
    "thread": 1,
    "seed": 0,
    "verbose": 0,
}
_SEEN = 200_000
"""Minimum number of examples that a training reads, epochs together, within 5 to 50 epochs."""
_WORDS = 20
"""Number of words of each kind that `quality.json` lists."""


@dataclass(frozen=True)
class Quality(FittedStage):
    """Probability that a text is one of the examples `like` rather than one of the corpus (DCLM, arXiv:2406.11794).

    fastText's linear classifier of words and pairs of words, trained by the run on the examples and on as many texts of
    `unlike`, by default of the corpus itself. It is cross-fitted: clusters of near-duplicates among corpus and examples
    are split in two folds, and a conversation is scored by the model of the other fold, which has seen neither it nor a
    near-duplicate of it. Scores are calibrated (Platt) on examples that their model has not seen, for as many of one
    kind as of the other.

    The classifier finds what resembles the examples in any way, such as their length or format. `quality.json` in the
    stage's folder has its held-out ROC-AUC and the words that weigh most, and a run prints them.

    Signals (0 to 1; null if there is no text, or neither `like` nor `model` is given):
        quality: of the conversation.
        quality_user, quality_assistant: of the messages of that role.

    Attributes:
        like: good examples: a run folder of refine, a file of records or of text, or a folder of them.
        unlike: bad examples; by default the corpus itself.
        model: a fastText classifier to use instead: a path (.bin, .ftz), or "organisation/name/file.bin" on the hub. It
            is not calibrated.
        label: the label of `model` whose probability is the signal.
    """

    like: str = ""
    unlike: str = ""
    model: str = ""
    label: str = "__label__hq"

    summary: ClassVar[str] = "resemblance to good examples, by a fastText classifier that the run trains, cross-fitted"
    reads: ClassVar[tuple[str, ...]] = ("text", "messages", "details")
    writes: ClassVar[pl.Schema] = pl.Schema(
        dict.fromkeys(("quality", "quality_user", "quality_assistant"), pl.Float32())
    )
    axes: ClassVar[Mapping[str, Axis]] = {"quality": Axis("probability, like the examples", rank=370)}

    def __post_init__(self) -> None:
        require(
            "quality: model", self.model, not (self.model and (self.like or self.unlike)), "no model beside examples"
        )
        require("quality: unlike", self.unlike, not self.unlike or bool(self.like), "examples `like` beside it")

    @property
    def fits_corpus(self) -> bool:
        return False  # the user's corpus may be the larger one

    def models(self) -> tuple[Path, ...]:
        if self.model:
            return (_classifier(self.model),)
        return (*_corpus(self.like, "like").files(), *_corpus(self.unlike, "unlike").files())

    def notes(self) -> tuple[str, ...]:
        missing = () if self.like or self.model else ("neither `like` nor `model` is given, so its signals are null",)
        return (*missing, *_corpus(self.like, "like").notes(), *_corpus(self.unlike, "unlike").notes())

    def remarks(self, folder: Path) -> tuple[str, ...]:
        """How well the classifier tells the examples apart, and by which words."""
        if not exists(folder / "quality.json"):
            return ()
        found = read_json(folder / "quality.json")
        words = [", ".join(found[kind][:8]) for kind in ("words_like", "words_other")]
        quality = f"held-out ROC-AUC {found['auc']:.3f} of {found['like']:,} examples"
        return (f"{quality}; their words: {words[0]}; words of the others: {words[1]}",)

    def fit(self, raw: Sequence[Path], folder: Path) -> None:
        """Train a model on each fold, and calibrate on the other; memory is 100 bytes per conversation and example."""
        if not self.like:
            return
        folder.mkdir(parents=True, exist_ok=True)
        with scratch(folder, "examples") as aside:
            texts = [*_saved(self.like, "like", aside), *(_saved(self.unlike, "unlike", aside) if self.unlike else raw)]
            like = sum(path.parent.name == "like" for path in texts)
            rows = _clustered([*texts, *(raw if self.unlike else ())], aside / "dedup")
            rows = rows.with_columns(
                like=pl.col("shard") < like, other=pl.col("shard").is_between(like, len(texts) - 1)
            )
            files = _write_folds(texts, _chosen(rows), aside)
            models = [_train(files[1 - fold], folder / f"fold{fold}.bin") for fold in range(FOLDS)]
            labels, logits = _held_out(models, files)
        moved = rows.filter(pl.col("fold") != pl.col("key") % FOLDS).select("key", "fold").unique("key").sort("key")
        save_frame(folder / "moved.parquet", moved)
        scale, shift = _platt(logits, labels)
        found = {"auc": auc(logits, labels), "like": int(labels.sum()), "other": int((~labels).sum())}
        save_json(
            folder / "quality.json", {**found, "scale": scale, "shift": shift, **_words(models)}, indent=1, end=""
        )
        seal(folder, ["quality.json", "moved.parquet", *(f"fold{fold}.bin" for fold in range(FOLDS))])

    def open(self, folder: Path) -> Measure:
        if self.model:
            model = _load(_classifier(self.model))
            if self.label not in model.labels:
                raise StageParameterError(f"quality: label is {self.label}, expected one of {', '.join(model.labels)}")
            return partial(self._signals, score=lambda texts, _: _probability(model, texts, self.label))
        if not self.like:
            return self.measure
        check_fitted(folder)
        models = [_load(folder / f"fold{fold}.bin") for fold in range(FOLDS)]
        moved, found = read_frame(folder / "moved.parquet"), read_json(folder / "quality.json")

        def score(texts: pl.Series, fold: NDArray[np.int64]) -> NDArray[np.float64]:
            logits = np.empty(len(texts))
            for each, model in enumerate(models):
                mine = np.flatnonzero(fold == each)
                logits[mine] = _logit(_probability(model, texts.gather(mine), _LIKE))
            return np.asarray(1 / (1 + np.exp(-(found["scale"] * logits + found["shift"]))))

        return partial(self._signals, score=score, moved=moved)

    def measure(self, batch: pl.DataFrame) -> pl.DataFrame:
        return pl.DataFrame(schema=self.writes).clear(batch.height)

    def _signals(self, batch: pl.DataFrame, score: _Score, moved: pl.DataFrame = _NONE_MOVED) -> pl.DataFrame:
        fold = fold_of(pl.Series("key", text_keys(whole_texts(batch))[:, 0]), moved)
        turns = spoken(batch)
        scores = {"quality": batch.select("text").with_row_index("row")}
        for role in ("user", "assistant"):
            mine = turns.filter(role=role).group_by("row", maintain_order=True)
            scores[f"quality_{role}"] = mine.agg(text=pl.col("content").str.join("\n"))
        columns = []
        for name, frame in scores.items():
            there = frame.with_columns(_prepared("text")).filter(pl.col("text") != "")
            got = score(there["text"], fold.gather(there["row"]).to_numpy())
            columns.append(there.select("row", pl.Series(name, got, pl.Float64)))
        return by_row(batch.height, *columns).select(self.writes.names()).cast(self.writes)


def fold_of(keys: pl.Series, moved: pl.DataFrame) -> pl.Series:
    """The fold of texts with these keys: that of the key itself, unless the cluster has `moved` it to another."""
    own = (keys % FOLDS).cast(pl.Int64)
    return keys.to_frame("key").join(moved, on="key", how="left", maintain_order="left")["fold"].fill_null(own)


def _prepared(column: str) -> pl.Expr:
    """Text as fastText reads it: tokens in lower case on one line."""
    return pl.col(column).str.to_lowercase().str.extract_all(_WORD).list.join(" ")


def _corpus(path: str, name: str) -> Corpus:
    return Corpus(path, f"corpus `{name}`", (*TEXT, *RECORDS))


def _saved(path: str, name: str, aside: Path) -> list[Path]:
    """Examples as raw shards."""
    shards, height = [], 0
    for number, batch in enumerate(_corpus(path, name).batches()):
        shard = batch.select(
            id=pl.format(f"{name}-{{}}", pl.int_range(height, height + pl.len())),
            prompt=pl.lit(""),
            text="text",
            details=pl.lit(None, RAW["details"]),
        )
        height += batch.height
        save_frame(aside / name / f"{number:05}.parquet", shard)
        shards.append(aside / name / f"{number:05}.parquet")
    if height < MIN_EXAMPLES:
        raise StageParameterError(f"quality: {name} {path!r} holds {height} examples, expected at least {MIN_EXAMPLES}")
    return shards


def _clustered(shards: Sequence[Path], folder: Path) -> pl.DataFrame:
    """Each row's `shard` and `row` in it, the `key` of its text, and the `fold` of its cluster of near-duplicates."""
    dedup, measured = Dedup(max_cluster=1, turn_jaccard=0.0), []  # clusters are of all pairs
    for number, path in enumerate(shards):
        batch = read_frame(path, ["id", *dedup.reads])
        measured.append(folder / f"{number:05}.parquet")
        save_frame(measured[-1], batch.select("id").hstack(dedup.measure(batch.select(dedup.reads))))
    dedup.merge(shards, measured, folder)
    frames = []
    for number, path in enumerate(measured):
        merged = read_frame(folder / "merged" / path.name, ["cluster"])
        own = read_frame(path, ["id", "text_key"]).hstack(merged).with_row_index("row")
        frames.append(own.select(pl.lit(number).alias("shard"), "row", "id", "cluster", key="text_key"))
    rows = pl.concat(frames)
    heads = rows.select(cluster="id", fold=(pl.col("key") % FOLDS).cast(pl.Int64))
    joined = rows.join(heads, on="cluster", how="left", maintain_order="left")
    return joined.select("shard", "row", "key", "fold", "cluster")


def _chosen(rows: pl.DataFrame) -> pl.DataFrame:
    """The rows to train on: all examples, and in each fold as many others, those of the lowest keys.

    Conversations that are near-duplicates of an example are none of the others.
    """
    likes = rows.filter("like").unique("key", keep="first", maintain_order=True)
    others = rows.filter("other").join(likes, on="cluster", how="anti").unique("key", keep="first", maintain_order=True)
    by_key = others.with_columns(rank=pl.col("key").rank("ordinal").over("fold"))
    sizes = likes.group_by("fold").agg(size=pl.len())
    kept = by_key.join(sizes, on="fold", maintain_order="left").filter(pl.col("rank") <= pl.col("size"))
    for name, frame, way in (
        ("examples `like`", likes, "name more examples"),
        ("conversations of the corpus to tell them from", kept, "take a larger corpus"),
    ):
        if frame.height < MIN_EXAMPLES or frame["fold"].n_unique() < FOLDS:
            raise StageParameterError(
                f"quality: {frame.height} different {name}, expected at least {MIN_EXAMPLES} that are not all "
                f"near-duplicates of each other: {way}"
            )
    return pl.concat([likes, kept.select(likes.columns)])


def _write_folds(shards: Sequence[Path], chosen: pl.DataFrame, aside: Path) -> list[Path]:
    """The chosen texts of each fold with their labels, in a file that fastText trains on."""
    files = [aside / f"fold{fold}.txt" for fold in range(FOLDS)]
    for fold, file in enumerate(files):
        with file.open("w", encoding="utf-8") as out:
            for number, path in enumerate(shards):
                mine = chosen.filter(pl.col("shard") == number, pl.col("fold") == fold).sort("row")
                texts = (
                    read_frame(path, ["text"])["text"].gather(mine["row"])
                    if mine.height
                    else pl.Series(dtype=pl.String)
                )
                lines = texts.to_frame("text").select(_prepared("text"))["text"]
                out.writelines(
                    f"{_LIKE if like else _OTHER} {line}\n" for like, line in zip(mine["like"], lines, strict=True)
                )
    return files


def _train(file: Path, out: Path) -> Any:  # noqa: ANN401 - fastText has no types
    import fasttext

    with file.open("rb") as lines:
        size = sum(1 for _ in lines)
    epochs = min(50, max(5, -(-_SEEN // size)))
    model = fasttext.train_supervised(input=str(file), epoch=epochs, **_SETTINGS)
    save(out, lambda aside: model.save_model(str(aside)))
    return model


def _held_out(models: Sequence[Any], files: Sequence[Path]) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Whether each text is an example, and its logit by the model that has not seen it."""
    labels, logits = [], []
    for model, file in zip(models, files, strict=True):
        label, text = zip(*(line.split(" ", 1) for line in file.read_text("utf-8").splitlines()), strict=True)
        labels.append(np.array(label) == _LIKE)
        logits.append(_logit(_probability(model, pl.Series(text), _LIKE)))
    return np.concatenate(labels), np.concatenate(logits)


def _load(path: Path) -> Any:  # noqa: ANN401 - fastText has no types
    import fasttext

    try:
        return fasttext.load_model(str(path))
    except (ValueError, RuntimeError, MemoryError) as error:
        raise MissingModelError(f"quality: {path} is not a fastText model ({reason(error)})") from error


def _classifier(model: str) -> Path:
    """The file of a model: a path, or a file of a hub repository, which is downloaded once."""
    path = Path(model).expanduser()
    if path.is_file():
        return path
    repository, _, name = model.rpartition("/")
    if repository.count("/") == 1 and not model.startswith((".", "/", "~")):
        from huggingface_hub import hf_hub_download

        try:
            return Path(hf_hub_download(repository, name))
        except Exception as error:  # the hub's client raises errors of many kinds
            raise MissingModelError(f"quality: {model!r} cannot be downloaded ({reason(error)})") from error
    raise MissingModelError(
        f"quality: no model at {model!r}: expected the path of a fastText classifier, or organisation/name/file on the "
        f"hub"
    )


def _probability(model: Any, texts: pl.Series, label: str) -> NDArray[np.float64]:  # noqa: ANN401
    """The probability of a label for each text (without newlines)."""
    if not len(texts):
        return np.empty(0)
    labels, scores = model.predict(texts.to_list(), k=-1)
    each = [dict(zip(some, score, strict=True)).get(label, 0.0) for some, score in zip(labels, scores, strict=True)]
    return np.clip(np.array(each, np.float64), 0, 1)


def _logit(p: NDArray[np.float64]) -> NDArray[np.float64]:
    p = np.clip(p, 1e-5, 1 - 1e-5)  # fastText's own smallest probability
    return np.asarray(np.log(p / (1 - p)))


def _platt(logits: NDArray[np.float64], labels: NDArray[np.bool_]) -> tuple[float, float]:
    """Scale and shift of logits that fit the labels best (Platt 1999), with his smoothed targets."""
    from scipy.optimize import minimize

    high, low = (labels.sum() + 1) / (labels.sum() + 2), 1 / ((~labels).sum() + 2)
    wanted = np.where(labels, high, low)

    def loss(at: NDArray[np.float64]) -> float:
        z = at[0] * logits + at[1]
        return float((np.logaddexp(0, z) - wanted * z).mean())

    best = minimize(loss, np.array([1.0, 0.0]), method="L-BFGS-B")
    return float(best.x[0]), float(best.x[1])


def _words(models: Sequence[Any]) -> dict[str, list[str]]:
    """Words that weigh most for and against the examples in the mean of the models, of those that both know."""
    weights: dict[str, list[float]] = {}
    for model in models:
        side = model.get_output_matrix()[[model.labels.index(label) for label in (_LIKE, _OTHER)]]
        known = model.words
        scores = model.get_input_matrix()[: len(known)] @ (side[0] - side[1])
        for word, score in zip(known, scores.tolist(), strict=True):
            weights.setdefault(word, []).append(score)
    ranked = sorted((sum(each), word) for word, each in weights.items() if len(each) == len(models) and word != "</s>")
    return {
        "words_like": [word for _, word in ranked[: -_WORDS - 1 : -1]],
        "words_other": [word for _, word in ranked[:_WORDS]],
    }
