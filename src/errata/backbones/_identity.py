"""Which model this is: an identity over what it computes, not over how it is stored or named.

- Weights: the values of parameters and persistent buffers, by their names in the model's own class.
  Names that wrappers add (PEFT, torch.compile, data parallel) are left out; a dtype that holds the
  same values, sharding, tied weights, devices and offloading do not matter.
- Adapters: those that act. An adapter that is disabled, or whose LoRA matrix B is zero, adds
  nothing, and a merged one has changed the weights.
- Configuration, image processing and tokenizer (vocabulary, ids of a sample text, end tokens, chat
  template), without paths, versions and what changes no output.

docs/adr/0007-model-identity.md says why, and what a check costs.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from tokenizers import AddedToken
from torch import Tensor, nn

from errata.backbones._tokens import chat_template
from errata.core.errors import BadBackbone
from errata.core.types import digest

#: segments of module names that only wrappers have
_WRAPPERS = (
    *("_orig_mod", "base_layer", "token_adapter"),
    *("_fsdp_wrapped_module", "_checkpoint_wrapped_module"),
)
#: fields of a configuration that change no output
_SILENT = (
    *("architectures", "dtype", "torch_dtype", "transformers_version", "use_cache"),
    *("output_attentions", "output_hidden_states", "return_dict", "pad_token_id", "id2label"),
    *("label2id", "problem_type", "initializer_range", "initializer_factor", "auto_map"),
    "tie_word_embeddings",
    *("attention_dropout", "hidden_dropout", "dropout", "pretraining_tp", "use_return_dict"),
)
#: fields of a processor that change no output, or are looked at on their own
_SILENT_PROCESSING = (
    *("image_processor_type", "processor_class", "feature_extractor_type", "return_tensors"),
    *("data_format", "input_data_format", "device", "disable_grouping", "auto_map"),
    *("tokenizer", "image_processor", "video_processor", "chat_template", "audio_tokenizer"),
    *("image_token_id", "video_token_id", "image_ids"),
)
#: letters, case, digits, spaces, signs, other scripts and line breaks: what tokenizers treat apart
_SAMPLE = (
    "The quick brown fox isn't at 10:45 a.m.; it  costs 1,234.50 EUR (50%)!\n\tdef f(x): return 2"
    "\n\nUnbelievably, Übergrößen naïve café ﬁne Ångström. Вопрос: какого цвета? 这是什么颜色？ "
    "これは何ですか 무엇입니까 ما هذا؟ यह क्या है? 🙂👍🏽 Answer:"
)
_CHUNK = 1 << 20
_PARALLEL = 1 << 26  # bytes from which tensors are hashed in several threads
_ALL, _SOME = 1 << 18, 64  # a smaller model is compared whole, else some values of each tensor


# -- weights --------------------------------------------------------------------------------------


def core(model: Any) -> nn.Module:
    """The model inside wrappers of the whole model: compiled, data parallel, a PeftModel."""
    while True:
        if isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        elif isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        elif hasattr(model, "peft_config") and hasattr(model, "get_base_model"):
            model = model.get_base_model()
        else:
            assert isinstance(model, nn.Module)
            return model


def weights(model: Any) -> dict[str, str]:
    """name -> sha256 of every tensor that the outputs depend on."""
    tensors = dict(_tensors(model))
    # tied weights are hashed once
    unique = {_place(t): t for t in tensors.values()}
    size = sum(t.numel() * t.element_size() for t in unique.values())
    if size < _PARALLEL:
        digests = [tensor_digest(t) for t in unique.values()]
    else:
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            digests = list(pool.map(tensor_digest, unique.values()))
    known = dict(zip(unique, digests, strict=True))
    return {name: known[_place(t)] for name, t in tensors.items()}


def tied_names(model: Any) -> list[list[str]]:
    """The names of `weights`, those of one tensor together; also of a model without values."""
    groups: dict[int, list[str]] = {}
    for name, tensor, _, _ in _slots(core(model)):
        groups.setdefault(id(tensor), []).append(name)
    return list(groups.values())


def _place(tensor: Tensor) -> tuple[Any, ...]:
    """Equal for tied weights."""
    pointer = tensor.data_ptr() or id(tensor)
    return pointer, tensor.device, tensor.dtype, tuple(tensor.shape), tensor.stride()


def _tensors(model: Any) -> Iterator[tuple[str, Tensor]]:
    """The tensors by name, as the model's own class calls them."""
    yield from _prompt_tensors(model)
    root = core(model)
    skipped: list[str] = []
    for path, module in root.named_modules(remove_duplicate=False):
        if any(path.startswith(f"{s}.") or path == s for s in skipped):
            continue
        if _is_adapted(module):
            skipped += [f"{path}.{name}" for name, _ in module.named_children() if _added(name)]
            yield from _adapter_tensors(own_name(path), module)
        elif hasattr(module, "modules_to_save") and hasattr(module, "original_module"):
            skipped += [f"{path}.original_module", f"{path}.modules_to_save"]
            active = _active(module)
            chosen = module.modules_to_save[active[0]] if active else module.original_module
            for name, _, owner, key in _slots(chosen):
                full = ".".join(p for p in (path, name) if p)
                yield own_name(full), _value(owner, key)
            continue
        for name, _, owner, key in _slots(module, deep=False):
            if _is_adapted(module) and name.startswith("lora_"):
                continue
            yield own_name(".".join(p for p in (path, name) if p)), _value(owner, key)


def _added(child: str) -> bool:
    """Whether a child of an adapted layer belongs to its adapters."""
    return child != "base_layer"


def own_name(path: str) -> str:
    return ".".join(p for p in path.split(".") if p not in _WRAPPERS)


def _slots(root: nn.Module, *, deep: bool = True) -> Iterator[tuple[str, Tensor, nn.Module, str]]:
    """(name, tensor, module, key) of parameters and persistent buffers."""
    for path, module in root.named_modules(remove_duplicate=False) if deep else [("", root)]:
        for key, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None and key not in module._non_persistent_buffers_set:
                yield (f"{path}.{key}" if path else key), tensor, module, key


def _value(module: nn.Module, key: str) -> Tensor:
    """A parameter or buffer; the value of an offloaded one is read from where accelerate keeps it.

    Raises BadBackbone for a tensor without a value.
    """
    tensor: Tensor | None = module._parameters.get(key)
    tensor = module._buffers[key] if tensor is None else tensor
    assert tensor is not None
    if tensor.device.type != "meta":
        return tensor
    for hook in _hooks(module):
        values: Any = getattr(hook, "weights_map", None)
        if values is not None and key in values:
            value: Tensor = values[key]
            return value
    raise BadBackbone(
        f"{type(module).__name__}.{key} is on the meta device and has no value. Load the model's "
        "weights before it is wrapped."
    )


def _kept_in_memory(module: nn.Module, key: str) -> Tensor | None:
    """The tensor that an offloaded parameter is copied from; None if it lies on the disk."""
    for hook in _hooks(module):
        values: Any = getattr(hook, "weights_map", None)
        if isinstance(getattr(values, "dataset", values), dict) and key in values:
            value: Tensor = values[key]
            return value
    return None


def _hooks(module: nn.Module) -> tuple[Any, ...]:
    hook = getattr(module, "_hf_hook", None)
    return () if hook is None else tuple(getattr(hook, "hooks", (hook,)))


def tensor_digest(tensor: Tensor) -> str:
    """sha256 of shape and values: equal for float dtypes that hold the same numbers.

    A float32 is cut into its upper half, which is a bfloat16, and its lower half, which counts only
    if some value has one. So bfloat16 weights are hashed as they are.
    """
    t = tensor.detach()
    if hasattr(t, "full_tensor"):  # a DTensor
        t = t.full_tensor()
    exact = t.dtype in (torch.float32, torch.float16, torch.bfloat16)
    upper, lower, any_lower = hashlib.sha256(), hashlib.sha256(), False
    for chunk in torch.split(t.contiguous().reshape(-1), _CHUNK):
        if t.dtype == torch.bfloat16:
            upper.update(_bytes(chunk))
        elif exact:
            halves = chunk.float().cpu().view(torch.int16).reshape(-1, 2)
            upper.update(_bytes(halves[:, 1]))
            lower.update(_bytes(halves[:, 0]))
            any_lower = any_lower or bool(halves[:, 0].any())
        else:
            upper.update(_bytes(chunk))
    kind = "" if exact else str(t.dtype)
    parts = [kind, list(t.shape), upper.hexdigest(), lower.hexdigest() if any_lower else ""]
    return digest(parts)


def _bytes(values: Tensor) -> Any:
    v = values.cpu()
    if v.stride(-1) != 1:
        v = v.clone(memory_format=torch.contiguous_format)
    return v.view(torch.uint8).numpy()


# -- adapters (PEFT) ------------------------------------------------------------------------------


def _is_adapted(module: nn.Module) -> bool:
    return hasattr(module, "base_layer") and hasattr(module, "active_adapters")


def _active(module: Any) -> list[str]:
    """The adapters of a layer that act beside its weights."""
    if getattr(module, "disable_adapters", False) or getattr(module, "merged_adapters", ()):
        return []
    active = module.active_adapters
    return [active] if isinstance(active, str) else list(active)


def _adapter_tensors(path: str, module: Any) -> Iterator[tuple[str, Tensor]]:
    """The tensors of the acting adapters of one layer, without the adapters' names."""
    number = 0
    for adapter in _active(module):
        found: dict[str, Tensor] = {}
        for name, child in module.named_children():
            if _added(name) and isinstance(child, (nn.ModuleDict, nn.ParameterDict)):
                if adapter in child:
                    part = child[adapter]
                    parts = {"": part} if isinstance(part, Tensor) else part.state_dict()
                    found.update({f"{name}.{k}": v for k, v in parts.items()})
        if not _acts(found, module, adapter):
            continue
        scaling = dict(getattr(module, "scaling", {})).get(adapter, 1.0)
        found["scaling"] = torch.tensor(float(scaling))
        for name, tensor in found.items():
            yield f"{path} adapter {number} {name}", tensor
        number += 1


def _acts(found: Mapping[str, Tensor], module: Any, adapter: str) -> bool:
    """Whether an adapter can change outputs, as far as its kind is known."""
    magnitude = any(k.startswith("lora_magnitude") for k in found)
    for start in ("lora_B", "lora_embedding_A"):  # what LoRA starts from as zeros
        factors = [v for k, v in found.items() if k.startswith(start)]
        if factors and not magnitude and not any(bool(v.any()) for v in factors):
            return False
    tokens = found.get("trainable_tokens_delta.")
    if tokens is not None:
        return not torch.equal(tokens, module.trainable_tokens_original[adapter])
    return bool(found)


def _prompt_tensors(model: Any) -> Iterator[tuple[str, Tensor]]:
    """The learnt prompt of an outer PeftModel (prompt tuning and its kind)."""
    active = getattr(model, "active_adapter", None)
    config = getattr(model, "peft_config", {}).get(active) if isinstance(active, str) else None
    if config is not None and getattr(config, "is_prompt_learning", False):
        for name, tensor in model.prompt_encoder[active].state_dict().items():
            yield f"prompt {name}", tensor


# -- configuration, processing, tokenizer ---------------------------------------------------------


def configuration(model: Any) -> Any:
    """What of a model's configuration its outputs depend on."""
    config = model.config
    try:
        data = config.to_diff_dict()
    except Exception:  # the class of a third party cannot be made without arguments
        data = config.to_dict()
    return _plain(data, _SILENT)


def processing(processor: Any) -> Any:
    """How images become inputs of the model, and how they are marked in a text."""
    images = getattr(processor, "image_processor", None)
    own = {k: v for k, v in vars(processor).items() if k != "image_processor"}
    tokens = processor if hasattr(processor, "get_vocab") else None
    return {
        "images": _plain(images.to_dict(), _SILENT_PROCESSING) if images is not None else None,
        "text": None if tokens is not None else _plain(own, _SILENT_PROCESSING),
    }


def tokens(tokenizer: Any, template: str | None) -> Any:
    """What texts become: vocabulary, the ids of a sample text, end tokens, chat template."""
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: (item[1], item[0]))
    return {
        "vocabulary": digest([list(v) for v in vocabulary]),
        "sample": [int(i) for i in tokenizer(_SAMPLE)["input_ids"]],
        "end": tokenizer.eos_token_id,
        "template": template,
    }


def _plain(value: Any, without: tuple[str, ...]) -> Any:
    """JSON-ready, without silent, private and empty fields."""
    if isinstance(value, Mapping):
        items = {str(k): _plain(v, without) for k, v in value.items() if k not in without}
        return {k: v for k, v in items.items() if v is not None and not k.startswith("_")}
    if isinstance(value, (list, tuple)):
        return [_plain(v, without) for v in value]
    if isinstance(value, float):
        return repr(value)
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, int):
        return int(value)  # an enumeration is read back as its number
    if hasattr(value, "to_dict"):
        return _plain(value.to_dict(), without)
    return str(value) if isinstance(value, AddedToken) else None


# -- whether something was changed ----------------------------------------------------------------


class Watch:
    """Sees in less than a millisecond whether a model is as it was when the watch was made.

    Every tensor's identity, version counter and address are compared, which shows all changes but
    those through `.data`. Therefore values are compared too: all of a small model, some of every
    tensor of a large one.
    """

    def __init__(self, model: Any, processor: Any, tokenizer: Any) -> None:
        self.model, self.processor, self.tokenizer = model, processor, tokenizer
        self.tensors: list[Tensor] = []
        self.weights = self._weights()
        self.values = self._values()
        self.tensors = []  # a tensor that is replaced must not stay in memory
        self.texts = self._texts()

    def weights_moved(self) -> bool:
        if self.weights != self._weights():
            return True
        now = self._values()
        self.tensors = []
        return any(not torch.equal(a, b) for a, b in zip(now, self.values, strict=True))

    def texts_moved(self) -> bool:
        return self.texts != self._texts()

    def _weights(self) -> list[Any]:
        """Who the modules and tensors are. Written for speed: it runs for every patch."""
        seen: list[Any] = []
        self.tensors = []
        stack: list[Any] = [core(self.model)]
        while stack:
            module = stack.pop()
            seen.append(id(module))
            stack.extend(m for m in module._modules.values() if m is not None)
            silent = module._non_persistent_buffers_set
            for key, t in (*module._parameters.items(), *module._buffers.items()):
                if t is None or key in silent:
                    continue
                if t.is_meta:  # offloaded: a new tensor after each forward
                    t = _kept_in_memory(module, key)
                    if t is None:
                        seen.append(key)
                        continue
                seen += (id(t), -1 if t.is_inference() else t._version, t.data_ptr())
                self.tensors.append(t)
            if "base_layer" in module._modules or "original_module" in module._modules:
                seen += (_active(module), dict(getattr(module, "scaling", {})))
        return seen

    @torch.no_grad()
    def _values(self) -> list[Tensor]:
        """Some values of the weights, per device and dtype."""
        groups: dict[tuple[Any, ...], list[Tensor]] = {}
        numbers = [t.numel() for t in self.tensors]
        whole = sum(numbers) <= _ALL
        for t, n in zip(self.tensors, numbers, strict=True):
            if n:
                step = 1 if whole or n <= _SOME else n // _SOME
                dense = _in_order(t)
                part = dense.as_strided(((n - 1) // step + 1,), (step,))
                groups.setdefault((t.device, t.dtype), []).append(part)
        # as bytes: a NaN equals itself
        return [torch.cat(g).view(torch.uint8) for g in groups.values()]

    def _texts(self) -> list[Any]:
        tokenizer, processor = _present(self.processor, self.tokenizer), self.processor
        images = getattr(processor, "image_processor", None)
        return [
            _shallow(self.model.config),
            len(tokenizer),
            tokenizer.eos_token_id,
            tokenizer("A b\n1")["input_ids"],
            getattr(processor, "chat_template", None),
            getattr(tokenizer, "chat_template", None),
            _shallow(processor),
            _shallow(images) if images is not None else None,
        ]


def _present(processor: Any, tokenizer: Any) -> Any:
    """The tokenizer that a processor has now: it may have been replaced since it was wrapped."""
    return getattr(processor, "tokenizer", tokenizer)


def _in_order(tensor: Tensor) -> Tensor:
    """The values of a tensor, contiguous: a view if they lie together, in whatever order."""
    if tensor.is_contiguous():
        return tensor
    order = sorted(range(tensor.dim()), key=tensor.stride, reverse=True)
    return tensor.permute(order).contiguous()


def _shallow(value: Any, depth: int = 0) -> Any:
    """A comparable copy of the fields of a configuration or processor."""
    if isinstance(value, Mapping):
        return {k: _shallow(v, depth + 1) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_shallow(v, depth + 1) for v in value]
    if value is None or isinstance(value, (str, int, float)):
        return value
    if depth == 0 or hasattr(value, "to_diff_dict"):
        fields = {k: v for k, v in vars(value).items() if not k.startswith("_")}
        return {k: _shallow(v, depth + 1) for k, v in fields.items() if k not in _SILENT}
    return None


class ModelIdentity:
    """The fingerprint of a model in memory, computed again only when something was changed.

    stored: called with whether the weights are as they were loaded; gives the digest of the weights
    as they are stored, or None if those in memory are to be hashed (`_weights.Stored`).
    """

    def __init__(
        self, model: Any, processor: Any, tokenizer: Any, stored: Callable[[bool], str | None]
    ) -> None:
        self.model, self.processor, self.tokenizer = model, processor, tokenizer
        self.stored = stored
        self.watch = Watch(model, processor, tokenizer)
        self._as_loaded = True
        self._first = self._weights = self._value = ""

    def fingerprint(self) -> str:
        """sha256 over weights, configuration, processing and tokenizer."""
        weights_moved, texts_moved = self.watch.weights_moved(), self.watch.texts_moved()
        if self._value and not weights_moved and not texts_moved:
            return self._value
        self._as_loaded = self._as_loaded and not weights_moved
        if weights_moved or not self._weights:
            self._weights = self.stored(self._as_loaded) or weights_digest(self.model)
        self._value = digest(
            {
                "scheme": 2,
                "weights": self._weights,
                "config": configuration(self.model),
                "processing": processing(self.processor),
                "tokens": tokens(
                    _present(self.processor, self.tokenizer), chat_template(self.processor)
                ),
            }
        )
        if weights_moved or texts_moved:
            self.watch = Watch(self.model, self.processor, self.tokenizer)
        if not self._first:
            self._first = "changed" if weights_moved or texts_moved else self._value
        return self._value

    def as_loaded(self) -> bool:
        """Whether the model is still the one that was loaded or wrapped."""
        return self.fingerprint() == self._first

    def forget(self) -> None:
        """The next fingerprint is computed from all values in memory."""
        self._weights = self._value = ""
        self._as_loaded = False


def weights_digest(model: Any) -> str:
    """sha256 over the names and values of the weights in memory."""
    return digest(weights(model))
