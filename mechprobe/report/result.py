"""Typed content of ``report.json``, from which the HTML and Markdown pages are rendered.

A page is a list of sections, and everything that a section shows is in its fields, so that every number of a page is in
``report.json``. Cells are text that is already formatted by `mechprobe.formatting`. A mapping typed `JsonObject` is copied
unchanged from the result file of another stage. Text between backticks is code.
"""

from collections.abc import Callable
from typing import Any

from pydantic import Field, model_serializer

from mechprobe.results import Result

JsonObject = dict[str, Any]


class Picture(Result):
    """A figure by its name in ``figures/``, and what its caption says."""

    name: str
    title: str
    caption: str


class Table(Result):
    """A table with its notes; a folded one is closed until it is opened."""

    title: str
    head: list[str]
    rows: list[list[str]]
    notes: list[str] = Field(default_factory=list)
    folded: bool = True
    chosen: list[int] = Field(default_factory=list)
    """Rows that are set off from the others."""


class TokenRun(Result):
    """One token and its activation, or adjacent tokens without activation."""

    tokens: tuple[str, ...]
    shade: int = 0
    """0 for no activation, else 1 to `mechprobe.report.sections.contexts.N_SHADES`."""
    peak: bool = False
    """Whether the context was chosen for this token."""
    value: str = ""

    @property
    def unmarked(self) -> bool:
        """Whether the tokens are drawn as plain text."""
        return self.shade == 0 and not self.peak


class ContextLine(Result):
    """One context under one read-out: ``joint``, or the name of a model."""

    name: str
    runs: list[TokenRun]
    largest: str


class FeatureContexts(Result):
    """The contexts in which one feature is most active; each has one line per read-out."""

    title: str
    untrusted: bool
    contexts: list[list[ContextLine]]


class Term(Result):
    """A term and its definition."""

    id: str
    title: str
    text: str


class Link(Result):
    """A further page with more about a section."""

    text: str
    href: str


class Section(Result):
    """A section of a page.

    Attributes:
        id: Its fragment.
        title: Heading.
        says: What the section says, as one plain sentence; empty if its stage has not run.
        command: Makes its stage where that has not run; else empty.
        interrupted: Whether that stage was begun and not finished.
        untrusted: Whether the crosscoder did not pass the quality gate, so that its features prove nothing.
        paragraphs: Text before the figures; ``notes`` follow them.
        contexts: Examples of features.
        parts: Sections inside this one, folded.
        links: Further pages.
    """

    id: str
    title: str
    says: str = ""
    command: str = ""
    interrupted: bool = False
    untrusted: bool = False
    paragraphs: list[str] = Field(default_factory=list)
    pictures: list[Picture] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)
    tables: list[Table] = Field(default_factory=list)
    contexts: list[FeatureContexts] = Field(default_factory=list)
    parts: list["Section"] = Field(default_factory=list)
    links: list[Link] = Field(default_factory=list)


class Page(Result):
    """A page beside ``index.html``."""

    title: str
    intro: list[str]
    sections: list[Section]


class KeyNumber(Result):
    """One of the three numbers of the first screen: what it is, its value, and its interval, n and scale."""

    label: str
    value: str
    details: list[str]


class Gate(Result):
    """The quality gate of the crosscoder: ``passed``, ``failed`` or ``not judged``, and its values beside their thresholds."""

    state: str
    values: list[str]


class Answer(Result):
    """The answer to one question of a reader, as one or more sentences."""

    question: str
    sentences: list[str]


class FirstScreen(Result):
    """What the first screen says: one sentence, one figure, three numbers and the quality gate; then five answers."""

    sentence: str
    figure: Picture | None
    numbers: list[KeyNumber]
    gate: Gate
    answers: list[Answer]


class FeatureRow(Result):
    """Statistics of one feature. Lists have one cell per model, or per tuned model."""

    feature: int
    class_: str = Field(alias="class")
    mas: list[str]
    nrn: list[str]
    density: list[str]
    nu: list[str]
    cosine: list[str]
    shift: list[str]


class EffectPanel(Result):
    """One edit of the selected set with its controls: changes of accuracy by task."""

    title: str
    model: str
    edit: str
    condition: JsonObject
    selected: JsonObject
    """With intervals."""
    random: dict[str, list[float]]
    ceiling: dict[str, float] | None
    others: dict[str, dict[str, float]]
    """Kind of control → task → mean change."""
    labels: dict[str, str]
    """Kind of control → label that replaces the default one."""
    baseline: dict[str, float] | None = None
    """Under the forced prefix."""
    baseline_label: str | None = None

    @model_serializer(mode="wrap")
    def _without_missing_baseline(self, handler: Callable[[Any], JsonObject]) -> JsonObject:
        value = handler(self)
        return value if self.baseline is not None else {k: v for k, v in value.items() if not k.startswith("baseline")}


class MissingStage(Result):
    """A stage that is not finished, and the command that runs it."""

    name: str
    state: str
    command: str
    folder: str


class Drawn(Result):
    """A figure: its text alternative, and its files relative to the report folder."""

    name: str
    alt: str
    files: list[str]


class Report(Result):
    """Everything that the pages say."""

    name: str
    question: str
    verdict: str
    """The verdict on every main edit, in the words of the rule."""
    first: FirstScreen
    warnings: list[str]
    notes: list[str]
    sections: list[Section]
    pages: dict[str, Page] = Field(default_factory=dict)
    """File of a further page without its ending → its content."""
    missing: list[MissingStage]
    terms: list[Term]
    figures: list[Drawn] = Field(default_factory=list)

    def section(self, name: str) -> Section:
        """The section with an id, of the page or inside another section."""
        every = [each for section in self.sections for each in (section, *section.parts)]
        return next(each for each in every if each.id == name)

    def title_of(self, figure: str) -> str:
        """The title of a figure by its name."""
        sections = [*self.sections, *(section for page in self.pages.values() for section in page.sections)]
        pictures = [picture for section in sections for each in (section, *section.parts) for picture in each.pictures]
        pictures += [self.first.figure] if self.first.figure else []
        return next((picture.title for picture in pictures if picture.name == figure), figure)
