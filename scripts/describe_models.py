"""Write the summary beside each shipped model's weights, so that the app opens without torch.

python scripts/describe_models.py
"""

from __future__ import annotations

import json
import tempfile

from psvit_core.files import write_text
from psvit_core.jobs.tasks import Engine, Subject, summarize_model
from psvit_core.store import Store
from psvit_core.zoo.cards import WEIGHTS, list_models, model_card


def main() -> None:
    """Describe every registered model that ships with weights."""
    for name in list_models():
        if model_card(name).weights is None:
            continue
        with tempfile.TemporaryDirectory() as folder:
            summary = summarize_model(Engine(Subject(model=name), Store(folder)))
        text = json.dumps(summary.to_dict(), separators=(",", ":"))
        write_text(WEIGHTS / f"{name}.summary.json", text + "\n")


if __name__ == "__main__":
    main()
