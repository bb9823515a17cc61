"""Scores of any causal language model of Hugging Face on conversations: nats by class and conversation.

A model reads a conversation as the trainer joins it, messages by a newline, after its start token (that of a sequence,
or else end-of-text) and with an end-of-text token behind it. A model whose tokenizer has the tokens of the chat
template reads it by the template. Scored are contents and ends of messages, in either case: a newline, or end-of-text,
is the end of a message. No token sees another conversation.
"""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from trainer import TrainerError
from trainer.prepare import template
from trainer.prepare.template import CLASSES, REPLY, TEXT, UNSCORED
from trainer.prepare.vocabulary import END, PROBE, TEMPLATE, Vocabulary, VocabularyError

CONTEXT = 512
"""Default maximum tokens of a window."""
MIN_POSITIONS = 4
"""Minimum tokens of a window: a start token, and a token with half a window of context."""
MAX_LOGITS = 1 << 22
"""Maximum number of logits of a batch on a processor, 16 MB in float32; larger batches take more of its time."""
MAX_LOGITS_DEVICE = 1 << 27
"""Maximum number of logits of a batch on an accelerator."""
ADAPTER = "adapter_config.json"
"""File that makes a folder an adapter of PEFT."""
PROMPTS = ("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "CPT")
"""Types of adapters that put tokens of their own before a text."""
PROMPT = "prompt_embeddings"
"""Tensor of a prefix, which PEFT loads apart from those of modules."""
TOKENS = "tokens.safetensors"
"""File of an adapter with the rows that a grown vocabulary adds to the embeddings, by their names."""
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tekken.json", "spiece.model")
"""Files of which a tokenizer has at least one; without any, transformers makes up an empty tokenizer."""


class ModelError(TrainerError):
    """A model cannot be loaded, or does not suit."""


@dataclass(frozen=True, eq=False)
class CausalModel:
    """A causal language model and how it reads text.

    Attributes:
        name: as it was typed, with its adapter.
        network: the model of transformers, without gradients.
        tokenizer: encodes special tokens in a text as text.
        ids: V, the number of ids that the tokenizer knows; further rows of the head are padding.
        start: id before each conversation; None if there is none.
        end: id after each conversation; None if there is none.
        positions: maximum tokens of a window; None if unlimited.
        revision: the commit of a model of the hub; empty for a folder.
        chats: the vocabulary, if the model reads conversations by the chat template; else None.
        unread: names of tensors of its files that have no place in the network.
    """

    name: str
    network: Any
    tokenizer: Tokenizer
    ids: int
    start: int | None
    end: int | None
    positions: int | None
    revision: str = ""
    chats: Vocabulary | None = None
    unread: tuple[str, ...] = ()

    def context(self, asked: int | None) -> int:
        """Tokens of a window: those asked for, or 512, or as many as the model has positions; else a ModelError."""
        if asked is not None and asked < MIN_POSITIONS:
            raise ModelError(f"--context is {asked}, expected at least {MIN_POSITIONS} tokens")
        if asked is not None and self.positions is not None and asked > self.positions:
            raise ModelError(f"--context is {asked:,}, and {self.name} has {self.positions:,} positions: take fewer")
        return asked or min(CONTEXT, self.positions or CONTEXT)

    def notes(self) -> Iterator[str]:
        """What a reader must know of how it reads text."""
        if self.unread:
            yield (
                f"{len(self.unread)} tensors of the files of {self.name}, such as {self.unread[0]}, have no place in "
                "the model that its config.json describes: they are not used"
            )
        if self.start is None:
            yield (
                f"{self.name} has neither a start nor an end-of-text token: the first token of each conversation is "
                "scored by its frequency in the test set"
            )
        if self.end is None:
            yield f"{self.name} has no end-of-text token, so ends of conversations are not scored"


@dataclass(frozen=True, eq=False)
class Scores:
    """Sums over the tokens of a model by class (other text, replies) and conversation, both [2, K]."""

    nats: NDArray[np.float64]
    tokens: NDArray[np.int64]


def load(name: str, adapter: Path | None = None, device: str = "cpu", source: str | None = None) -> CausalModel:
    """Load a model and its tokenizer, in float32, from a folder or the hub; `name@commit` pins a model of the hub.

    A folder of an adapter is loaded on the model that it names as its base, or on `source`.

    Raises:
        ModelError: there is no such model, it is no causal language model, or its tokenizer changes text.
    """
    folder, label = Path(name), name
    if adapter is None and (folder / ADAPTER).is_file():
        adapter, name = folder, source or base_of(folder)
    elif adapter is not None:
        label = f"{name} + {adapter}"
    with quiet():
        network, unread = load_network(name)
        network = network.to(device)
        revision = getattr(network.config, "_commit_hash", None) or ""
        if adapter is not None:
            network = _adapted(network, adapter)
        own = adapter is not None and (adapter / "tokenizer.json").is_file()
        whole = load_tokenizer(str(adapter) if own else name)
    network.eval().requires_grad_(requires_grad=False)
    _check_causal(network, label)
    tokenizer = Tokenizer.from_str(whole.backend_tokenizer.to_str())
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    _check_round_trip(tokenizer, label)
    config = network.config.get_text_config()
    end = _first(whole.eos_token_id, config.eos_token_id)
    start = _first(whole.bos_token_id, end)
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and positions < MIN_POSITIONS:
        raise ModelError(f"the config.json of {label} says that it has {positions} positions: get it again")
    rows = min(len(part.weight) for part in (network.get_input_embeddings(), network.get_output_embeddings()))
    chats = _chats(tokenizer, label)
    _check_ids(tokenizer, [start, end, *([] if chats is None else [chats.end, *chats.template])], rows, label)
    return CausalModel(
        label,
        network,
        tokenizer,
        min(1 + max(tokenizer.get_vocab().values()), rows),
        start,
        end,
        positions,
        revision,
        chats,
        unread,
    )


def load_network(name: str) -> tuple[Any, tuple[str, ...]]:
    """Load a causal language model in float32 from a folder or the hub, or raise a ModelError; no code of it is run.

    Returns:
        The model, and the names of tensors of its files that have no place in it.
    """
    import_module("trainer.cvfp.causal")  # our own architecture
    classes: Any = import_module("transformers").AutoModelForCausalLM
    place, revision = locate(name)
    if Path(place).is_dir():
        read_config(Path(place) / "config.json")
    try:
        network, about = classes.from_pretrained(
            place,
            revision=revision,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, by name
            trust_remote_code=False,  # without it, transformers asks at the terminal
        )
    except Exception as error:  # the type depends on what is wrong with the files
        raise ModelError(_unloadable(name, error)) from error
    if missing := sorted(about["missing_keys"]):  # transformers would draw them at random
        raise ModelError(
            f"{name} ({architecture(network.config.to_dict())}) is no complete causal language model: it lacks "
            f"{len(missing)} tensors, such as {missing[0]}; name another model"
        )
    if other := sorted(about["mismatched_keys"]):
        tensor, found, expected = (part if isinstance(part, str) else tuple(part) for part in other[0])
        raise ModelError(
            f"{name} does not have the shapes that its config.json says: {tensor} is {found}, expected {expected}; get "
            "both files again"
        )
    return network, tuple(sorted(about["unexpected_keys"]))


def load_tokenizer(name: str) -> Any:  # noqa: ANN401  transformers has no types
    """Load a fast tokenizer from a folder or the hub, or raise a ModelError."""
    from transformers import AutoTokenizer

    place, revision = locate(name)
    if Path(place).is_dir() and not any((Path(place) / file).is_file() for file in TOKENIZERS):
        raise ModelError(f"{place} holds no tokenizer: add its tokenizer.json and tokenizer_config.json")
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, revision=revision, trust_remote_code=False)
    except Exception as error:  # the type depends on what is wrong with the files
        raise ModelError(
            f"{name} has no tokenizer that can be loaded ({_why(error)}): add its tokenizer.json and "
            "tokenizer_config.json"
        ) from error
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(f"{name} has no fast tokenizer, which is needed: add a tokenizer.json")
    return tokenizer


def locate(name: str) -> tuple[str, str | None]:
    """The folder or hub id, and the commit if `name` is `id@commit`; a ModelError if there is no such model."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file() and not (folder / ADAPTER).is_file():
            raise ModelError(f"{folder} holds no config.json: name the folder of a model, or a hub id")
        return str(folder), None
    if folder.exists() or name.startswith((".", "/", "~")):
        raise ModelError(f"there is no folder {name}: name the folder of a model, or a hub id")
    place, _, revision = name.partition("@")
    if revision and Path(place).is_dir():
        raise ModelError(f"{place} is a folder, which has no commit {revision}: omit @{revision}, or move the folder")
    _ask_hub(name, place, revision or None)
    return place, revision or None


def _ask_hub(name: str, place: str, revision: str | None) -> None:
    """Raise a ModelError if the hub has no such model, by one request: its other functions try for a minute."""
    import huggingface_hub as hub

    try:
        known = hub.try_to_load_from_cache(place, "config.json", revision=revision)
        if not isinstance(known, str) and not hub.constants.HF_HUB_OFFLINE:
            hub.HfApi().model_info(place, revision=revision)
    except Exception as error:
        raise ModelError(_unloadable(name, error)) from error


def read_config(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a model's folder, or a ModelError."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read ({_why(error)}): get it again, or name another folder") from error
    if not isinstance(found, dict):
        raise ModelError(f"{path} holds no JSON object: get it again, or name another folder")
    return found


def base_of(adapter: Path) -> str:
    """The model that an adapter's folder names as its base, or a ModelError."""
    base = read_config(adapter / ADAPTER).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise ModelError(
            f"{adapter / ADAPTER} names no base model: name it, as MODEL with --adapter, or with --source of apply"
        )
    return base


def _adapted(network: Any, adapter: Path) -> Any:  # noqa: ANN401  transformers has no types
    try:
        from peft import PeftModel
    except ImportError as error:
        raise ModelError("an adapter needs the package peft: pip install 'refine[models]'") from error
    if not (adapter / ADAPTER).is_file():
        raise ModelError(f"{adapter} is not the folder of an adapter: it holds no {ADAPTER}")
    if (kind := str(read_config(adapter / ADAPTER).get("peft_type"))) in PROMPTS:
        raise ModelError(
            f"{adapter} is an adapter of type {kind}, which puts tokens before a text: name one of another type, such "
            "as LoRA"
        )
    try:
        adapted = PeftModel.from_pretrained(network, str(adapter))
        about = adapted.load_adapter(str(adapter), "default")  # again, for what the first does not say
        unread = [name for name in about.unexpected_keys if name != PROMPT]
        if wrong := [*about.missing_keys, *unread]:
            what = "lacks" if about.missing_keys else "has, with no place in the model,"
            raise ModelError(f"it {what} {len(wrong)} tensors, such as {wrong[0]}")  # noqa: TRY301
        return adapted if not (adapter / TOKENS).is_file() else _grown(adapted.merge_and_unload(), adapter / TOKENS)
    except Exception as error:  # the type depends on what is wrong with the files
        raise ModelError(
            f"{adapter} cannot be loaded as an adapter of this model ({_why(error)}): get it again, or name the model "
            "that it is of"
        ) from error


@torch.no_grad()
def _grown(network: Any, path: Path) -> Any:  # noqa: ANN401  transformers has no types
    """A model with the rows of new tokens in its embeddings and its head."""
    from safetensors.torch import load_file

    rows = load_file(path)
    added = max(len(one) for one in rows.values())
    network.resize_token_embeddings(network.get_input_embeddings().weight.shape[0] + added, mean_resizing=False)
    for name, one in rows.items():
        network.get_parameter(name)[-added:] = one.to(network.dtype)
    return network


def encode(model: CausalModel, conversations: pl.DataFrame) -> list[tuple[NDArray[np.int64], NDArray[np.uint8]]]:
    """Ids and classes of each conversation, K rows with the columns text and turns.

    The first id is that of the start, if there is one. Loops over conversations, because tokenizers take strings.
    """
    if model.chats is not None:
        ids, classes, starts = template.lay_out(conversations["text"], conversations["turns"], model.chats)
        ends = np.append(starts[1:], len(ids) - 1)
        return [(ids[a : b + 1].astype(np.int64), classes[a : b + 1]) for a, b in zip(starts, ends, strict=True)]
    encoded = model.tokenizer.encode_batch(conversations["text"].to_list(), add_special_tokens=False)
    made = []
    for one, turns in zip(encoded, conversations["turns"], strict=True):
        codes = np.array([turn["role"] for turn in turns], np.int64)
        lengths = np.array([turn["length"] for turn in turns], np.int64)
        ends = np.cumsum(lengths + 1)  # with the newline
        begins = np.array([begin for begin, _ in one.offsets], np.int64)
        kinds = np.append(CLASSES[codes], TEXT).astype(np.uint8)
        classes = kinds[np.minimum(np.searchsorted(ends, begins, side="right"), max(len(codes) - 1, 0))]
        last = kinds[max(len(codes) - 1, 0)]
        framed = [
            *([] if model.start is None else [(model.start, UNSCORED)]),
            *zip(one.ids, classes.tolist(), strict=True),
            *([] if model.end is None else [(model.end, last)]),
        ]
        made.append((np.array([i for i, _ in framed], np.int64), np.array([kind for _, kind in framed], np.uint8)))
    return made


@dataclass(frozen=True, eq=False)
class Window:
    """Positions `at` of the inputs of a window of conversation `row`; the targets of those from `counts` on are scored.

    Of the inputs before, another window has scored the targets.
    """

    row: int
    at: NDArray[np.int64]
    counts: int


def windows(lengths: Sequence[int], context: int, *, opened: bool) -> Iterator[Window]:
    """Windows of at most `context` inputs over conversations of so many ids.

    If a conversation is `opened` by a start token, each of its windows begins with that, as those of the house
    transformer do. Windows overlap by half, and each target is scored once, in the first window that gives it half a
    window of context.
    """
    size = max(context - int(opened), 2)
    start = np.zeros(int(opened), np.int64)
    for row, length in enumerate(lengths):
        begin, counts = int(opened), 0
        while counts < length - 1:
            end = min(begin + size, length - 1)
            yield Window(row, np.append(start, np.arange(begin, end)), counts)
            begin, counts = end - size // 2, end


@torch.no_grad()
def score(
    model: CausalModel,
    conversations: pl.DataFrame,
    context: int | None = None,
    report: Callable[[int, int], None] = lambda _done, _total: None,
) -> Scores:
    """Score every conversation, K rows with the columns text and turns; see the module for what is read and scored.

    `report` is called with the number of windows that are scored, and of all.

    Raises:
        ModelError: `context` exceeds the model's positions, or a loss is not finite.
    """
    texts = encode(model, conversations)
    nats, tokens = np.zeros((2, len(texts))), np.zeros((2, len(texts)), np.int64)
    each = [np.zeros(len(ids)) for ids, _ in texts]
    lengths = [len(ids) for ids, _ in texts]
    cut = windows(lengths, model.context(context), opened=model.start is not None)
    every = sorted(cut, key=lambda one: len(one.at))
    most = MAX_LOGITS if model.network.device.type == "cpu" else MAX_LOGITS_DEVICE
    done = 0
    for batch in _batches(every, most // model.ids):
        _score(model, texts, batch, each)
        done += len(batch)
        report(done, len(every))
    if model.start is None:
        counts = np.bincount(np.concatenate([ids for ids, _ in texts]), minlength=model.ids)
        for (ids, _), one in zip(texts, each, strict=True):
            one[:1] = -np.log(counts[ids[:1]] / counts.sum())
    for row, ((_, classes), one) in enumerate(zip(texts, each, strict=True)):
        for i, kind in enumerate((TEXT, REPLY)):
            nats[i, row], tokens[i, row] = one[classes == kind].sum(), (classes == kind).sum()
    if not np.isfinite(nats).all():
        raise ModelError(f"a loss of {model.name} on the test set is not a finite number: its weights are damaged")
    return Scores(nats, tokens)


def _batches(every: Sequence[Window], most: int) -> Iterator[Sequence[Window]]:
    """Consecutive windows of at most so many tokens, padded, but at least one; they are sorted by length."""
    begin = 0
    while begin < len(every):
        count = 1
        while begin + count < len(every):
            if (count + 1) * len(every[begin + count].at) > most:
                break
            count += 1
        yield every[begin : begin + count]
        begin += count


def _score(
    model: CausalModel,
    texts: Sequence[tuple[NDArray[np.int64], NDArray[np.uint8]]],
    batch: Sequence[Window],
    each: Sequence[NDArray[np.float64]],
) -> None:
    """Write the nats of a batch's targets into `each`."""
    shape = len(batch), max(len(one.at) for one in batch)
    inputs, targets, there = (np.zeros(shape, np.int64) for _ in range(3))
    for i, one in enumerate(batch):
        ids, size = texts[one.row][0], len(one.at)
        inputs[i, :size], targets[i, :size], there[i, :size] = ids[one.at], ids[one.at + 1], 1
    on = [torch.from_numpy(array).to(model.network.device) for array in (inputs, targets, there)]
    logits = model.network(input_ids=on[0], attention_mask=on[2], use_cache=False).logits[..., : model.ids].float()
    nats = torch.nn.functional.cross_entropy(logits.flatten(0, 1), on[1].flatten(), reduction="none")
    found = nats.view(shape).double().cpu().numpy()
    for i, one in enumerate(batch):
        own = one.at >= one.counts
        each[one.row][one.at[own] + 1] = found[i, : len(one.at)][own]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers and PEFT from printing their own notes, warnings and bars."""
    logging: Any = import_module("transformers.utils.logging")
    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()


def _first(*ids: int | Sequence[int] | None) -> int | None:
    """The first id that is known; of several ends the first."""
    for one in ids:
        if isinstance(one, int):
            return one
        if one:
            return int(one[0])
    return None


def _chats(tokenizer: Tokenizer, label: str) -> Vocabulary | None:
    """The vocabulary of a tokenizer that has the tokens of the chat template; else None."""
    if any(tokenizer.token_to_id(token) is None for token in (END, *TEMPLATE)):
        return None
    try:
        return Vocabulary(tokenizer, label, tokenizer.get_vocab()[END]).for_chats()
    except VocabularyError:
        return None


@torch.no_grad()
def _check_causal(network: Any, label: str) -> None:  # noqa: ANN401  transformers has no types
    """Refuse a model that sees the token that it is to predict, such as a masked language model."""
    ids = torch.tensor([[1, 2, 3, 4], [1, 2, 3, 5]], device=network.device)
    ids %= len(network.get_input_embeddings().weight)
    logits = network(input_ids=ids, use_cache=False).logits[:, :3].float()
    if (logits[0] - logits[1]).abs().max() > 1e-3 * logits.std():  # float noise is far smaller
        raise ModelError(f"{label} is no causal language model: its logits depend on later tokens; name another model")


def _check_round_trip(tokenizer: Tokenizer, label: str) -> None:
    """Refuse a tokenizer that changes text: its bits per byte would be those of another text."""
    text = tokenizer.decode(tokenizer.encode(PROBE, add_special_tokens=False).ids, skip_special_tokens=False)
    if text.removeprefix(" ") != PROBE:
        raise ModelError(
            f"the tokenizer of {label} changes text ({PROBE!r} is decoded as {text!r}), so bits per byte would be "
            "those of another text: take a model with a byte-level tokenizer, or one with byte fallback"
        )


def _check_ids(tokenizer: Tokenizer, special: Sequence[int | None], rows: int, label: str) -> None:
    """Refuse a tokenizer that gives ids for which the model has no embedding.

    `special` are the special tokens that frame texts; no text encodes to another one.
    """
    plain = (i for i, token in tokenizer.get_added_tokens_decoder().items() if not token.special)
    last = max(*tokenizer.get_vocab(with_added_tokens=False).values(), *plain, *(i for i in special if i is not None))
    if last >= rows:
        raise ModelError(
            f"the tokenizer of {label} gives ids up to {last:,}, and the model has {rows:,} embeddings: take the "
            "tokenizer that the model was trained with"
        )


def architecture(config: Mapping[str, Any]) -> str:
    """The architectures of a config.json, or else its model type."""
    names = config.get("architectures")
    return ", ".join(map(str, names)) if names and isinstance(names, list) else str(config.get("model_type"))


def _unloadable(name: str, error: Exception) -> str:
    """Why a model cannot be loaded, and what to do."""
    folder = Path(name).expanduser()
    if not folder.is_dir():
        return f"{name} is no folder, and cannot be had from the hub ({_why(error)}): name the folder of a model"
    kind = architecture(read_config(folder / "config.json"))
    if "AutoModelForCausalLM" in str(error) or "architecture" in str(error):
        return f"{folder} is no causal language model that transformers knows ({kind}): name another model"
    if "custom code" in str(error):
        return f"{folder} ({kind}) needs code of its own, which is not run: name another model"
    do = "get it again" if any(folder.glob("*.safetensors")) else "convert it to safetensors"
    return f"{folder} ({kind}) cannot be loaded ({_why(error)}): {do}, or name another model"


def _why(error: Exception) -> str:
    """The first line of an error, at most 300 characters, or its name."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0][:300].rstrip(".:")
