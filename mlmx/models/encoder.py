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
from transformers import AutoModelForMaskedLM

from mlmx.data.batch import Batch
from mlmx.data.positions import longest_row, position_offset
from mlmx.data.vocabulary import Vocabulary
from mlmx.errors import user_error
from mlmx.models import attention
from mlmx.models.dropout import dropout_of, set_dropout
from mlmx.models.flops import attention_flops, linear_flops, num_linear_weights
from mlmx.models.head import LanguageModelHead
from mlmx.models.packing import filled_up, sorted_by_length
from mlmx.models.quiet import quiet_transformers
from mlmx.models.sentence import SentenceModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)

# Between padded and packed float32 outputs: rounding is below 1e-5, and rows that see each other differ by more than 1e-3 even at
# initialisation.
_PROBE_TOLERANCE = 1e-4


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
        packed: whether the model runs on packed tokens; otherwise on padded rows, with the same results.
    """

    head: LanguageModelHead | None

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Wrap a model.

        Args:
            model: a masked language model, whose head is kept apart, or a bare one.
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
        self.packed, self.packing_problem = self._probe()
        if not self.packed:
            log.warning("%s runs on padded rows: %s", config.model_type, self.packing_problem)

    def forward(self, batch: Batch) -> Tensor:
        """Return the last layer's vectors, (T, D)."""
        return self._run(batch, all_layers=False)[-1]

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

        def leave(_: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
            raise _Reached(args[0] if args else kwargs["hidden_states"])

        # What a layer hands on is what the next one is given.
        hook = self.layers[layer].register_forward_pre_hook(leave, with_kwargs=True)
        try:
            return self._run(batch, all_layers=False)[0]
        finally:
            hook.remove()

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

    def flops(self, batch: Batch) -> int:
        """Return the FLOPs of a forward and a backward pass, see ``mlmx.models.flops``; 0 where ``layers`` is None."""
        if self.layers is None:
            return 0
        lengths = np.diff(batch.tensors["cu_seqlens"].numpy()).astype(np.int64)
        num_weights, windows = self._linear_weights_and_windows
        return linear_flops(num_weights, batch.num_tokens) + attention_flops(self.hidden_size, lengths, windows)

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
        """Add a fresh language-model head if there is none, drawn from torch's global generator, tied as the config says."""
        if self.head is None:
            try:
                model = AutoModelForMaskedLM.from_config(self.base.config)
            except ValueError as error:
                raise user_error("model", f"Transformers has no language-model head for it: {error}") from error
            setattr(model, model.base_model_prefix, self.base)
            model.tie_weights()
            parameter = next(self.base.parameters())
            self.head = LanguageModelHead(model).to(parameter.device, parameter.dtype)

    def save(self, folder: Path) -> None:
        """Write a Hugging Face folder that ``AutoModel`` loads, and ``AutoModelForMaskedLM`` where there is a head.

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

    def _run(self, batch: Batch, *, all_layers: bool) -> list[Tensor]:
        return self._run_packed(batch, all_layers) if self.packed else self._run_padded(batch, all_layers)

    def _run_packed(self, batch: Batch, all_layers: bool) -> list[Tensor]:
        num_tokens = batch.num_tokens
        if self._token_multiple is not None:
            batch = filled_up(batch, self._token_multiple, self.vocabulary.pad_id)
        inputs = {name: batch.tensors[name] for name in _INPUTS}
        cu_seqlens, order = batch.tensors["cu_seqlens"], None
        if self._kernel_serves(batch):
            where: dict[str, Any] = {"cu_seqlens": cu_seqlens, "max_seqlen": batch.max_seqlen}
        else:
            # Sorted by length, rows of one length are neighbours, and attention needs neither padding nor copies.
            order, cu_seqlens = sorted_by_length(cu_seqlens, batch.num_tokens)
            where = {"runs": attention.Runs(cu_seqlens)}
            if order is not None:
                inputs = {name: tensor[order] for name, tensor in inputs.items()}
        states = self._call({name: tensor[None] for name, tensor in inputs.items()}, all_layers, **where)
        if order is not None:
            back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
            return [state[0][back[:num_tokens]] for state in states]
        return [state[0] if len(state[0]) == num_tokens else state[0][:num_tokens] for state in states]

    def _run_padded(self, batch: Batch, all_layers: bool) -> list[Tensor]:
        cu_seqlens = batch.tensors["cu_seqlens"].long()
        lengths = cu_seqlens.diff()
        mask = torch.arange(int(lengths.max()), device=lengths.device) < lengths[:, None]
        fill = {"input_ids": self.vocabulary.pad_id, "position_ids": 0}
        inputs = {}
        for name in _INPUTS:
            padded = torch.full(mask.shape, fill[name], device=mask.device)
            inputs[name] = padded.masked_scatter(mask, batch.tensors[name])
        states = self._call(inputs, all_layers, attention_mask=mask.long())
        return [state[mask] for state in states]

    def _call(self, inputs: dict[str, Tensor], all_layers: bool, **extra: Any) -> list[Tensor]:
        input_ids = inputs["input_ids"]
        if "position_ids" in self._takes:
            extra["position_ids"] = inputs["position_ids"] + self._position_offset
        if self._has_token_types:
            # Said explicitly, since the model's own buffer of zeros is only as long as its longest row.
            extra["token_type_ids"] = torch.zeros_like(input_ids)
        if "use_cache" in self._takes:
            extra["use_cache"] = False
        try:
            output = self.base(input_ids=input_ids, output_hidden_states=all_layers, return_dict=True, **extra)
        except _Reached as reached:
            return [reached.states]
        return list(output.hidden_states) if all_layers else [output.last_hidden_state]

    def _kernel_serves(self, batch: Batch) -> bool:
        device = batch.tensors["input_ids"].device
        dtype = self.base.dtype
        if torch.is_autocast_enabled(device.type):
            dtype = torch.get_autocast_dtype(device.type)
        return attention.uses_kernel(device, dtype, dropout_of(self.base) if self.training else 0.0)

    @torch.no_grad()
    def _probe(self) -> tuple[bool, str]:
        # Whether the model obeys the attention registry is tried, not looked up: some ignore it without an error.
        if self.base.device.type == "meta":
            return True, ""
        training = self.training
        self.eval()
        batch = self._probe_batch().to(self.base.device)
        own_implementation = self.base.config._attn_implementation
        problem = ""
        try:
            padded = self._run_padded(batch, False)[-1]
            with quiet_transformers():
                self.base.set_attn_implementation(attention.PACKED)
            packed = self._run_packed(batch, False)[-1]
            error = float((padded - packed).abs().max() / padded.abs().max().clamp(min=1))
            if not error <= _PROBE_TOLERANCE:
                problem = f"its attention lets packed rows see each other (outputs differ by {error:.1g})."
        except (TypeError, ValueError, RuntimeError, IndexError, AttributeError) as failure:
            problem = f"it cannot be called on packed rows ({type(failure).__name__}: {failure})."
        if problem:
            self.base.set_attn_implementation(own_implementation)
        self.train(training)
        return not problem, problem

    def _probe_batch(self) -> Batch:
        # Several lengths, one beyond the reach of a local window on both sides, so that windows are tried too.
        window = getattr(self.base.config, "sliding_window", None) or 0
        longest = min(self.max_length, max(24, 2 * window + 8))
        lengths = torch.tensor([7, longest, 3, 7, 12]).clamp(max=longest)
        generator = torch.Generator().manual_seed(0)
        return Batch(
            tensors={
                "input_ids": torch.randint(self.vocabulary.size, (int(lengths.sum()),), generator=generator),
                "position_ids": torch.cat([torch.arange(n) for n in lengths.tolist()]),
                "cu_seqlens": torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]).int(),
            },
            counts={},
            keys=torch.zeros(len(lengths), dtype=torch.int64),
            max_seqlen=longest,
        )


class _Reached(Exception):  # noqa: N818 - no error: what was asked for is there, and the rest need not run
    """Leaves a model in the middle, with the vectors that stand there."""

    def __init__(self, states: Tensor) -> None:
        super().__init__()
        self.states = states


_INPUTS = ("input_ids", "position_ids")
