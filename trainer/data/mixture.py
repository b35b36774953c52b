"""Several sources at once, each with its share of the samples: `data=mixture`.

data.sources.books.source=text data.sources.books.path='books/*.txt' data.sources.books.weight=0.7
data.sources.web.source=text   data.sources.web.path='web/*.txt.gz'  data.sources.web.weight=0.3
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from trainer.choices import ConfigError, choice, identity
from trainer.data.apportioning import LONGEST, whole_parts
from trainer.data.defining import checked_name, defined, in_full
from trainer.data.sources import Data, Source


@dataclass(frozen=True)
class Portion:
    """One source of a mixture. share: its part of the samples, in whole parts of the shares of all."""

    name: str
    share: int
    data: Source | Mixture


@choice
class Mixture(Data):
    """Several sources, each with its share of the samples."""

    name: str = "mixture"
    sources: dict[str, Any] = identity(default_factory=dict, help="sources.<name>.{source, weight, and the options of that source}")

    def check(self) -> None:
        super().check()
        if self.shots is not None:
            raise ConfigError(f"data.shots: {self.shots} with data=mixture; a few examples are drawn of one source: choose one")
        if not self.sources:
            raise ConfigError(
                "data.sources: missing; data=mixture needs data.sources.NAME.source=text, data.sources.NAME.weight=0.7 and the options of "
                "that source, for each of them"
            )
        for name in self.sources:
            checked_name(name, "data.sources")
        # By name: which was typed first decides nothing. In full: what was frozen stays, should a default ever change.
        built = {name: defined(self.sources[name], f"data.sources.{name}", own=("weight",)) for name in sorted(self.sources)}
        weights = {name: weight_of(self.sources[name].get("weight"), f"data.sources.{name}.weight") for name in built}
        self.sources = {name: in_full(data) | {"weight": self.sources[name]["weight"]} for name, data in built.items()}
        self._refuse_repeated()
        shares = whole_parts(list(weights.values()))
        if sum(shares) > LONGEST:
            fewer = ", ".join(f"{name} {float(weight / sum(weights.values())):.3g}" for name, weight in weights.items())
            raise ConfigError(
                f"data.sources: weights as fine as these repeat after {sum(shares):,} samples; at most {LONGEST:,}; "
                f"give fewer digits, e.g. {fewer}"
            )
        self._portions = [Portion(name, share, data) for (name, data), share in zip(built.items(), shares, strict=True)]  # type: ignore[arg-type]

    def _refuse_repeated(self) -> None:
        seen: dict[str, str] = {}
        for name, options in self.sources.items():
            text = repr(sorted((key, value) for key, value in options.items() if key != "weight"))
            if text in seen:
                raise ConfigError(f"data.sources.{name}: the same source as data.sources.{seen[text]}; keep one of them, with both weights")
            seen[text] = name

    @property
    def portions(self) -> list[Portion]:
        """Its sources, by name."""
        return self._portions


def weight_of(value: Any, key: str) -> Fraction:
    """A weight, exactly as it was written: 0.7, 3, "1/3". Raises ConfigError where it is none."""
    allowed = "a number above 0, such as 0.7, 3 or 1/3; only the ratio of the weights counts"
    if value is None:
        raise ConfigError(f"{key}: missing; allowed: {allowed}")
    try:
        weight = Fraction(str(value)) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else Fraction(-1)
    except (ValueError, ZeroDivisionError):
        weight = Fraction(-1)
    if weight <= 0:
        raise ConfigError(f"{key}: {value}; allowed: {allowed}" + ("; leave the source out instead" if weight == 0 else ""))
    return weight


def leaves(data: Data, key: str = "data", name: str = "", share: Fraction = Fraction(1)) -> Iterator[tuple[str, str, Fraction, Source]]:
    """The sources that hold text: name (`web.en`; "" where there is only one), dotted key of its options, share of the samples, itself."""
    if isinstance(data, Source):
        yield name, key, share, data
        return
    assert isinstance(data, Mixture)
    whole = sum(portion.share for portion in data.portions)
    for portion in data.portions:
        inner = f"{name}.{portion.name}".removeprefix(".")
        yield from leaves(portion.data, f"{key}.sources.{portion.name}", inner, share * Fraction(portion.share, whole))


def sources_of(data: Data, key: str = "data", name: str = "") -> dict[str, str]:
    """Every name in a mixture, those of mixtures inside it too, and where its options stand: `web.en` → `data.sources.web.sources.en`."""
    found: dict[str, str] = {}
    for portion in data.portions if isinstance(data, Mixture) else []:
        inner, where = f"{name}.{portion.name}".removeprefix("."), f"{key}.sources.{portion.name}"
        found |= {inner: where} | sources_of(portion.data, where, inner)
    return found
