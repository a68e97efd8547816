"""What the harness calls in a notebook's kernel, before anything else."""

import json
from pathlib import Path

from tests.notebooks.mutations import MUTATIONS, patch


def start(name: str, record: str) -> None:
    """Break ketools by the mutation `name` ("" for none) and write every claim's outcome to the file `record`.

    A claim that fails does not stop the notebook: later ones are wanted too.
    """
    for mutation in MUTATIONS:
        if mutation.name == name:
            mutation.apply()

    from ketools.course.claims import ClaimError

    def make(old):
        def noted(claim, observed, **bounds):
            try:
                said = old(claim, observed, **bounds)
            except ClaimError as error:
                said = str(error)
            with Path(record).open("a", encoding="utf-8") as file:
                file.write(
                    json.dumps({"claim": claim, "holds": said.startswith("holds"), "observed": float(observed)}) + "\n"
                )
            return said

        return noted

    patch("ketools.course.claims:check_claim", make)
