"""What would become what: the fate and the cost of every operator, told before anything is converted."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pmsm import graph
from pmsm.graph import Network, Node
from pmsm.methods import PMSM
from pmsm.methods.base import Method, Quantizer, Start
from pmsm.qann.quantize import moves_codes, quantize
from pmsm.snn.convert import RULES, refusal, refuse_unmatched, rule_for, spelled
from pmsm.snn.temporal import Rule
from pmsm.study.macs import count_macs

if TYPE_CHECKING:
    from rich.table import Table

COLUMNS = ("operator", "kind", "shape", "fate", "why", "parameters", "MACs", "spikes")
NUMBERS = ("parameters", "MACs")  # columns set flush right


@dataclass(frozen=True)
class Row:
    """One operator of the quantized network, in the order of execution.

    Args:
        name: where it is called; kind: module type, function or method; for a site, the method.
        shape: of its result, without the batch.
        fate: "site"; "folded", a BatchNorm that `convert(fold=True)` folds away; "passes", only moves values;
            "linear", runs at every step; "analog", the same, but multiplies values that are no codes;
            "static map", runs on the mean of its inputs so far; "replaced", by what its rule makes;
            "unsupported".
        split: of a site: the codes below and above zero, or how they will be chosen.
        why: the reason for the fate, and for an unsupported operator the way on.
        parameters: float parameters; one that several operators read counts at the first.
        macs: multiply-accumulates per sample, see `count_macs`; None where unknown.
        spiking: whether all of its signals arrive as codes, as such or averaged; None without MACs.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    fate: str
    split: str
    why: str
    parameters: int
    macs: int | None
    spiking: bool | None


@dataclass(frozen=True)
class Totals:
    """Sums; `uncounted` operators have unknown MACs, `spiking_share`, 0 to 1, is of the known."""

    operators: int
    sites: int
    parameters: int
    macs: int
    uncounted: int
    spiking_share: float
    unsupported: int


@dataclass(frozen=True)
class Explanation:
    """What `explain` found; printed, it is a plain table with the sums below."""

    network: str
    method: str
    rows: tuple[Row, ...]

    @property
    def totals(self) -> Totals:
        """Sums over the rows."""
        macs = sum(row.macs or 0 for row in self.rows)
        return Totals(
            operators=len(self.rows),
            sites=sum(row.fate == "site" for row in self.rows),
            parameters=sum(row.parameters for row in self.rows),
            macs=macs,
            uncounted=sum(row.macs is None for row in self.rows),
            spiking_share=sum(row.macs or 0 for row in self.rows if row.spiking) / max(macs, 1),
            unsupported=sum(row.fate == "unsupported" for row in self.rows),
        )

    @property
    def supported(self) -> bool:
        """Whether `convert` will find a rule for every operator."""
        return not self.totals.unsupported

    def summary(self) -> str:
        """The sums, in one sentence, and whether the network converts."""
        totals = self.totals
        unknown = f" (without {totals.uncounted} of unknown cost)" if totals.uncounted else ""
        verdict = "Everything converts." if self.supported else f"{totals.unsupported} unsupported."
        return (
            f"{self.network} with {self.method}: {totals.operators} operators, {totals.sites} of them sites; "
            f"{totals.parameters:,} parameters; {totals.macs:,} MACs per sample{unknown}, "
            f"{totals.spiking_share:.1%} of them on spikes. {verdict}"
        )

    def table(self) -> "Table":
        """The rows as a table for a rich console."""
        from rich.table import Table
        from rich.text import Text

        table = Table()
        for column in COLUMNS:
            table.add_column(column, justify="right" if column in NUMBERS else "left", overflow="fold")
        for row in self.rows:
            style = "bold red" if row.fate == "unsupported" else ""
            table.add_row(*(Text(cell, style) for cell in _cells(row)))
        return table

    def as_dict(self) -> dict[str, Any]:
        """Everything, in types that JSON knows."""
        return asdict(self) | {"totals": asdict(self.totals), "supported": self.supported}

    def as_json(self) -> str:
        """`as_dict` as text."""
        return json.dumps(self.as_dict(), indent=2)

    def __str__(self) -> str:
        columns = []
        for title, *cells in zip(COLUMNS, *map(_cells, self.rows), strict=True):
            width = max(map(len, (title, *cells)))
            columns.append([f"{cell:{'>' if title in NUMBERS else '<'}{width}}" for cell in (title, *cells)])
        lines = ["  ".join(line).rstrip() for line in zip(*columns, strict=True)]
        return "\n".join([*lines, "", self.summary()])


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.name,
        row.kind,
        "x".join(map(str, row.shape)),
        row.fate,
        f"{row.split}; {row.why}" if row.split else row.why,
        f"{row.parameters:,}" if row.parameters else "",
        "unknown" if row.macs is None else f"{row.macs:,}" if row.macs else "",
        {None: "", True: "yes", False: "no"}[row.spiking],
    )


def explain(
    ann: nn.Module,
    example: Any,
    method: Method = PMSM(),  # noqa: B008 -- a method is frozen
    *,
    overrides: Mapping[str, Method] | None = None,
    skip: Iterable[str] = (),
    leaves: Iterable[type[nn.Module]] = (),
    rules: Mapping[Any, Any] = RULES,
    skip_operators: Iterable[str] = (),
) -> Explanation:
    """What would become of each operator of a float network, and what it costs; nothing is changed.

    Args:
        ann, example, method, overrides, skip, leaves: as for `quantize`; the example's values do not matter.
        rules: as for `convert`, whose mode, burst and fold change no fate; skip_operators: its `skip`.

    Raises:
        TraceError, QuantizationError: as `quantize`; what `convert` would refuse is a row instead.
        ConversionError: a pattern of `skip_operators` matches no operator.
    """
    qann = quantize(ann, method, example, overrides=overrides, skip=skip, leaves=leaves)
    rows = tuple(_Walk(qann, rules, tuple(skip_operators)).rows())
    refuse_unmatched(skip_operators, [row.name for row in rows])
    return Explanation(type(ann).__name__, repr(method), rows)


class _Walk:
    """What is known of the operators so far, on the way through a quantized network from input to output."""

    def __init__(self, qann: Network, rules: Mapping[Any, Any], skip: tuple[str, ...]):
        self.qann, self.rules, self.skip = qann, rules, skip
        self.signals = graph.signals(qann)
        self.folded = _folded(qann)
        self.named = dict(qann.named_parameters(remove_duplicate=False))
        self.batch = next(graph.shape_of(n)[0] for n in qann.graph.nodes if graph.shape_of(n))
        self.spiking: set[Node] = set()  # nodes whose values are codes, or averages of codes
        self.constants: dict[Node, list[nn.Parameter]] = {}  # what a node that is no signal is made of
        self.counted: set[nn.Parameter] = set()

    def rows(self) -> Iterator[Row]:
        """A row for every operator that carries data of the sample."""
        for node in self.qann.graph.nodes:
            if node not in self.signals:
                self.constants[node] = self._parameters(node)
            elif node.op not in ("placeholder", "output"):
                yield self._row(node)

    def _row(self, node: Node) -> Row:
        macs = count_macs(self.qann, node)
        macs = None if macs is None else macs // self.batch
        on_codes = self.signals.intersection(node.all_input_nodes) <= self.spiking
        fate, why = self._fate(node, bool(macs), on_codes)
        is_site = fate == "site"
        if is_site or (on_codes and (moves_codes(self.qann, node) or self._averages(node))):
            self.spiking.add(node)
        parameters = set(self._parameters(node)) - self.counted
        self.counted |= parameters
        return Row(
            name=graph.operator_name(self.qann, node),
            kind=self._kind(node).removesuffix("Quantizer") if is_site else self._kind(node),
            shape=_per_sample(graph.shape_of(node), self.batch),
            fate=fate,
            split=_split(graph.module_of(self.qann, node)) if is_site else "",
            why=why,
            parameters=0 if is_site else sum(p.numel() for p in parameters),
            macs=macs,
            spiking=on_codes if macs else None,
        )

    def _fate(self, node: Node, has_macs: bool, on_codes: bool) -> tuple[str, str]:
        """Fate and reason, by the predicates of `convert`."""
        name, rule = graph.operator_name(self.qann, node), rule_for(self.qann, node, self.signals, self.rules)
        if graph.is_module(self.qann, node, (Quantizer,)):
            return "site", self._stands(node)
        skipped = any(fnmatchcase(name, pattern) for pattern in self.skip)
        if not skipped and (reason := refusal(self.qann, node)):
            return "unsupported", reason
        if rule is None and skipped:
            return "static map", "without a rule, on request: runs on the mean of its inputs"
        if rule is None:
            key = spelled(graph.kind_of(self.qann, node))
            return "unsupported", f"no rule: rules=RULES | {{{key}: Rule.STATIC}}, or skip=[{name!r}]"
        if node in self.folded:
            return "folded", f"on request into {graph.operator_name(self.qann, node.all_input_nodes[0])}"
        if not isinstance(rule, Rule):
            return "replaced", "by what its rule makes of it"
        if rule is Rule.STATIC:
            return "static map", "not linear: runs on the mean of its inputs"
        if moves_codes(self.qann, node):
            return "passes", "only moves values"
        if has_macs and not on_codes:
            return "analog", "reads values that are no codes: MACs, no spikes"
        return "linear", "runs at every step"

    def _stands(self, node: Node) -> str:
        """What a site has taken the place of, or stands behind."""
        source = node.all_input_nodes[0]
        if graph.module_of(self.qann, node).site.rectified:  # pyright: ignore[reportAttributeAccessIssue]
            behind_pool = graph.is_module(self.qann, source, graph.MAXPOOLS)
            return "replaces ReLU" + (f", behind {self._kind(source)}" if behind_pool else "")
        while moves_codes(self.qann, source) and len(read := self.signals & {*source.all_input_nodes}) == 1:
            source = read.pop()
        return f"behind {self._kind(source)}"

    def _averages(self, node: Node) -> bool:
        is_mean = node.op in ("call_function", "call_method") and node.target in graph.MEAN_CALLS
        return is_mean or graph.is_module(self.qann, node, graph.AVGPOOLS)

    def _kind(self, node: Node) -> str:
        kind = graph.kind_of(self.qann, node)
        return getattr(kind, "__name__", str(kind))

    def _parameters(self, node: Node) -> list[nn.Parameter]:
        """The parameters of a call, and of the constants that it reads."""
        found = [p for n in node.all_input_nodes for p in self.constants.get(n, [])]
        if node.op == "call_module":
            found += graph.module_of(self.qann, node).parameters()
        elif node.op == "get_attr":
            found += [self.named[str(node.target)]] if node.target in self.named else []
        return found


def _folded(qann: Network) -> set[Node]:
    """The BatchNorms that `fold_batchnorm` takes away."""
    norms = [node for node in qann.graph.nodes if graph.is_module(qann, node, graph.BATCHNORMS)]
    left = {node.name for node in graph.fold_batchnorm(qann).graph.nodes} if norms else set()
    return {node for node in norms if node.name not in left}


def _split(quantizer: Any) -> str:
    """The codes that calibration may choose from; leaves the quantizer with a start that means nothing."""
    offered: list[tuple[int, int]] = []

    def choose(splits: list[tuple[int, int]]) -> Start:
        offered.extend(splits)
        return Start(torch.ones(()), *splits[0])

    quantizer.calibrate(choose)
    bounds = f"{quantizer.quant_min}..{quantizer.quant_max}"
    alone = f"signed {bounds}" if quantizer.quant_min else f"rectified {bounds}"
    return alone if len(offered) < 2 else "signed, chosen at calibration"


def _per_sample(shape: tuple[int, ...], batch: int) -> tuple[int, ...]:
    """Without the batch, wherever it stands; where it is joined with another dimension, divided by it."""
    if batch in shape:
        return shape[: shape.index(batch)] + shape[shape.index(batch) + 1 :]
    return (shape[0] // batch, *shape[1:]) if shape else ()
