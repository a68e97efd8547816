"""Facts to edit (first version)."""


class Fact: ...


class FactSet: ...


def facts(source: str) -> FactSet:
    """Read facts."""
    raise NotImplementedError(source)
