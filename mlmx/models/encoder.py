"""The encoder: a Transformers model behind one call, packed batch in, one vector per token out."""

# S rows, T packed tokens, B x L the same tokens padded, D width

from __future__ import annotations

import inspect
import logging
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

from mlmx.data.batch import Batch
from mlmx.data.positions import longest_row, position_offset
from mlmx.data.vocabulary import Vocabulary
from mlmx.errors import user_error
from mlmx.models import attention, probe
from mlmx.models.attention import Direction
from mlmx.models.dropout import dropout_of, set_dropout
from mlmx.models.early_exit import Reached, leaving_at
from mlmx.models.flops import attention_flops, linear_flops, num_linear_weights, pair_flops
from mlmx.models.head import LanguageModelHead
from mlmx.models.packing import filled_up, sorted_by_length
from mlmx.models.quiet import quiet_transformers
from mlmx.models.sentence import SentenceModel

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)


class Encoder(nn.Module):
    """A Transformers model that reads packed batches.

    Attributes:
        base: the Transformers model without any head.
        head: its language-model head, or None.
        tokenizer: the tokenizer it belongs to.
        vocabulary: the tokenizer's numbers.
        hidden_size: width of an output vector.
        num_layers: layers of the model; ``hidden_states`` gives one more.
        max_length: longest row the model has positions for.
        sentence: what its folder says of how a text becomes a vector, where Sentence-Transformers wrote it; None elsewhere.
        padded_attention: the implementation of attention that Transformers chose, which serves for padded rows.
        packed: whether the model runs on packed tokens; otherwise on padded rows, with the same results.
        direction: which tokens a token sees where a call does not say it: whether the model is an encoder or a decoder.
    """

    head: LanguageModelHead | None

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Wrap a model.

        Args:
            model: a language model, whose head is kept apart, or a bare one.
            tokenizer: its tokenizer.
        """
        super().__init__()
        attention.register()
        self.base: PreTrainedModel = model.base_model
        self.head = None if model is self.base else LanguageModelHead(model)
        self.tokenizer = tokenizer
        self.vocabulary = Vocabulary.from_tokenizer(tokenizer)
        config = self.base.config
        if self.vocabulary.size > config.vocab_size:
            message = f"the tokenizer has {self.vocabulary.size} entries, the model only {config.vocab_size}."
            raise user_error("model", message)
        self.hidden_size: int = config.hidden_size
        self.num_layers: int = config.num_hidden_layers
        self._position_offset = position_offset(self.base)
        self.max_length = longest_row(self.base)
        self.sentence: SentenceModel | None = None
        self._token_multiple: int | None = None
        self._takes = set(inspect.signature(self.base.forward).parameters)
        # GPT-2 takes token types too, and adds for them the embeddings of words.
        self._has_token_types = any(name.endswith("token_type_embeddings") for name, _ in self.base.named_modules())
        self.padded_attention: str = config._attn_implementation
        self.packed, self.packing_problem = True, ""
        self.direction: Direction = "bidirectional"
        if self.base.device.type != "meta":
            self.direction = probe.own_direction(self)
            self.packing_problem = probe.try_packing(self)
        if not self.packed:
            log.warning("%s runs on padded rows: %s", config.model_type, self.packing_problem)

    def forward(
        self,
        batch: Batch,
        *,
        direction: Direction | None = None,
        keys: Tensor | None = None,
        selves: bool = False,
        embeddings: Tensor | None = None,
    ) -> Tensor:
        """Return the last layer's vectors, (T, D).

        Args:
            batch: the batch.
            direction: which tokens a token sees; None: as ``self.direction`` says.
            keys: (T,) bool, what tokens can be seen, of which every token must see one; None: all.
            selves: whether a token that is not among ``keys`` sees itself all the same.
            embeddings: (T, D) in place of the embeddings of ``input_ids``.
        """
        return self._run(batch, all_layers=False, direction=direction, keys=keys, selves=selves, embeddings=embeddings)[-1]

    def hidden_states(self, batch: Batch) -> list[Tensor]:
        """Return the vectors of every layer, ``num_layers + 1`` tensors (T, D); the first are the embeddings."""
        return self._run(batch, all_layers=True)

    def states_at(self, batch: Batch, layer: int) -> Tensor:
        """Return the vectors of one layer, (T, D); layers above it do not run.

        Args:
            batch: the batch.
            layer: an index into ``hidden_states``.
        """
        if layer == self.num_layers:
            return self(batch)  # type: ignore[no-any-return]
        if self.layers is None:
            return self.hidden_states(batch)[layer]

        # What a layer hands on is what the next one is given.
        with leaving_at(self.layers[layer]):
            return self._run(batch, all_layers=False)[0]

    @property
    def initializer_range(self) -> float:
        """Standard deviation of its initial weights, for what is added to it."""
        return float(getattr(self.base.config, "initializer_range", 0.02))

    @cached_property
    def layers(self) -> nn.ModuleList | None:
        """The model's layers, the first one next to the embeddings; None where its structure does not show them."""
        lists = {
            name: module
            for name, module in self.base.named_modules()
            if isinstance(module, nn.ModuleList) and len(module) == self.num_layers
        }
        outermost = [module for name, module in lists.items() if not any(name.startswith(f"{other}.") for other in lists)]
        return outermost[0] if len(outermost) == 1 else None

    def depths(self) -> dict[nn.Parameter, int]:
        """Return the depth of each parameter of ``base``.

        It is 0 for embeddings and all that comes before the layers, 1 for the first layer and so on, and ``num_layers + 1`` for
        what comes after the last.

        Raises:
            UserError: if the model's structure does not show its layers.
        """
        layer_of = {parameter: i for i, layer in enumerate(self._layers_shown(), start=1) for parameter in layer.parameters()}
        embeddings = {module.weight for module in self.base.modules() if isinstance(module, nn.Embedding)}
        depths = {}
        outside = 0
        for parameter in self.base.parameters():  # in the order of registration, which is that of the forward pass
            if parameter in layer_of:
                outside = self.num_layers + 1
            depths[parameter] = 0 if parameter in embeddings else layer_of.get(parameter, outside)
        return depths

    def num_positions(self, batch: Batch) -> int:
        """Return for how many positions the model computes: tokens, and what fills them up or pads them."""
        if not self.packed:
            return batch.num_rows * batch.max_seqlen
        return batch.num_tokens + (-batch.num_tokens % self._token_multiple if self._token_multiple is not None else 0)

    def flops(self, batch: Batch, *, direction: Direction | None = None, keys: Tensor | None = None) -> int:
        """Return the FLOPs of a forward and a backward pass, see ``mlmx.models.flops``; 0 where ``layers`` is None.

        Args:
            batch: the batch.
            direction: as for ``forward``.
            keys: as for ``forward``, where tokens see both ways.
        """
        if self.layers is None:
            return 0
        bounds = batch.tensors["cu_seqlens"].numpy().astype(np.int64)
        num_weights, windows = self._linear_weights_and_windows
        if keys is None:
            causal = (direction or self.direction) == "causal"
            attended = attention_flops(self.hidden_size, np.diff(bounds), windows, causal=causal)
        else:
            num_keys = np.diff(np.concatenate([[0], keys.numpy().cumsum()])[bounds])
            attended = pair_flops(self.hidden_size, self.num_layers * int((np.diff(bounds) * num_keys).sum()))
        return linear_flops(num_weights, batch.num_tokens) + attended

    @cached_property
    def _linear_weights_and_windows(self) -> tuple[int, list[int | None]]:
        # A pooler, where a model has one, sees one token of many, and nothing here reads what it makes.
        assert self.layers is not None
        windows = [
            next((vars(part)["sliding_window"] for part in layer.modules() if "sliding_window" in vars(part)), None)
            for layer in self.layers
        ]
        return num_linear_weights(self.base, without="pooler"), windows

    def drop_head(self) -> None:
        """Drop the language-model head; embeddings it is tied to stay."""
        self.head = None

    def add_head(self) -> None:
        """Add a fresh language-model head if there is none, drawn from torch's global generator, tied as the config says.

        A decoder's is the one that Transformers predicts next tokens with; it serves for masked ones as well.
        """
        if self.head is None:
            try:
                model = language_model_class(self.base.config).from_config(self.base.config)
            except ValueError as error:
                raise user_error("model", f"Transformers has no language-model head for it: {error}") from error
            setattr(model, model.base_model_prefix, self.base)
            model.tie_weights()
            parameter = next(self.base.parameters())
            self.head = LanguageModelHead(model).to(parameter.device, parameter.dtype)

    def direct(self, direction: Direction) -> None:
        """Make a direction the encoder's own: where a call says none, and in plain Transformers when its folder is loaded there.

        Raises:
            UserError: if the model's config has no way to say it.
        """
        configs = [self.base.config] if self.head is None else [self.base.config, self.head.model.config]
        for config in configs:
            # Transformers turns encoders around by the one and decoders by the other, and ignores what it does not know.
            setattr(config, "is_decoder" if hasattr(config, "is_decoder") else "is_causal", direction == "causal")
        self.direction = direction
        if self.base.device.type != "meta" and probe.own_direction(self) != direction:
            message = f"Transformers has no {direction} {self.base.config.model_type!r}, so that an exported one would be none."
            raise user_error("model.attention", message)

    def require(self, direction: Direction | None = None, *, keys: bool = False) -> None:
        """Check that calls with a direction, or with some tokens as keys only, do what they say.

        Raises:
            UserError: if the model ignores it. That may be where it runs on padded rows.
        """
        if self.packed or self.base.device.type == "meta":
            return
        if not probe.obeys(self, direction or self.direction, keys=keys):
            what = f"{direction or self.direction} attention" + (" to some tokens only" if keys else "")
            raise user_error("model", f"{self.base.config.model_type!r}, which runs on padded rows, ignores {what}.")

    def save(self, folder: Path) -> None:
        """Write a Hugging Face folder that ``AutoModel`` loads, and the class of its head (``AutoModelForMaskedLM``, ...) if any.

        A folder of Sentence-Transformers becomes one again, unless it had modules that mlmx does not have.
        """
        folder.mkdir(parents=True, exist_ok=True)
        with quiet_transformers():
            if self.head is None:
                self.base.save_pretrained(folder)
            else:
                self.head.save(folder, self.base)
        self.tokenizer.save_pretrained(folder)
        if self.sentence is not None and not self.sentence.other_modules:
            self.sentence.write(folder, self.hidden_size)

    def set_dropout(self, probability: float) -> None:
        """Set every dropout of the model."""
        set_dropout(self, probability)

    def compile_layers(self, *, token_multiple: int, backend: str = "inductor") -> None:
        """Compile each layer by itself, in place: layers of one kind share their code, and parameters keep their names.

        Compiled code is made anew for each size of its input, so batches are filled up to sizes of which there are few. The filling
        is never part of what the encoder returns. Call it before ``checkpoint_layers``.

        Args:
            token_multiple: batches are filled up to a multiple of this number of tokens: that of full micro-batches.
            backend: what ``torch.compile`` calls so.

        Raises:
            UserError: if the model cannot be packed, or its structure does not show its layers.
        """
        if not self.packed:
            message = f"{self.base.config.model_type!r} runs on padded rows, whose sizes vary too much for compiled code."
            raise user_error("model", message)
        for layer in self._layers_shown():
            assert "forward" not in vars(layer), "layers are compiled once, and before they are checkpointed"
            layer.forward = torch.compile(layer.forward, dynamic=False, backend=backend)
        self._token_multiple = token_multiple

    def checkpoint_layers(self) -> None:
        """Keep only the inputs of layers for the backward pass, and run each layer again in it: less memory, more arithmetic.

        Loss and gradient stay the same to the bit; dropout is drawn the same the second time.

        Raises:
            UserError: if the model's structure does not show its layers.
        """
        # Around the forward of each layer, not around its call: what FSDP does before and after a layer stays outside, as does
        # compiled code inside.
        for layer in self._layers_shown():
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)

    def _layers_shown(self) -> nn.ModuleList:
        if self.layers is None:
            message = f"the layers of {self.base.config.model_type!r} cannot be told: it has no single list of {self.num_layers}."
            raise user_error("model", message)
        return self.layers

    def _run(
        self,
        batch: Batch,
        *,
        all_layers: bool,
        direction: Direction | None = None,
        keys: Tensor | None = None,
        selves: bool = False,
        embeddings: Tensor | None = None,
    ) -> list[Tensor]:
        inputs = {name: batch.tensors[name] for name in _INPUTS}
        inputs |= {name: given for name, given in (("keys", keys), ("inputs_embeds", embeddings)) if given is not None}
        seen: dict[str, Any] = {"causal": (direction or self.direction) == "causal", "selves": selves}
        return (self._run_packed if self.packed else self._run_padded)(batch, inputs, seen, all_layers)

    def _run_packed(self, batch: Batch, inputs: dict[str, Tensor], seen: dict[str, Any], all_layers: bool) -> list[Tensor]:
        num_tokens = batch.num_tokens
        if self._token_multiple is not None:
            batch = filled_up(batch, self._token_multiple, self.vocabulary.pad_id)
            # Ones: what fills up the tokens may be seen, by itself.
            inputs = {
                name: torch.cat([tensor, tensor.new_ones(batch.num_tokens - num_tokens, *tensor.shape[1:])])
                for name, tensor in inputs.items()
            } | {name: batch.tensors[name] for name in _INPUTS}
        cu_seqlens, order = batch.tensors["cu_seqlens"], None
        if "keys" not in inputs and self._kernel_serves(batch):
            where: dict[str, Any] = {"cu_seqlens": cu_seqlens, "max_seqlen": batch.max_seqlen}
        else:
            # Sorted by length, rows of one length are neighbours, and attention needs neither padding nor copies.
            order, cu_seqlens = sorted_by_length(cu_seqlens, batch.num_tokens)
            where = {"runs": attention.Runs(cu_seqlens)}
            if order is not None:
                inputs = {name: tensor[order] for name, tensor in inputs.items()}
        keys = inputs.pop("keys", None)
        rows = {name: tensor[None] for name, tensor in inputs.items()}
        states = self._call(rows, all_layers, keys=keys, **seen, **where)
        if order is not None:
            back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
            return [state[0][back[:num_tokens]] for state in states]
        return [state[0] if len(state[0]) == num_tokens else state[0][:num_tokens] for state in states]

    def _run_padded(self, batch: Batch, inputs: dict[str, Tensor], seen: dict[str, Any], all_layers: bool) -> list[Tensor]:
        lengths = batch.tensors["cu_seqlens"].long().diff()
        tokens = torch.arange(int(lengths.max()), device=lengths.device) < lengths[:, None]
        rows = {}
        for name, tensor in inputs.items():
            fill = self.vocabulary.pad_id if name == "input_ids" else 0
            rows[name] = torch.full((*tokens.shape, *tensor.shape[1:]), fill, dtype=tensor.dtype, device=tokens.device)
            rows[name][tokens] = tensor
        keys = rows.pop("keys", None)
        if seen["causal"] == (self.direction == "causal") and keys is None:
            mask = tokens.long()
        else:
            mask = attention.padded_mask(tokens, self.base.dtype, keys=keys, **seen)
        return [state[tokens] for state in self._call(rows, all_layers, attention_mask=mask)]

    def _call(self, inputs: dict[str, Tensor], all_layers: bool, **extra: Any) -> list[Tensor]:
        input_ids = inputs["input_ids"]
        if "position_ids" in self._takes:
            extra["position_ids"] = inputs["position_ids"] + self._position_offset
        if self._has_token_types:
            # Said explicitly, since the model's own buffer of zeros is only as long as its longest row.
            extra["token_type_ids"] = torch.zeros_like(input_ids)
        if "use_cache" in self._takes:
            extra["use_cache"] = False
        given = "inputs_embeds" if "inputs_embeds" in inputs else "input_ids"
        extra[given] = inputs[given]
        try:
            output = self.base(output_hidden_states=all_layers, return_dict=True, **extra)
        except Reached as reached:
            return [reached.states]
        return list(output.hidden_states) if all_layers else [output.last_hidden_state]

    def _kernel_serves(self, batch: Batch) -> bool:
        device = batch.tensors["input_ids"].device
        dtype = self.base.dtype
        if torch.is_autocast_enabled(device.type):
            dtype = torch.get_autocast_dtype(device.type)
        return attention.uses_kernel(device, dtype, dropout_of(self.base) if self.training else 0.0)


def language_model_class(config: PreTrainedConfig) -> Any:
    """Return the Auto class that gives a model its language-model head: the masked one where the family has one."""
    only_causal = type(config) in AutoModelForCausalLM._model_mapping and type(config) not in AutoModelForMaskedLM._model_mapping
    return AutoModelForCausalLM if only_causal else AutoModelForMaskedLM


_INPUTS = ("input_ids", "position_ids")
