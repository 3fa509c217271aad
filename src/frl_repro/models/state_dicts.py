"""Other people's checkpoints: find the state_dict in what a file holds, and match its tensors with a model's.

Nothing is ever unpickled beyond plain containers and tensors. Names may carry prefixes of wrappers (DataParallel,
torch.compile, AveragedModel, a trainer's attribute); a state_dict may lie in dictionaries, several of them in one file.
"""

from __future__ import annotations

import io
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from frl_repro.basics.errors import UserError, is_out_of_memory

# Where several state_dicts lie in one file, the first of these names is what most training scripts measure.
_USUAL_NAMES = ("state_dict", "model_state_dict", "model", "net", "network", "weights", "checkpoint")
# Wrapper modules put these before, or between, the names of what they wrap.
_WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
# Counters that an evaluation does not need: of averaging, and of batches that batch norm has seen.
_AVERAGED, _BATCHES = "n_averaged", "num_batches_tracked"
NORMALISATION = "normalise."
# A tensor's role in its layer, which stays when layers are renamed.
_ROLES = frozenset({"weight", "bias", "running_mean", "running_var", _BATCHES})
_MAX_DEPTH = 6
_MAX_LISTED = 6
_NOT_WEIGHTS = re.compile(r"optim|sched|scaler", re.IGNORECASE)

WHAT = "a checkpoint: neither safetensors nor a PyTorch state_dict of plain tensors"


class State(NamedTuple):
    """A state_dict out of a file.

    Attributes
    ----------
    tensors : dict of str to Tensor
    is_ordered : bool
        Whether tensors come in the order of the model that was saved; safetensors sorts them.
    name : str
        Where it lies in the file, ``""`` for the file itself.
    others : list of str
        Where other state_dicts lie; empty where this one was asked for.
    """

    tensors: dict[str, Tensor]
    is_ordered: bool
    name: str
    others: list[str]


def read_state(path: Path, key: str | None, *, setting: str) -> State:
    """Return the state_dict in a file, or of several the one that ``key`` names (``"ema"``, ``"model.state_dict"``).

    ``setting`` is what people choose ``key`` by.

    Raises
    ------
    UserError
        The file is no checkpoint, holds no state_dict, several of which none is the usual one, or none called ``key``.
    """
    try:
        content: Any = dict(safetensors.torch.load_file(path))
        is_ordered = False
    except SafetensorError:
        content, is_ordered = torch_load(path, name=path, what=WHAT), True
    found = dict(_state_dicts(content, "", 0))
    if key is not None:
        chosen = found.get(key) or _with_prefix(found, f"{key}.")
        if not chosen:
            parts = [prefix for place, state in found.items() for prefix in _prefixes(state, place)]
            known = dict.fromkeys([*found, *(parts if len(found) == 1 else [])])
            raise UserError(f"{path}: holds no state_dict under {setting}={key!a}; it has {_listed(known)}")
        return State(_plain(chosen, path), is_ordered, key, [])
    if not found:
        raise UserError(f"{path}: holds no state_dict; save one with torch.save(model.state_dict(), path)")
    name = _usual(list(found))
    if name is None:
        raise UserError(f"{path}: holds several state_dicts: choose one with {setting}=, of {_listed(found)}")
    return State(_plain(found[name], path), is_ordered, name, [other for other in found if other != name])


def _state_dicts(node: Any, name: str, depth: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield every mapping of names to tensors inside, with where it lies, and none of an optimiser."""
    if not isinstance(node, Mapping) or not node or depth > _MAX_DEPTH:
        return
    if not all(isinstance(inner, str) for inner in node):
        return
    if all(isinstance(value, Tensor) for value in node.values()):
        yield name, dict(node)
        return
    for inner, value in node.items():
        if not _NOT_WEIGHTS.search(inner):
            yield from _state_dicts(value, f"{name}.{inner}".lstrip("."), depth + 1)


def _usual(names: list[str]) -> str | None:
    """Return the one of several that is measured unless another is asked for."""
    if len(names) == 1:
        return names[0]

    def rank(name: str) -> list[int]:
        return [_USUAL_NAMES.index(part) for part in name.split(".")] if name else []

    usual = [name for name in names if all(part in _USUAL_NAMES for part in name.split("."))]
    return min(usual, key=rank, default=None)


def _with_prefix(found: Mapping[str, Mapping[str, Tensor]], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose whole name, with where they lie, begins with a prefix; without it."""
    names = {f"{place}.{name}".lstrip("."): tensor for place, state in found.items() for name, tensor in state.items()}
    return {name.removeprefix(prefix): tensor for name, tensor in names.items() if name.startswith(prefix)}


def _prefixes(state: Mapping[str, Tensor], place: str, *, at_least: int = 1) -> list[str]:
    """Return what some names in a state_dict begin with, as `read_state` takes it: with where the state_dict lies."""
    counts = Counter(name.split(".", 1)[0] for name in state if "." in name)
    return [f"{place}.{prefix}".lstrip(".") for prefix, count in counts.items() if count >= at_least]


def _listed(names: Any) -> str:
    texts = [ascii(name) for name in names]
    more = f" and {len(texts) - _MAX_LISTED} more" if len(texts) > _MAX_LISTED else ""
    return ", ".join(texts[:_MAX_LISTED]) + more if texts else "none"


def _plain(state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Return the tensors without an average's counter.

    Raises
    ------
    UserError
        One is no dense tensor of real numbers.
    """
    for name, tensor in state.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta or tensor.is_complex():
            raise UserError(f"{path}: {name} is no plain tensor (quantized, sparse, complex or without data)")
    return {name: tensor for name, tensor in state.items() if name.rpartition(".")[2] != _AVERAGED}


def _bared(names: Iterable[str]) -> Iterator[dict[str, str]]:
    """Yield names with less and less of what wrappers put before them; each with the name that it stands for."""
    whole = list(names)
    yield {name: name for name in whole}
    parts = [[part for part in name.split(".") if part not in _WRAPPERS] for name in whole]
    if len({tuple(inner) for inner in parts}) < len(whole):  # telling apart is what these names do here
        parts = [name.split(".") for name in whole]
    while True:
        yield {".".join(inner): name for inner, name in zip(parts, whole, strict=True)}
        if not all(len(inner) > 1 and inner[0] == parts[0][0] for inner in parts):
            return
        parts = [inner[1:] for inner in parts]


def match(state: State, model: nn.Module, path: Path, *, setting: str) -> tuple[str, list[tuple[str, str]]]:
    """Match a model's tensors with those of a state_dict.

    A state_dict of other code may lack the buffers of normalisation, which others do outside the network, and the
    counters of batch norm. Names that differ are matched in order where the file keeps an order and every tensor has
    the shape and role (weight, bias, running_mean, ...) of its partner; else by shape, where all shapes differ.
    ``setting`` is what people choose one of several state_dicts by.

    Returns
    -------
    str
        ``"by name"``, ``"in order"`` or ``"by shape"``.
    list of (str, str)
        The model's name of each tensor, and the state's.

    Raises
    ------
    UserError
        Number, shapes or roles of tensors differ, or names do and nothing else says which belong together.
    """
    own, theirs = model.state_dict(), state.tensors
    optional = [{n for n in own if n.startswith(NORMALISATION)}, {n for n in own if n.endswith(_BATCHES)}]
    for bare in _bared(theirs):
        absent = own.keys() - bare.keys()
        needed = [n for n in own if not any(n in names and names <= absent for names in optional)]
        if set(needed) == bare.keys():
            by_name = [(name, bare[name]) for name in needed]
            _refuse_other_shapes(own, theirs, by_name, path)
            return "by name", by_name
    # With other names, which of the optional ones are there can only be told by their number.
    has_batches = any(name.endswith(_BATCHES) for name in theirs)
    wanted = {name: tensor for name, tensor in own.items() if has_batches or not name.endswith(_BATCHES)}
    if len(theirs) < len(wanted):
        wanted = {name: tensor for name, tensor in wanted.items() if not name.startswith(NORMALISATION)}
    if len(theirs) != len(wanted):
        fewest = len(own.keys() - set().union(*optional))
        prefixes = _prefixes(theirs, state.name, at_least=fewest)
        is_one = len(theirs) > len(own) and 0 < len(prefixes) <= _MAX_LISTED
        hint = f" ({setting}= chooses those under {_listed(prefixes)})" if is_one else ""
        raise UserError(f"{path}: holds {len(theirs)} tensors, the model has {len(own)}{hint}")
    pairs = list(zip(wanted, theirs, strict=True))
    if state.is_ordered and all(_alike(wanted[mine], mine, theirs[other], other) for mine, other in pairs):
        return "in order", pairs
    of_shape = {tuple(tensor.shape): name for name, tensor in theirs.items()}
    shapes = [tuple(tensor.shape) for tensor in wanted.values()]
    if len(of_shape) == len(theirs) and set(shapes) == set(of_shape):
        return "by shape", [(name, of_shape[tuple(tensor.shape)]) for name, tensor in wanted.items()]
    if Counter(shapes) == Counter(tuple(tensor.shape) for tensor in theirs.values()):
        raise UserError(
            f"{path}: its names are not the model's ({next(iter(theirs))!r}, the model has {next(iter(wanted))!r}), "
            "several tensors have one shape, and their order does not say which is which (safetensors sorts names): "
            "save it with torch.save(model.state_dict(), path), or rename its tensors"
        )
    _refuse_other_shapes(wanted, theirs, pairs, path)
    raise UserError(f"{path}: its tensors have other shapes than the model's")


def _alike(mine: Tensor, my_name: str, other: Tensor, their_name: str) -> bool:
    roles = [name.rpartition(".")[2] for name in (my_name, their_name)]
    return mine.shape == other.shape and (roles[0] == roles[1] or not _ROLES.issuperset(roles))


def _refuse_other_shapes(
    wanted: Mapping[str, Tensor], theirs: Mapping[str, Tensor], pairs: list[tuple[str, str]], path: Path
) -> None:
    for mine, other in pairs:
        if wanted[mine].shape != theirs[other].shape:
            raise UserError(
                f"{path}: {other} has shape {tuple(theirs[other].shape)}, the model's {mine} needs "
                f"{tuple(wanted[mine].shape)}"
            )


class _Unread:
    """Stands for a NumPy value beside the weights: what a file says of it is neither called nor kept."""

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, _: object) -> None: ...


_OF_NUMPY = (
    "numpy.dtype",
    "numpy.ndarray",
    *(
        f"{core}.{name}"
        for core in ("numpy.core", "numpy._core")
        for name in ("multiarray.scalar", "multiarray._reconstruct", "numeric._frombuffer")
    ),
)


def _numpy_unread() -> AbstractContextManager[None]:
    return torch.serialization.safe_globals([(_Unread, name) for name in _OF_NUMPY])


def torch_load(source: Path | io.BytesIO, *, name: Path, what: str) -> Any:
    """Read PyTorch's format. Plain containers and tensors only: a pickle that calls a function is refused unread.

    NumPy values, which many scripts keep beside the weights, come out as placeholders.

    Raises
    ------
    UserError
        ``name`` is not ``what``; with what is in the way, where that can be told.
    """
    try:
        with warnings.catch_warnings(), _numpy_unread():
            warnings.simplefilter("ignore")  # about how unusual a file is that is refused in a moment
            return torch.load(source, map_location="cpu", weights_only=True)
    except (OSError, MemoryError):
        raise
    except Exception as problem:  # arbitrary bytes make the unpickler fail in many ways: IndexError, struct.error, ...
        if is_out_of_memory(problem):
            raise
        raise UserError(f"{name} is not {what}{_cause(problem)}") from None


def _cause(problem: Exception) -> str:
    """Return which object of other code PyTorch's reader refused; nothing where it does not say."""
    if "TorchScript" in str(problem):
        return (
            " (it is a TorchScript archive, and reading that runs code: where it was made, save the weights alone with "
            "torch.save(torch.jit.load(path).state_dict(), path))"
        )
    found = re.search(r"(?:Unsupported|unsupported) (?:global: )?GLOBAL ([\w.]+)", str(problem))
    if found is None:
        return ""
    return (
        f" (it holds {found[1]}, and reading that may run code: where it was made, save the weights alone with "
        "torch.save(model.state_dict(), path))"
    )
