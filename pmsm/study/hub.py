"""Networks on the Hugging Face Hub: a folder with the checkpoint and a model card, fetched and loaded like
any file of a stranger.

huggingface_hub (extra `hub`) does the talking; `ModelHubMixin` has the methods, and their options.
"""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from pmsm.errors import import_extra
from pmsm.files import write_atomic
from pmsm.graph import Network
from pmsm.snn.checkpoint import load, save
from pmsm.study.energy.measurement import Measurement
from pmsm.study.show import KINDS, show, told

FILE = "network.safetensors"
TAGS = ("pmsm", "spiking-neural-network", "quantization")

Rows = Sequence[Mapping[str, object]]


def save_pretrained(
    net: Network,
    folder: str | Path,
    *,
    measured: Rows = (),
    energy: Measurement | None = None,
    **options: Any,
) -> None:
    """Write `net` and a model card into a folder, as it would lie on the Hub.

    Args:
        net: from `quantize` or `convert`.
        measured: rows of the card's table, such as {"T": 1, "accuracy (%)": 99.7}; the first names the
            columns.
        energy: from `pmsm.measure`, told below the table.
        options: of `ModelHubMixin.save_pretrained`.

    Raises:
        CheckpointError: what `pmsm.save` refuses.
        MissingExtraError: huggingface_hub is not installed.
    """
    _with(net, measured, energy).save_pretrained(folder, **options)


def push_to_hub(
    net: Network, repo_id: str, *, measured: Rows = (), energy: Measurement | None = None, **options: Any
) -> str:
    """Upload `net` and its model card; the address of the commit.

    Args:
        repo_id: "user/name"; made if it is not there.
        measured, energy: see `save_pretrained`.
        options: of `ModelHubMixin.push_to_hub`: private, token, branch, commit_message, ...

    Raises:
        CheckpointError, MissingExtraError: see `save_pretrained`; what the Hub refuses is huggingface_hub's
            own error.
    """
    return _with(net, measured, energy).push_to_hub(repo_id, **options)


def from_pretrained(name: str | Path, **options: Any) -> Network:
    """The network in a folder, or in a repository of the Hub.

    Args:
        name: a folder that `save_pretrained` wrote, or "user/name".
        options: of `ModelHubMixin.from_pretrained`: revision, token, cache_dir, local_files_only, ...

    Raises:
        CheckpointError: what `pmsm.load` refuses.
        MissingExtraError: huggingface_hub is not installed.
    """
    return _shared().from_pretrained(name, **options).network


def card(net: Network, path: str | Path, measured: Rows = (), energy: Measurement | None = None) -> str:
    """The model card of a saved network: Markdown below the metadata of the Hub."""
    found = show(path)
    spiking = "mode" in net.meta
    use = "run = pmsm.simulate(net, x, timesteps=1)" if spiking else "snn = pmsm.convert(net)"
    parts = [
        "---\nlibrary_name: pmsm\ntags:\n" + "".join(f"- {tag}\n" for tag in TAGS) + "---",
        f"# {found['name']}",
        f"A {KINDS[found['kind']]}, written by pmsm {found['versions'].get('pmsm', '')}.",
        "```python\nfrom pmsm.study.hub import from_pretrained\n\n"
        f'net = from_pretrained("user/name")  # no other code is needed, none is executed\n{use}\n```',
    ]
    if measured:
        parts += ["## Measured", table(measured)]
    if energy is not None:
        parts += ["## Energy", f"```\n{energy}\n```"]
    return "\n\n".join([*parts, "## What the file holds", f"```\n{told(found)}\n```"]) + "\n"


def table(rows: Rows) -> str:
    """Rows as a table in Markdown.

    >>> print(table([{"T": 1, "accuracy (%)": 99.7}]))
    | T | accuracy (%) |
    |---|---|
    | 1 | 99.7 |
    """
    columns = list(rows[0])
    lines = [columns, *([row.get(column, "") for column in columns] for row in rows)]
    told_lines = ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines]
    return "\n".join([told_lines[0], "|" + "---|" * len(columns), *told_lines[1:]])


def _with(net: Network, measured: Rows, energy: Measurement | None) -> Any:
    shared = _shared()(net)
    shared.measured, shared.energy = measured, energy
    return shared


@cache
def _shared() -> Any:
    """The class that huggingface_hub's mixin wants; made when it is first needed."""
    hub: Any = import_extra("huggingface_hub", "hub")
    mixin: Any = hub.ModelHubMixin

    class SharedNetwork(mixin):
        """A network and what its card tells."""

        def __init__(self, network: Any):  # the mixin would write further arguments to a config.json
            self.network, self.measured, self.energy = network, (), None

        def _save_pretrained(self, save_directory: Path) -> None:
            path = save_directory / FILE
            save(self.network, path)
            write_atomic(save_directory / "config.json", json.dumps({"library_name": "pmsm", "file": FILE}))
            write_atomic(save_directory / "README.md", card(self.network, path, self.measured, self.energy))

        @classmethod
        def _from_pretrained(cls, *, model_id: str, **options: Any) -> "SharedNetwork":
            if Path(model_id).is_dir():
                return cls(load(Path(model_id) / FILE))
            return cls(load(hub.hf_hub_download(model_id, FILE, **options)))

    return SharedNetwork
